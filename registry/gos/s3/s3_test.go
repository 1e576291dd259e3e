package s3_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/minio/minio-go/v7/pkg/credentials"

	"cumulet.io/internal/testenv"
	"cumulet.io/registry/gos"
	"cumulet.io/registry/gos/gostest"
	"cumulet.io/registry/gos/s3"
)

// counting counts requests by what they are.
type counting struct {
	*http.Transport
	mu   sync.Mutex
	seen []string
}

func newCounting(t *testing.T) *counting {
	c := &counting{Transport: &http.Transport{DisableCompression: true, MaxIdleConnsPerHost: 64}}
	t.Cleanup(c.CloseIdleConnections)
	return c
}

func (c *counting) RoundTrip(req *http.Request) (*http.Response, error) {
	what := req.Method
	for _, name := range []string{"uploads", "partNumber", "uploadId"} {
		if req.URL.Query().Has(name) {
			what += " " + name
			break
		}
	}
	c.mu.Lock()
	c.seen = append(c.seen, what)
	c.mu.Unlock()
	return c.Transport.RoundTrip(req)
}

func (c *counting) take() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := c.seen
	c.seen = nil
	return out
}

func open(t *testing.T, url, public string, transport http.RoundTripper) *s3.Store {
	t.Helper()
	store, err := s3.Open(s3.Config{Endpoint: url, PublicEndpoint: public, Bucket: testenv.S3Bucket, Transport: transport,
		Credentials: credentials.NewStaticV4(testenv.S3AccessKey, testenv.S3SecretKey, "")})
	if err != nil {
		t.Fatal(err)
	}
	return store
}

func TestStore(t *testing.T) {
	url, dir := testenv.S3(t)
	store := open(t, url, "", newCounting(t))
	if err := store.Check(t.Context()); err != nil {
		t.Fatal(err)
	}
	gostest.Run(t, store)
	err := filepath.WalkDir(filepath.Join(dir, testenv.S3Bucket), func(path string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			t.Errorf("left behind: %s", path)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

// Requests cost money and time: a stream of 20 MiB takes five, a small object one.
func TestRequests(t *testing.T) {
	url, _ := testenv.S3(t)
	transport := newCounting(t)
	store := open(t, url, "", transport)
	for _, tc := range []struct {
		name string
		n    int
		size int64
		want string
	}{
		{"small stream", 1000, -1, "[PUT]"},
		{"stream", 20 << 20, -1, "[POST uploads PUT partNumber PUT partNumber PUT partNumber POST uploadId]"},
		{"known length", 20 << 20, 20 << 20, "[PUT]"},
	} {
		key := gos.NewKey()
		if _, err := store.Put(t.Context(), key, io.MultiReader(bytes.NewReader(gostest.Bytes(1, tc.n))), tc.size); err != nil {
			t.Fatal(err)
		}
		if got := fmt.Sprint(transport.take()); got != tc.want {
			t.Errorf("%s: %s, want %s", tc.name, got, tc.want)
		}
		body, err := store.Get(t.Context(), key, 5, 10)
		if err != nil {
			t.Fatal(err)
		}
		body.Close()
		if got := fmt.Sprint(transport.take()); got != "[GET]" {
			t.Errorf("%s: read: %s", tc.name, got)
		}
	}
}

func TestPresign(t *testing.T) {
	url, _ := testenv.S3(t)
	store := open(t, url, url, newCounting(t))
	key := gos.NewKey()
	data := gostest.Bytes(3, 1000)
	if _, err := store.Put(t.Context(), key, bytes.NewReader(data), -1); err != nil {
		t.Fatal(err)
	}
	u, err := store.Presign(t.Context(), key, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, u, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if got, err := io.ReadAll(resp.Body); err != nil || !bytes.Equal(got, data) || resp.Header.Get("Content-Type") != "application/octet-stream" {
		t.Errorf("%s: %d bytes, %v, %s", resp.Status, len(got), err, resp.Header.Get("Content-Type"))
	}
	if u, err := open(t, url, "", newCounting(t)).Presign(t.Context(), key, time.Minute); u != "" || err != nil {
		t.Errorf("a store that clients cannot reach: %q, %v", u, err)
	}
}

func TestReadCredentials(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s3")
	write := func(text string, mode os.FileMode) {
		if err := os.WriteFile(path, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
	}
	const good = "[default]\naws_access_key_id = key\naws_secret_access_key = secret\n"
	write(good, 0o600)
	c, err := s3.ReadCredentials(path)
	if err != nil {
		t.Fatal(err)
	}
	if v, err := c.GetWithContext(nil); err != nil || v.AccessKeyID != "key" || v.SecretAccessKey != "secret" {
		t.Errorf("%+v, %v", v, err)
	}
	for text, mode := range map[string]os.FileMode{good: 0o644, "key:secret-word": 0o600, "": 0o600} {
		write(text, mode)
		if _, err := s3.ReadCredentials(path); err == nil || bytes.Contains([]byte(err.Error()), []byte("secret-word")) {
			t.Errorf("%q of mode %o: %v", text, mode, err)
		}
	}
}

func TestUnreachable(t *testing.T) {
	store := open(t, fmt.Sprintf("http://127.0.0.1:%d", testenv.FreePort(t)), "", newCounting(t))
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if _, err := store.Stat(ctx, gos.NewKey()); err == nil {
		t.Error("no error")
	}
}
