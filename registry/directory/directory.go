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
	"fmt"
	"log/slog"
	"runtime"
	"sync"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"github.com/hashicorp/golang-lru/v2/simplelru"

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
	// GroupsFor is how long after a login with an identity what its groups gave stays; 0 is for ever.
	GroupsFor time.Duration
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
	decoy string
	// tracked is maxTracked.
	tracked int
	// hashing bounds how many passwords are hashed at once, and with it memory.
	hashing chan struct{}
	// stripes let one client's tries at one name pass one at a time.
	stripes [64]chan struct{}
	// proven remembers passwords that were just found right, as a keyed digest together with the stored hash, so that
	// a client that asks for many tokens costs one hash.
	proven   *lru.Cache[string, proof]
	proveKey [32]byte
	// codeTries bounds how many codes of logins by browser an address may try.
	codeMu    sync.Mutex
	codeTries *simplelru.LRU[string, *bucket]

	quota          registry.Quota
	auditRetention time.Duration
	groupsFor      time.Duration
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
	s := &Store{db: db, cost: cfg.Cost, now: cfg.Now, tracked: maxTracked, hashing: make(chan struct{}, max(2, runtime.GOMAXPROCS(0))),
		quota: cfg.Quota, auditRetention: cmp.Or(cfg.AuditRetention, 365*24*time.Hour), groupsFor: cfg.GroupsFor, outbox: cfg.Outbox, log: cfg.Logger}
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
	if s.codeTries, err = simplelru.NewLRU[string, *bucket](maxAddresses, nil); err != nil {
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

// bytewise is a column that is compared and ordered by bytes on either dialect.
func (s *Store) bytewise(column string) string {
	if s.db.Dialect == sqldb.Postgres {
		return column + ` COLLATE "C"`
	}
	return column
}

// page bounds a listing's limit.
func page(limit int) int { return min(max(limit, 1), MaxPage) }

// stamp and instant turn a time into nanoseconds and back; the zero time is 0.
func stamp(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}

func instant(ns int64) time.Time {
	if ns == 0 {
		return time.Time{}
	}
	return time.Unix(0, ns).UTC()
}

// collect reads all rows of a query by scan.
func collect[T any](rows *sql.Rows, err error, operation string, scan func(func(...any) error) (T, error)) ([]T, error) {
	if err != nil {
		return nil, fmt.Errorf("%s: %w", operation, err)
	}
	defer rows.Close() //nolint:errcheck // Err tells
	out := []T{}
	for rows.Next() {
		one, err := scan(rows.Scan)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", operation, err)
		}
		out = append(out, one)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("%s: %w", operation, err)
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
