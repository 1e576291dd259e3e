// Package sqldb opens the platform's state: SQLite embedded, PostgreSQL at scale, one SQL text for both.
//
// Statements are written with ? and rebound for PostgreSQL; types are kept to TEXT, BIGINT and BLOB (spelled BYTEA by
// the migration rewriter). It is not an ORM and knows no tables but its own schema_migrations.
package sqldb

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"path"
	"sort"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"
	_ "github.com/jackc/pgx/v5/stdlib" // the "pgx" driver
	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"
)

// Dialect names the database behind a DB.
type Dialect string

// The dialects.
const (
	SQLite   Dialect = "sqlite"
	Postgres Dialect = "postgres"
)

// DB is a database with its dialect. Safe for concurrent use. On SQLite one connection writes at a time: Begin takes
// the write lock at once (BEGIN IMMEDIATE), so a transaction never fails half way with "database is locked".
type DB struct {
	*sql.DB
	Dialect Dialect
}

// Querier is a DB or a transaction, to read by.
type Querier interface {
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
}

// Open opens dsn: "postgres://…" or "sqlite:PATH" (a file, made when missing, WAL and synchronous=FULL).
func Open(ctx context.Context, dsn string) (*DB, error) {
	db, err := OpenLater(dsn)
	if err != nil {
		return nil, err
	}
	if err := db.PingContext(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("open %s database: %w", db.Dialect, err), db.Close())
	}
	return db, nil
}

// OpenLater is Open of a database that may be out of reach now: the first statement finds out.
func OpenLater(dsn string) (*DB, error) {
	var (
		db  *sql.DB
		dia Dialect
		err error
	)
	switch {
	case strings.HasPrefix(dsn, "postgres://"), strings.HasPrefix(dsn, "postgresql://"):
		dia = Postgres
		db, err = sql.Open("pgx", dsn)
	case strings.HasPrefix(dsn, "sqlite:"):
		dia = SQLite
		q := url.Values{"_txlock": {"immediate"}, "_pragma": {
			"busy_timeout(10000)", "journal_mode(WAL)", "synchronous(FULL)", "foreign_keys(ON)", "case_sensitive_like(1)"}}
		db, err = sql.Open("sqlite", "file:"+(&url.URL{Path: strings.TrimPrefix(dsn, "sqlite:")}).EscapedPath()+"?"+q.Encode())
	default:
		return nil, errors.New("open database: the address must begin with sqlite: or postgres://")
	}
	if err != nil {
		return nil, fmt.Errorf("open %s database: %w", dia, err)
	}
	return &DB{DB: db, Dialect: dia}, nil
}

// Q rebinds a statement written with ? for the dialect. A question mark inside a quoted literal is left alone.
func (db *DB) Q(query string) string {
	if db.Dialect != Postgres {
		return query
	}
	var b strings.Builder
	n, quoted := 0, false
	for _, r := range query {
		switch {
		case r == '\'':
			quoted = !quoted
			b.WriteRune(r)
		case r == '?' && !quoted:
			n++
			fmt.Fprintf(&b, "$%d", n)
		default:
			b.WriteRune(r)
		}
	}
	return b.String()
}

// InTx runs f in one transaction: committed when f returns nil, rolled back otherwise.
func (db *DB) InTx(ctx context.Context, f func(*sql.Tx) error) error {
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return fmt.Errorf("begin: %w", err)
	}
	if err := f(tx); err != nil {
		if rerr := tx.Rollback(); rerr != nil && !errors.Is(rerr, sql.ErrTxDone) {
			err = errors.Join(err, rerr)
		}
		return err
	}
	if err := tx.Commit(); err != nil {
		return fmt.Errorf("commit: %w", err)
	}
	return nil
}

// IsUnique tells whether err is a broken UNIQUE or PRIMARY KEY constraint, on either dialect.
func IsUnique(err error) bool {
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
		return pg.Code == "23505"
	}
	var lite *sqlite.Error
	return errors.As(err, &lite) &&
		(lite.Code() == sqlite3.SQLITE_CONSTRAINT_UNIQUE || lite.Code() == sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY)
}

// Migrate applies the .sql files of dir in name order, each once and in a transaction of its own, and records them
// under scope, so that several packages can share one database. In a file, BLOB becomes BYTEA on PostgreSQL and
// "INTEGER PRIMARY KEY" becomes "BIGSERIAL PRIMARY KEY". Concurrent callers are serialised by the database.
func (db *DB) Migrate(ctx context.Context, scope string, files fs.FS, dir string) error {
	if _, err := db.ExecContext(ctx, `CREATE TABLE IF NOT EXISTS schema_migrations (
		scope TEXT NOT NULL, name TEXT NOT NULL, PRIMARY KEY (scope, name))`); err != nil && !IsUnique(err) {
		return fmt.Errorf("migrate %s: %w", scope, err)
	}
	entries, err := fs.ReadDir(files, dir)
	if err != nil {
		return fmt.Errorf("migrate %s: %w", scope, err)
	}
	var names []string
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), ".sql") {
			names = append(names, e.Name())
		}
	}
	sort.Strings(names)
	for _, name := range names {
		text, err := fs.ReadFile(files, path.Join(dir, name))
		if err != nil {
			return fmt.Errorf("migrate %s: %w", scope, err)
		}
		if err := db.migrateOne(ctx, scope, name, string(text)); err != nil {
			return fmt.Errorf("migrate %s: %s: %w", scope, name, err)
		}
	}
	return nil
}

func (db *DB) migrateOne(ctx context.Context, scope, name, text string) error {
	return db.InTx(ctx, func(tx *sql.Tx) error {
		if db.Dialect == Postgres {
			if _, err := tx.ExecContext(ctx, `LOCK TABLE schema_migrations IN EXCLUSIVE MODE`); err != nil {
				return err
			}
			text = strings.NewReplacer(" BLOB", " BYTEA", "INTEGER PRIMARY KEY", "BIGSERIAL PRIMARY KEY").Replace(text)
		}
		var n int
		if err := tx.QueryRowContext(ctx, db.Q(`SELECT count(*) FROM schema_migrations WHERE scope = ? AND name = ?`),
			scope, name).Scan(&n); err != nil || n > 0 {
			return err
		}
		if _, err := tx.ExecContext(ctx, text); err != nil {
			return err
		}
		_, err := tx.ExecContext(ctx, db.Q(`INSERT INTO schema_migrations (scope, name) VALUES (?, ?)`), scope, name)
		return err
	})
}
