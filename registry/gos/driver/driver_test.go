package driver_test

import (
	"flag"
	"os"
	"path/filepath"
	"testing"

	storagedriver "github.com/distribution/distribution/v3/registry/storage/driver"
	"github.com/distribution/distribution/v3/registry/storage/driver/testsuites"

	"cumulet.io/internal/sqldb"
	"cumulet.io/internal/testenv"
	"cumulet.io/registry/gos"
	"cumulet.io/registry/gos/dir"
	"cumulet.io/registry/gos/driver"
	"cumulet.io/registry/gos/tracker"
)

func region(t *testing.T, dsn string) *gos.Region {
	t.Helper()
	db, err := sqldb.Open(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	tr, err := tracker.Open(t.Context(), db, tracker.Config{})
	if err != nil {
		t.Fatal(err)
	}
	store, err := dir.Open(filepath.Join(t.TempDir(), "objects"))
	if err != nil {
		t.Fatal(err)
	}
	r, err := gos.New(gos.Config{Name: "here", Stores: map[string]gos.ObjectStore{"here": store}, Tracker: tr})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	return r
}

// TestMain has the core's suite use its shorter form, which streams 64 MiB at once and not a gigabyte.
func TestMain(m *testing.M) {
	flag.Parse()
	if err := flag.Set("test.short", "true"); err != nil {
		panic(err)
	}
	os.Exit(m.Run())
}

// The core's own suite, on both databases. Most of its time it sleeps; but two at once would disturb each other, since it
// appends to the random content that all of its tests share.
func TestSuite(t *testing.T) {
	t.Run("sqlite", func(t *testing.T) {
		r := region(t, "sqlite:"+filepath.Join(t.TempDir(), "gos.db"))
		testsuites.Driver(t, func() (storagedriver.StorageDriver, error) { return driver.New(r), nil }, false)
	})
	t.Run("postgres", func(t *testing.T) {
		r := region(t, testenv.Postgres(t))
		testsuites.Driver(t, func() (storagedriver.StorageDriver, error) { return driver.New(r), nil }, false)
	})
}
