package driver_test

import (
	"flag"
	"os"
	"path/filepath"
	"testing"

	storagedriver "github.com/distribution/distribution/v3/registry/storage/driver"
	"github.com/distribution/distribution/v3/registry/storage/driver/testsuites"

	"cumulet.io/internal/sqldb/sqldbtest"
	"cumulet.io/registry/gos"
	"cumulet.io/registry/gos/dir"
	"cumulet.io/registry/gos/driver"
	"cumulet.io/registry/gos/tracker"
)

func region(t *testing.T, dsn string) *gos.Region {
	t.Helper()
	db := sqldbtest.Open(t, dsn)
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
	sqldbtest.Each(t, func(t *testing.T, empty func(testing.TB) string) {
		r := region(t, empty(t))
		testsuites.Driver(t, func() (storagedriver.StorageDriver, error) { return driver.New(r), nil }, false)
	})
}

// The state of an upload's hash is written when there is something to be remembered, once.
func TestHashStates(t *testing.T) {
	r := region(t, sqldbtest.SQLite(t))
	d := driver.New(r)
	const dir = "/docker/registry/v2/repositories/acme/web/_uploads/1/hashstates/sha256"
	written := func() int {
		t.Helper()
		files, err := r.List(t.Context(), dir)
		if err != nil {
			t.Fatal(err)
		}
		return len(files)
	}
	for _, tc := range []struct {
		offset, content string
		files           int
	}{{"0", "none", 0}, {"7", "seven", 1}, {"7", "seven", 1}, {"7", "other", 1}, {"9", "nine", 2}} {
		if err := d.PutContent(t.Context(), dir+"/"+tc.offset, []byte(tc.content)); err != nil {
			t.Fatal(err)
		}
		if n := written(); n != tc.files {
			t.Errorf("%s at %s: %d files, want %d", tc.content, tc.offset, n, tc.files)
		}
		if tc.offset == "0" {
			continue
		}
		if got, err := d.GetContent(t.Context(), dir+"/"+tc.offset); err != nil || string(got) != tc.content {
			t.Errorf("%s at %s: %q, %v", tc.content, tc.offset, got, err)
		}
	}
}
