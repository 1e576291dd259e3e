// Package store keeps the record of every instance and its events, durably, on SQLite or PostgreSQL.
//
// Every change gets a number from one sequence in the transaction that makes it, so a reader that has seen number n has
// missed nothing below. Concurrent writes share a commit. Live instances are also kept in memory, and watchers are
// told of changes from there; a watcher that falls behind reads the tables. Specs hold tenants' secrets: they are
// sealed at rest and redacted in what this package answers, except to All and Live, which are for the engine.
//
// One process works on a store at a time. The package knows nothing of engines, quota or HTTP.
package store

import (
	"context"
	"crypto/rand"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"cumulet.io/billing"
	"cumulet.io/cis"
	"cumulet.io/cis/sandbox"
	"cumulet.io/internal/problem"
	"cumulet.io/internal/sqldb"
)

//go:embed migrations/*.sql
var migrations embed.FS

// Config is what a store needs.
type Config struct {
	// DB is the database. The store's tables begin with cis_. Closing it is the caller's.
	DB *sqldb.DB
	// Key seals specs. A store opens with the key it was made with alone.
	Key Key
	// Now is the clock; nil means time.Now.
	Now func() time.Time
	// Logger is told of faults that no caller hears of; nil means slog.Default.
	Logger *slog.Logger
}

// Usage is what live instances take together: of an org their sizes, of all orgs with what their sandboxes take beside.
type Usage struct {
	Instances, MilliCPU, MemoryMiB int64
}

func (u *Usage) add(s billing.Size, sign int64) {
	u.Instances += sign
	u.MilliCPU += sign * s.MilliCPU
	u.MemoryMiB += sign * s.MemoryMiB
}

// Store keeps instances. Safe for concurrent use. Its errors are of problem's classes, or faults of the database.
type Store struct {
	cfg  Config
	db   *sqldb.DB
	seal *sealer
	name string // random, part of every cursor

	queueMu sync.Mutex
	queue   []*write
	led     bool

	stmts map[string]*sql.Stmt // by statement, not changed after Open

	mu    sync.RWMutex
	live  map[string]*entry // by id
	usage map[string]Usage  // by org, of live
	total Usage

	quotas  map[string]cis.Quota // by org, as set; under mu
	quotaMu sync.Mutex

	// published is the version up to which everything is committed and in the cache; pruned the highest removed one.
	published, pruned atomic.Int64

	feedMu sync.Mutex
	feeds  map[string]map[*feed]struct{} // by org
}

// entry is one instance as cached. It is never changed, only replaced.
type entry struct {
	in     *cis.Instance // with secrets
	public *cis.Instance // redacted
	size   billing.Size
	status string // in.Status as stored
}

// held is what the instance takes of its machine: its size and what its sandbox takes beside.
func (e *entry) held() billing.Size {
	class := e.in.Status.SandboxClass
	if class == "" {
		class = e.in.Spec.Sandbox
	}
	return sandbox.OverheadOf(class, e.size).On(e.size)
}

// Open prepares the database and reads the live instances.
func Open(ctx context.Context, cfg Config) (*Store, error) {
	if cfg.DB == nil {
		return nil, errors.New("open instance store: no database")
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	seal, err := newSealer(cfg.Key)
	if err != nil {
		return nil, fmt.Errorf("open instance store: %w", err)
	}
	s := &Store{cfg: cfg, db: cfg.DB, seal: seal, stmts: map[string]*sql.Stmt{}, live: map[string]*entry{},
		usage: map[string]Usage{}, quotas: map[string]cis.Quota{}, feeds: map[string]map[*feed]struct{}{}}
	if err := s.db.Migrate(ctx, "cis", migrations, "migrations"); err != nil {
		return nil, fmt.Errorf("open instance store: %w", err)
	}
	if err := s.openMeta(ctx); err != nil {
		return nil, fmt.Errorf("open instance store: %w", err)
	}
	if err := s.load(ctx); err != nil {
		return nil, fmt.Errorf("open instance store: %w", err)
	}
	if err := s.loadQuotas(ctx); err != nil {
		return nil, fmt.Errorf("open instance store: %w", err)
	}
	if err := s.prepare(ctx); err != nil {
		return nil, fmt.Errorf("open instance store: %w", err)
	}
	return s, nil
}

// Close frees what the store holds of the database, not the database. Nothing may be under way.
func (s *Store) Close() error {
	var err error
	for _, st := range s.stmts {
		err = errors.Join(err, st.Close())
	}
	return err
}

const keyProof = "cumulet cis instance store"

// openMeta makes the rows of cis_meta when they are missing, and checks the key by them.
func (s *Store) openMeta(ctx context.Context) error {
	return s.db.InTx(ctx, func(tx *sql.Tx) error {
		for _, row := range []struct {
			name string
			data []byte
		}{
			{"version", nil}, {"pruned", nil},
			{"store", []byte(strings.ToLower(rand.Text()[:8]))},
			{"key", s.seal.seal("key", []byte(keyProof))},
		} {
			if _, err := tx.ExecContext(ctx, s.db.Q(`INSERT INTO cis_meta (name, value, data) VALUES (?, 0, ?) ON CONFLICT (name) DO NOTHING`),
				row.name, row.data); err != nil {
				return err
			}
		}
		var (
			version, pruned int64
			name, proof     []byte
		)
		get := func(row string, value *int64, data *[]byte) error {
			return tx.QueryRowContext(ctx, s.db.Q(`SELECT value, data FROM cis_meta WHERE name = ?`), row).Scan(value, data)
		}
		var none []byte
		var zero int64
		if err := errors.Join(get("version", &version, &none), get("pruned", &pruned, &none),
			get("store", &zero, &name), get("key", &zero, &proof)); err != nil {
			return err
		}
		if text, err := s.seal.open("key", proof); err != nil || string(text) != keyProof {
			return errors.New("the key file is not the one that this store was made with")
		}
		s.name = string(name)
		s.published.Store(version)
		s.pruned.Store(pruned)
		return nil
	})
}

func (s *Store) load(ctx context.Context) error {
	rows, err := s.db.QueryContext(ctx, `SELECT `+instanceColumns+` FROM cis_instances WHERE final_at = 0`)
	if err != nil {
		return err
	}
	defer rows.Close() //nolint:errcheck // Err is checked
	for rows.Next() {
		e, err := s.scan(rows)
		if err != nil {
			return err
		}
		s.replace(nil, e)
	}
	return rows.Err()
}

// replace puts e in the place of old in the cache; mu is held, or nobody else knows the store yet.
func (s *Store) replace(old, e *entry) {
	org, id := e.in.Org, e.in.ID
	u := s.usage[org]
	if old != nil {
		u.add(old.size, -1)
		s.total.add(old.held(), -1)
	}
	if e.in.Status.Phase.Final() {
		delete(s.live, id)
	} else {
		s.live[id] = e
		u.add(e.size, 1)
		s.total.add(e.held(), 1)
	}
	if u == (Usage{}) {
		delete(s.usage, org)
	} else {
		s.usage[org] = u
	}
}

func (s *Store) cached(id string) *entry {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.live[id]
}

// Live gives a live instance with its secrets, for the engine; nil when there is none. It must not be changed.
func (s *Store) Live(id string) *cis.Instance {
	if e := s.cached(id); e != nil {
		return e.in
	}
	return nil
}

// All gives every live instance with its secrets, for the engine, oldest first. They must not be changed.
func (s *Store) All() []*cis.Instance {
	s.mu.RLock()
	all := make([]*cis.Instance, 0, len(s.live))
	for _, e := range s.live {
		all = append(all, e.in)
	}
	s.mu.RUnlock()
	slices.SortFunc(all, func(a, b *cis.Instance) int {
		if c := a.CreatedAt.Compare(b.CreatedAt); c != 0 {
			return c
		}
		return strings.Compare(a.ID, b.ID)
	})
	return all
}

// StatusJSON gives the stored status of a live instance as JSON, "" when it is not live.
func (s *Store) StatusJSON(id string) string {
	if e := s.cached(id); e != nil {
		return e.status
	}
	return ""
}

// Usage tells what an org's live instances take, and all together.
func (s *Store) Usage(org string) (ofOrg, total Usage) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.usage[org], s.total
}

func notFound(id string) error {
	return problem.New(problem.ErrNotFound, "there is no instance %q here", cut(id, 64))
}
