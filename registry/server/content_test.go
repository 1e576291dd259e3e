package server_test

import (
	"net/http"
	"strings"
	"testing"

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
