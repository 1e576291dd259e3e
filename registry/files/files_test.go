package files

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"go.uber.org/goleak"

	"cumulet.io/internal/problem"
	"cumulet.io/internal/sqldb"
	"cumulet.io/internal/sqldb/sqldbtest"
	"cumulet.io/internal/testenv"
	"cumulet.io/registry"
	"cumulet.io/registry/files/filestest"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(childDir); dir != "" {
		fmt.Fprintln(os.Stderr, serveChild(dir, os.Getenv(childAddr)))
		os.Exit(1)
	}
	goleak.VerifyTestMain(m)
}

// anyone may do everything as wendy, but what the test refuses.
type anyone struct{ refuse error }

func (a anyone) Authorize(_ http.ResponseWriter, _ *http.Request, _, _ string) (string, error) {
	return "wendy", a.refuse
}

type noDirectory struct{}

func (noDirectory) Pushed(context.Context, string, string) error { return nil }

func (noDirectory) MayPush(context.Context, string) error { return nil }

type fixture struct {
	*Store
	t      testing.TB
	url    string
	root   string
	mu     sync.Mutex
	events []registry.Event
}

// Emit implements registry.Outbox.
func (f *fixture) Emit(_ context.Context, e registry.Event) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.events = append(f.events, e)
	return nil
}

func start(t testing.TB, dsn string, options ...func(*Config)) *fixture {
	t.Helper()
	f := &fixture{t: t, root: filepath.Join(t.TempDir(), "blobs")}
	blobs, err := filestest.OpenDir(f.root)
	if err != nil {
		t.Fatal(err)
	}
	cfg := Config{DB: sqldbtest.Open(t, dsn), Blobs: blobs, Directory: noDirectory{}, Outbox: f, Logger: slog.New(slog.NewTextHandler(io.Discard, nil))}
	for _, o := range options {
		o(&cfg)
	}
	if f.Store, err = New(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(NewHandler(f.Store, anyone{}))
	t.Cleanup(srv.Close)
	f.url = srv.URL
	return f
}

func startSQLite(t testing.TB, options ...func(*Config)) *fixture {
	return start(t, sqldbtest.SQLite(t), options...)
}

func eachDialect(t *testing.T, f func(t *testing.T, f *fixture)) {
	sqldbtest.Each(t, func(t *testing.T, empty func(testing.TB) string) { f(t, start(t, empty(t))) })
}

func (f *fixture) do(method, path string, body io.Reader, header ...string) (*http.Response, string) {
	f.t.Helper()
	return testenv.Request(f.t, method, f.url+path, body, header...)
}

func (f *fixture) want(status int, method, path, body string, header ...string) (*http.Response, string) {
	f.t.Helper()
	resp, text := f.do(method, path, strings.NewReader(body), header...)
	if resp.StatusCode != status {
		f.t.Fatalf("%s %s: %d %s, want %d", method, path, resp.StatusCode, text, status)
	}
	if status >= 400 && method != http.MethodHead && status != 412 && status != 415 && resp.Header.Get("Content-Type") != "application/problem+json" {
		f.t.Errorf("%s %s: %d is no problem: %s", method, path, status, text)
	}
	return resp, text
}

// stored counts the contents in the blob space.
func (f *fixture) stored() int {
	f.t.Helper()
	n := 0
	err := filepath.WalkDir(f.root, func(_ string, d fs.DirEntry, err error) error {
		if err == nil && d.Name() == "content" {
			n++
		}
		return err
	})
	if err != nil {
		f.t.Fatal(err)
	}
	return n
}

func (f *fixture) kinds() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []string
	for _, e := range f.events {
		out = append(out, string(e.Type))
	}
	return strings.Join(out, " ")
}

const one = "/files/acme/tools/-/1.2/bin/tool.txt"

func TestRoundTrip(t *testing.T) {
	eachDialect(t, func(t *testing.T, f *fixture) {
		const text = "hello, world"
		sum := sha256.Sum256([]byte(text))
		repr := "sha-256=:" + base64.StdEncoding.EncodeToString(sum[:]) + ":"
		resp, body := f.want(201, "PUT", one, text, "Content-Type", "text/plain; charset=utf-8", "Repr-Digest", repr)
		var got File
		if err := json.Unmarshal([]byte(body), &got); err != nil || got.Digest != digest.FromString(text) || got.Size != 12 || got.CreatedBy != "wendy" || resp.Header.Get("Location") != one {
			t.Errorf("%s %v", body, resp.Header)
		}
		resp, body = f.want(200, "GET", one, "")
		if body != text || resp.Header.Get("Content-Type") != "text/plain; charset=utf-8" || resp.Header.Get("Repr-Digest") != repr || resp.Header.Get("X-Checksum-Sha256") != got.Digest.Encoded() ||
			resp.Header.Get("Content-Disposition") != "attachment; filename*=UTF-8''tool.txt" || resp.Header.Get("X-Content-Type-Options") != "nosniff" {
			t.Errorf("%q %v", body, resp.Header)
		}
		etag := resp.Header.Get("ETag")
		resp, body = f.want(206, "GET", one, "", "Range", "bytes=7-")
		if body != "world" || resp.Header.Get("Content-Range") != "bytes 7-11/12" {
			t.Errorf("%q %v", body, resp.Header)
		}
		if _, body = f.want(206, "GET", one, "", "Range", "bytes=-5"); body != "world" {
			t.Errorf("%q", body)
		}
		if _, body = f.want(206, "GET", one, "", "Range", "bytes=0-1,4-5"); !strings.Contains(body, "he") || !strings.Contains(body, "o,") {
			t.Errorf("%q", body)
		}
		if _, body = f.want(200, "GET", one, "", "Range", "bytes=7-", "If-Range", `"other"`); body != text {
			t.Errorf("%q", body)
		}
		f.do("GET", one, nil, "Range", "bytes=99-")
		f.want(304, "GET", one, "", "If-None-Match", etag)
		if resp, _ := f.want(200, "HEAD", one, ""); resp.ContentLength != 12 {
			t.Errorf("%d", resp.ContentLength)
		}
		// A version does not change unnoticed.
		f.want(200, "PUT", one, text, "Content-Type", "text/plain; charset=utf-8")
		f.want(409, "PUT", one, "other")
		f.want(409, "PUT", one, "other", "If-Match", `"`+digest.FromString("x").String()+`"`)
		f.want(409, "PUT", "/files/acme/tools/-/9/new", "other", "If-Match", etag)
		f.want(201, "PUT", one, "other", "If-Match", etag)
		f.want(201, "PUT", one, "third", "If-Match", "*")
		f.want(201, "PUT", "/files/acme/tools/-/1.3/bin/tool.txt", text)
		f.want(201, "PUT", "/files/acme/tools/-/1.3/README.md", text)
		if resp, body = f.want(200, "GET", "/files/acme/tools/-/latest/bin/tool.txt", ""); body != text || resp.Header.Get("X-File-Version") != "1.3" {
			t.Errorf("%q", body)
		}
		list := func(query string) (out page) {
			t.Helper()
			_, body := f.want(200, "GET", "/files/acme/tools/-/"+query, "")
			if err := json.Unmarshal([]byte(body), &out); err != nil {
				t.Fatal(err)
			}
			return out
		}
		all := list("?limit=2")
		if len(all.Items) != 2 || all.Items[0].Path != "README.md" || all.Items[1].Version != "1.2" || all.Next == "" {
			t.Errorf("%+v", all)
		}
		if rest := list("?limit=2&after=" + all.Next); len(rest.Items) != 1 || rest.Items[0].Version != "1.3" || rest.Next != "" {
			t.Errorf("%+v", rest)
		}
		if some := list("?prefix=bin/"); len(some.Items) != 2 {
			t.Errorf("%+v", some)
		}
		if some := list("?version=1.3"); len(some.Items) != 2 {
			t.Errorf("%+v", some)
		}
		f.want(400, "GET", "/files/acme/tools/-/?limit=0", "")
		f.want(400, "GET", "/files/acme/tools/-/?after=x", "")
		f.want(400, "GET", "/files/acme/tools/-/?prefix=%00", "")
		if _, body := f.want(200, "GET", "/files/acme/other/-/", ""); body != "{\"items\":[]}\n" {
			t.Errorf("%s", body)
		}
		if n, err := f.Usage(t.Context(), "acme"); err != nil || n != int64(len(text)+len("third")) {
			t.Errorf("%d %v", n, err)
		}
		if n := f.stored(); n != 2 {
			t.Errorf("%d contents", n)
		}
		f.want(409, "DELETE", one, "", "If-Match", etag)
		f.want(204, "DELETE", one, "")
		f.want(404, "DELETE", one, "")
		f.want(404, "GET", one, "")
		f.want(400, "DELETE", "/files/acme/tools/-/latest/bin/tool.txt", "")
		if err := f.DeleteRepository(t.Context(), "acme/tools"); err != nil {
			t.Fatal(err)
		}
		if n := f.stored(); n != 0 {
			t.Errorf("%d contents stay", n)
		}
		if got := f.kinds(); got != "push pull pull pull push push push push push pull delete" {
			t.Errorf("%s", got)
		}
		for _, e := range f.events {
			if e.Org != "acme" || e.Repository != "acme/tools" || e.Data["kind"] != "file" || e.Actor != "wendy" || e.Digest == "" || e.Tag == "" {
				t.Errorf("%+v", e)
			}
		}
		if f.events[0].ID != f.events[4].ID || f.events[0].ID == f.events[5].ID {
			t.Error("the retry of a push has an event of its own")
		}
	})
}

func TestRefusals(t *testing.T) {
	f := startSQLite(t, func(c *Config) { c.MaxBytes = 1000 })
	f.want(201, "PUT", "/files/acme/tools/-/1/a", "x")
	long := strings.Repeat("a", 300)
	for _, tt := range []struct {
		method, path, body string
		status             int
		header             []string
	}{
		{"PUT", "/files/acme/tools/-/1/../../etc/passwd", "x", 400, nil},
		{"PUT", "/files/acme/tools/-/1/%2e%2e/x", "x", 400, nil},
		{"PUT", "/files/acme/tools/-/1/a%2f..%2fb", "x", 400, nil},
		{"PUT", "/files/acme/tools/-/1/a%2Fb", "x", 400, nil},
		{"PUT", "/files/acme/tools/-/1/a//b", "x", 400, nil},
		{"PUT", "/files/acme/tools/-/1/a/", "x", 400, nil},
		{"PUT", "/files/acme/tools/-/1/", "x", 400, nil},
		{"PUT", "/files/acme/tools/-/1/.", "x", 400, nil},
		{"PUT", "/files/acme/tools/-/1/a%5cb", "x", 400, nil},
		{"PUT", "/files/acme/tools/-/1/a%00b", "x", 400, nil},
		{"PUT", "/files/acme/tools/-/1/a%0ab", "x", 400, nil},
		{"PUT", "/files/acme/tools/-/1/%ff", "x", 400, nil},
		{"PUT", "/files/acme/tools/-/1/e%CC%81", "x", 400, nil},          // decomposed é
		{"PUT", "/files/acme/tools/-/1/%E2%80%AEtxt.exe", "x", 400, nil}, // right-to-left override
		{"PUT", "/files/acme/tools/-/1/%20a", "x", 400, nil},
		{"PUT", "/files/acme/tools/-/1/" + long, "x", 400, nil},
		{"PUT", "/files/acme/tools/-/1/" + strings.Repeat("a/", 40) + "b", "x", 400, nil},
		{"PUT", "/files/acme/tools/-/latest/a", "x", 400, nil},
		{"PUT", "/files/acme/tools/-/..%2f/a", "x", 400, nil},
		{"PUT", "/files/acme/tools/-/-1/a", "x", 400, nil},
		{"PUT", "/files/ACME/tools/-/1/a", "x", 400, nil},
		{"PUT", "/files/acme/-/1/a", "x", 400, nil},
		{"PUT", "/files/acme/tools/1/a", "x", 404, nil},
		{"PUT", "/files/acme/tools/-/1/b", strings.Repeat("x", 1001), 413, nil},
		{"PUT", "/files/acme/tools/-/1/b", "x", 400, []string{"Content-Type", "nonsense"}},
		{"PUT", "/files/acme/tools/-/1/b", "x", 400, []string{"Content-Range", "bytes 0-0/2"}},
		{"PUT", "/files/acme/tools/-/1/b", "x", 400, []string{"X-Checksum-Sha256", digest.FromString("y").Encoded()}},
		{"PUT", "/files/acme/tools/-/1/b", "x", 400, []string{"X-Checksum-Sha256", "zz"}},
		{"PUT", "/files/acme/tools/-/1/b", "x", 400, []string{"Repr-Digest", "sha-256=:%%:"}},
		{"PUT", "/files/acme/tools/-/1/b", "x", 400, []string{"If-Match", "nonsense"}},
		{"PATCH", "/files/acme/tools/-/1/b", "x", 405, nil},
		{"PUT", "/files/acme/tools/-/", "x", 405, nil},
		{"GET", "/files/acme/tools/-uploads/nothere", "", 412, nil},
		{"HEAD", "/files/acme/tools/-uploads/nothere", "", 404, []string{"Tus-Resumable", "1.0.0"}},
	} {
		t.Run(tt.method+" "+tt.path, func(t *testing.T) {
			f.t = t
			f.want(tt.status, tt.method, tt.path, tt.body, tt.header...)
		})
	}
	f.t = t
	// A body whose length is not told is bounded too.
	resp, text := f.do("PUT", "/files/acme/tools/-/1/b", struct{ io.Reader }{strings.NewReader(strings.Repeat("x", 5000))})
	if resp.StatusCode != 413 {
		t.Errorf("%d %s", resp.StatusCode, text)
	}
	f.want(201, "PUT", "/files/acme/tools/-/1.0+b_1/%C3%A9t%C3%A9/%E6%96%87%E4%BB%B6%20(1).txt", "summer")
	if _, body := f.want(200, "GET", "/files/acme/tools/-/1.0+b_1/%C3%A9t%C3%A9/%E6%96%87%E4%BB%B6%20(1).txt", ""); body != "summer" {
		t.Error(body)
	}
	f.want(416, "GET", "/files/acme/tools/-/1/a", "", "Range", "bytes=5-")
	if n := f.stored(); n != 2 {
		t.Errorf("%d contents", n)
	}
}

type quota int64

func (q quota) Quota(context.Context, string) (registry.Quota, error) {
	return registry.Quota{Bytes: int64(q)}, nil
}

func TestQuota(t *testing.T) {
	f := startSQLite(t, func(c *Config) {
		c.Quotas = quota(100)
		c.Usage = func(context.Context, sqldb.Querier, string) (int64, error) { return 40, nil }
	})
	f.want(201, "PUT", "/files/acme/tools/-/1/a", strings.Repeat("x", 50))
	f.want(429, "PUT", "/files/acme/tools/-/1/b", strings.Repeat("y", 11))
	if resp, text := f.do("PUT", "/files/acme/tools/-/1/b", struct{ io.Reader }{strings.NewReader(strings.Repeat("y", 11))}); resp.StatusCode != 429 {
		t.Errorf("%d %s", resp.StatusCode, text)
	}
	f.want(429, "POST", "/files/acme/tools/-/1/b", "", "Tus-Resumable", "1.0.0", "Upload-Length", "11")
	f.want(201, "PUT", "/files/acme/tools/-/1/b", strings.Repeat("y", 10))
	if got := f.kinds(); got != "push quota quota quota push" || f.events[1].ID != f.events[2].ID {
		t.Errorf("%s", got)
	}
}

// Of uploads at once, each of which began while there was room, those have it that are there first.
func TestQuotaOfUploadsAtOnce(t *testing.T) {
	sqldbtest.Each(t, func(t *testing.T, empty func(testing.TB) string) {
		f := start(t, empty(t), func(c *Config) { c.Quotas = quota(100) })
		const uploads = 6
		var began, done sync.WaitGroup
		began.Add(uploads)
		var stored, refused atomic.Int32
		for i := range uploads {
			done.Go(func() {
				content := io.MultiReader(readerFunc(func([]byte) (int, error) { began.Done(); began.Wait(); return 0, io.EOF }), strings.NewReader(strings.Repeat(fmt.Sprint(i), 40)))
				_, _, err := f.Store.Store(t.Context(), Put{Repository: "acme/tools", Path: fmt.Sprint("f", i), Version: "1", Length: 40, Account: "ann"}, content)
				switch {
				case err == nil:
					stored.Add(1)
				case errors.Is(err, problem.ErrExhausted):
					refused.Add(1)
				default:
					t.Error(err)
				}
			})
		}
		done.Wait()
		if n, err := f.Usage(t.Context(), "acme"); err != nil || n != 80 || stored.Load() != 2 || refused.Load() != uploads-2 {
			t.Errorf("%d bytes of 100, %d stored, %d refused: %v", n, stored.Load(), refused.Load(), err)
		}
		if n := f.stored(); n != 2 {
			t.Errorf("%d contents", n)
		}
	})
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

func TestDenied(t *testing.T) {
	f := startSQLite(t)
	srv := httptest.NewServer(NewHandler(f.Store, anyone{problem.New(problem.ErrForbidden, "no")}))
	defer srv.Close()
	f.url = srv.URL
	for _, c := range [][2]string{{"GET", one}, {"HEAD", one}, {"PUT", one}, {"DELETE", one}, {"POST", one}, {"GET", "/files/acme/tools/-/"},
		{"HEAD", "/files/acme/tools/-uploads/x"}, {"PATCH", "/files/acme/tools/-uploads/x"}, {"DELETE", "/files/acme/tools/-uploads/x"}} {
		f.want(403, c[0], c[1], "", "Tus-Resumable", "1.0.0")
	}
}

func TestUpload(t *testing.T) {
	eachDialect(t, func(t *testing.T, f *fixture) {
		data := make([]byte, 300_000)
		chacha := rand.NewChaCha8([32]byte{1})
		_, _ = chacha.Read(data)
		sum := digest.FromBytes(data)
		tus := []string{"Tus-Resumable", "1.0.0"}
		with := func(more ...string) []string { return append(append([]string{}, tus...), more...) }
		meta := "filetype " + base64.StdEncoding.EncodeToString([]byte("application/zip")) + ",sha256 " + base64.StdEncoding.EncodeToString([]byte(sum.Encoded()))
		resp, _ := f.want(204, "OPTIONS", one, "")
		if resp.Header.Get("Tus-Version") != "1.0.0" || !strings.Contains(resp.Header.Get("Tus-Extension"), "creation") {
			t.Errorf("%v", resp.Header)
		}
		f.want(412, "POST", one, "", "Upload-Length", "5")
		f.want(400, "POST", one, "", with("Upload-Length", "-5")...)
		f.want(400, "POST", one, "", with("Upload-Length", "5", "Upload-Metadata", "filetype %%%")...)
		resp, _ = f.want(201, "POST", one, "", with("Upload-Length", "300000", "Upload-Metadata", meta)...)
		at := resp.Header.Get("Location")
		if !strings.HasPrefix(at, "/files/acme/tools/-uploads/") || resp.Header.Get("Upload-Expires") == "" {
			t.Errorf("%v", resp.Header)
		}
		patch := func(status int, offset int, body []byte) *http.Response {
			t.Helper()
			resp, _ := f.want(status, "PATCH", at, string(body), with("Content-Type", offsetStream, "Upload-Offset", fmt.Sprint(offset))...)
			return resp
		}
		offset := func() string {
			t.Helper()
			resp, _ := f.want(200, "HEAD", at, "", tus...)
			if resp.Header.Get("Upload-Length") != "300000" || resp.Header.Get("Cache-Control") != "no-store" {
				t.Errorf("%v", resp.Header)
			}
			return resp.Header.Get("Upload-Offset")
		}
		if resp := patch(204, 0, data[:1000]); resp.Header.Get("Upload-Offset") != "1000" {
			t.Errorf("%v", resp.Header)
		}
		patch(409, 0, data[:1000])
		patch(409, 2000, data[2000:])
		f.want(415, "PATCH", at, "x", with("Upload-Offset", "1000")...)
		f.want(400, "PATCH", at, "x", with("Upload-Offset", "x", "Content-Type", offsetStream)...)
		if got := offset(); got != "1000" {
			t.Error(got)
		}
		// A client that breaks off has not sent in vain.
		r, w := io.Pipe()
		ctx, cancel := context.WithCancel(t.Context())
		req, err := http.NewRequestWithContext(ctx, "PATCH", f.url+at, r)
		if err != nil {
			t.Fatal(err)
		}
		for i := 0; i < len(tus); i += 2 {
			req.Header.Set(tus[i], tus[i+1])
		}
		req.Header.Set("Content-Type", offsetStream)
		req.Header.Set("Upload-Offset", "1000")
		done := make(chan struct{})
		go func() {
			defer close(done)
			if resp, err := http.DefaultTransport.RoundTrip(req); err == nil {
				resp.Body.Close()
			}
		}()
		if _, err := w.Write(data[1000:200_000]); err != nil {
			t.Fatal(err)
		}
		cancel()
		w.CloseWithError(errors.New("gone"))
		<-done
		var got int
		testenv.Eventually(t, 30*time.Second, func() error {
			if _, err := fmt.Sscan(offset(), &got); err != nil || got <= 1000 {
				return fmt.Errorf("at %d: %v", got, err)
			}
			return nil
		})
		patch(400, got, append(append([]byte{}, data[got:]...), "more"...))
		if offset() != "300000" {
			t.Error(offset())
		}
		f.want(404, "GET", one, "")
		resp = patch(204, 300_000, nil)
		if resp.Header.Get("X-Checksum-Sha256") != sum.Encoded() || offset() != "300000" {
			t.Errorf("%v", resp.Header)
		}
		resp, body := f.want(200, "GET", one, "")
		if body != string(data) || resp.Header.Get("Content-Type") != "application/zip" {
			t.Errorf("%d bytes, %v", len(body), resp.Header)
		}
		if n := f.stored(); n != 1 {
			t.Errorf("%d contents", n)
		}
		// The last answer may have been lost: it can be had again.
		patch(204, 300_000, nil)

		// With content that is not what was said, nothing is stored.
		bad := "sha256 " + base64.StdEncoding.EncodeToString([]byte(digest.FromString("x").Encoded()))
		resp, _ = f.want(201, "POST", "/files/acme/tools/-/2/x", "", with("Upload-Length", "3", "Upload-Metadata", bad)...)
		at = resp.Header.Get("Location")
		patch(400, 0, []byte("abc"))
		f.want(404, "GET", "/files/acme/tools/-/2/x", "")
		f.want(204, "DELETE", at, "", tus...)
		f.want(404, "HEAD", at, "", tus...)
		// Empty, and all at once.
		f.want(201, "POST", "/files/acme/tools/-/3/empty", "", with("Upload-Length", "0")...)
		f.want(200, "GET", "/files/acme/tools/-/3/empty", "")
		resp, _ = f.want(201, "POST", "/files/acme/tools/-/3/whole", "abc", with("Upload-Length", "3", "Content-Type", offsetStream)...)
		if resp.Header.Get("Upload-Offset") != "3" {
			t.Errorf("%v", resp.Header)
		}
		f.want(200, "GET", "/files/acme/tools/-/3/whole", "")
		// Of another repository it is nothing.
		f.want(404, "HEAD", strings.Replace(resp.Header.Get("Location"), "tools", "other", 1), "", tus...)
		if n := f.stored(); n != 3 {
			t.Errorf("%d contents", n)
		}
	})
}

// Two clients that append at the same place: one wins, and the content is its.
func TestAppendAtOnce(t *testing.T) {
	f := startSQLite(t)
	u, err := f.NewUpload(t.Context(), Put{Repository: "acme/tools", Path: "a", Version: "1", Length: 4, Account: "wendy"})
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	errs := make([]error, 4)
	for i := range errs {
		wg.Go(func() {
			_, errs[i] = f.Append(t.Context(), "acme/tools", u.ID, 0, strings.NewReader(strings.Repeat(fmt.Sprint(i), 4)))
		})
	}
	wg.Wait()
	won := 0
	for _, err := range errs {
		if err == nil {
			won++
		} else if !errors.Is(err, problem.ErrConflict) && !errors.Is(err, problem.ErrInvalid) {
			t.Error(err)
		}
	}
	_, body := f.want(200, "GET", "/files/acme/tools/-/1/a", "")
	if won < 1 || body != strings.Repeat(body[:1], 4) {
		t.Errorf("%d won, %q", won, body)
	}
}

func TestExpire(t *testing.T) {
	now := time.Now()
	f := startSQLite(t, func(c *Config) { c.Now = func() time.Time { return now } })
	u, err := f.NewUpload(t.Context(), Put{Repository: "acme/tools", Path: "a", Version: "1", Length: 4, Account: "wendy"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Append(t.Context(), "acme/tools", u.ID, 0, strings.NewReader("ab")); err != nil {
		t.Fatal(err)
	}
	now = now.Add(23 * time.Hour)
	if err := f.Sweep(t.Context()); err != nil || f.stored() != 1 {
		t.Errorf("%v %d", err, f.stored())
	}
	now = now.Add(2 * time.Hour)
	if err := f.Sweep(t.Context()); err != nil || f.stored() != 0 {
		t.Errorf("%v %d", err, f.stored())
	}
	if _, err := f.Upload(t.Context(), "acme/tools", u.ID); !errors.Is(err, problem.ErrNotFound) {
		t.Error(err)
	}
}

// Content that cannot be read to its end is never a complete-looking download.
func TestBrokenContent(t *testing.T) {
	f := startSQLite(t)
	text := strings.Repeat("0123456789", 10_000)
	f.want(201, "PUT", one, text)
	path := filepath.Join(f.root, digest.FromString(text).Encoded()[:2], digest.FromString(text).Encoded(), "content")
	if err := os.Truncate(path, 50_000); err != nil {
		t.Fatal(err)
	}
	resp, err := http.Get(f.url + one) //nolint:gosec // a test's own server
	if err != nil {
		return
	}
	defer resp.Body.Close()
	if b, err := io.ReadAll(resp.Body); err == nil {
		t.Errorf("%d bytes look complete", len(b))
	}
}

func FuzzTarget(f *testing.F) {
	for _, s := range []string{one, "/files/acme/tools/-/latest/%C3%A9", "/files/a/b/c/-uploads/x", "/files/a/b/-/", "/files/a/b/-/1/%2e%2e/x", "/files/-/-/-/-"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, escaped string) {
		got, err := parseTarget(escaped)
		if err != nil {
			if problem.Of(err).Status >= 500 {
				t.Errorf("%q: %v", escaped, err)
			}
			return
		}
		if _, err := registry.SplitRepository("", got.repository); err != nil {
			t.Errorf("%q: repository %q", escaped, got.repository)
		}
		if got.path != "" && (filepath.Clean("/x/"+got.path) != "/x/"+got.path || ValidatePath(got.path) != nil) {
			t.Errorf("%q: path %q", escaped, got.path)
		}
	})
}

func FuzzRange(f *testing.F) {
	s := startSQLite(f)
	content := []byte("0123456789abcdef")
	if _, _, err := s.Store.Store(context.Background(), Put{Repository: "acme/tools", Path: "a", Version: "1", Length: -1, Account: "w"}, bytes.NewReader(content)); err != nil {
		f.Fatal(err)
	}
	h := NewHandler(s.Store, anyone{})
	for _, r := range []string{"bytes=0-", "bytes=-1", "bytes=3-2", "bytes=0-0,-1", "bytes=99999999999999999999-", "lines=1-2", "bytes=,,,"} {
		f.Add(r)
	}
	f.Fuzz(func(t *testing.T, header string) {
		r := httptest.NewRequest(http.MethodGet, "/files/acme/tools/-/1/a", nil)
		r.Header["Range"] = []string{header}
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		switch w.Code {
		case http.StatusOK:
			if !bytes.Equal(w.Body.Bytes(), content) {
				t.Errorf("%q: %q", header, w.Body)
			}
		case http.StatusPartialContent:
			var from, to, size int
			if _, err := fmt.Sscanf(w.Header().Get("Content-Range"), "bytes %d-%d/%d", &from, &to, &size); err == nil && !bytes.Equal(w.Body.Bytes(), content[from:to+1]) {
				t.Errorf("%q: %q", header, w.Body)
			}
		case http.StatusRequestedRangeNotSatisfiable:
		default:
			t.Errorf("%q: %d", header, w.Code)
		}
	})
}

func FuzzMetadata(f *testing.F) {
	f.Add("filetype dGV4dC9wbGFpbg==,sha256 AA==")
	f.Add(",, ,a")
	f.Fuzz(func(t *testing.T, header string) {
		if _, err := metadata(header); err != nil && !errors.Is(err, problem.ErrInvalid) {
			t.Error(err)
		}
	})
}
