package server_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"cumulet.io/registry"
	"cumulet.io/registry/hubtoken"
	"cumulet.io/registry/oci"
	"cumulet.io/registry/server"

	"github.com/google/go-containerregistry/pkg/v1/remote"
)

func TestLimits(t *testing.T) {
	h := startHub(t)
	long := strings.Repeat("a", 130) + "/" + strings.Repeat("b", 130)
	wendy := h.bearer("wendy", "repository:acme/web:pull,push", "repository:acme/"+long+":pull,push")
	const manifest = "application/vnd.oci.image.manifest.v1+json"
	big := strings.Repeat(" ", 4<<20) + "{}"
	for _, tc := range []struct {
		name, method, path, body, contentType string
		status                                int
		has                                   string
	}{
		{"manifest above 4 MiB", "PUT", "/v2/acme/web/manifests/v1", big, manifest, 413, "SIZE_INVALID"},
		{"not a manifest", "PUT", "/v2/acme/web/manifests/v1", "hello", manifest, 400, "MANIFEST_INVALID"},
		{"unknown manifest type", "PUT", "/v2/acme/web/manifests/v1", "{}", "text/plain", 400, "MANIFEST_INVALID"},
		{"digest mismatch", "PUT", "/v2/acme/web/manifests/sha256:" + strings.Repeat("0", 64), `{"schemaVersion":2,"mediaType":"` + manifest + `","config":{"mediaType":"application/vnd.oci.empty.v1+json","digest":"sha256:` + strings.Repeat("0", 64) + `","size":2},"layers":[]}`, manifest, 400, "DIGEST_INVALID"},
		{"long name", "GET", "/v2/acme/" + long + "/tags/list", "", "", 401, ""},
		{"path tricks", "GET", "/v2/acme/../beta/secret/tags/list", "", "", 307, ""},
		{"encoded tricks", "GET", "/v2/acme/%2e%2e/beta/tags/list", "", "", 301, ""},
		{"catalog page", "GET", "/v2/_catalog?n=-1", "", "", 401, ""},
		{"unknown blob", "GET", "/v2/acme/web/blobs/sha256:" + strings.Repeat("0", 64), "", "", 404, "BLOB_UNKNOWN"},
		{"bad upload state", "PATCH", "/v2/acme/web/blobs/uploads/00000000-0000-0000-0000-000000000000?_state=abc", "x", "", 404, "BLOB_UPLOAD"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			resp, text := h.request(tc.method, tc.path, tc.body, "Authorization", wendy, "Content-Type", tc.contentType)
			if resp.StatusCode != tc.status || !strings.Contains(text, tc.has) {
				t.Errorf("%d %.300s, want %d and %q", resp.StatusCode, text, tc.status, tc.has)
			}
		})
	}
	if repos, err := h.Directory().Repositories(t.Context(), []string{"acme"}, false, "", 10); err != nil || len(repos) != 0 {
		t.Errorf("refused pushes left %v, %v", repos, err)
	}
	catalog := h.bearer("wendy", "registry:catalog:*")
	for path, want := range map[string]int{"?n=-1": 400, "?n=x": 400, "?n=0": 200, "?n=99999": 200, "": 200} {
		if resp, text := h.request(http.MethodGet, "/v2/_catalog"+path, "", "Authorization", catalog); resp.StatusCode != want {
			t.Errorf("catalog %s: %d %s", path, resp.StatusCode, text)
		}
	}
	if resp, _ := h.request(http.MethodDelete, "/v2/_catalog", "", "Authorization", catalog); resp.StatusCode != http.StatusMethodNotAllowed {
		t.Errorf("DELETE of the catalog: %d", resp.StatusCode)
	}
}

func TestUploadSurvivesRestart(t *testing.T) {
	dir := t.TempDir()
	keep := func(c *server.Config) { c.Dir = dir }
	first := startHub(t, keep)
	data := strings.Repeat("0123456789", 1000)
	bearer := func(h *hub) []string {
		return []string{"Authorization", h.bearer("wendy", "repository:acme/web:pull,push"), "Content-Type", "application/octet-stream"}
	}
	resp, text := first.request(http.MethodPost, "/v2/acme/web/blobs/uploads/", "", bearer(first)...)
	if resp.StatusCode != http.StatusAccepted {
		t.Fatalf("POST: %d %s", resp.StatusCode, text)
	}
	location := resp.Header.Get("Location")
	if strings.Contains(location, "://") {
		t.Errorf("the location names a host: %s", location)
	}
	resp, text = first.request(http.MethodPatch, location, data[:5000], bearer(first)...)
	if resp.StatusCode != http.StatusAccepted {
		t.Fatalf("PATCH: %d %s", resp.StatusCode, text)
	}
	location = resp.Header.Get("Location")

	// Another node on the same storage and secret goes on with the upload.
	second := startHub(t, keep, func(c *server.Config) { c.Storage.Tracker = first.Storage().Tracker() })
	resp, text = second.request(http.MethodPatch, location, data[5000:], bearer(second)...)
	if resp.StatusCode != http.StatusAccepted {
		t.Fatalf("PATCH on the second: %d %s", resp.StatusCode, text)
	}
	u, err := url.Parse(resp.Header.Get("Location"))
	if err != nil {
		t.Fatal(err)
	}
	q := u.Query()
	digest := fmt.Sprintf("sha256:%x", sha256.Sum256([]byte(data)))
	q.Set("digest", digest)
	u.RawQuery = q.Encode()
	if resp, text = second.request(http.MethodPut, u.String(), "", bearer(second)...); resp.StatusCode != http.StatusCreated {
		t.Fatalf("PUT: %d %s", resp.StatusCode, text)
	}
	if resp, text = first.request(http.MethodGet, "/v2/acme/web/blobs/"+digest, "", bearer(first)...); text != data {
		t.Errorf("GET: %d, %d bytes", resp.StatusCode, len(text))
	}
	resp, _ = first.request(http.MethodGet, "/v2/acme/web/blobs/"+digest, "", append(bearer(first), "Range", "bytes=10-19")...)
	if resp.StatusCode != http.StatusPartialContent {
		t.Errorf("range: %d", resp.StatusCode)
	}
}

func TestTagPages(t *testing.T) {
	h := startHub(t)
	img := randomImage(t)
	for _, tag := range []string{"a", "b", "c", "d"} {
		push(t, h, "wendy", "acme/web:"+tag, img)
	}
	// What a crash leaves of a tag that was never acknowledged.
	tags := filepath.Join(h.dir, "blobs/docker/registry/v2/repositories/acme/web/_manifests/tags")
	for _, tag := range []string{"aa", "bb", "dd"} {
		if err := os.MkdirAll(filepath.Join(tags, tag, "index"), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	rita := h.bearer("rita", "repository:acme/web:pull")
	for query, want := range map[string]string{
		"": `["a","b","c","d"]`, "?n=2": `["a","b"]>`, "?n=2&last=b": `["c","d"]`, "?n=2&last=d": `[]`, "?n=3": `["a","b","c"]>`,
		"?n=9": `["a","b","c","d"]`, "?n=0": `[]`, "?last=aa": `["b","c","d"]`,
	} {
		resp, body := h.request(http.MethodGet, "/v2/acme/web/tags/list"+query, "", "Authorization", rita)
		if resp.Header.Get("Link") != "" {
			body = strings.TrimSpace(body) + ">"
		}
		if got := strings.TrimSpace(strings.ReplaceAll(strings.TrimPrefix(body, `{"name":"acme/web","tags":`), "}", "")); got != want {
			t.Errorf("%s: %s, want %s", query, got, want)
		}
	}
}

// A push that cannot be announced fails without telling why, and can be repeated.
func TestPushHookFails(t *testing.T) {
	down := true
	h := startHub(t, func(c *server.Config) {
		ok := c.Outbox
		c.Outbox = outboxFunc(func(ctx context.Context, e registry.Event) error {
			if down {
				return errors.New("disk of the outbox is full: /secret/path")
			}
			return ok.Emit(ctx, e)
		})
	})
	img := randomImage(t)
	ref := h.ref(t, "acme/web:v1")
	err := remote.Write(ref, img, as(t, "wendy")...)
	wantStatus(t, "push", err, http.StatusServiceUnavailable)
	if err != nil && strings.Contains(err.Error(), "secret") {
		t.Errorf("the cause reaches the client: %v", err)
	}
	if !strings.Contains(h.log.String(), "disk of the outbox is full") {
		t.Error("the cause is not in the log")
	}
	down = false
	req := as(t, "wendy")
	if err := remote.Put(ref, img, req...); err != nil {
		t.Fatal(err)
	}
	if events := h.pushed(); len(events) != 1 {
		t.Errorf("events = %v", events)
	}
}

// The registry on its own, verifying by a key URL that does not answer.
func TestKeysUnavailable(t *testing.T) {
	h := startHub(t)
	verifier, err := hubtoken.NewVerifier(hubtoken.Config{JWKSURL: "http://127.0.0.1:1/jwks.json", Issuer: h.Issuer()})
	if err != nil {
		t.Fatal(err)
	}
	r, err := oci.New(t.Context(), oci.Config{Directory: h.Directory(), Verifier: verifier, Index: h.Index(), Realm: h.url + "/token", Service: h.host,
		Parameters: map[string]any{"rootdirectory": t.TempDir()}, SecretFile: filepath.Join(h.dir, "keys", "upload-secret")})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close() //nolint:errcheck // only the test's
	for header, want := range map[string]int{h.bearer("rita"): http.StatusServiceUnavailable, "": http.StatusUnauthorized} {
		w := serve(r, "/v2/", header)
		if w.Code != want || (want == http.StatusServiceUnavailable) != (w.Header().Get("Retry-After") != "") {
			t.Errorf("with %d bytes of token: %d, %v", len(header), w.Code, w.Header())
		}
	}
}

func TestConfigRefused(t *testing.T) {
	h := startHub(t)
	good := oci.Config{Directory: h.Directory(), Verifier: h.Verifier(), Index: h.Index(), Realm: h.url + "/token", Service: h.host,
		Parameters: map[string]any{"rootdirectory": t.TempDir()}, SecretFile: filepath.Join(t.TempDir(), "s", "secret")}
	short := filepath.Join(t.TempDir(), "short")
	writeFile(t, short, "short")
	for name, change := range map[string]func(*oci.Config){
		"no directory":   func(c *oci.Config) { c.Directory = nil },
		"no index":       func(c *oci.Config) { c.Index = nil },
		"realm":          func(c *oci.Config) { c.Realm = "token" },
		"service":        func(c *oci.Config) { c.Service = `a"b` },
		"driver":         func(c *oci.Config) { c.Driver = "floppy" },
		"parameters":     func(c *oci.Config) { c.Parameters = nil },
		"bad parameters": func(c *oci.Config) { c.Parameters = map[string]any{"rootdirectory": "/tmp", "maxthreads": "x"} },
		"short secret":   func(c *oci.Config) { c.SecretFile = short },
	} {
		c := good
		change(&c)
		if r, err := oci.New(t.Context(), c); err == nil {
			t.Errorf("%s: accepted", name)
			_ = r.Close() //nolint:errcheck // the test has failed
		}
	}
	for name, change := range map[string]func(*server.Config){
		"path":     func(c *server.Config) { c.PublicURL += "/hub" },
		"scheme":   func(c *server.Config) { c.PublicURL = "hub.example:5000" },
		"rotation": func(c *server.Config) { c.RotateEvery = 1 },
		"ttl":      func(c *server.Config) { c.TokenTTL = 1 },
		"alg":      func(c *server.Config) { c.KeyAlgorithm = "HS256" },
		"db":       func(c *server.Config) { c.DB = nil },
	} {
		var c server.Config
		startHub(t, func(have *server.Config) { c = *have })
		c.Dir = t.TempDir()
		change(&c)
		if s, err := server.New(t.Context(), c); err == nil {
			t.Errorf("%s: accepted", name)
			_ = s.Close() //nolint:errcheck // the test has failed
		}
	}
}

func TestRunEnds(t *testing.T) {
	h := startHub(t)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- h.Run(ctx) }()
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if err := h.Check(t.Context()); err != nil {
		t.Error(err)
	}
}
