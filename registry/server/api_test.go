package server_test

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"
	"github.com/getkin/kin-openapi/routers"
	"github.com/getkin/kin-openapi/routers/gorillamux"

	"cumulet.io/registry"
)

// document loads the OpenAPI document as it is served, and a router over it.
func document(t testing.TB, h *hub) routers.Router {
	t.Helper()
	resp, text := h.request(http.MethodGet, "/v1/openapi/registry.yaml", "")
	if resp.StatusCode != http.StatusOK || text != string(registry.OpenAPI()) {
		t.Fatalf("document: %d", resp.StatusCode)
	}
	doc, err := openapi3.NewLoader().LoadFromData([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	if err := doc.Validate(t.Context()); err != nil {
		t.Fatal(err)
	}
	// A repository's name holds slashes, which a path parameter of OpenAPI does not.
	for _, path := range doc.Paths.InMatchingOrder() {
		content := strings.HasPrefix(path, "/files/") || strings.HasPrefix(path, "/charts/")
		if strings.HasSuffix(path, "/{repository}") || content {
			item := doc.Paths.Value(path)
			doc.Paths.Delete(path)
			doc.Paths.Set(strings.NewReplacer("{repository}", "{repository:.+}", "{path}", "{path:.+}", "{archive}", "{archive:[^/]+[.](?:tgz|prov)}").Replace(path), item)
		}
	}
	router, err := gorillamux.NewRouter(doc)
	if err != nil {
		t.Fatal(err)
	}
	return router
}

// checked does a request and checks the answer, and with valid also the request, against the document.
func (h *hub) checked(router routers.Router, valid bool, method, path, body string, header ...string) (*http.Response, string) {
	h.t.Helper()
	resp, text := h.request(method, path, body, header...)
	req, err := http.NewRequestWithContext(context.Background(), method, path, strings.NewReader(body))
	if err != nil {
		h.t.Fatal(err)
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	route, params, err := router.FindRoute(req)
	if err != nil {
		h.t.Errorf("%s %s: not in the document: %v", method, path, err)
		return resp, text
	}
	in := &openapi3filter.RequestValidationInput{Request: req, PathParams: params, Route: route,
		Options: &openapi3filter.Options{AuthenticationFunc: openapi3filter.NoopAuthenticationFunc, IncludeResponseStatus: true}}
	if valid {
		if err := openapi3filter.ValidateRequest(h.t.Context(), in); err != nil {
			h.t.Errorf("%s %s: request: %v", method, path, err)
		}
	}
	out := &openapi3filter.ResponseValidationInput{RequestValidationInput: in, Status: resp.StatusCode, Header: resp.Header,
		Body: io.NopCloser(bytes.NewReader([]byte(text))), Options: in.Options}
	if err := openapi3filter.ValidateResponse(h.t.Context(), out); err != nil {
		h.t.Errorf("%s %s: answer %d: %v\n%s", method, path, resp.StatusCode, err, text)
	}
	return resp, text
}

func TestAPI(t *testing.T) {
	// The document's types of bodies that the checker does not know.
	openapi3filter.RegisterBodyDecoder("application/jwk-set+json", openapi3filter.JSONBodyDecoder)
	h := startHub(t)
	router := document(t, h)
	for _, name := range []string{"acme/web", "acme/deep/er/one", "acme/zoo"} {
		if err := h.Directory().Pushed(t.Context(), name, "wendy"); err != nil {
			t.Fatal(err)
		}
	}
	reader, admin := h.bearer("rita", "org:acme:read"), h.bearer("adam", "org:acme:admin")
	stranger, operator := h.bearer("boris", "org:beta:admin", "org:acme:read"), h.bearer("platform-auditor", "platform:*:operator")
	jsonBody := "application/json"
	public := `{"visibility":"public"}`
	for _, tc := range []struct {
		name, method, path, body, bearer string
		status                           int
		has                              string
		invalid                          bool // the request breaks the document
	}{
		{"list", "GET", "/v1/orgs/acme/repositories", "", reader, 200, `"acme/deep/er/one"`, false},
		{"first page", "GET", "/v1/orgs/acme/repositories?limit=2", "", reader, 200, `"next":"acme/web"`, false},
		{"last page", "GET", "/v1/orgs/acme/repositories?limit=2&after=acme/web", "", reader, 200, `[{"name":"acme/zoo"`, false},
		{"list by operator", "GET", "/v1/orgs/acme/repositories", "", operator, 200, `"acme/web"`, false},
		{"list with bad limit", "GET", "/v1/orgs/acme/repositories?limit=0", "", reader, 400, `"field":"limit"`, true},
		{"list with bad limit", "GET", "/v1/orgs/acme/repositories?limit=x", "", reader, 400, `"field":"limit"`, true},
		{"list by a stranger", "GET", "/v1/orgs/acme/repositories", "", stranger, 404, "", false},
		{"list of no org", "GET", "/v1/orgs/nothere/repositories", "", stranger, 404, "", false},
		{"list by nobody", "GET", "/v1/orgs/acme/repositories", "", "", 401, "", false},
		{"empty", "GET", "/v1/orgs/beta/repositories", "", h.bearer("boris", "org:beta:read"), 200, `"items":[]`, false},
		{"one", "GET", "/v1/repositories/acme/deep/er/one", "", reader, 200, `"createdBy":"wendy"`, false},
		{"one that is missing", "GET", "/v1/repositories/acme/nothere", "", reader, 404, "", false},
		{"one of a stranger", "GET", "/v1/repositories/acme/web", "", stranger, 404, "", false},
		{"bad name", "GET", "/v1/repositories/acme/WEB", "", reader, 400, `"field":"repository"`, false},
		{"make public by a reader", "PATCH", "/v1/repositories/acme/web", public, reader, 403, "", false},
		{"make public by a stranger", "PATCH", "/v1/repositories/acme/web", public, stranger, 404, "", false},
		{"make public by operator", "PATCH", "/v1/repositories/acme/web", public, operator, 403, "", false},
		{"make public by nobody", "PATCH", "/v1/repositories/acme/web", public, "", 401, "", false},
		{"make public", "PATCH", "/v1/repositories/acme/web", public, admin, 200, `"visibility":"public"`, false},
		{"make public again", "PATCH", "/v1/repositories/acme/web", public, admin, 200, `"visibility":"public"`, false},
		{"make private", "PATCH", "/v1/repositories/acme/web", `{"visibility":"private"}`, admin, 200, `"visibility":"private"`, false},
		{"other value", "PATCH", "/v1/repositories/acme/web", `{"visibility":"secret"}`, admin, 400, `"field":"visibility"`, true},
		{"no field", "PATCH", "/v1/repositories/acme/web", `{}`, admin, 400, `"field":"visibility"`, true},
		{"unknown field", "PATCH", "/v1/repositories/acme/web", `{"visible":true}`, admin, 400, "visible", true},
		{"two bodies", "PATCH", "/v1/repositories/acme/web", public + public, admin, 400, "one JSON object", true},
		{"missing", "PATCH", "/v1/repositories/acme/nothere", public, admin, 404, "", false},
		{"pull credential", "POST", "/v1/pull-credentials", `{"org":"acme","repositories":["acme/web"]}`, h.bearer("node-agent", "platform:*:node"), 200, "hubtoken", false},
		{"pull credential by a member", "POST", "/v1/pull-credentials", `{"org":"acme","repositories":["acme/web"]}`, admin, 403, "", false},
		{"keys", "GET", "/.well-known/jwks.json", "", "", 200, `"use":"sig"`, false},
		{"token", "GET", "/token?service=cis&scope=org:acme:read&scope=org:beta:read", "", "", 200, `"expires_in":300`, false},
		{"token for no service", "GET", "/token?service=x", "", "", 400, `"field":"service"`, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			header := []string{"Content-Type", jsonBody}
			if tc.bearer != "" {
				header = append(header, "Authorization", tc.bearer)
			}
			resp, text := h.checked(router, !tc.invalid, tc.method, tc.path, tc.body, header...)
			if resp.StatusCode != tc.status || !strings.Contains(text, tc.has) {
				t.Errorf("%d %s, want %d and %q", resp.StatusCode, text, tc.status, tc.has)
			}
		})
	}
	form := []string{"Content-Type", "application/x-www-form-urlencoded"}
	ok := url.Values{"grant_type": {"password"}, "username": {"rita"}, "password": {"pass-of-rita"}, "access_type": {"offline"}}
	_, text := h.checked(router, true, "POST", "/token", ok.Encode(), form...)
	var token struct {
		RefreshToken string `json:"refresh_token"`
	}
	if err := json.Unmarshal([]byte(text), &token); err != nil || token.RefreshToken == "" {
		t.Errorf("POST /token: %s", text)
	}
	h.checked(router, true, "POST", "/token/revoke", url.Values{"token": {token.RefreshToken}}.Encode(), form...)
	ok.Set("password", "wrong")
	h.checked(router, true, "POST", "/token", ok.Encode(), form...)
}
