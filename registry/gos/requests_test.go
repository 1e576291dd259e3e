package gos_test

import (
	"bytes"
	"io"
	"net/http"
	"sync/atomic"
	"testing"

	"github.com/minio/minio-go/v7/pkg/credentials"
	"github.com/opencontainers/go-digest"

	"cumulet.io/internal/testenv"
	"cumulet.io/registry/gos"
	"cumulet.io/registry/gos/gostest"
	"cumulet.io/registry/gos/s3"
	"cumulet.io/registry/gos/tracker"
)

// requests counts what is sent to a store.
type requests struct {
	http.RoundTripper
	n atomic.Int64
}

func (r *requests) RoundTrip(req *http.Request) (*http.Response, error) {
	r.n.Add(1)
	return r.RoundTripper.RoundTrip(req)
}

// A push of 20 MiB costs five requests to S3, of which none copies; a pull by a client that can reach the store costs
// none, and the client gets the bytes where it is sent.
func TestRequestsOfPushAndPull(t *testing.T) {
	w := newWorld(t, tracker.Config{}, "a", "b")
	count := &requests{RoundTripper: transport(t)}
	a := w.node("a", 0, func(c *gos.Config) {
		store, err := s3.Open(s3.Config{Endpoint: w.servers[0].url, PublicEndpoint: w.servers[0].url, Bucket: testenv.S3Bucket,
			Transport: count, Credentials: credentials.NewStaticV4(testenv.S3AccessKey, testenv.S3SecretKey, "")})
		if err != nil {
			t.Fatal(err)
		}
		c.Stores["a"] = store
	})
	data := gostest.Bytes(1, 20<<20)
	d := digest.FromBytes(data)
	const dir = "/docker/registry/v2/repositories/acme/web/_uploads/1"
	// As the core: the bytes with PATCH, the commit with PUT.
	patch, err := a.Writer(t.Context(), dir+"/data", false)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(patch, bytes.NewReader(data)); err != nil {
		t.Fatal(err)
	}
	if err := patch.Close(); err != nil {
		t.Fatal(err)
	}
	put, err := a.Writer(t.Context(), dir+"/data", true)
	if err != nil {
		t.Fatal(err)
	}
	if put.Size() != int64(len(data)) {
		t.Errorf("resumed at %d", put.Size())
	}
	if err := put.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := a.Tracker().Move(t.Context(), dir+"/data", tracker.BlobPath(d)); err != nil {
		t.Fatal(err)
	}
	if n := count.n.Load(); n != 5 {
		t.Errorf("the push cost %d requests", n)
	}
	base := a.serve(t)
	first := &http.Client{Transport: transport(t), CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	for method, want := range map[string]int{http.MethodGet: http.StatusTemporaryRedirect, http.MethodHead: http.StatusOK} {
		req, err := http.NewRequestWithContext(t.Context(), method, base+"/"+d.String(), nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := first.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != want || resp.Header.Get("Docker-Content-Digest") != d.String() {
			t.Errorf("%s: %s %v", method, resp.Status, resp.Header)
		}
		if method == http.MethodGet && resp.Header.Get("Cache-Control") != "no-store" {
			t.Errorf("a redirect that ends may be cached: %v", resp.Header)
		}
	}
	client := &http.Client{Transport: transport(t)}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, base+"/"+d.String(), nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if got, err := drain(resp.Body); err != nil || !got.is(data) {
		t.Errorf("redirected: %v", err)
	}
	if n := count.n.Load(); n != 5 {
		t.Errorf("the pulls cost the registry %d requests", n-5)
	}
}
