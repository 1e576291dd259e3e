package gos_test

import (
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/minio/minio-go/v7/pkg/credentials"
	"github.com/opencontainers/go-digest"

	"cumulet.io/internal/testenv"
	"cumulet.io/registry/gos"
	"cumulet.io/registry/gos/gostest"
	"cumulet.io/registry/gos/s3"
	"cumulet.io/registry/gos/tracker"
)

// What the caller has said of a blob stays, also where the client is sent to the store: it may know the blob by a sha512
// digest, by which the client then asks whether what it has is still right.
func TestServeBlobHeaders(t *testing.T) {
	w := newWorld(t, tracker.Config{}, "a", "b")
	reachable := w.node("a", 0, func(c *gos.Config) {
		store, err := s3.Open(s3.Config{Endpoint: w.servers[0].url, PublicEndpoint: w.servers[0].url, Bucket: testenv.S3Bucket,
			Transport: transport(t), Credentials: credentials.NewStaticV4(testenv.S3AccessKey, testenv.S3SecretKey, "")})
		if err != nil {
			t.Fatal(err)
		}
		c.Stores["a"] = store
	})
	data := gostest.Bytes(17, 1000)
	d, other := reachable.put(t, data), digest.SHA512.FromBytes(data)
	tag, otherTag := `"`+d.String()+`"`, `"`+other.String()+`"`
	known := http.Header{"Docker-Content-Digest": {other.String()}, "Etag": {otherTag}, "Content-Type": {"text/plain"}, "Cache-Control": {"no-cache"}}
	for _, tc := range []struct {
		name        string
		set         http.Header
		ifNoneMatch []string
		// status is of the node whose store clients reach, streamed of the one that reads through.
		status, streamed int
	}{
		{"the blob's own", nil, nil, 307, 200},
		{"the blob's own, unchanged", nil, []string{tag}, 304, 304},
		{"the blob's own, known by another", nil, []string{otherTag}, 307, 200},
		{"the caller's", known, nil, 307, 200},
		{"the caller's, unchanged", known, []string{otherTag}, 304, 304},
		{"the caller's, known by the canonical one", known, []string{tag}, 307, 200},
		{"one of a list", known, []string{`"x", W/` + otherTag}, 304, 304},
		{"any", nil, []string{"*"}, 304, 304},
		{"no tag", known, []string{other.String()}, 307, 200},
	} {
		t.Run(tc.name, func(t *testing.T) {
			for node, status := range map[*node]int{reachable: tc.status, w.node("b", 0): tc.streamed} {
				req := httptest.NewRequest(http.MethodGet, "/", nil)
				req.Header["If-None-Match"] = tc.ifNoneMatch
				rec := httptest.NewRecorder()
				for name, values := range tc.set {
					rec.Header()[name] = values
				}
				if err := node.ServeBlob(rec, req, d, int64(len(data))); err != nil {
					t.Fatal(err)
				}
				h := rec.Header()
				if rec.Code != status {
					t.Errorf("region %s: status %d, want %d", node.Name(), rec.Code, status)
				}
				want := d.String()
				if tc.set != nil {
					want = other.String()
				}
				if h.Get("Docker-Content-Digest") != want {
					t.Errorf("region %s: digest %q, want %q", node.Name(), h.Get("Docker-Content-Digest"), want)
				}
				switch {
				case status == 307 && h.Get("Cache-Control") != "no-store":
					t.Errorf("a redirect that ends may be cached: %v", h)
				case status == 200 && tc.set != nil && (h.Get("Etag") != otherTag || h.Get("Content-Type") != "text/plain" || h.Get("Cache-Control") != "no-cache"):
					t.Errorf("what the caller has set is gone: %v", h)
				case status == 200 && tc.set == nil && (h.Get("Etag") != tag || h.Get("Content-Type") != "application/octet-stream"):
					t.Errorf("what the caller has not set is missing: %v", h)
				}
			}
		})
	}
}
