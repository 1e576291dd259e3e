package sqldb_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"testing"
	"testing/fstest"

	"cumulet.io/internal/sqldb"
	"cumulet.io/internal/sqldb/sqldbtest"
)

// dialects runs f on each database that is there; open opens the same one again.
func dialects(t *testing.T, f func(t *testing.T, open func() *sqldb.DB)) {
	sqldbtest.Each(t, func(t *testing.T, empty func(testing.TB) string) {
		address := empty(t)
		f(t, func() *sqldb.DB { return sqldbtest.Open(t, address) })
	})
}

func TestOpenRefuses(t *testing.T) {
	for _, dsn := range []string{"", "mysql://x", "/tmp/x.db", "sqlite:" + filepath.Join(t.TempDir(), "no", "such", "dir", "x.db")} {
		if db, err := sqldb.Open(t.Context(), dsn); err == nil {
			_ = db.Close()
			t.Errorf("%q was opened", dsn)
		}
	}
}

func TestQ(t *testing.T) {
	for _, tt := range []struct{ in, want string }{
		{"SELECT 1", "SELECT 1"},
		{"a = ? AND b IN (?, ?)", "a = $1 AND b IN ($2, $3)"},
		{"a = '?' AND b = ?", "a = '?' AND b = $1"},
		{"a = 'it''s ?' AND b = ?", "a = 'it''s ?' AND b = $1"},
	} {
		if got := (&sqldb.DB{Dialect: sqldb.Postgres}).Q(tt.in); got != tt.want {
			t.Errorf("%s became %s, want %s", tt.in, got, tt.want)
		}
		if got := (&sqldb.DB{Dialect: sqldb.SQLite}).Q(tt.in); got != tt.in {
			t.Errorf("%s became %s on SQLite", tt.in, got)
		}
	}
}

var migrations = fstest.MapFS{
	"m/001_a.sql": {Data: []byte("CREATE TABLE t (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, data BLOB);\nCREATE INDEX t_name ON t (name);")},
	"m/002_b.sql": {Data: []byte("ALTER TABLE t ADD COLUMN n BIGINT NOT NULL DEFAULT 7;")},
	"m/README":    {Data: []byte("not a migration")},
}

func TestMigrate(t *testing.T) {
	dialects(t, func(t *testing.T, open func() *sqldb.DB) {
		// Several processes start at once; each migration runs once.
		var wg sync.WaitGroup
		for range 4 {
			db := open()
			wg.Go(func() {
				if err := db.Migrate(t.Context(), "test", migrations, "m"); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		db := open()
		if err := db.Migrate(t.Context(), "test", migrations, "m"); err != nil {
			t.Error(err)
		}
		if _, err := db.ExecContext(t.Context(), db.Q(`INSERT INTO t (name, data) VALUES (?, ?)`), "x", []byte{0, 255}); err != nil {
			t.Fatal(err)
		}
		var id, n int64
		var data []byte
		if err := db.QueryRowContext(t.Context(), `SELECT id, n, data FROM t`).Scan(&id, &n, &data); err != nil || id != 1 || n != 7 || len(data) != 2 || data[1] != 255 {
			t.Errorf("id %d, n %d, data %v, %v", id, n, data, err)
		}

		// A migration that fails leaves nothing, and is tried again.
		bad := fstest.MapFS{"m/003_c.sql": {Data: []byte("CREATE TABLE u (id TEXT); CREATE TABLE u (id TEXT);")}}
		if err := db.Migrate(t.Context(), "test", bad, "m"); err == nil {
			t.Error("a broken migration passed")
		}
		if _, err := db.ExecContext(t.Context(), `SELECT * FROM u`); err == nil {
			t.Error("half of a broken migration stayed")
		}
		good := fstest.MapFS{"m/003_c.sql": {Data: []byte("CREATE TABLE u (id TEXT);")}}
		if err := db.Migrate(t.Context(), "test", good, "m"); err != nil {
			t.Error(err)
		}
	})
}

func TestInTx(t *testing.T) {
	dialects(t, func(t *testing.T, open func() *sqldb.DB) {
		db := open()
		if err := db.Migrate(t.Context(), "test", migrations, "m"); err != nil {
			t.Fatal(err)
		}
		insert := func(tx *sql.Tx, name string) error {
			_, err := tx.ExecContext(t.Context(), db.Q(`INSERT INTO t (name) VALUES (?)`), name)
			return err
		}
		boom := errors.New("boom")
		if err := db.InTx(t.Context(), func(tx *sql.Tx) error { return errors.Join(insert(tx, "gone"), boom) }); !errors.Is(err, boom) {
			t.Errorf("%v", err)
		}
		if err := db.InTx(t.Context(), func(tx *sql.Tx) error { return insert(tx, "stays") }); err != nil {
			t.Fatal(err)
		}
		err := db.InTx(t.Context(), func(tx *sql.Tx) error { return insert(tx, "stays") })
		if !sqldb.IsUnique(err) || sqldb.IsUnique(boom) || sqldb.IsUnique(nil) {
			t.Errorf("a second row of the same name: %v", err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		if err := db.InTx(ctx, func(tx *sql.Tx) error { err := insert(tx, "cancelled"); cancel(); return err }); err == nil {
			t.Error("a cancelled transaction was committed")
		}
		var n int
		if err := db.QueryRowContext(t.Context(), `SELECT count(*) FROM t`).Scan(&n); err != nil || n != 1 {
			t.Errorf("%d rows, %v", n, err)
		}
	})
}

// Writers that read before they write wait for each other, and never fail half way.
func TestWritersWait(t *testing.T) {
	dialects(t, func(t *testing.T, open func() *sqldb.DB) {
		db := open()
		if err := db.Migrate(t.Context(), "test", migrations, "m"); err != nil {
			t.Fatal(err)
		}
		if _, err := db.ExecContext(t.Context(), `INSERT INTO t (name, n) VALUES ('counter', 0)`); err != nil {
			t.Fatal(err)
		}
		query := `SELECT n FROM t WHERE name = 'counter'`
		if db.Dialect == sqldb.Postgres {
			query += ` FOR UPDATE`
		}
		const writers, each = 4, 10
		var wg sync.WaitGroup
		for range writers {
			wg.Go(func() {
				for range each {
					if err := db.InTx(t.Context(), func(tx *sql.Tx) error {
						var n int64
						if err := tx.QueryRowContext(t.Context(), query).Scan(&n); err != nil {
							return fmt.Errorf("read: %w", err)
						}
						_, err := tx.ExecContext(t.Context(), db.Q(`UPDATE t SET n = ? WHERE name = 'counter'`), n+1)
						return err
					}); err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
		wg.Wait()
		var n int64
		if err := db.QueryRowContext(t.Context(), `SELECT n FROM t`).Scan(&n); err != nil || n != writers*each {
			t.Errorf("counted %d, want %d (%v)", n, writers*each, err)
		}
	})
}
