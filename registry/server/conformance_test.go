package server_test

import (
	"crypto/sha512"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// What follows are the OCI distribution specification 1.1's expectations, in its own four categories, written from its
// text.

// client asks for one repository with every right on it.
type client struct {
	*hub
	repository, bearer string
}

func (h *hub) client(repository string) *client {
	return &client{h, repository, h.bearer("adam", "repository:"+repository+":pull,push,delete")}
}

// ask asks below the repository, or at a location that an answer gave.
func (c *client) ask(method, path, body string, header ...string) (*http.Response, string) {
	c.t.Helper()
	if !strings.HasPrefix(path, "/v2/") {
		path = "/v2/" + c.repository + "/" + path
	}
	return c.request(method, path, body, append([]string{"Authorization", c.bearer}, header...)...)
}

// want asks and checks status and, where not "", that the body has a text.
func (c *client) want(status int, has, method, path, body string, header ...string) http.Header {
	c.t.Helper()
	resp, text := c.ask(method, path, body, header...)
	if resp.StatusCode != status || !strings.Contains(text, has) {
		c.t.Errorf("%s %s: %d %.400s, want %d and %q", method, path, resp.StatusCode, text, status, has)
	}
	if status >= 400 && method != http.MethodHead && !strings.Contains(text, `{"errors":[{"code":"`) {
		c.t.Errorf("%s %s: %d without an error code: %.200s", method, path, resp.StatusCode, text)
	}
	return resp.Header
}

// withQuery adds to a location's query, which has one already.
func withQuery(t testing.TB, location, key, value string) string {
	t.Helper()
	u, err := url.Parse(location)
	if err != nil {
		t.Fatal(err)
	}
	q := u.Query()
	q.Set(key, value)
	u.RawQuery = q.Encode()
	return u.String()
}

// blob uploads by POST and PUT.
func (c *client) blob(text string) v1.Descriptor {
	c.t.Helper()
	d := digest.FromString(text)
	h := c.want(202, "", "POST", "blobs/uploads/", "")
	c.want(201, "", "PUT", withQuery(c.t, h.Get("Location"), "digest", d.String()), text, "Content-Type", "application/octet-stream")
	return v1.Descriptor{MediaType: v1.MediaTypeImageLayer, Digest: d, Size: int64(len(text))}
}

// image pushes an image or artifact under references, and gives its text.
func (c *client) image(m v1.Manifest, references ...string) (v1.Descriptor, string) {
	c.t.Helper()
	m.SchemaVersion, m.MediaType = 2, v1.MediaTypeImageManifest
	if m.Config.Digest == "" {
		m.Config = c.blob(`{"os":"linux","architecture":"amd64"}`)
		m.Config.MediaType = v1.MediaTypeImageConfig
	}
	if m.Layers == nil {
		m.Layers = []v1.Descriptor{c.blob("a layer")}
	}
	text, err := json.Marshal(m)
	if err != nil {
		c.t.Fatal(err)
	}
	d := v1.Descriptor{MediaType: m.MediaType, Digest: digest.FromBytes(text), Size: int64(len(text))}
	for _, r := range references {
		h := c.want(201, "", "PUT", "manifests/"+r, string(text), "Content-Type", m.MediaType)
		if h.Get("Location") == "" || h.Get("Docker-Content-Digest") != d.Digest.String() {
			c.t.Errorf("PUT %s: %v", r, h)
		}
		subject := ""
		if m.Subject != nil {
			subject = m.Subject.Digest.String()
		}
		if h.Get("OCI-Subject") != subject {
			c.t.Errorf("PUT %s: OCI-Subject is %q, want %q", r, h.Get("OCI-Subject"), subject)
		}
	}
	return d, string(text)
}

func TestConformancePull(t *testing.T) {
	c := startHub(t).client("acme/pull")
	d, text := c.image(v1.Manifest{}, "v1")
	layer := c.blob("0123456789")
	none := "sha256:" + strings.Repeat("0", 64)
	for _, reference := range []string{"v1", d.Digest.String()} {
		for _, method := range []string{"GET", "HEAD"} {
			body := text
			if method == "HEAD" {
				body = ""
			}
			h := c.want(200, body, method, "manifests/"+reference, "")
			if h.Get("Content-Type") != v1.MediaTypeImageManifest || h.Get("Docker-Content-Digest") != d.Digest.String() ||
				h.Get("Content-Length") != fmt.Sprint(len(text)) || h.Get("Etag") != `"`+d.Digest.String()+`"` {
				t.Errorf("%s %s: %v", method, reference, h)
			}
			c.want(304, "", method, "manifests/"+reference, "", "If-None-Match", h.Get("Etag"))
			c.want(304, "", method, "manifests/"+reference, "", "If-None-Match", `W/"x", W/`+h.Get("Etag"))
			c.want(200, body, method, "manifests/"+reference, "", "If-None-Match", `"sha256:other"`)
			c.want(200, body, method, "manifests/"+reference, "", "Accept", "text/plain;q=0.5, "+v1.MediaTypeImageManifest)
			c.want(200, body, method, "manifests/"+reference, "", "Accept", "*/*")
		}
	}
	c.want(404, "MANIFEST_UNKNOWN", "GET", "manifests/v1", "", "Accept", "application/vnd.docker.distribution.manifest.v2+json")
	c.want(200, text, "GET", "manifests/"+d.Digest.String(), "", "Accept", "application/vnd.docker.distribution.manifest.v2+json")
	for _, reference := range []string{"nothere", none} {
		c.want(404, "MANIFEST_UNKNOWN", "GET", "manifests/"+reference, "")
		c.want(404, "", "HEAD", "manifests/"+reference, "")
	}
	c.want(400, "DIGEST_INVALID", "GET", "manifests/sha256:short", "")
	c.want(400, "DIGEST_INVALID", "GET", "manifests/md5:d41d8cd98f00b204e9800998ecf8427e", "")
	c.want(400, "TAG_INVALID", "GET", "manifests/"+strings.Repeat("a", 129), "")
	c.want(400, "TAG_INVALID", "GET", "manifests/.v1", "")

	h := c.want(200, "0123456789", "GET", "blobs/"+layer.Digest.String(), "")
	if h.Get("Docker-Content-Digest") != layer.Digest.String() || h.Get("Content-Length") != "10" || h.Get("Accept-Ranges") != "bytes" {
		t.Errorf("blob: %v", h)
	}
	if h := c.want(200, "", "HEAD", "blobs/"+layer.Digest.String(), ""); h.Get("Content-Length") != "10" || h.Get("Docker-Content-Digest") != layer.Digest.String() {
		t.Errorf("HEAD of the blob: %v", h)
	}
	c.want(304, "", "GET", "blobs/"+layer.Digest.String(), "", "If-None-Match", h.Get("Etag"))
	if h := c.want(206, "234", "GET", "blobs/"+layer.Digest.String(), "", "Range", "bytes=2-4"); h.Get("Content-Range") != "bytes 2-4/10" || h.Get("Content-Length") != "3" {
		t.Errorf("range: %v", h)
	}
	c.want(206, "89", "GET", "blobs/"+layer.Digest.String(), "", "Range", "bytes=-2")
	if resp, _ := c.ask("GET", "blobs/"+layer.Digest.String(), "", "Range", "bytes=20-"); resp.StatusCode != 416 {
		t.Errorf("range beyond the end: %d", resp.StatusCode)
	}
	c.want(404, "BLOB_UNKNOWN", "GET", "blobs/"+none, "")
	c.want(404, "", "HEAD", "blobs/"+none, "")
	c.want(400, "DIGEST_INVALID", "GET", "blobs/sha256:short", "")
	// A blob is a repository's own.
	other := c.client("acme/elsewhere")
	other.want(404, "BLOB_UNKNOWN", "GET", "blobs/"+layer.Digest.String(), "")
	other.want(404, "MANIFEST_UNKNOWN", "GET", "manifests/"+d.Digest.String(), "")
}

func TestConformancePush(t *testing.T) {
	c := startHub(t).client("acme/push")
	octets := []string{"Content-Type", "application/octet-stream"}
	dgst := func(text string) string { return digest.FromString(text).String() }

	t.Run("monolithic", func(t *testing.T) {
		c.blob("post then put")
		h := c.want(201, "", "POST", "blobs/uploads/?digest="+dgst("single post"), "single post", octets...)
		if h.Get("Docker-Content-Digest") != dgst("single post") {
			t.Errorf("headers: %v", h)
		}
		c.want(200, "single post", "GET", h.Get("Location"), "")
		c.want(400, "DIGEST_INVALID", "POST", "blobs/uploads/?digest="+dgst("another"), "single post 2", octets...)
		c.want(400, "DIGEST_INVALID", "POST", "blobs/uploads/?digest=sha256:x", "x", octets...)
		c.want(404, "BLOB_UNKNOWN", "GET", "blobs/"+dgst("another"), "")
		h = c.want(202, "", "POST", "blobs/uploads/", "")
		c.want(400, "DIGEST_INVALID", "PUT", withQuery(t, h.Get("Location"), "digest", dgst("another")), "text", octets...)
		c.want(404, "BLOB_UNKNOWN", "GET", "blobs/"+dgst("another"), "")
		h = c.want(202, "", "POST", "blobs/uploads/", "")
		c.want(400, "DIGEST_INVALID", "PUT", h.Get("Location"), "text", octets...)
		// The empty blob.
		c.blob("")
		c.want(200, "", "GET", "blobs/"+dgst(""), "")
	})
	t.Run("stream", func(t *testing.T) {
		h := c.want(202, "", "POST", "blobs/uploads/", "")
		h = c.want(202, "", "PATCH", h.Get("Location"), "streamed", octets...)
		h = c.want(201, "", "PUT", withQuery(t, h.Get("Location"), "digest", dgst("streamed")), "")
		c.want(200, "streamed", "GET", h.Get("Location"), "")
	})
	t.Run("chunks", func(t *testing.T) {
		h := c.want(202, "", "POST", "blobs/uploads/", "", "Content-Length", "0")
		first := h.Get("Location")
		h = c.want(202, "", "PATCH", first, "abc", append(octets, "Content-Range", "0-2")...)
		if h.Get("Range") != "0-2" {
			t.Errorf("range after the first chunk: %v", h)
		}
		second := h.Get("Location")
		c.want(416, "RANGE_INVALID", "PATCH", second, "xyz", append(octets, "Content-Range", "9-11")...)
		c.want(416, "RANGE_INVALID", "PATCH", second, "xyz", append(octets, "Content-Range", "a-b")...)
		c.want(416, "RANGE_INVALID", "PATCH", second, "xyz", append(octets, "Content-Range", "bytes 3-5/9")...)
		c.want(400, "SIZE_INVALID", "PATCH", second, "xyz", append(octets, "Content-Range", "3-4")...)
		c.want(415, "BLOB_UPLOAD_INVALID", "PATCH", second, "xyz", "Content-Type", "text/html")
		if h := c.want(204, "", "GET", strings.Split(second, "?")[0], ""); h.Get("Range") != "0-2" || h.Get("Location") == "" {
			t.Errorf("status: %v", h)
		}
		h = c.want(202, "", "PATCH", second, "def", append(octets, "Content-Range", "3-5")...)
		c.want(416, "RANGE_INVALID", "PATCH", second, "def", append(octets, "Content-Range", "3-5")...)
		last := withQuery(t, h.Get("Location"), "digest", dgst("abcdefgh"))
		c.want(416, "RANGE_INVALID", "PUT", last, "gh", append(octets, "Content-Range", "5-6")...)
		c.want(400, "SIZE_INVALID", "PUT", last, "gh", append(octets, "Content-Range", "6-8")...)
		h = c.want(201, "", "PUT", last, "gh", append(octets, "Content-Range", "6-7")...)
		c.want(200, "abcdefgh", "GET", h.Get("Location"), "")
	})
	t.Run("chunks of no length told", func(t *testing.T) {
		h := c.want(202, "", "POST", "blobs/uploads/", "")
		chunked := func(status int, code, location, body, contentRange string) http.Header {
			t.Helper()
			return c.want(status, code, "PATCH", location, body, append(octets, "Transfer-Encoding", "chunked", "Content-Range", contentRange)...)
		}
		chunked(416, "RANGE_INVALID", h.Get("Location"), "abc", "1-3")
		chunked(416, "RANGE_INVALID", h.Get("Location"), "abc", "2-0")
		h = chunked(202, "", h.Get("Location"), "abc", "0-2")
		for _, wrong := range []string{"0-2", "2-4", "4-6", "9-11"} {
			chunked(416, "RANGE_INVALID", h.Get("Location"), "def", wrong)
		}
		if h := c.want(204, "", "GET", strings.Split(h.Get("Location"), "?")[0], ""); h.Get("Range") != "0-2" {
			t.Errorf("a chunk at a wrong place was taken: %v", h)
		}
		h = chunked(202, "", h.Get("Location"), "def", "3-5")
		// A state that somebody has made up is the core's to refuse.
		c.want(404, "BLOB_UPLOAD_INVALID", "PATCH", withQuery(t, h.Get("Location"), "_state", base64.URLEncoding.EncodeToString([]byte(strings.Repeat("x", 32)+`{"Offset":9}`))), "ghi",
			append(octets, "Content-Range", "9-11")...)
		h = c.want(201, "", "PUT", withQuery(t, h.Get("Location"), "digest", dgst("abcdef")), "")
		c.want(200, "abcdef", "GET", h.Get("Location"), "")
	})
	t.Run("cancel", func(t *testing.T) {
		h := c.want(202, "", "POST", "blobs/uploads/", "")
		location := h.Get("Location")
		c.want(204, "", "DELETE", location, "")
		c.want(404, "BLOB_UPLOAD_UNKNOWN", "GET", strings.Split(location, "?")[0], "")
		c.want(404, "BLOB_UPLOAD_UNKNOWN", "PATCH", location, "x", octets...)
	})
	t.Run("mount", func(t *testing.T) {
		to := c.client("acme/mounted")
		to.bearer = c.hub.bearer("adam", "repository:acme/mounted:pull,push,delete", "repository:acme/push:pull")
		c.blob("to be mounted")
		h := to.want(201, "", "POST", "blobs/uploads/?mount="+dgst("to be mounted")+"&from=acme/push", "")
		to.want(200, "to be mounted", "GET", h.Get("Location"), "")
		if h := to.want(202, "", "POST", "blobs/uploads/?mount="+dgst("not there")+"&from=acme/push", ""); h.Get("Location") == "" {
			t.Error("no session for a blob that is not there")
		}
		to.want(202, "", "POST", "blobs/uploads/?mount="+dgst("to be mounted"), "")

		// By a digest of another algorithm, with which the source has it.
		const strong = "to be mounted, strongly"
		d := fmt.Sprintf("sha512:%x", sha512.Sum512([]byte(strong)))
		mount := "blobs/uploads/?mount=" + d + "&from=acme/push"
		to.want(202, "", "POST", mount, "")
		location := c.want(202, "", "POST", "blobs/uploads/", "").Get("Location")
		c.want(201, "", "PUT", withQuery(t, location, "digest", d), strong, octets...)
		h = to.want(201, "", "POST", mount, "")
		if h.Get("Docker-Content-Digest") != d || !strings.HasSuffix(h.Get("Location"), "/blobs/"+d) {
			t.Errorf("headers: %v", h)
		}
		to.want(200, strong, "GET", h.Get("Location"), "")
		to.want(200, strong, "GET", "blobs/"+dgst(strong), "")
		to.image(v1.Manifest{Layers: []v1.Descriptor{{MediaType: v1.MediaTypeImageLayer, Digest: digest.Digest(d), Size: int64(len(strong))}}}, "strong")
		to.want(202, "", "DELETE", "blobs/"+d, "")
		to.want(404, "BLOB_UNKNOWN", "GET", "blobs/"+d, "")
	})
	t.Run("sha512", func(t *testing.T) {
		text := "strong"
		d := fmt.Sprintf("sha512:%x", sha512.Sum512([]byte(text)))
		h := c.want(202, "", "POST", "blobs/uploads/", "")
		h = c.want(201, "", "PUT", withQuery(t, h.Get("Location"), "digest", d), text, octets...)
		if h.Get("Docker-Content-Digest") != d || !strings.HasSuffix(h.Get("Location"), d) {
			t.Errorf("headers: %v", h)
		}
		if h := c.want(200, text, "GET", "blobs/"+d, ""); h.Get("Docker-Content-Digest") != d {
			t.Errorf("headers: %v", h)
		}
		_, m := c.image(v1.Manifest{Layers: []v1.Descriptor{{MediaType: v1.MediaTypeImageLayer, Digest: digest.Digest(d), Size: int64(len(text))}}})
		md := fmt.Sprintf("sha512:%x", sha512.Sum512([]byte(m)))
		c.want(400, "DIGEST_INVALID", "PUT", "manifests/"+d, m, "Content-Type", v1.MediaTypeImageManifest)
		c.want(201, "", "PUT", "manifests/"+md, m, "Content-Type", v1.MediaTypeImageManifest)
		if h := c.want(200, m, "GET", "manifests/"+md, ""); h.Get("Docker-Content-Digest") != md {
			t.Errorf("headers: %v", h)
		}
		c.want(404, "MANIFEST_UNKNOWN", "GET", "manifests/"+dgst(m), "")
		c.want(201, "", "PUT", "manifests/"+dgst(m), m, "Content-Type", v1.MediaTypeImageManifest)
		c.want(202, "", "DELETE", "manifests/"+md, "")
		c.want(200, m, "GET", "manifests/"+dgst(m), "")
	})
	t.Run("manifests", func(t *testing.T) {
		d, text := c.image(v1.Manifest{}, "v1", "v2", "Weird_Tag.1-x")
		c.want(201, "", "PUT", "manifests/"+d.Digest.String(), text, "Content-Type", v1.MediaTypeImageManifest+"; charset=utf-8")
		// A manifest may have up to 4 MiB, and be it in one annotation.
		large, _ := c.image(v1.Manifest{Subject: &d, Annotations: map[string]string{"com.example.large": strings.Repeat("<", 600<<10)}}, "large") // of which JSON makes six times as much
		c.want(200, "com.example.large", "GET", "manifests/large", "")
		c.want(200, large.Digest.String(), "GET", "referrers/"+d.Digest.String(), "")
		missing := v1.Descriptor{MediaType: v1.MediaTypeImageLayer, Digest: digest.FromString("missing"), Size: 7}
		_, broken := c.image(v1.Manifest{Layers: []v1.Descriptor{missing}})
		c.want(400, "MANIFEST_BLOB_UNKNOWN", "PUT", "manifests/v3", broken, "Content-Type", v1.MediaTypeImageManifest)
		c.want(404, "MANIFEST_UNKNOWN", "GET", "manifests/v3", "")
		// Without layers, of an own artifact type, with a subject that is not there yet.
		empty := c.blob("{}")
		empty.MediaType = v1.MediaTypeEmptyJSON
		c.image(v1.Manifest{Config: empty, Layers: []v1.Descriptor{}, ArtifactType: "application/x-mine", Subject: &missing}, "artifact")
		for name, bad := range map[string]string{"": "", "no JSON": "{", "array": "[]", "another type": strings.Replace(text, v1.MediaTypeImageManifest, v1.MediaTypeImageIndex, 1),
			"unicode digest": strings.Replace(text, "sha256:", "ßha256:", 1), "version": strings.Replace(text, `"schemaVersion":2`, `"schemaVersion":1`, 1)} {
			t.Log(name)
			c.want(400, "MANIFEST_INVALID", "PUT", "manifests/bad", bad, "Content-Type", v1.MediaTypeImageManifest)
		}
		c.want(404, "MANIFEST_UNKNOWN", "GET", "manifests/bad", "")
	})
}

func TestConformanceDiscovery(t *testing.T) {
	c := startHub(t).client("acme/found")
	c.want(404, "NAME_UNKNOWN", "GET", "tags/list", "")
	d, _ := c.image(v1.Manifest{}, "c", "a", "B", "b", "_1")
	tags := func(query string) (string, http.Header) {
		resp, text := c.ask("GET", "tags/list"+query, "")
		var list struct {
			Name string   `json:"name"`
			Tags []string `json:"tags"`
		}
		if err := json.Unmarshal([]byte(text), &list); err != nil || resp.StatusCode != 200 || list.Name != c.repository || list.Tags == nil {
			t.Errorf("tags%s: %d %s", query, resp.StatusCode, text)
		}
		return strings.Join(list.Tags, " "), resp.Header
	}
	for query, want := range map[string]string{"": "B _1 a b c", "?n=2": "B _1", "?last=a": "b c", "?n=1&last=_1": "a", "?n=0": "", "?n=99": "B _1 a b c", "?last=zz": ""} {
		if got, _ := tags(query); got != want {
			t.Errorf("tags%s = %s, want %s", query, got, want)
		}
	}
	var all []string
	for query := "?n=2"; query != ""; {
		page, h := tags(query)
		all = append(all, page)
		next, _, ok := strings.Cut(strings.TrimPrefix(h.Get("Link"), "<"), ">; rel=\"next\"")
		if _, query, _ = strings.Cut(next, "?"); ok {
			query = "?" + query
		}
	}
	if strings.Join(all, "|") != "B _1|a b|c" {
		t.Errorf("pages: %q", all)
	}
	c.want(400, "PAGINATION_NUMBER_INVALID", "GET", "tags/list?n=x", "")
	c.want(400, "PAGINATION_NUMBER_INVALID", "GET", "tags/list?n=-1", "")
	c.want(405, "UNSUPPORTED", "DELETE", "tags/list", "")

	referrers := func(dgst digest.Digest, query string) (v1.Index, http.Header) {
		resp, text := c.ask("GET", "referrers/"+dgst.String()+query, "")
		var list v1.Index
		if err := json.Unmarshal([]byte(text), &list); err != nil || resp.StatusCode != 200 || list.SchemaVersion != 2 || list.MediaType != v1.MediaTypeImageIndex ||
			resp.Header.Get("Content-Type") != v1.MediaTypeImageIndex || list.Manifests == nil {
			t.Errorf("referrers: %d %s", resp.StatusCode, text)
		}
		return list, resp.Header
	}
	if list, _ := referrers(d.Digest, ""); len(list.Manifests) != 0 {
		t.Errorf("nobody refers to it: %+v", list)
	}
	empty := c.blob("{}")
	empty.MediaType = v1.MediaTypeEmptyJSON
	sbom, _ := c.image(v1.Manifest{Config: empty, ArtifactType: "application/spdx+json", Subject: &d, Annotations: map[string]string{"k": "v"}}, digestReference(c, v1.Manifest{Config: empty, ArtifactType: "application/spdx+json", Subject: &d, Annotations: map[string]string{"k": "v"}}))
	config := c.blob("own config")
	config.MediaType = "application/x-config"
	other, _ := c.image(v1.Manifest{Config: config, Subject: &d}, "by-config")
	// An index refers, too.
	ix, err := json.Marshal(map[string]any{"schemaVersion": 2, "mediaType": v1.MediaTypeImageIndex, "artifactType": "application/x-index", "manifests": []any{}, "subject": d})
	if err != nil {
		t.Fatal(err)
	}
	if h := c.want(201, "", "PUT", "manifests/by-index", string(ix), "Content-Type", v1.MediaTypeImageIndex); h.Get("OCI-Subject") != d.Digest.String() {
		t.Errorf("index: %v", h)
	}
	list, h := referrers(d.Digest, "")
	found := map[digest.Digest]v1.Descriptor{}
	for _, m := range list.Manifests {
		found[m.Digest] = m
	}
	if len(found) != 3 || found[sbom.Digest].ArtifactType != "application/spdx+json" || found[sbom.Digest].Annotations["k"] != "v" || found[sbom.Digest].Size != sbom.Size ||
		found[other.Digest].ArtifactType != "application/x-config" || found[digest.FromBytes(ix)].MediaType != v1.MediaTypeImageIndex || h.Get("OCI-Filters-Applied") != "" {
		t.Errorf("referrers: %+v %v", list.Manifests, h)
	}
	list, h = referrers(d.Digest, "?artifactType=application%2Fspdx%2Bjson")
	if len(list.Manifests) != 1 || list.Manifests[0].Digest != sbom.Digest || h.Get("OCI-Filters-Applied") != "artifactType" {
		t.Errorf("filtered: %+v %v", list.Manifests, h)
	}
	if list, _ := referrers(digest.FromString("nothing"), ""); len(list.Manifests) != 0 {
		t.Errorf("referrers of nothing: %+v", list)
	}
	c.want(400, "DIGEST_INVALID", "GET", "referrers/latest", "")
	c.want(202, "", "DELETE", "manifests/"+sbom.Digest.String(), "")
	if list, _ := referrers(d.Digest, ""); slices.ContainsFunc(list.Manifests, func(m v1.Descriptor) bool { return m.Digest == sbom.Digest }) {
		t.Error("a deleted referrer is listed")
	}
	// No answer is longer than a manifest may be.
	subject, _ := c.image(v1.Manifest{Annotations: map[string]string{"n": "subject"}}, "subject")
	want := map[digest.Digest]bool{}
	for _, n := range []string{"1", "2", "3"} {
		large, _ := c.image(v1.Manifest{Subject: &subject, Annotations: map[string]string{"n": n, "large": strings.Repeat("x", 3<<20)}}, "large-"+n)
		want[large.Digest] = true
	}
	for query, pages := "", 1; ; pages++ {
		list, h := referrers(subject.Digest, query)
		if len(list.Manifests) != 1 {
			t.Fatalf("%d referrers of 3 MiB at once", len(list.Manifests))
		}
		delete(want, list.Manifests[0].Digest)
		next, _, ok := strings.Cut(strings.TrimPrefix(h.Get("Link"), "<"), ">; rel=\"next\"")
		if !ok || pages == 3 {
			if ok || len(want) > 0 {
				t.Errorf("after %d pages: %d were not listed, Link %q", pages, len(want), h.Get("Link"))
			}
			break
		}
		_, query, _ = strings.Cut(next, "?")
		query = "?" + query
	}
}

// digestReference gives the digest that image will push m under.
func digestReference(c *client, m v1.Manifest) string {
	d, _ := c.image(m)
	return d.Digest.String()
}

func TestConformanceManagement(t *testing.T) {
	h := startHub(t)
	c := h.client("acme/managed")
	d, text := c.image(v1.Manifest{}, "v1", "v2", "v3")
	c.want(202, "", "DELETE", "manifests/v1", "")
	c.want(404, "MANIFEST_UNKNOWN", "DELETE", "manifests/v1", "")
	c.want(404, "MANIFEST_UNKNOWN", "GET", "manifests/v1", "")
	c.want(200, text, "GET", "manifests/v2", "")
	c.want(200, text, "GET", "manifests/"+d.Digest.String(), "")
	c.want(202, "", "DELETE", "manifests/"+d.Digest.String(), "")
	c.want(404, "MANIFEST_UNKNOWN", "DELETE", "manifests/"+d.Digest.String(), "")
	for _, reference := range []string{"v2", "v3", d.Digest.String()} {
		c.want(404, "MANIFEST_UNKNOWN", "GET", "manifests/"+reference, "")
	}
	c.want(200, `"tags":[]`, "GET", "tags/list", "")
	blob := digest.FromString("a layer").String()
	c.want(200, "a layer", "GET", "blobs/"+blob, "")
	c.want(202, "", "DELETE", "blobs/"+blob, "")
	c.want(404, "BLOB_UNKNOWN", "GET", "blobs/"+blob, "")
	c.want(404, "", "HEAD", "blobs/"+blob, "")
	c.want(404, "BLOB_UNKNOWN", "DELETE", "blobs/"+blob, "")
	c.image(v1.Manifest{}, "v1") // all of it again
	c.want(200, text, "GET", "manifests/v1", "")
	c.want(405, "UNSUPPORTED", "POST", "manifests/v1", "")

	var deleted []string
	for _, e := range h.pushed() {
		if e.Type == "delete" {
			deleted = append(deleted, e.Tag+" "+e.Data["tags"]+" "+e.Actor)
		}
	}
	if len(deleted) != 2 || deleted[0] != "v1  adam" || deleted[1] != " v2,v3 adam" {
		t.Errorf("delete events: %q", deleted)
	}
}
