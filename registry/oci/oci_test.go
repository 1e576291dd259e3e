package oci

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"github.com/distribution/distribution/v3/registry/api/errcode"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	"github.com/sirupsen/logrus"
)

func TestParseRoute(t *testing.T) {
	d := "sha256:" + strings.Repeat("a", 64)
	for path, want := range map[string]route{
		"/v2/":                             {},
		"/v2/_catalog":                     {},
		"/v2/a/b/manifests/v1":             {endManifest, "a/b", "v1"},
		"/v2/a/b/manifests/" + d:           {endManifest, "a/b", d},
		"/v2/a/b/c/d/manifests/":           {endManifest, "a/b/c/d", ""},
		"/v2/a/manifests/b/manifests/v1":   {endManifest, "a/manifests/b", "v1"},
		"/v2/a/blobs/uploads/manifests/v1": {endManifest, "a/blobs/uploads", "v1"},
		"/v2/a/b/blobs/" + d:               {endBlob, "a/b", d},
		"/v2/a/b/blobs/uploads":            {endUploads, "a/b", ""},
		"/v2/a/b/blobs/uploads/":           {endUploads, "a/b", ""},
		"/v2/a/b/blobs/uploads/123":        {endUpload, "a/b", "123"},
		"/v2/a/b/tags/list":                {endTags, "a/b", ""},
		"/v2/a/b/tags/list/":               {},
		"/v2/a/b/referrers/" + d:           {endReferrers, "a/b", d},
		"/v2/manifests/v1":                 {},
		"/v2//manifests/v1":                {},
		"/v2/a/../b/manifests/v1":          {},
		"/v2/a/ü/manifests/v1":             {},
		"/v2/a/b/manifests/v1/x":           {},
		"/v2/" + strings.Repeat("a/", 200) + "b/manifests/v1": {},
		"/v1/a/b/manifests/v1":                                {},
	} {
		if got := parseRoute(path); got != want {
			t.Errorf("%s: %+v, want %+v", path, got, want)
		}
	}
}

func FuzzParseRoute(f *testing.F) {
	for _, s := range []string{"/v2/a/b/manifests/v1", "/v2/a/blobs/uploads/x", "/v2/a/../b/tags/list", "/v2/a/blobs/sha256:x/manifests/blobs/y", "/v2/é/manifests/\x00"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, path string) {
		rt := parseRoute(path)
		if rt.end == endNone {
			return
		}
		if _, err := reference.WithName(rt.name); err != nil || strings.Contains(rt.name, "..") || strings.Contains(rt.reference, "/") {
			t.Fatalf("%q: %+v", path, rt)
		}
		if !strings.HasPrefix(path, "/v2/"+rt.name+"/") || !strings.HasSuffix(path, rt.reference) {
			t.Fatalf("%q is not made of %+v", path, rt)
		}
		if d, ok := asDigest(rt.reference); ok && (d.Validate() != nil || strings.ContainsAny(string(d), "/.\\")) {
			t.Fatalf("%q is a digest", d)
		}
	})
}

func FuzzContentRange(f *testing.F) {
	state := base64.URLEncoding.EncodeToString(append(make([]byte, 32), `{"Name":"a/b","Offset":3}`...))
	f.Add("3-5", state, int64(3))
	f.Add("0-2", "", int64(-1))
	f.Add("bytes 0-1/2", "====", int64(2))
	f.Add("9999999999999999999-1", state, int64(0))
	f.Fuzz(func(t *testing.T, text, state string, length int64) {
		req := &http.Request{URL: &url.URL{RawQuery: url.Values{"_state": {state}}.Encode()}, Header: http.Header{"Content-Range": {text}}, ContentLength: length}
		if checkRange(req) != nil || text == "" {
			return
		}
		var start, end int64
		if n, err := fmt.Sscanf(text, "%d-%d", &start, &end); n != 2 || err != nil || start < 0 || end < start {
			t.Errorf("%q is taken", text)
		}
		if len(text) > 37 || strings.ContainsAny(text, " +\n") {
			t.Errorf("%q is taken", text)
		}
		if offset, ok := uploadOffset(state); ok && offset != start {
			t.Errorf("%q is taken at %d", text, offset)
		}
		if length >= 0 && length != end-start+1 {
			t.Errorf("%q is taken for %d bytes", text, length)
		}
	})
}

func TestAccepts(t *testing.T) {
	const m = "application/vnd.oci.image.manifest.v1+json"
	for _, tc := range []struct {
		header string
		want   bool
	}{{m, true}, {"text/html, " + m + ";q=0.1", true}, {"*/*", true}, {"application/*", true}, {"application/json", false}, {"text/*", false}, {"", true}} {
		if got := accepts([]string{"text/plain", tc.header}, m); got != tc.want {
			t.Errorf("%q: %v", tc.header, got)
		}
	}
	if !accepts(nil, m) {
		t.Error("no header is any type")
	}
}

func TestContents(t *testing.T) {
	c, err := newContents()
	if err != nil {
		t.Fatal(err)
	}
	body := make([]byte, maxContent)
	for i := range 3 * maxContents / maxContent {
		d := digest.FromString(strings.Repeat("x", i))
		c.add(d, body)
		c.add(d, body)
		if c.bytes > maxContents || c.bytes != c.lru.Len()*maxContent {
			t.Fatalf("%d bytes in %d", c.bytes, c.lru.Len())
		}
	}
	c.add(digest.FromString("big"), make([]byte, maxContent+1))
	if _, ok := c.get(digest.FromString("big")); ok {
		t.Error("too large to be remembered")
	}
}

func TestAddress(t *testing.T) {
	r := httptest.NewRequest(http.MethodGet, "/", nil)
	if got := addressOf(r); got != "192.0.2.1" {
		t.Errorf("address %q", got)
	}
}

// What a client does wrong is no error of the server.
func TestLogLevels(t *testing.T) {
	var out bytes.Buffer
	hook := &logHook{slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{Level: slog.LevelWarn}))}
	for _, tc := range []struct {
		level   logrus.Level
		message string
		data    logrus.Fields
		logged  bool
	}{
		{logrus.ErrorLevel, "client disconnected during blob PATCH", logrus.Fields{"error": io.ErrUnexpectedEOF, "http.request.method": "PATCH"}, false},
		{logrus.ErrorLevel, "response completed with error", logrus.Fields{"http.request.method": "PUT", "err.code": errcode.ErrorCodeUnknown, "err.detail": "client disconnected"}, false},
		{logrus.ErrorLevel, "canonical digest does match provided digest", nil, false},
		{logrus.ErrorLevel, "response completed with error", logrus.Fields{"http.request.method": "PUT", "err.code": errcode.ErrorCodeDigestInvalid}, false},
		{logrus.ErrorLevel, "response completed with error", logrus.Fields{"http.request.method": "PUT", "err.code": errcode.ErrorCodeUnknown, "err.detail": "the disk is full"}, true},
		{logrus.ErrorLevel, "error creating upload", nil, true},
		{logrus.WarnLevel, "error authorizing context", logrus.Fields{"http.request.method": "GET"}, false},
		{logrus.WarnLevel, "something of the storage", nil, true},
	} {
		out.Reset()
		if err := hook.Fire(&logrus.Entry{Level: tc.level, Message: tc.message, Data: tc.data}); err != nil || (out.Len() > 0) != tc.logged {
			t.Errorf("%s %v: %q %v", tc.message, tc.data, out.String(), err)
		}
	}
}
