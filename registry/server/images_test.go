package server_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"cumulet.io/internal/problem"
	"cumulet.io/registry"
	"cumulet.io/registry/directory"
	"cumulet.io/registry/server"
)

// asker asks the management API, checks what is said against the document, and decodes the answer.
func (h *hub) asker(t *testing.T) func(status int, out any, bearer, method, path, body string) string {
	router := document(t, h)
	return func(status int, out any, bearer, method, path, body string) string {
		t.Helper()
		resp, text := h.checked(router, status < 400, method, path, body, "Authorization", bearer, "Content-Type", "application/json")
		if resp.StatusCode != status {
			t.Errorf("%s %s: %d %s, want %d", method, path, resp.StatusCode, text, status)
		}
		if out != nil {
			if err := json.Unmarshal([]byte(text), out); err != nil {
				t.Errorf("%s %s: %v in %s", method, path, err, text)
			}
		}
		return text
	}
}

func TestImagesAPI(t *testing.T) {
	h := startHub(t)
	c := h.client("acme/team/app")
	d, _ := c.image(v1.Manifest{Annotations: map[string]string{v1.AnnotationSource: "https://git.example/app"}}, "v1", "dev-1", "dev-2")
	second, _ := c.image(v1.Manifest{Layers: []v1.Descriptor{c.blob("a layer"), c.blob("another")}}, "dev-2")
	ask := h.asker(t)
	reader, writer, admin := h.bearer("rita", "org:acme:read"), h.bearer("wendy", "org:acme:write"), h.bearer("adam", "org:acme:admin")
	stranger, puller := h.bearer("boris", "org:beta:admin", "org:acme:read"), h.bearer("rita", "repository:acme/team/app:pull")
	const app = "/acme/team/app"

	var tags struct {
		Items []struct {
			Name, Digest, Platform string
			Sequence, Size         int64
			Immutable              bool
		}
		Next string
	}
	ask(200, &tags, reader, "GET", "/v1/tags"+app+"?limit=2", "")
	if len(tags.Items) != 2 || tags.Next != "dev-2" || tags.Items[1].Digest != second.Digest.String() || tags.Items[1].Sequence != 2 || tags.Items[0].Platform != "linux/amd64" {
		t.Errorf("tags = %+v", tags)
	}
	ask(200, nil, puller, "GET", "/v1/tags"+app+"?after=dev-2", "")
	var history struct {
		Items []struct {
			Before, After, Actor, Cause string
			ID                          int64
		}
		Next string
	}
	ask(200, &history, reader, "GET", "/v1/tag-history"+app+"?tag=dev-2&limit=1", "")
	if len(history.Items) != 1 || history.Items[0].Before != d.Digest.String() || history.Items[0].After != second.Digest.String() || history.Items[0].Actor != "adam" {
		t.Errorf("history = %+v", history)
	}
	ask(200, &history, reader, "GET", "/v1/tag-history"+app+"?after="+history.Next, "")
	ask(400, nil, reader, "GET", "/v1/tag-history"+app+"?after=x", "")

	for _, path := range []string{"/v1/tags", "/v1/tag-history", "/v1/rules", "/v1/images"} {
		ask(404, nil, stranger, "GET", path+app+"?reference=v1", "")
		ask(404, nil, reader, "GET", path+"/acme/nothere?reference=v1", "")
		ask(400, nil, reader, "GET", path+"/acme/NOT?reference=v1", "")
		ask(401, nil, "", "GET", path+app+"?reference=v1", "")
	}

	t.Run("rules", func(t *testing.T) {
		const rules = `{"immutableTags":["v*"],"keep":[{"tags":"dev-*","last":1}]}`
		ask(200, nil, reader, "GET", "/v1/rules"+app, "")
		ask(403, nil, writer, "PUT", "/v1/rules"+app, rules)
		ask(404, nil, stranger, "PUT", "/v1/rules"+app, rules)
		ask(400, nil, admin, "PUT", "/v1/rules"+app, `{"keep":[{"tags":"x"}]}`)
		ask(400, nil, admin, "PUT", "/v1/rules"+app, `{"keeps":[]}`)
		if got := ask(200, nil, admin, "PUT", "/v1/rules"+app, rules); strings.TrimSpace(got) != rules {
			t.Errorf("rules = %s", got)
		}
		// The tag stays where it is, by whatever client.
		_, text := c.image(v1.Manifest{Layers: []v1.Descriptor{}})
		c.want(403, "immutable", "PUT", "manifests/v1", text, "Content-Type", v1.MediaTypeImageManifest)
		c.want(403, "immutable", "DELETE", "manifests/v1", "")
		c.want(403, "immutable", "DELETE", "manifests/"+d.Digest.String(), "")
		c.want(200, "", "HEAD", "manifests/v1", "")
		if log, err := h.Directory().AuditLog(t.Context(), directory.AuditFilter{Org: "acme", Action: "manifest", Limit: 10}); err != nil || len(log) != 0 {
			t.Errorf("a deletion that was refused is in the log as one: %+v, %v", log, err)
		}
		c.image(v1.Manifest{Annotations: map[string]string{v1.AnnotationSource: "https://git.example/app"}}, "v1") // the same again

		var plan struct {
			DryRun  bool
			Removed []struct{ Tag, Digest, Reason string }
		}
		for range 2 {
			ask(200, &plan, reader, "POST", "/v1/retention"+app+"?dryRun=true", "")
			if !plan.DryRun || len(plan.Removed) != 1 || plan.Removed[0].Tag != "dev-1" || plan.Removed[0].Reason == "" {
				t.Errorf("plan = %+v", plan)
			}
		}
		ask(403, nil, writer, "POST", "/v1/retention"+app, "")
		ask(400, nil, admin, "POST", "/v1/retention"+app+"?dryRun=maybe", "")
		ask(200, &plan, admin, "POST", "/v1/retention"+app, "")
		if plan.DryRun || len(plan.Removed) != 1 {
			t.Errorf("done = %+v", plan)
		}
		c.want(404, "MANIFEST_UNKNOWN", "GET", "manifests/dev-1", "")
		ask(200, &plan, admin, "POST", "/v1/retention"+app, "")
		if len(plan.Removed) != 0 {
			t.Errorf("again = %+v", plan)
		}
	})

	t.Run("facts", func(t *testing.T) {
		attach := "/v1/images" + app + "?reference=v1"
		// Who runs the org's instances does not say what is known of its images.
		for _, bearer := range []string{reader, puller, writer, admin, h.bearer("node-agent", "platform:*:node"), h.bearer("platform-auditor", "platform:*:operator")} {
			ask(403, nil, bearer, "POST", attach, `{"kind":"test","facts":{"name":"unit","result":"passed"}}`)
		}
		ask(404, nil, h.bearer("boris", "org:beta:admin"), "POST", attach, `{"kind":"test","facts":{"name":"unit","result":"passed"}}`)
		writer := h.bearer("wendy", "repository:acme/team/app:push")
		ask(400, nil, writer, "POST", attach, `{"kind":"test","facts":{"name":"unit","result":"great"}}`)
		ask(400, nil, writer, "POST", attach, `{"kind":"gossip","facts":{"a":"b"}}`)
		ask(400, nil, writer, "POST", attach, `{"kind":"build","facts":{"BY":"ci"}}`)
		ask(404, nil, writer, "POST", "/v1/images"+app+"?reference=nothere", `{"kind":"build","facts":{"by":"ci"}}`)
		var first, again struct{ Digest string }
		ask(200, &first, writer, "POST", attach, `{"kind":"test","facts":{"name":"unit","result":"passed"}}`)
		ask(200, &again, writer, "POST", attach, `{"kind":"test","facts":{"name":"unit","result":"passed"}}`)
		if first != again || first.Digest == "" {
			t.Errorf("attached %v and %v", first, again)
		}
		ask(200, nil, writer, "POST", attach, `{"kind":"build","facts":{"by":"ci","base":"debian:12"}}`)
		// Any client attaches the same by a push.
		empty := c.blob("{}")
		empty.MediaType = v1.MediaTypeEmptyJSON
		c.image(v1.Manifest{Config: empty, ArtifactType: "application/spdx+json", Subject: &d}, "sbom")
		var image struct {
			Digest, Platform string
			Facts            []struct{ Kind, Name, Value string }
			Referrers        []struct{ ArtifactType string }
			Blobs            []struct{ Kind string }
		}
		ask(200, &image, reader, "GET", "/v1/images"+app+"?reference=v1", "")
		facts := fmt.Sprint(image.Facts)
		for _, want := range []string{"{build by ci}", "{build base debian:12}", "{build source https://git.example/app}", "{build pushed-by adam}", "{test unit passed}", "{sbom spdx "} {
			if !strings.Contains(facts, want) {
				t.Errorf("%s is not in %s", want, facts)
			}
		}
		if image.Digest != d.Digest.String() || image.Platform != "linux/amd64" || len(image.Referrers) != 3 || len(image.Blobs) != 2 {
			t.Errorf("image = %+v", image)
		}
		ask(400, nil, reader, "GET", "/v1/images"+app, "")
		ask(404, nil, reader, "GET", "/v1/images"+app+"?reference=nothere", "")
		for query, want := range map[string]int{"fact=test:unit%3Dpassed&fact=sbom": 1, "fact=build:by%3Dci": 1, "fact=!sbom&fact=build:pushed-by%3Dadam": 1, "fact=test:unit%3Dfailed": 0} {
			var found registry.Page[struct{ Repository, Digest string }]
			ask(200, &found, reader, "GET", "/v1/orgs/acme/images?"+query, "")
			if len(found.Items) != want {
				t.Errorf("%s: %+v", query, found)
			}
		}
		ask(400, nil, reader, "GET", "/v1/orgs/acme/images?fact=gossip", "")
		ask(404, nil, stranger, "GET", "/v1/orgs/acme/images", "")
		scans := 0
		for _, e := range h.pushed() {
			if e.Type == registry.EventScan && e.Digest == d.Digest.String() {
				scans++
			}
		}
		if scans != 3 {
			t.Errorf("%d scan events", scans)
		}
	})

	t.Run("delete the repository", func(t *testing.T) {
		other := h.client("acme/doomed")
		other.image(v1.Manifest{}, "v1", "w1")
		file := func(want int, method, body string) {
			t.Helper()
			resp, text := h.request(method, "/files/acme/doomed/-/1/notes.txt", body, "Authorization", h.bearer("adam", "repository:acme/doomed:pull,push"))
			if resp.StatusCode != want {
				t.Errorf("%s of a file: %d %s", method, resp.StatusCode, text)
			}
		}
		file(http.StatusCreated, "PUT", "some notes")
		ask(200, nil, admin, "PUT", "/v1/rules/acme/doomed", `{"immutableTags":["v*"]}`)
		ask(403, nil, writer, "DELETE", "/v1/repositories/acme/doomed", "")
		ask(404, nil, stranger, "DELETE", "/v1/repositories/acme/doomed", "")
		ask(204, nil, admin, "DELETE", "/v1/repositories/acme/doomed", "")
		ask(404, nil, admin, "DELETE", "/v1/repositories/acme/doomed", "")
		other.want(404, "MANIFEST_UNKNOWN", "GET", "manifests/v1", "")
		other.want(404, "NAME_UNKNOWN", "GET", "tags/list", "")
		file(http.StatusNotFound, "GET", "")
		other.want(404, "", "GET", "blobs/"+digestOfText("a layer"), "")
		other.image(v1.Manifest{}, "v1") // as if it had never been
		ask(204, nil, admin, "DELETE", "/v1/repositories/acme/doomed", "")
	})

	t.Run("layers", func(t *testing.T) {
		layer := c.blob("a layer").Digest.String()
		var users registry.Page[struct {
			Repository, Digest string
			Tags               []string
		}]
		ask(200, &users, reader, "GET", "/v1/orgs/acme/layers/"+layer+"?limit=1", "")
		if len(users.Items) != 1 || users.Next == "" {
			t.Fatalf("users = %+v", users)
		}
		ask(200, nil, reader, "GET", "/v1/orgs/acme/layers/"+layer+"?after="+url.QueryEscape(users.Next), "")
		ask(400, nil, reader, "GET", "/v1/orgs/acme/layers/"+layer+"?after=x", "")
		ask(400, nil, reader, "GET", "/v1/orgs/acme/layers/sha256:x", "")
		ask(404, nil, stranger, "GET", "/v1/orgs/acme/layers/"+layer, "")
	})
}

func TestQuota(t *testing.T) {
	h := startHub(t)
	if err := h.Directory().SetQuota(t.Context(), "acme", &registry.Quota{Bytes: 4000, Repositories: 2}); err != nil {
		t.Fatal(err)
	}
	c := h.client("acme/one")
	first, _ := c.image(v1.Manifest{Layers: []v1.Descriptor{c.blob(strings.Repeat("a", 2000))}}, "v1")
	h.client("acme/two").image(v1.Manifest{Layers: []v1.Descriptor{h.client("acme/two").blob(strings.Repeat("a", 2000))}}, "v1")
	var usage struct{ Bytes int64 }
	ask := h.asker(t)
	ask(200, &usage, h.bearer("rita", "org:acme:read"), "GET", "/v1/orgs/acme/usage", "")
	if usage.Bytes < 2400 || usage.Bytes > 3200 {
		t.Errorf("a layer that two repositories share counts once: %d bytes", usage.Bytes)
	}
	ask(404, nil, h.bearer("boris", "org:beta:read"), "GET", "/v1/orgs/acme/usage", "")
	if resp, text := h.request("PUT", "/files/acme/one/-/1/notes.txt", "some notes", "Authorization", c.bearer); resp.StatusCode != http.StatusCreated {
		t.Errorf("file: %d %s", resp.StatusCode, text)
	}
	images := usage.Bytes
	ask(200, &usage, h.bearer("rita", "org:acme:read"), "GET", "/v1/orgs/acme/usage", "")
	if usage.Bytes != images+10 {
		t.Errorf("usage with a file of 10 bytes is %d, without %d", usage.Bytes, images)
	}
	if resp, text := h.request("DELETE", "/files/acme/one/-/1/notes.txt", "", "Authorization", c.bearer); resp.StatusCode != http.StatusNoContent {
		t.Errorf("file: %d %s", resp.StatusCode, text)
	}
	usage.Bytes = images
	third := h.client("acme/three")
	third.want(403, "may have 2 repositories", "POST", "blobs/uploads/", "")
	_, whole := c.image(v1.Manifest{Layers: []v1.Descriptor{c.blob(strings.Repeat("a", 2000))}})
	third.want(403, "may have 2 repositories", "PUT", "manifests/v1", whole, "Content-Type", v1.MediaTypeImageManifest)
	for _, push := range [][]string{
		{"PUT", "/files/acme/three/-/1/notes.txt", "text"},
		{"POST", "/files/acme/three/-/1/notes.txt", "", "Tus-Resumable", "1.0.0", "Upload-Length", "4"},
		{"POST", "/charts/api/acme/three/charts", chartArchive(t, "note", "1.0.0"), "Content-Type", "application/gzip"},
	} {
		resp, text := h.request(push[0], push[1], push[2], append([]string{"Authorization", third.bearer}, push[3:]...)...)
		if resp.StatusCode != http.StatusTooManyRequests || !strings.Contains(text, "may have 2 repositories") {
			t.Errorf("%s %s: %d %s", push[0], push[1], resp.StatusCode, text)
		}
	}
	if _, err := h.Directory().Repository(t.Context(), "acme/three"); !errors.Is(err, problem.ErrNotFound) {
		t.Errorf("a repository above the quota: %v", err)
	}
	octets := []string{"Content-Type", "application/octet-stream"}
	big := strings.Repeat("b", 2000)
	location := c.want(202, "", "POST", "blobs/uploads/", "").Get("Location")
	c.want(403, "may store 4000 bytes", "PUT", withQuery(t, location, "digest", digestOfText(big)), big, octets...)
	c.want(404, "BLOB_UNKNOWN", "GET", "blobs/"+digestOfText(big), "")
	c.want(403, "may store 4000 bytes", "POST", "blobs/uploads/?digest="+digestOfText(big), big, octets...)
	// What is there already may be sent again.
	c.blob(strings.Repeat("a", 2000))
	fill := strings.Repeat("c", int(4000-usage.Bytes))
	c.want(201, "", "POST", "blobs/uploads/?digest="+digestOfText(fill), fill, octets...)
	c.want(403, "DENIED", "POST", "blobs/uploads/", "")
	_, text := c.image(v1.Manifest{Layers: []v1.Descriptor{first}, Config: v1.Descriptor{MediaType: "x", Digest: first.Digest, Size: 1}})
	c.want(400, "MANIFEST_BLOB_UNKNOWN", "PUT", "manifests/v2", text, "Content-Type", v1.MediaTypeImageManifest)
	states := map[string]string{} // one of images and one of files, however often it was told
	for _, e := range h.pushed() {
		if e.Type == registry.EventQuota {
			states[e.ID] = e.Org + " " + e.Data["state"]
		}
	}
	if got := slices.Collect(maps.Values(states)); fmt.Sprint(got) != "[acme refused acme refused]" {
		t.Errorf("quota events: %v", states)
	}
	// Deleting makes room at once.
	two := h.client("acme/two")
	c.want(202, "", "DELETE", "manifests/v1", "")
	c.want(202, "", "DELETE", "manifests/"+first.Digest.String(), "")
	two.want(202, "", "DELETE", "manifests/"+first.Digest.String(), "")
	c.want(201, "", "POST", "blobs/uploads/?digest="+digestOfText(big), big, octets...)
	audit, err := h.Directory().AuditLog(t.Context(), directory.AuditFilter{Org: "acme", Action: "manifest", Limit: 10})
	if err != nil || !strings.Contains(fmt.Sprint(audit), "manifest.delete") {
		t.Errorf("audit: %v, %v", audit, err)
	}
}

// A manifest that is deleted while it is pushed is there whole afterwards, or is not: whoever was told that it is stored
// finds it. So it is of its repository.
func TestDeleteBesidePush(t *testing.T) {
	h := startHub(t)
	c := h.client("acme/contended")
	admin := h.bearer("adam", "org:acme:admin")
	c.image(v1.Manifest{}, "keep")
	texts := map[string]string{}
	for i := range 60 {
		d, text := c.image(v1.Manifest{Annotations: map[string]string{"n": strconv.Itoa(i)}})
		texts["manifests/"+d.Digest.String()] = text
		path := "manifests/" + d.Digest.String()
		put := func() { c.ask("PUT", path, text, "Content-Type", v1.MediaTypeImageManifest) }
		put()
		var wg sync.WaitGroup
		wg.Go(put)
		wg.Go(func() {
			if i%10 == 9 {
				h.request("DELETE", "/v1/repositories/acme/contended", "", "Authorization", admin)
				return
			}
			c.ask("DELETE", path, "")
		})
		wg.Wait()
	}
	done, err := h.Images().Reindex(t.Context())
	if err != nil || done.Dropped != 0 || done.Manifests != 0 {
		t.Errorf("rows without content, or content without a row: %+v, %v", done, err)
	}
	for path, text := range texts {
		if resp, got := c.ask("GET", path, ""); resp.StatusCode != http.StatusNotFound && got != text {
			t.Errorf("%s: %d %s", path, resp.StatusCode, got)
		}
	}
}

// A body that comes too slowly is cut off, and the upload goes on elsewhere.
func TestSlowUpload(t *testing.T) {
	h := startHub(t, func(c *server.Config) { c.Patience = 200 * time.Millisecond })
	c := h.client("acme/slow")
	location := c.want(202, "", "POST", "blobs/uploads/", "").Get("Location")
	for name, path := range map[string]string{"upload": location, "manifest": "/v2/acme/slow/manifests/v1"} {
		t.Run(name, func(t *testing.T) {
			body := &dripping{done: make(chan struct{})}
			method := http.MethodPatch
			if name == "manifest" {
				method = http.MethodPut
			}
			req, err := http.NewRequestWithContext(t.Context(), method, h.url+path, body)
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("Authorization", c.bearer)
			resp, err := http.DefaultTransport.RoundTrip(req)
			close(body.done)
			if err == nil {
				defer resp.Body.Close() //nolint:errcheck // the status alone
				if resp.StatusCode < 400 {
					t.Errorf("status %d", resp.StatusCode)
				}
			}
		})
	}
	c.blob("others go on")
}

func digestOfText(text string) string { return digest.FromString(text).String() }

// dripping is a body that gives a byte and then nothing until the test ends it.
type dripping struct {
	once bool
	done chan struct{}
}

// Read implements io.Reader.
func (d *dripping) Read(p []byte) (int, error) {
	if !d.once {
		d.once = true
		return copy(p, "x"), nil
	}
	<-d.done
	return 0, fmt.Errorf("ended")
}
