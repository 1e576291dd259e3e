package server_test

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/validate"
	"github.com/opencontainers/go-digest"

	"cumulet.io/internal/sqldb"
	"cumulet.io/internal/sqldb/sqldbtest"
	"cumulet.io/internal/testenv"
	"cumulet.io/registry/gos"
	"cumulet.io/registry/gos/dir"
	"cumulet.io/registry/gos/tracker"
	"cumulet.io/registry/server"
)

// Without its tracker a region serves what it has, by tag and by digest; it takes no push, and says 503 to that and to
// what it does not know.
func TestTrackerDown(t *testing.T) {
	line, dsn := testenv.PostgresLine(t)
	openTracker := func(dsn string) *tracker.Tracker {
		db, err := sqldb.Open(t.Context(), dsn)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := db.Close(); err != nil {
				t.Error(err)
			}
		})
		tr, err := tracker.Open(t.Context(), db, tracker.Config{})
		if err != nil {
			t.Fatal(err)
		}
		return tr
	}
	store, err := dir.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	h := startHub(t, func(c *server.Config) {
		c.Storage = gos.Config{Name: "here", Stores: map[string]gos.ObjectStore{"here": store},
			Tracker: openTracker(dsn), Replica: openTracker("sqlite:" + filepath.Join(t.TempDir(), "replica.db"))}
	})
	img := randomImage(t)
	if err := remote.Write(h.ref(t, "acme/web:1"), img, as(t, "wendy")...); err != nil {
		t.Fatal(err)
	}
	if err := h.Storage().Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	line.Cut(true)
	bearer := h.bearer("wendy", "repository:acme/web:pull,push")
	for range 2 { // found out, and known
		got, err := remote.Image(h.ref(t, "acme/web:1"), as(t, "rita")...)
		if err != nil {
			t.Fatalf("pull with the tracker down: %v", err)
		}
		if err := validate.Image(got); err != nil || digestOf(t, got) != digestOf(t, img) {
			t.Errorf("pull with the tracker down: %v", err)
		}
	}
	tags, err := remote.List(h.ref(t, "acme/web:1").Context(), as(t, "rita")...)
	if err != nil || strings.Join(tags, " ") != "1" {
		t.Errorf("tags: %v, %v", tags, err)
	}
	missing := "sha256:" + strings.Repeat("0", 64)
	for _, tc := range [][2]string{
		{http.MethodPost, "/v2/acme/web/blobs/uploads/"},
		{http.MethodPut, "/v2/acme/web/manifests/2"},
		{http.MethodDelete, "/v2/acme/web/manifests/" + digestOf(t, img).String()},
		{http.MethodGet, "/v2/acme/web/blobs/" + missing},
	} {
		body := ""
		if tc[0] == http.MethodPut {
			raw, err := img.RawManifest()
			if err != nil {
				t.Fatal(err)
			}
			body = string(raw)
		}
		mediaType, err := img.MediaType()
		if err != nil {
			t.Fatal(err)
		}
		auth := bearer
		if tc[0] == http.MethodDelete {
			auth = h.bearer("adam", "repository:acme/web:delete")
		}
		resp, text := h.request(tc[0], tc[1], body, "Authorization", auth, "Content-Type", string(mediaType))
		if resp.StatusCode != http.StatusServiceUnavailable || resp.Header.Get("Retry-After") == "" || !strings.Contains(text, "UNAVAILABLE") {
			t.Errorf("%s %s with the tracker down: %d %.200s", tc[0], tc[1], resp.StatusCode, text)
		}
	}
	if err := h.Check(t.Context()); err != nil {
		t.Errorf("a load balancer would end the pulls: %v", err)
	}
	line.Cut(false)
	testenv.Eventually(t, time.Minute, func() error {
		return remote.Write(h.ref(t, "acme/web:2"), randomImage(t), as(t, "wendy")...)
	})
}

// A node that starts while its tracker is down serves what it has, refuses what it cannot know, and does all of its work
// when the tracker is back.
func TestStartWithoutTracker(t *testing.T) {
	line, dsn := testenv.PostgresLine(t)
	replica := filepath.Join(t.TempDir(), "replica.db")
	store, err := dir.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	storage := func(late bool) gos.Config {
		db, err := sqldb.OpenLater(dsn)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := db.Close(); err != nil {
				t.Error(err)
			}
		})
		tr, err := tracker.Open(t.Context(), db, tracker.Config{Late: late})
		if err != nil {
			t.Fatal(err)
		}
		copied, err := tracker.Open(t.Context(), sqldbtest.Open(t, "sqlite:"+replica), tracker.Config{})
		if err != nil {
			t.Fatal(err)
		}
		return gos.Config{Name: "here", Stores: map[string]gos.ObjectStore{"here": store}, Tracker: tr, Replica: copied}
	}
	var cfg server.Config
	h := startHub(t, func(c *server.Config) {
		c.Storage = storage(false)
		cfg = *c
	})
	img := randomImage(t)
	if err := remote.Write(h.ref(t, "acme/web:1"), img, as(t, "wendy")...); err != nil {
		t.Fatal(err)
	}
	if err := h.Storage().Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	line.Cut(true)
	cfg.Storage = storage(true)
	node, err := server.New(t.Context(), cfg)
	if err != nil {
		t.Fatalf("start with the tracker down: %v", err)
	}
	front := httptest.NewServer(node)
	t.Cleanup(func() {
		front.Close()
		if err := node.Close(); err != nil {
			t.Error(err)
		}
	})
	// Tokens are the first node's: both have the same keys.
	bearer := h.bearer("wendy", "repository:acme/web:pull,push")
	ask := func(method, path string) (int, []byte) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), method, front.URL+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", bearer)
		resp, err := front.Client().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, body
	}
	if status, body := ask(http.MethodGet, "/v2/acme/web/manifests/1"); status != http.StatusOK || digest.FromBytes(body).String() != digestOf(t, img).String() {
		t.Errorf("manifest with the tracker down: %d %.200s", status, body)
	}
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range layers {
		d, err := l.Digest()
		if err != nil {
			t.Fatal(err)
		}
		if status, body := ask(http.MethodGet, "/v2/acme/web/blobs/"+d.String()); status != http.StatusOK || digest.FromBytes(body).String() != d.String() {
			t.Errorf("layer with the tracker down: %d, %d bytes", status, len(body))
		}
	}
	if status, body := ask(http.MethodPost, "/v2/acme/web/blobs/uploads/"); status != http.StatusServiceUnavailable {
		t.Errorf("push with the tracker down: %d %.200s", status, body)
	}
	if err := node.Check(t.Context()); err != nil {
		t.Errorf("a load balancer would end the pulls: %v", err)
	}
	line.Cut(false)
	testenv.Eventually(t, time.Minute, func() error {
		if status, body := ask(http.MethodPost, "/v2/acme/web/blobs/uploads/"); status != http.StatusAccepted {
			return fmt.Errorf("push with the tracker back: %d %.200s", status, body)
		}
		return nil
	})
}
