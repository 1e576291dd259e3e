package files

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"io"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"cumulet.io/internal/problem"
	"cumulet.io/internal/sqldb"
	"cumulet.io/internal/sqldb/sqldbtest"
	"cumulet.io/internal/testenv"
	"cumulet.io/registry/gos"
	gosdir "cumulet.io/registry/gos/dir"
	"cumulet.io/registry/gos/tracker"
)

// childDies makes the child's process die by SIGKILL once it has stored content, before any row is made of it.
const childDies = "CUMULET_FILES_DIES"

type deadly struct{ Blobs }

// Put implements Blobs.
func (d deadly) Put(ctx context.Context, owner string, src io.Reader) (digest.Digest, int64, error) {
	dg, size, err := d.Blobs.Put(ctx, owner, src)
	if err == nil && size > 0 {
		err = syscall.Kill(os.Getpid(), syscall.SIGKILL)
	}
	return dg, size, err
}

// Content whose process was killed before a row held it is collected, of files and of parts; what a row holds is not.
func TestKilledBeforeTheRow(t *testing.T) {
	dir := t.TempDir()
	addr := "127.0.0.1:" + strconv.Itoa(testenv.FreePort(t))
	client := &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	child := func(dies bool, f func(do func(method, path, body string, header ...string) (*http.Response, error))) {
		t.Helper()
		variables := []string{childDir + "=" + dir, childAddr + "=" + addr}
		if dies {
			variables = append(variables, childDies+"=1")
		}
		cmd := testenv.Child(t, addr, nil, variables...)
		f(func(method, path, body string, header ...string) (*http.Response, error) {
			req, err := http.NewRequestWithContext(t.Context(), method, "http://"+addr+path, strings.NewReader(body))
			if err != nil {
				return nil, err
			}
			for i := 0; i < len(header); i += 2 {
				req.Header.Set(header[i], header[i+1])
			}
			resp, err := client.Do(req)
			if err != nil {
				return nil, err
			}
			return resp, resp.Body.Close()
		})
		if !dies {
			_ = cmd.Process.Kill()
		}
		err := cmd.Wait()
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
			t.Fatalf("the child ended otherwise: %v", err)
		}
	}
	tus := []string{"Tus-Resumable", "1.0.0", "Content-Type", offsetStream}
	upload := ""
	child(false, func(do func(string, string, string, ...string) (*http.Response, error)) {
		if resp, err := do("PUT", "/files/acme/tools/-/1/kept", strings.Repeat("kept", 1000)); err != nil || resp.StatusCode != 201 {
			t.Fatalf("%v %v", resp, err)
		}
		resp, err := do("POST", "/files/acme/tools/-/1/parts", "", "Tus-Resumable", "1.0.0", "Upload-Length", "100000")
		if err != nil || resp.StatusCode != 201 {
			t.Fatalf("%v %v", resp, err)
		}
		upload = resp.Header.Get("Location")
		if resp, err := do("PATCH", upload, strings.Repeat("p", 5000), append(tus, "Upload-Offset", "0")...); err != nil || resp.StatusCode != 204 {
			t.Fatalf("%v %v", resp, err)
		}
	})
	child(true, func(do func(string, string, string, ...string) (*http.Response, error)) {
		if resp, err := do("PUT", "/files/acme/tools/-/1/lost", strings.Repeat("lost", 1000)); err == nil {
			t.Errorf("an answer from the dead: %v", resp)
		}
	})
	child(true, func(do func(string, string, string, ...string) (*http.Response, error)) {
		if resp, err := do("PATCH", upload, strings.Repeat("q", 5000), append(tus, "Upload-Offset", "5000")...); err == nil {
			t.Errorf("an answer from the dead: %v", resp)
		}
	})
	objects := func() int {
		n := 0
		if err := filepath.WalkDir(filepath.Join(dir, "blobs"), func(_ string, d fs.DirEntry, err error) error {
			if err == nil && d.Type().IsRegular() {
				n++
			}
			return err
		}); err != nil {
			t.Fatal(err)
		}
		return n
	}
	if n := objects(); n != 4 {
		t.Fatalf("%d objects before anything is collected", n)
	}
	// The next process, with a clock that runs ahead.
	ahead := time.Duration(0)
	now := func() time.Time { return time.Now().Add(ahead) }
	db := sqldbtest.Open(t, "sqlite:"+filepath.Join(dir, "registry.db"))
	s, region := openReal(t, db, filepath.Join(dir, "blobs"), now)
	sweep := func() {
		t.Helper()
		if err := s.Sweep(t.Context()); err != nil {
			t.Fatal(err)
		}
		for range 3 { // marked, dropped, deleted
			if _, err := region.Sweep(t.Context()); err != nil {
				t.Fatal(err)
			}
			ahead += time.Hour
		}
	}
	sweep()
	if n := objects(); n != 4 {
		t.Errorf("%d objects: what may still be wanted is collected", n)
	}
	// The upload goes on, so that its parts are wanted; then a day and the lease of the blobs pass.
	u, err := s.Append(t.Context(), "acme/tools", strings.TrimPrefix(upload, "/files/acme/tools/-uploads/"), 5000, strings.NewReader(strings.Repeat("r", 5000)))
	if err != nil || u.Offset != 10000 {
		t.Fatalf("%+v %v", u, err)
	}
	ahead += 23*time.Hour + 30*time.Minute
	if err := s.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	ahead += 24 * time.Hour
	for range 2 {
		if _, err := region.Sweep(t.Context()); err != nil {
			t.Fatal(err)
		}
		ahead += time.Hour
	}
	if _, err := region.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := objects(); n != 3 {
		t.Errorf("%d objects stay, not those of the file and of the upload's two parts", n)
	}
	f, err := s.File(t.Context(), "acme/tools", "kept", "1")
	if err != nil {
		t.Fatal(err)
	}
	body, err := region.Open(t.Context(), f.Digest, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer body.Close()
	if got, err := io.ReadAll(body); err != nil || !bytes.Equal(got, []byte(strings.Repeat("kept", 1000))) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}

// openReal opens files on the blob space as it is in production.
func openReal(t testing.TB, db *sqldb.DB, root string, now func() time.Time) (*Store, *gos.Region) {
	t.Helper()
	store, err := gosdir.Open(root)
	if err != nil {
		t.Fatal(err)
	}
	tr, err := tracker.Open(t.Context(), db, tracker.Config{Now: now})
	if err != nil {
		t.Fatal(err)
	}
	region, err := gos.New(gos.Config{Name: "local", Stores: map[string]gos.ObjectStore{"local": store}, Tracker: tr})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := region.Close(); err != nil {
			t.Error(err)
		}
	})
	s, err := New(t.Context(), Config{DB: db, Blobs: region, Directory: noDirectory{}, Now: now})
	if err != nil {
		t.Fatal(err)
	}
	return s, region
}

// Content that waited too long is not made a row of, and content whose row was committed is not dropped.
func TestContent(t *testing.T) {
	ahead := time.Duration(0)
	sqldbtest.Each(t, func(t *testing.T, empty func(testing.TB) string) {
		f := start(t, empty(t), func(c *Config) { c.Now = func() time.Time { return time.Now().Add(ahead) } })
		hold := func(owner string) *Content {
			t.Helper()
			c, err := f.Hold(t.Context(), owner, strings.NewReader("content of "+owner))
			if err != nil {
				t.Fatal(err)
			}
			return c
		}
		claim := func(c *Content) error {
			return f.cfg.DB.InTx(t.Context(), func(tx *sql.Tx) error { return c.Claim(t.Context(), tx) })
		}
		late, kept := hold("test/late"), hold("test/kept")
		if err := claim(kept); err != nil {
			t.Fatal(err)
		}
		kept.Drop(t.Context())
		if err := f.Sweep(t.Context()); err != nil {
			t.Fatal(err)
		}
		if n := f.stored(); n != 2 {
			t.Errorf("%d contents", n)
		}
		ahead += 26 * time.Hour
		if err := f.Sweep(t.Context()); err != nil {
			t.Fatal(err)
		}
		if n := f.stored(); n != 1 {
			t.Errorf("%d contents after a day", n)
		}
		if err := claim(late); !errors.Is(err, problem.ErrConflict) {
			t.Errorf("late: %v", err)
		}
		if err := claim(kept); !errors.Is(err, problem.ErrConflict) {
			t.Errorf("twice: %v", err)
		}
		dropped := hold("test/dropped")
		dropped.Drop(t.Context())
		if n := f.stored(); n != 1 {
			t.Errorf("%d contents after a drop", n)
		}
		if _, err := f.Hold(t.Context(), "test/fault", io.MultiReader(strings.NewReader("x"), faulty{})); !errors.Is(err, errFaulty) {
			t.Errorf("%v", err)
		}
		var n int
		if err := f.cfg.DB.QueryRowContext(t.Context(), `SELECT count(*) FROM registry_file_garbage`).Scan(&n); err != nil || n != 0 {
			t.Errorf("%d rows stay: %v", n, err)
		}
	})
}

var errFaulty = errors.New("the client has gone")

type faulty struct{}

func (faulty) Read([]byte) (int, error) { return 0, errFaulty }
