package server_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"net/http"
	"strings"
	"testing"

	"github.com/getkin/kin-openapi/openapi3filter"

	"cumulet.io/registry"
	"cumulet.io/registry/directory"
)

// Who may do what with files: by hubtoken, by password, and as nobody.
func TestFileAccess(t *testing.T) {
	h := startHub(t)
	const path = "/files/acme/tools/-/1.0/tool.txt"
	do := func(want int, method, path, body string, header ...string) string {
		t.Helper()
		resp, text := h.request(method, path, body, header...)
		if resp.StatusCode != want {
			t.Errorf("%s %s: %d %s, want %d", method, path, resp.StatusCode, text, want)
		}
		challenge := strings.Join(resp.Header.Values("WWW-Authenticate"), "; ")
		if (want == http.StatusUnauthorized) != (strings.Contains(challenge, `Basic realm=`) && strings.Contains(challenge, `Bearer realm="`+h.url+`/token",service="`+h.host+`"`)) {
			t.Errorf("%s %s: %d with challenge %q", method, path, resp.StatusCode, challenge)
		}
		return text
	}
	as := func(user string) []string { return []string{"Authorization", basic(user, "pass-of-"+user)} }
	token := func(user, actions string) []string {
		return []string{"Authorization", h.bearer(user, "repository:acme/tools:"+actions)}
	}
	do(401, "PUT", path, "x")
	do(404, "PUT", path, "x", as("boris")...)
	do(403, "PUT", path, "x", as("rita")...)
	do(401, "PUT", path, "x", "Authorization", basic("wendy", "wrong-password"))
	do(401, "PUT", path, "x", "Authorization", "Bearer nonsense")
	do(401, "PUT", path, "x", "Authorization", "Digest nonsense")
	do(404, "PUT", "/files/beta/tools/-/1.0/x", "x", as("wendy")...)
	do(201, "PUT", path, "content", as("wendy")...)
	do(201, "PUT", "/files/acme/tools/-/1.1/tool.txt", "content", token("wendy", "pull,push")...)
	do(403, "PUT", "/files/acme/tools/-/1.2/tool.txt", "content", token("wendy", "pull")...)
	if got := do(200, "GET", path, "", as("rita")...); got != "content" {
		t.Errorf("%q", got)
	}
	do(200, "GET", path, "", token("rita", "pull")...)
	do(404, "GET", path, "", token("boris", "pull")...)
	do(404, "GET", path, "", "Authorization", h.bearer("rita", "org:acme:read"))
	do(401, "GET", path, "")
	do(401, "GET", "/files/acme/nothere/-/1.0/x", "") // as one that is there
	do(404, "GET", path, "", as("boris")...)
	do(200, "GET", "/files/acme/tools/-/", "", as("rita")...)
	do(404, "GET", "/files/acme/tools/-/", "", as("boris")...)
	do(403, "DELETE", path, "", as("wendy")...)
	// Path tricks are no way around.
	do(400, "GET", "/files/beta/x/-/1/..%2f..%2facme/tools", "", as("boris")...)
	do(400, "GET", "/files/acme/tools/-/1.0/../1.1/tool.txt", "", as("rita")...)
	if _, err := h.Directory().SetVisibility(t.Context(), "acme/tools", registry.Public); err != nil {
		t.Fatal(err)
	}
	do(200, "GET", path, "")
	do(200, "GET", path, "", as("boris")...)
	do(401, "PUT", path, "x")
	do(403, "PUT", path, "x", as("boris")...)
	do(401, "DELETE", path, "")
	do(204, "DELETE", path, "", as("adam")...)

	repo, err := h.Directory().Repository(t.Context(), "acme/tools")
	if err != nil || repo.CreatedBy != "wendy" {
		t.Errorf("%+v %v", repo, err)
	}
	denied := true
	log, err := h.Directory().AuditLog(t.Context(), directory.AuditFilter{Org: "acme", Denied: &denied, Limit: 100})
	if err != nil || len(log) < 5 {
		t.Errorf("%d denials in the audit log: %v", len(log), err)
	}
	var kinds []string
	for _, e := range h.pushed() {
		if e.Data["kind"] == "file" {
			kinds = append(kinds, string(e.Type)+" "+e.Actor)
		}
	}
	if got := strings.Join(kinds, ", "); got != "push wendy, push wendy, pull rita, pull rita, pull , pull boris, delete adam" {
		t.Error(got)
	}
	// Two orgs' quotas hold for files and charts alike.
	if err := h.Directory().SetQuota(t.Context(), "acme", &registry.Quota{Bytes: 100}); err != nil {
		t.Fatal(err)
	}
	do(429, "PUT", "/files/acme/tools/-/2.0/big", strings.Repeat("x", 200), as("wendy")...)
}

// What the document says of files and charts holds.
func TestContentAPI(t *testing.T) {
	openapi3filter.RegisterBodyDecoder("application/octet-stream", openapi3filter.FileBodyDecoder)
	openapi3filter.RegisterBodyDecoder("application/offset+octet-stream", openapi3filter.FileBodyDecoder)
	openapi3filter.RegisterBodyDecoder("application/gzip", openapi3filter.FileBodyDecoder)
	openapi3filter.RegisterBodyDecoder("application/yaml", openapi3filter.FileBodyDecoder)
	h := startHub(t)
	router := document(t, h)
	wendy, adam := basic("wendy", "pass-of-wendy"), basic("adam", "pass-of-adam")
	archive := chartArchive(t, "note", "1.0.0")
	location := ""
	for _, tc := range []struct {
		method, path, body, user string
		status                   int
		header                   []string
	}{
		{"PUT", "/files/acme/my/tools/-/1.0/a/b.bin", "content", wendy, 201, []string{"Content-Type", "application/octet-stream"}},
		{"PUT", "/files/acme/my/tools/-/1.0/a/b.bin", "content", wendy, 200, []string{"Content-Type", "application/octet-stream"}},
		{"PUT", "/files/acme/my/tools/-/1.0/a/b.bin", "other", wendy, 409, []string{"Content-Type", "application/octet-stream"}},
		{"PUT", "/files/acme/my/tools/-/1.0/a/b.bin", "other", "", 401, []string{"Content-Type", "application/octet-stream"}},
		{"GET", "/files/acme/my/tools/-/latest/a/b.bin", "", wendy, 200, nil},
		{"GET", "/files/acme/my/tools/-/1.0/a/b.bin", "", wendy, 206, []string{"Range", "bytes=1-2"}},
		{"GET", "/files/acme/my/tools/-/1.0/a/b.bin", "", wendy, 416, []string{"Range", "bytes=99-"}},
		{"GET", "/files/acme/my/tools/-/1.0/nothere", "", wendy, 404, nil},
		{"GET", "/files/acme/my/tools/-/?limit=1", "", wendy, 200, nil},
		{"POST", "/files/acme/my/tools/-/2.0/c", "", wendy, 412, nil},
		{"POST", "/files/acme/my/tools/-/2.0/c", "", wendy, 201, []string{"Tus-Resumable", "1.0.0", "Upload-Length", "3"}},
		{"HEAD", "UPLOAD", "", wendy, 200, []string{"Tus-Resumable", "1.0.0"}},
		{"PATCH", "UPLOAD", "ab", wendy, 204, []string{"Tus-Resumable", "1.0.0", "Upload-Offset", "0", "Content-Type", "application/offset+octet-stream"}},
		{"PATCH", "UPLOAD", "ab", wendy, 409, []string{"Tus-Resumable", "1.0.0", "Upload-Offset", "0", "Content-Type", "application/offset+octet-stream"}},
		{"DELETE", "UPLOAD", "", wendy, 204, []string{"Tus-Resumable", "1.0.0"}},
		{"DELETE", "/files/acme/my/tools/-/1.0/a/b.bin", "", wendy, 403, nil},
		{"DELETE", "/files/acme/my/tools/-/1.0/a/b.bin", "", adam, 204, nil},
		{"POST", "/charts/api/acme/my/charts/charts", archive, wendy, 201, []string{"Content-Type", "application/gzip"}},
		{"POST", "/charts/api/acme/my/charts/charts", "nonsense", wendy, 400, []string{"Content-Type", "application/gzip"}},
		{"POST", "/charts/api/acme/my/charts/prov", "nonsense", wendy, 400, []string{"Content-Type", "text/plain"}},
		{"GET", "/charts/acme/my/charts/index.yaml", "", wendy, 200, nil},
		{"GET", "/charts/acme/my/charts/note-1.0.0.tgz", "", wendy, 200, nil},
		{"GET", "/charts/acme/my/charts/note-1.0.0.tgz.prov", "", wendy, 404, nil},
		{"GET", "/charts/api/acme/my/charts/charts", "", wendy, 200, nil},
		{"GET", "/charts/api/acme/my/charts/charts/note", "", wendy, 200, nil},
		{"GET", "/charts/api/acme/my/charts/charts/note/1.0.0", "", wendy, 200, nil},
		{"DELETE", "/charts/api/acme/my/charts/charts/note/1.0.0", "", wendy, 403, nil},
		{"DELETE", "/charts/api/acme/my/charts/charts/note/1.0.0", "", adam, 200, nil},
	} {
		t.Run(tc.method+" "+tc.path, func(t *testing.T) {
			header := tc.header
			if tc.user != "" {
				header = append(header, "Authorization", tc.user)
			}
			path := strings.Replace(tc.path, "UPLOAD", location, 1)
			resp, text := h.checked(router, tc.status < 400 && tc.method != "POST", tc.method, path, tc.body, header...)
			if resp.StatusCode != tc.status {
				t.Errorf("%d %s, want %d", resp.StatusCode, text, tc.status)
			}
			if tc.method == "POST" && strings.HasPrefix(resp.Header.Get("Location"), "/files/") {
				location = resp.Header.Get("Location")
			}
		})
	}
}

// chartArchive is a chart without templates.
func chartArchive(t *testing.T, name, version string) string {
	t.Helper()
	var b bytes.Buffer
	gz := gzip.NewWriter(&b)
	w := tar.NewWriter(gz)
	text := "apiVersion: v2\nname: " + name + "\nversion: " + version + "\n"
	err := w.WriteHeader(&tar.Header{Name: name + "/Chart.yaml", Mode: 0o644, Size: int64(len(text))})
	if err == nil {
		_, err = w.Write([]byte(text))
	}
	if err := errors.Join(err, w.Close(), gz.Close()); err != nil {
		t.Fatal(err)
	}
	return b.String()
}
