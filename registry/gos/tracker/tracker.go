// Package tracker is the memory of the global object storage: which digest is stored where, until when it must not be
// collected, and the small files of the distribution core's layout. It is tables in SQLite or PostgreSQL, through
// internal/sqldb; a commit is one transaction.
//
// It touches no object: it says which keys are garbage, and a region's sweeper deletes them. A region keeps a replica of
// the tracker, fed by Changes and Apply, from which it reads when the tracker does not answer.
package tracker

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	"cumulet.io/internal/problem"
	"cumulet.io/internal/sqldb"
)

//go:embed migrations/*.sql
var migrations embed.FS

// Config is for Open. The zero value is right for production.
type Config struct {
	// Lease is how long a blob is kept after it was pushed, mounted or asked for, whether anything links to it or not;
	// 0 is a day. A read is safe for half of it without asking again.
	Lease time.Duration
	// Timeout bounds one call; 0 is 20 s.
	Timeout time.Duration
	// Now is the clock; nil is time.Now. All nodes' clocks must agree to well under half a lease.
	Now func() time.Time
	// Late is for a database that may be out of reach now: the first call that reaches it brings the schema up to date,
	// and until then calls are refused as problem.ErrUnavailable.
	Late bool
}

// Tracker is the tables. Safe for concurrent use, also by several processes. Errors are problem.ErrNotFound,
// problem.ErrConflict, the caller's context's, and problem.ErrUnavailable for whatever else goes wrong.
type Tracker struct {
	db      *sqldb.DB
	lease   time.Duration
	timeout time.Duration
	now     func() time.Time
	// writing lets one writer at a time at SQLite, each in its turn: SQLite's own waiting is not fair, and starves some of
	// many. nil on PostgreSQL.
	writing chan struct{}
	// bytewise orders paths by bytes on either dialect.
	bytewise string
	// migrating lets one bring the schema up to date, which current then says it is.
	migrating chan struct{}
	current   atomic.Bool
}

// Open brings the schema up to date, unless it is to be done later. The caller keeps db open, and closes it later.
func Open(ctx context.Context, db *sqldb.DB, cfg Config) (*Tracker, error) {
	t := &Tracker{db: db, lease: cfg.Lease, timeout: cfg.Timeout, now: cfg.Now}
	if t.lease <= 0 {
		t.lease = 24 * time.Hour
	}
	if t.timeout <= 0 {
		t.timeout = 20 * time.Second
	}
	if t.now == nil {
		t.now = time.Now
	}
	t.migrating = make(chan struct{}, 1)
	switch db.Dialect {
	case sqldb.SQLite:
		t.writing = make(chan struct{}, 1)
	case sqldb.Postgres:
		t.bytewise = ` COLLATE "C"`
	}
	if cfg.Late {
		return t, nil
	}
	if err := t.migrate(ctx); err != nil {
		return nil, err
	}
	return t, nil
}

// migrate brings the schema up to date, once.
func (t *Tracker) migrate(ctx context.Context) error {
	if t.current.Load() {
		return nil
	}
	select {
	case t.migrating <- struct{}{}:
		defer func() { <-t.migrating }()
	case <-ctx.Done():
		return ctx.Err()
	}
	if t.current.Load() {
		return nil
	}
	if err := t.db.Migrate(ctx, "gos", migrations, "migrations"); err != nil {
		return err
	}
	if t.db.Dialect == sqldb.Postgres {
		if _, err := t.db.ExecContext(ctx, `CREATE INDEX IF NOT EXISTS gos_files_bytewise ON gos_files (path COLLATE "C")`); err != nil && !sqldb.IsUnique(err) {
			return fmt.Errorf("migrate gos: %w", err)
		}
	}
	t.current.Store(true)
	return nil
}

// Lease is the configured lease.
func (t *Tracker) Lease() time.Duration { return t.lease }

// Now is the tracker's clock, by which leases end.
func (t *Tracker) Now() time.Time { return t.now() }

// Ping tells whether the tracker answers.
func (t *Tracker) Ping(ctx context.Context) error {
	return t.call(ctx, "ping", func(ctx context.Context) error {
		var n int64
		return t.db.QueryRowContext(ctx, `SELECT last FROM gos_sequence WHERE id = 1`).Scan(&n)
	})
}

func (t *Tracker) nowMillis() int64 { return t.now().UnixMilli() }

func fromMillis(ms int64) time.Time { return time.UnixMilli(ms).UTC() }

// errNotFound is refined by who knows what was not found.
var errNotFound = problem.New(problem.ErrNotFound, "the tracker has no such thing")

// call bounds f in time and gives its error a class.
func (t *Tracker) call(ctx context.Context, operation string, f func(context.Context) error) error {
	bounded, cancel := context.WithTimeout(ctx, t.timeout)
	defer cancel()
	err := t.migrate(bounded)
	if err == nil {
		err = f(bounded)
	}
	switch {
	case err == nil:
		return nil
	case errors.Is(err, sql.ErrNoRows):
		return errNotFound
	case errors.Is(err, problem.ErrNotFound), errors.Is(err, problem.ErrConflict), errors.Is(err, problem.ErrInvalid):
		return err
	case ctx.Err() != nil:
		return fmt.Errorf("tracker: %s: %w", operation, ctx.Err())
	}
	return fmt.Errorf("tracker: %s: %w: %w", operation, problem.New(problem.ErrUnavailable, "the tracker does not answer"), err)
}

// inTx is call with a transaction.
func (t *Tracker) inTx(ctx context.Context, operation string, f func(context.Context, *tx) error) error {
	return t.call(ctx, operation, func(ctx context.Context) error {
		done, err := t.turn(ctx)
		if err != nil {
			return err
		}
		defer done()
		return t.db.InTx(ctx, func(sqlTx *sql.Tx) error { return f(ctx, &tx{Tx: sqlTx, t: t}) })
	})
}

// turn waits until this writer may write.
func (t *Tracker) turn(ctx context.Context) (done func(), err error) {
	if t.writing == nil {
		return func() {}, nil
	}
	select {
	case t.writing <- struct{}{}:
		return func() { <-t.writing }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// execContext writes with one statement.
func (t *Tracker) execContext(ctx context.Context, query string, args ...any) (sql.Result, error) {
	done, err := t.turn(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	return t.db.ExecContext(ctx, query, args...)
}

// tx is a transaction that rebinds its statements.
type tx struct {
	*sql.Tx
	t *Tracker
}

// exec runs a statement and gives the number of rows that it changed.
func (x *tx) exec(ctx context.Context, query string, args ...any) (int64, error) {
	res, err := x.ExecContext(ctx, x.t.db.Q(query), args...)
	if err != nil {
		return 0, err
	}
	return res.RowsAffected()
}

func (x *tx) row(ctx context.Context, query string, args ...any) *sql.Row {
	return x.QueryRowContext(ctx, x.t.db.Q(query), args...)
}

// next takes the number of a change. The row stays locked until the transaction ends, so that numbers become visible
// in their order and a reader of changes misses none. A transaction that needs a number takes it before it locks a row
// that another may hold who waits for a number.
func (x *tx) next(ctx context.Context) (int64, error) {
	var n int64
	err := x.row(ctx, `UPDATE gos_sequence SET last = last + 1 WHERE id = 1 RETURNING last`).Scan(&n)
	return n, err
}

// gone records a removal for replicas.
func (x *tx) gone(ctx context.Context, kind, name string) error {
	return x.allGone(ctx, kind, []string{name})
}

// allGone records removals for replicas, with one statement.
func (x *tx) allGone(ctx context.Context, kind string, names []string) error {
	var last int64
	if err := x.row(ctx, `UPDATE gos_sequence SET last = last + ? WHERE id = 1 RETURNING last`, len(names)).Scan(&last); err != nil {
		return err
	}
	at, args := x.t.nowMillis(), make([]any, 0, 4*len(names))
	for i, name := range names {
		args = append(args, last-int64(len(names)-1-i), kind, name, at)
	}
	_, err := x.exec(ctx, `INSERT INTO gos_gone (seq, kind, name, at) VALUES (?, ?, ?, ?)`+strings.Repeat(`, (?, ?, ?, ?)`, len(names)-1), args...)
	return err
}

// rows runs a query and calls scan for each row.
func (t *Tracker) rows(ctx context.Context, q interface {
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
}, scan func(*sql.Rows) error, query string, args ...any) error {
	rows, err := q.QueryContext(ctx, t.db.Q(query), args...)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		if err := scan(rows); err != nil {
			return err
		}
	}
	return rows.Err()
}

// Lead makes owner the leader of name until ttl is over, or tells that another leads. A leader calls it again to go on.
func (t *Tracker) Lead(ctx context.Context, name, owner string, ttl time.Duration) (bool, error) {
	leads := false
	err := t.call(ctx, "lead", func(ctx context.Context) error {
		now := t.now()
		res, err := t.execContext(ctx, t.db.Q(`INSERT INTO gos_leases (name, owner, until) VALUES (?, ?, ?)
			ON CONFLICT (name) DO UPDATE SET owner = excluded.owner, until = excluded.until
			WHERE gos_leases.owner = excluded.owner OR gos_leases.until < ?`), name, owner, now.Add(ttl).UnixMilli(), now.UnixMilli())
		if err != nil {
			return err
		}
		n, err := res.RowsAffected()
		leads = n > 0
		return err
	})
	return leads, err
}

// Resign ends a lead.
func (t *Tracker) Resign(ctx context.Context, name, owner string) error {
	return t.call(ctx, "resign", func(ctx context.Context) error {
		_, err := t.execContext(ctx, t.db.Q(`DELETE FROM gos_leases WHERE name = ? AND owner = ?`), name, owner)
		return err
	})
}
