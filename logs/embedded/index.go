package embedded

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"sync"

	_ "modernc.org/sqlite" // the "sqlite" driver
)

// index is one SQLite file. Writes are serialised, reads are snapshots.
type index struct {
	name, path string
	w, r       *sql.DB

	use sync.RWMutex // held for reading by every operation, for writing by close
	wmu sync.Mutex   // one bulk at a time

	mu     sync.RWMutex
	bySrc  map[string]*stored // by path
	others int64              // documents in the table others
	omin   int64              // bounds of their @timestamp
	omax   int64
}

// stored is a source with its number and the bounds of its lines' times. It is replaced, never changed.
type stored struct {
	source
	id         int64
	tmin, tmax int64
	omax       int64 // the largest offset that was ever stored
}

// Lines are clustered by source and offset, which is their identity; the index gives the order of the answers.
const schema = `
CREATE TABLE IF NOT EXISTS sources(id INTEGER PRIMARY KEY, path TEXT NOT NULL UNIQUE, org TEXT NOT NULL, instance TEXT NOT NULL,
	container TEXT NOT NULL, attempt INTEGER NOT NULL, tmin INTEGER NOT NULL, tmax INTEGER NOT NULL, omax INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS lines(src INTEGER NOT NULL, off INTEGER NOT NULL, t INTEGER NOT NULL, fl INTEGER NOT NULL,
	msg TEXT NOT NULL, PRIMARY KEY(src, off)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS lines_time ON lines(src, t);
CREATE TABLE IF NOT EXISTS others(n INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, t INTEGER NOT NULL, ct INTEGER, doc TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS others_time ON others(t);`

func openIndex(ctx context.Context, name, path string) (*index, error) {
	dsn := func(lock string, pragmas ...string) string {
		q := url.Values{"_txlock": {lock}, "_pragma": append([]string{"busy_timeout(10000)", "case_sensitive_like(1)"}, pragmas...)}
		return "file:" + (&url.URL{Path: path}).EscapedPath() + "?" + q.Encode()
	}
	fail := func(err error) error { return fmt.Errorf("open index %s: %w", name, err) }
	w, err := sql.Open("sqlite", dsn("immediate", "page_size(8192)", "journal_mode(WAL)", "synchronous(FULL)", "temp_store(2)", "wal_autocheckpoint(4000)", "cache_size(-32768)"))
	if err != nil {
		return nil, fail(err)
	}
	w.SetMaxOpenConns(1)
	if _, err := w.ExecContext(ctx, schema); err != nil {
		return nil, fail(errors.Join(err, w.Close()))
	}
	r, err := sql.Open("sqlite", dsn("deferred", "query_only(1)", "cache_size(-4096)"))
	if err != nil {
		return nil, fail(errors.Join(err, w.Close()))
	}
	r.SetMaxOpenConns(4)
	r.SetMaxIdleConns(2)
	ix := &index{name: name, path: path, w: w, r: r, bySrc: map[string]*stored{}}
	if err := ix.load(ctx); err != nil {
		return nil, fail(errors.Join(err, ix.close()))
	}
	return ix, nil
}

func (ix *index) load(ctx context.Context) error {
	rows, err := ix.w.QueryContext(ctx, `SELECT id, path, org, instance, container, attempt, tmin, tmax, omax FROM sources`)
	if err != nil {
		return err
	}
	defer rows.Close() //nolint:errcheck // Err tells
	for rows.Next() {
		s := &stored{}
		if err := rows.Scan(&s.id, &s.path, &s.org, &s.instance, &s.container, &s.attempt, &s.tmin, &s.tmax, &s.omax); err != nil {
			return err
		}
		ix.bySrc[s.path] = s
	}
	if err := rows.Err(); err != nil {
		return err
	}
	return ix.w.QueryRowContext(ctx, `SELECT count(*), coalesce(min(t), 0), coalesce(max(t), 0) FROM others`).Scan(&ix.others, &ix.omin, &ix.omax)
}

// acquire keeps the index open until release is called; false when it is deleted.
func (ix *index) acquire() (release func(), ok bool) {
	ix.use.RLock()
	if ix.r == nil {
		ix.use.RUnlock()
		return nil, false
	}
	return ix.use.RUnlock, true
}

// close waits for the operations under way.
func (ix *index) close() error {
	ix.use.Lock()
	defer ix.use.Unlock()
	if ix.r == nil {
		return nil
	}
	err := errors.Join(ix.r.Close(), ix.w.Close())
	ix.r, ix.w = nil, nil
	return err
}

// op is one item of a bulk request for this index.
type op struct {
	item      int // its place in the request
	overwrite bool
	id        string
	line      line
	isLine    bool
	doc       []byte // of a document that is no line
	time      int64  // its @timestamp, ns, cut to milliseconds as Elasticsearch's date type does
	criTime   *int64 // its cri.time, ns, where it has one
	// path and offset are set when id is the fingerprint of both, whatever the shape.
	path   string
	offset int64
}

// Results of an op.
const (
	created = 201
	updated = 200
	exists  = 409
)

// insertRows is how many lines one statement inserts.
const insertRows = 64

// apply writes ops in one transaction and returns their statuses when it is on the disk.
func (ix *index) apply(ctx context.Context, ops []op) ([]int, error) {
	ix.wmu.Lock()
	defer ix.wmu.Unlock()
	tx, err := ix.w.BeginTx(ctx, nil)
	if err != nil {
		return nil, fmt.Errorf("index %s: %w", ix.name, err)
	}
	a := &applier{ctx: ctx, tx: tx, ix: ix, touched: map[string]*stored{}, others: ix.others, omin: ix.omin, omax: ix.omax,
		status: make([]int, len(ops)), stmts: map[string]*sql.Stmt{}}
	if err = a.run(ops); err == nil {
		err = tx.Commit()
	} else if rerr := tx.Rollback(); rerr != nil {
		err = errors.Join(err, rerr)
	}
	if err != nil {
		return nil, fmt.Errorf("index %s: %w", ix.name, err)
	}
	ix.mu.Lock()
	defer ix.mu.Unlock()
	for path, s := range a.touched {
		ix.bySrc[path] = s
	}
	ix.others, ix.omin, ix.omax = a.others, a.omin, a.omax
	return a.status, nil
}

// sources is a snapshot of the dictionary and the bounds of the other documents.
func (ix *index) sources() (all []*stored, others, omin, omax int64) {
	ix.mu.RLock()
	defer ix.mu.RUnlock()
	all = make([]*stored, 0, len(ix.bySrc))
	for _, s := range ix.bySrc {
		all = append(all, s)
	}
	return all, ix.others, ix.omin, ix.omax
}

// insertSQL inserts lines that are known not to be there. OR IGNORE spares SQLite the journal of the statement; the
// number of changed rows tells that none was there.
func insertSQL(rows int) string {
	return `INSERT OR IGNORE INTO lines(src, off, t, fl, msg) VALUES (?,?,?,?,?)` + strings.Repeat(`,(?,?,?,?,?)`, rows-1)
}
