package server_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/v1/remote"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"cumulet.io/registry"
	"cumulet.io/registry/directory"
	"cumulet.io/registry/gos/driver"
	"cumulet.io/registry/server"
)

// A store that is older than its index is entered when the registry starts.
func TestIndexOfOldStore(t *testing.T) {
	dir := t.TempDir()
	first := startHub(t, func(c *server.Config) { c.Dir = dir })
	c := first.client("acme/old")
	d, text := c.image(v1.Manifest{}, "v1", "v2", "gone")
	empty := c.blob("{}")
	empty.MediaType = v1.MediaTypeEmptyJSON
	sbom, _ := c.image(v1.Manifest{Config: empty, ArtifactType: "application/spdx+json", Subject: &d}, "sbom")
	c.want(202, "", "DELETE", "manifests/gone", "")

	second := startHub(t, func(c *server.Config) { // its database is empty, the store's is not
		c.Dir = dir
		c.Storage.Tracker = first.Storage().Tracker()
	})
	c = second.client("acme/old")
	for _, reference := range []string{"v1", "v2", d.Digest.String()} {
		c.want(200, text, "GET", "manifests/"+reference, "")
	}
	c.want(404, "MANIFEST_UNKNOWN", "GET", "manifests/gone", "")
	c.want(200, sbom.Digest.String(), "GET", "referrers/"+d.Digest.String(), "")
	c.want(200, `"tags":["sbom","v1","v2"]`, "GET", "tags/list", "")
	if repo, err := second.Directory().Repository(t.Context(), "acme/old"); err != nil || repo.Visibility != registry.Private {
		t.Errorf("repository: %+v, %v", repo, err)
	}
	moves, err := second.Index().History(t.Context(), "acme/old", "v1", 0, 10)
	if err != nil || len(moves) != 1 || moves[0].Cause != "import" {
		t.Errorf("history: %+v, %v", moves, err)
	}
}

// What a crash leaves between the store and the index is mended, and mending twice changes nothing.
func TestReindex(t *testing.T) {
	h := startHub(t)
	c := h.client("acme/app")
	d, text := c.image(v1.Manifest{}, "v1", "moved")
	lost, _ := c.image(v1.Manifest{Annotations: map[string]string{"is": "lost"}}, "moved", "lost")
	c.image(v1.Manifest{}, "deleted")
	c.want(202, "", "DELETE", "manifests/deleted", "")
	store := driver.New(h.Storage())
	const manifests = "/docker/registry/v2/repositories/acme/app/_manifests/"
	link := func(tag, text string) {
		t.Helper()
		if err := store.PutContent(t.Context(), manifests+"tags/"+tag+"/current/link", []byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	link("deleted", d.Digest.String()) // the row went, the link was to follow
	link("moved", d.Digest.String())   // the row moved, the link was to follow
	link("orphan", d.Digest.String())  // of a copy of the store whose index is lost
	// A row without content is what a store restored from an older copy has.
	if err := store.Delete(t.Context(), manifests+"revisions/sha256/"+lost.Digest.Encoded()); err != nil {
		t.Fatal(err)
	}
	for round := range 2 {
		done, err := h.Images().Reindex(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if got, want := fmt.Sprint(done), "{0 1 1}"; round == 0 && got != want || round == 1 && got != "{0 0 0}" {
			t.Errorf("round %d: %s, want %s", round, got, want)
		}
		c.want(200, text, "GET", "manifests/v1", "")
		c.want(200, text, "GET", "manifests/orphan", "")
		for _, tag := range []string{"deleted", "moved", "lost"} {
			c.want(404, "MANIFEST_UNKNOWN", "GET", "manifests/"+tag, "")
		}
	}
}

func TestPullsAndAudit(t *testing.T) {
	h := startHub(t)
	c := h.client("acme/app")
	d, _ := c.image(v1.Manifest{}, "v1")
	for range 3 {
		if _, err := remote.Get(h.ref(t, "acme/app:v1"), as(t, "rita")...); err != nil {
			t.Fatal(err)
		}
	}
	c.want(200, "", "HEAD", "manifests/v1", "") // is no pull
	// Denied accesses are written down once, those of nobody not at all.
	rita := h.bearer("rita", "repository:acme/app:pull,push")
	for range 3 {
		h.request("PUT", "/v2/acme/app/manifests/v2", "{}", "Authorization", rita)
		h.request("POST", "/v2/acme/app/blobs/uploads/", "", "Authorization", rita)
		h.request("GET", "/v2/acme/app/manifests/v1", "")
	}
	c.want(202, "", "DELETE", "manifests/v1", "")
	entries, err := h.Directory().AuditLog(t.Context(), directory.AuditFilter{Org: "acme", Limit: 100})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range entries {
		if strings.HasPrefix(e.Target, "acme/app") {
			got = append(got, fmt.Sprint(e.Actor, " ", e.Action, " ", e.Target, " ", e.Denied, " ", e.Address))
		}
	}
	want := []string{"adam tag.delete acme/app:v1 false 127.0.0.1", "rita repository.push acme/app true 127.0.0.1"}
	for _, w := range want {
		if n := strings.Count(strings.Join(got, "\n")+"\n", w+"\n"); n != 1 {
			t.Errorf("%q is there %d times in\n%s", w, n, strings.Join(got, "\n"))
		}
	}
	if err := h.Images().Close(); err != nil { // writes down what was pulled
		t.Fatal(err)
	}
	m, err := h.Index().Manifest(t.Context(), "acme/app", d.Digest)
	if err != nil || m.Pulls != 3 || m.Pulled.IsZero() {
		t.Errorf("%+v, %v", m, err)
	}
	var pulls []string
	for _, e := range h.pushed() {
		if e.Type == registry.EventPull {
			pulls = append(pulls, e.Actor+" "+e.Tag+" "+e.Data["count"])
		}
	}
	if fmt.Sprint(pulls) != "[rita v1 3]" {
		t.Errorf("pull events: %v", pulls)
	}
}
