// Package directory keeps accounts, organisations, memberships, repositories and offline tokens in a database: SQLite
// or PostgreSQL, through internal/sqldb.
//
// It decides who someone is and what role they have. What a role may do is in package registry; tokens are made in
// registry/token. It serves no HTTP.
package directory

import (
	"cmp"
	"context"
	"crypto/rand"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"strings"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"

	"cumulet.io/internal/problem"
	"cumulet.io/internal/sqldb"
	"cumulet.io/registry"
)

//go:embed migrations/*.sql
var migrations embed.FS

// Config is for Open. The zero value is right for production.
type Config struct {
	// Cost is for hashes made from now on.
	Cost HashCost
	// Now is the clock; nil is time.Now.
	Now func() time.Time
	// Quota is of orgs that have none of their own; zero is no bound.
	Quota registry.Quota
	// AuditRetention is how long audit entries are kept; 0 is a year.
	AuditRetention time.Duration
	// Outbox is given an event for each change of who may what; nil is nobody.
	Outbox registry.Outbox
	// Logger is for what goes wrong after a change is made; nil is slog.Default.
	Logger *slog.Logger
}

// Store is the directory. Safe for concurrent use, also by several processes on one PostgreSQL database.
type Store struct {
	db   *sqldb.DB
	cost HashCost
	now  func() time.Time
	// decoy is checked in place of a missing account's hash, so that both take as long.
	decoy    string
	throttle *throttle
	// hashing bounds how many passwords are hashed at once, and with it memory.
	hashing chan struct{}
	// stripes let one client's tries at one name pass one at a time.
	stripes [64]chan struct{}
	// proven remembers passwords that were just found right, as a keyed digest together with the stored hash, so that
	// a client that asks for many tokens costs one hash.
	proven   *lru.Cache[string, proof]
	proveKey [32]byte
	// byName orders names by bytes on either dialect.
	byName string

	quota          registry.Quota
	auditRetention time.Duration
	denials        *denials
	outbox         registry.Outbox
	log            *slog.Logger
}

// Open brings the schema up to date and gives the directory on db. The caller keeps db open, and closes it later.
func Open(ctx context.Context, db *sqldb.DB, cfg Config) (*Store, error) {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Cost.MemoryKiB == 0 {
		cfg.Cost.MemoryKiB = 19456
	}
	if cfg.Cost.Passes == 0 {
		cfg.Cost.Passes = 2
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	s := &Store{db: db, cost: cfg.Cost, now: cfg.Now, hashing: make(chan struct{}, max(2, runtime.GOMAXPROCS(0))), byName: "name",
		quota: cfg.Quota, auditRetention: cmp.Or(cfg.AuditRetention, 365*24*time.Hour), outbox: cfg.Outbox, log: cfg.Logger}
	if db.Dialect == sqldb.Postgres {
		s.byName = `name COLLATE "C"`
	}
	for i := range s.stripes {
		s.stripes[i] = make(chan struct{}, 1)
	}
	if err := db.Migrate(ctx, "registry", migrations, "migrations"); err != nil {
		return nil, fmt.Errorf("open directory: %w", err)
	}
	var err error
	if s.decoy, err = hashPassword(rand.Text(), cfg.Cost); err != nil {
		return nil, fmt.Errorf("open directory: %w", err)
	}
	if s.proven, err = lru.New[string, proof](maxProven); err != nil {
		return nil, fmt.Errorf("open directory: %w", err)
	}
	if s.throttle, err = newThrottle(cfg.Now); err != nil {
		return nil, fmt.Errorf("open directory: %w", err)
	}
	if s.denials, err = newDenials(cfg.Now); err != nil {
		return nil, fmt.Errorf("open directory: %w", err)
	}
	if _, err := rand.Read(s.proveKey[:]); err != nil {
		return nil, fmt.Errorf("open directory: %w", err)
	}
	return s, nil
}

// Account gives an account, or an error of class ErrNotFound.
func (s *Store) Account(ctx context.Context, name string) (*registry.Account, error) {
	a, _, err := s.account(ctx, name)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, problem.New(problem.ErrNotFound, "there is no account %q", name)
	}
	return a, err
}

func (s *Store) account(ctx context.Context, name string) (a *registry.Account, hash string, err error) {
	a = &registry.Account{Name: name}
	var platform string
	err = s.db.QueryRowContext(ctx, s.db.Q(`SELECT kind, password, platform FROM registry_accounts WHERE name = ?`), name).
		Scan(&a.Kind, &hash, &platform)
	if err != nil {
		return nil, "", fmt.Errorf("read account: %w", err)
	}
	if platform != "" {
		a.Platform = strings.Split(platform, ",")
	}
	return a, hash, nil
}

// CreateAccount makes an account; ErrConflict when the name is taken.
func (s *Store) CreateAccount(ctx context.Context, a registry.Account, password string) error {
	if err := validateAccount(a); err != nil {
		return err
	}
	if err := registry.ValidatePassword("password", a.Kind, password); err != nil {
		return err
	}
	hash, err := s.hash(ctx, password)
	if err != nil {
		return err
	}
	_, err = s.db.ExecContext(ctx, s.db.Q(`INSERT INTO registry_accounts (name, kind, password, platform, created) VALUES (?, ?, ?, ?, ?)`),
		a.Name, a.Kind, hash, strings.Join(a.Platform, ","), s.now().UnixNano())
	if sqldb.IsUnique(err) {
		return problem.New(problem.ErrConflict, "the account %q exists", a.Name)
	}
	if err != nil {
		return fmt.Errorf("create account: %w", err)
	}
	return nil
}

func validateAccount(a registry.Account) error {
	if err := registry.ValidateAccount("name", a.Name); err != nil {
		return err
	}
	switch {
	case a.Kind != registry.Person && a.Kind != registry.Service:
		return problem.Invalid("kind", "must be person or service", a.Kind)
	case a.Kind == registry.Person && len(a.Platform) > 0:
		return problem.Invalid("platform", "is for service accounts only", strings.Join(a.Platform, ","))
	}
	for _, action := range a.Platform {
		if action != "node" && action != "operator" && action != "meter" {
			return problem.Invalid("platform", "must be of node, operator, meter", action)
		}
	}
	return nil
}

// SetPassword changes a password and revokes the account's offline tokens.
func (s *Store) SetPassword(ctx context.Context, name, password string) error {
	account, err := s.Account(ctx, name)
	if err != nil {
		return err
	}
	if err := registry.ValidatePassword("password", account.Kind, password); err != nil {
		return err
	}
	hash, err := s.hash(ctx, password)
	if err != nil {
		return err
	}
	return s.db.InTx(ctx, func(tx *sql.Tx) error {
		res, err := tx.ExecContext(ctx, s.db.Q(`UPDATE registry_accounts SET password = ? WHERE name = ?`), hash, name)
		if err := oneRow(res, err, "there is no account %q", name); err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, s.db.Q(`DELETE FROM registry_offline_tokens WHERE account = ?`), name); err != nil {
			return fmt.Errorf("revoke offline tokens: %w", err)
		}
		return nil
	})
}

// CreateOrg makes an org with its first owner; ErrConflict when the name is taken.
func (s *Store) CreateOrg(ctx context.Context, org, owner string) error {
	if err := registry.ValidateOrg("org", org); err != nil {
		return err
	}
	return s.db.InTx(ctx, func(tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, s.db.Q(`INSERT INTO registry_orgs (name, created) VALUES (?, ?)`), org, s.now().UnixNano())
		if sqldb.IsUnique(err) {
			return problem.New(problem.ErrConflict, "the organisation %q exists", org)
		}
		if err != nil {
			return fmt.Errorf("create organisation: %w", err)
		}
		return s.setMember(ctx, tx, org, owner, registry.RoleOwner)
	})
}

// SetMember gives a person a role in an org, or with RoleNone takes it away; idempotent. An org keeps an owner.
func (s *Store) SetMember(ctx context.Context, org, account string, role registry.Role) error {
	if role != registry.RoleNone && !role.Valid() {
		return problem.Invalid("role", "must be owner, admin, writer or reader", role)
	}
	return s.db.InTx(ctx, func(tx *sql.Tx) error {
		var one int
		// The row is written first: it locks the org, so that two owners cannot leave at the same time.
		res, err := tx.ExecContext(ctx, s.db.Q(`UPDATE registry_orgs SET created = created WHERE name = ?`), org)
		if err := oneRow(res, err, "there is no organisation %q", org); err != nil {
			return err
		}
		if err := s.setMember(ctx, tx, org, account, role); err != nil {
			return err
		}
		err = tx.QueryRowContext(ctx, s.db.Q(`SELECT 1 FROM registry_members WHERE org = ? AND role = ?`), org, registry.RoleOwner).Scan(&one)
		if errors.Is(err, sql.ErrNoRows) {
			return problem.New(problem.ErrConflict, "the organisation %q would have no owner", org)
		}
		if err != nil {
			return fmt.Errorf("set member: %w", err)
		}
		return nil
	})
}

func (s *Store) setMember(ctx context.Context, tx *sql.Tx, org, account string, role registry.Role) error {
	if role == registry.RoleNone {
		if _, err := tx.ExecContext(ctx, s.db.Q(`DELETE FROM registry_members WHERE account = ? AND org = ?`), account, org); err != nil {
			return fmt.Errorf("set member: %w", err)
		}
		return nil
	}
	var kind registry.Kind
	err := tx.QueryRowContext(ctx, s.db.Q(`SELECT kind FROM registry_accounts WHERE name = ?`), account).Scan(&kind)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return problem.New(problem.ErrNotFound, "there is no account %q", account)
	case err != nil:
		return fmt.Errorf("set member: %w", err)
	case kind != registry.Person:
		return problem.Invalid("account", "must be a person: a service account is no member", account)
	}
	_, err = tx.ExecContext(ctx, s.db.Q(`INSERT INTO registry_members (account, org, role) VALUES (?, ?, ?)
		ON CONFLICT (account, org) DO UPDATE SET role = excluded.role`), account, org, role)
	if err != nil {
		return fmt.Errorf("set member: %w", err)
	}
	return nil
}

// RoleOf gives an account's role in an org, RoleNone for a stranger and for an org that does not exist.
func (s *Store) RoleOf(ctx context.Context, account, org string) (registry.Role, error) {
	var role registry.Role
	err := s.db.QueryRowContext(ctx, s.db.Q(`SELECT role FROM registry_members WHERE account = ? AND org = ?`), account, org).Scan(&role)
	if errors.Is(err, sql.ErrNoRows) {
		return registry.RoleNone, nil
	}
	if err != nil {
		return registry.RoleNone, fmt.Errorf("read role: %w", err)
	}
	return role, nil
}

// Memberships gives all orgs of an account, by name.
func (s *Store) Memberships(ctx context.Context, account string) ([]registry.Membership, error) {
	rows, err := s.db.QueryContext(ctx, s.db.Q(`SELECT org, role FROM registry_members WHERE account = ? ORDER BY org`), account)
	if err != nil {
		return nil, fmt.Errorf("list memberships: %w", err)
	}
	defer rows.Close() //nolint:errcheck // Err tells
	var out []registry.Membership
	for rows.Next() {
		var m registry.Membership
		if err := rows.Scan(&m.Org, &m.Role); err != nil {
			return nil, fmt.Errorf("list memberships: %w", err)
		}
		out = append(out, m)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("list memberships: %w", err)
	}
	return out, nil
}

// oneRow turns an update that met no row into an error of class ErrNotFound.
func oneRow(res sql.Result, err error, format, name string) error {
	if err != nil {
		return fmt.Errorf("update: %w", err)
	}
	if n, err := res.RowsAffected(); err != nil {
		return fmt.Errorf("update: %w", err)
	} else if n == 0 {
		return problem.New(problem.ErrNotFound, format, name)
	}
	return nil
}
