package directory

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"

	"cumulet.io/internal/problem"
	"cumulet.io/internal/sqldb"
	"cumulet.io/registry"
)

const accountColumns = `name, kind, platform, disabled, created`

func scanAccount(scan func(...any) error) (registry.Account, error) {
	var a registry.Account
	var platform string
	var disabled, created int64
	err := scan(&a.Name, &a.Kind, &platform, &disabled, &created)
	if platform != "" {
		a.Platform = strings.Split(platform, ",")
	}
	a.Disabled, a.Created = disabled != 0, instant(created)
	return a, err
}

// Account gives an account, or an error of class ErrNotFound.
func (s *Store) Account(ctx context.Context, name string) (*registry.Account, error) {
	a, _, err := s.account(ctx, name)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, noAccount(name)
	}
	return a, err
}

func noAccount(name string) error {
	return problem.New(problem.ErrNotFound, "there is no account %q", name)
}

func (s *Store) account(ctx context.Context, name string) (*registry.Account, string, error) {
	var hash string
	a, err := scanAccount(func(into ...any) error {
		return s.db.QueryRowContext(ctx, s.db.Q(`SELECT `+accountColumns+`, password FROM registry_accounts WHERE name = ?`), name).
			Scan(append(into, &hash)...)
	})
	if err != nil {
		return nil, "", fmt.Errorf("read account: %w", err)
	}
	return &a, hash, nil
}

// Accounts lists people and services, in byte order of their names, those after the name after. Robots are their orgs'
// own: see Robots.
func (s *Store) Accounts(ctx context.Context, after string, limit int) ([]registry.Account, error) {
	rows, err := s.db.QueryContext(ctx, s.db.Q(`SELECT `+accountColumns+` FROM registry_accounts WHERE kind <> ? AND `+s.bytewise("name")+` > ?
		ORDER BY `+s.bytewise("name")+` LIMIT ?`), registry.Robot, after, page(limit))
	return collect(rows, err, "list accounts", scanAccount)
}

// CreateAccount makes a person's or a service's account; ErrConflict when the name is taken.
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
	return s.change(ctx, createdAccount(a), func(tx *sql.Tx) error { return s.insertAccount(ctx, tx, a, hash) })
}

func createdAccount(a registry.Account) *registry.AuditEntry {
	return &registry.AuditEntry{Action: "account.create", Target: "account/" + a.Name, Detail: map[string]string{"kind": string(a.Kind)}}
}

// insertAccount keeps a valid account; with an empty hash no password lets it in.
func (s *Store) insertAccount(ctx context.Context, tx *sql.Tx, a registry.Account, hash string) error {
	_, err := tx.ExecContext(ctx, s.db.Q(`INSERT INTO registry_accounts (name, kind, password, platform, disabled, created) VALUES (?, ?, ?, ?, 0, ?)`),
		a.Name, a.Kind, hash, strings.Join(a.Platform, ","), s.now().UnixNano())
	if sqldb.IsUnique(err) {
		return problem.New(problem.ErrConflict, "the account %q exists", a.Name)
	}
	return wrap("create account", err)
}

func validateAccount(a registry.Account) error {
	if err := registry.ValidateAccount("name", a.Name); err != nil {
		return err
	}
	var may []string
	switch a.Kind {
	case registry.Person:
		may = []string{"admin", "operator"}
	case registry.Service:
		may = []string{"node", "operator", "meter"}
	default:
		return problem.Invalid("kind", "must be person or service", a.Kind)
	}
	for _, action := range a.Platform {
		if !slices.Contains(may, action) {
			return problem.Invalid("platform", fmt.Sprintf("must be of %s for a %s", strings.Join(may, ", "), a.Kind), action)
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
	if account.Kind == registry.Robot {
		return problem.New(problem.ErrInvalid, "a robot has no password: rotate its secret")
	}
	if err := registry.ValidatePassword("password", account.Kind, password); err != nil {
		return err
	}
	hash, err := s.hash(ctx, password)
	if err != nil {
		return err
	}
	return s.change(ctx, &registry.AuditEntry{Action: "account.password", Target: "account/" + name}, func(tx *sql.Tx) error {
		res, err := tx.ExecContext(ctx, s.db.Q(`UPDATE registry_accounts SET password = ? WHERE name = ?`), hash, name)
		if err := oneRow(res, err, "there is no account %q", name); err != nil {
			return err
		}
		return s.revokeAll(ctx, tx, name)
	})
}

// revokeAll ends all offline tokens of an account.
func (s *Store) revokeAll(ctx context.Context, tx *sql.Tx, account string) error {
	_, err := tx.ExecContext(ctx, s.db.Q(`DELETE FROM registry_offline_tokens WHERE account = ?`), account)
	return wrap("revoke offline tokens", err)
}

// AccountPatch changes an account; nil stays.
type AccountPatch struct {
	// Disabled keeps it from logging in, and revokes its offline tokens.
	Disabled *bool
	// Platform replaces its platform actions.
	Platform *[]string
}

// UpdateAccount changes a person's or service's account. One administrator of the platform always remains.
func (s *Store) UpdateAccount(ctx context.Context, name string, p AccountPatch) (*registry.Account, error) {
	e := &registry.AuditEntry{Action: "account.update", Target: "account/" + name, Detail: map[string]string{}}
	err := s.change(ctx, e, func(tx *sql.Tx) error {
		a, err := s.lockAccount(ctx, tx, name)
		if err != nil {
			return err
		}
		before := *a
		if p.Disabled != nil {
			a.Disabled = *p.Disabled
			e.Detail["disabled"] = fmt.Sprint(a.Disabled)
		}
		if p.Platform != nil {
			a.Platform = *p.Platform
			e.Detail["platform"] = strings.Join(a.Platform, ",")
		}
		if err := validateAccount(*a); err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, s.db.Q(`UPDATE registry_accounts SET platform = ?, disabled = ? WHERE name = ?`),
			strings.Join(a.Platform, ","), number(a.Disabled), name); err != nil {
			return wrap("update account", err)
		}
		if a.Disabled {
			if err := s.revokeAll(ctx, tx, name); err != nil {
				return err
			}
		}
		return s.anAdminRemains(ctx, tx, before)
	})
	if err != nil {
		return nil, err
	}
	return s.Account(ctx, name)
}

// lockAccount reads a person's or service's account for a change by this transaction alone.
func (s *Store) lockAccount(ctx context.Context, tx *sql.Tx, name string) (*registry.Account, error) {
	res, err := tx.ExecContext(ctx, s.db.Q(`UPDATE registry_accounts SET created = created WHERE name = ? AND kind <> ?`), name, registry.Robot)
	if err := oneRow(res, err, "there is no account %q", name); err != nil {
		return nil, err
	}
	a, err := scanAccount(tx.QueryRowContext(ctx, s.db.Q(`SELECT `+accountColumns+` FROM registry_accounts WHERE name = ?`), name).Scan)
	return &a, wrap("read account", err)
}

// admins counts the people who administer the platform.
const admins = `SELECT count(*) FROM registry_accounts WHERE kind = 'person' AND disabled = 0 AND (',' || platform || ',') LIKE '%,admin,%'`

// anAdminRemains tells by its error whether a change has taken the platform's last administrator; before is the account
// as it was.
func (s *Store) anAdminRemains(ctx context.Context, tx *sql.Tx, before registry.Account) error {
	if before.Disabled || !slices.Contains(before.Platform, "admin") {
		return nil
	}
	var left int
	if err := tx.QueryRowContext(ctx, admins).Scan(&left); err != nil {
		return fmt.Errorf("count administrators: %w", err)
	}
	if left == 0 {
		return problem.New(problem.ErrConflict, "the platform would have no administrator")
	}
	return nil
}

// DeleteAccount removes a person's or service's account with its memberships, grants, keys and tokens. ErrConflict
// while it is an org's only owner.
func (s *Store) DeleteAccount(ctx context.Context, name string) error {
	return s.change(ctx, &registry.AuditEntry{Action: "account.delete", Target: "account/" + name}, func(tx *sql.Tx) error {
		a, err := s.lockAccount(ctx, tx, name)
		if err != nil {
			return err
		}
		var org string
		err = tx.QueryRowContext(ctx, s.db.Q(`SELECT org FROM registry_members m WHERE account = ? AND role = ? AND NOT EXISTS
			(SELECT 1 FROM registry_members o WHERE o.org = m.org AND o.role = m.role AND o.account <> m.account) ORDER BY org LIMIT 1`),
			name, registry.RoleOwner).Scan(&org)
		if err == nil {
			return problem.New(problem.ErrConflict, "%q is the only owner of the organisation %q: make another, or delete it", name, org)
		}
		if !errors.Is(err, sql.ErrNoRows) {
			return fmt.Errorf("delete account: %w", err)
		}
		for _, statement := range []string{`DELETE FROM registry_grants WHERE subject = 'account/' || ?`, `DELETE FROM registry_accounts WHERE name = ?`} {
			if _, err := tx.ExecContext(ctx, s.db.Q(statement), name); err != nil {
				return fmt.Errorf("delete account: %w", err)
			}
		}
		return s.anAdminRemains(ctx, tx, *a)
	})
}

// HasPassword tells whether a password lets an account in.
func (s *Store) HasPassword(ctx context.Context, name string) (bool, error) {
	_, hash, err := s.account(ctx, name)
	if errors.Is(err, sql.ErrNoRows) {
		return false, noAccount(name)
	}
	return hash != "", err
}
