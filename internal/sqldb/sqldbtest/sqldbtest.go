// Package sqldbtest gives tests empty databases of both kinds, so that a conformance suite runs on each.
//
// It is for tests only.
package sqldbtest

import (
	"context"
	"fmt"
	"net/url"
	"path/filepath"
	"sync/atomic"
	"testing"

	"cumulet.io/internal/sqldb"
	"cumulet.io/internal/testenv"
)

// Each runs f on SQLite, and on PostgreSQL where its server is installed. empty gives the address of an empty database,
// another one at each call.
func Each(t *testing.T, f func(t *testing.T, empty func(t testing.TB) string)) {
	t.Run("sqlite", func(t *testing.T) { f(t, SQLite) })
	t.Run("postgres", func(t *testing.T) {
		server, err := url.Parse(testenv.Postgres(t))
		if err != nil {
			t.Fatal(err)
		}
		admin := Open(t, server.String())
		var n atomic.Int64
		f(t, func(t testing.TB) string {
			t.Helper()
			name := fmt.Sprintf("test%d", n.Add(1))
			if _, err := admin.ExecContext(t.Context(), "CREATE DATABASE "+name); err != nil {
				t.Fatal(err)
			}
			own := *server
			own.Path = "/" + name
			return own.String()
		})
	})
}

// SQLite is the address of an empty SQLite database in a directory of the test's own, whose name needs escaping.
func SQLite(t testing.TB) string {
	return "sqlite:" + filepath.Join(t.TempDir(), "with space & %41?.db")
}

// Open opens a database until the test ends. It may be opened more than once.
func Open(t testing.TB, address string) *sqldb.DB {
	t.Helper()
	db, err := sqldb.Open(context.WithoutCancel(t.Context()), address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	return db
}
