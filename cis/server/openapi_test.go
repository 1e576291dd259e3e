package server_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"
	"github.com/getkin/kin-openapi/routers"

	"cumulet.io/cis"
	"cumulet.io/cis/server"
	"cumulet.io/cis/server/servertest"
	"cumulet.io/registry/hubtoken"
)

func load(t *testing.T) *openapi3.T {
	t.Helper()
	doc, err := openapi3.NewLoader().LoadFromData(server.OpenAPI())
	if err != nil {
		t.Fatal(err)
	}
	if err := doc.Validate(t.Context(), openapi3.IsOpenAPI31OrLater()); err != nil {
		t.Fatal(err)
	}
	return doc
}

// Every route is documented, every documented operation is routed.
func TestOpenAPIRoutes(t *testing.T) {
	doc := load(t)
	var routed, documented []string
	for _, r := range server.Routes() {
		routed = append(routed, r.Method+" "+r.Path)
	}
	routed = append(routed, "GET /openapi.json", "GET /openapi.yaml")
	ids := map[string]bool{}
	for path, item := range doc.Paths.Map() {
		for method, op := range item.Operations() {
			documented = append(documented, method+" "+path)
			if op.OperationID == "" || ids[op.OperationID] || op.Summary == "" {
				t.Errorf("%s %s: operationId %q, summary %q", method, path, op.OperationID, op.Summary)
			}
			ids[op.OperationID] = true
		}
	}
	slices.Sort(routed)
	slices.Sort(documented)
	if !slices.Equal(routed, documented) {
		t.Errorf("routed     %v\ndocumented %v", routed, documented)
	}
}

// What the handlers answer is what the document says, to the last field; and what is asked for too.
func TestOpenAPIResponses(t *testing.T) {
	doc := load(t)
	env := servertest.New(t, newMemory, servertest.Options{})
	in := running(t, env, "acme", "k")
	token := env.Token("cis", servertest.Org("acme", "write"), hubtoken.Access{Type: hubtoken.TypePlatform, Name: "*", Actions: []string{"operator"}})
	const all = "/v1/orgs/acme/instances"
	one := all + "/" + in.ID
	used := map[string]bool{}
	for _, tt := range []struct {
		method, path, body string
		status             int
		op                 string // path of the document
		header             []string
	}{
		{"POST", all, body("k"), 200, "/v1/orgs/{org}/instances", nil},
		{"POST", all, body("k2"), 201, "/v1/orgs/{org}/instances", nil},
		{"POST", all, strings.Replace(body("k2"), "hello", "bye", 1), 409, "/v1/orgs/{org}/instances", nil},
		{"POST", all, "{}", 400, "/v1/orgs/{org}/instances", nil},
		{"GET", all + "?live=true&label=app=web&node=vk-1&limit=1", "", 200, "/v1/orgs/{org}/instances", nil},
		{"GET", one, "", 200, "/v1/orgs/{org}/instances/{id}", nil},
		{"GET", all + "/i-00000000000000000000", "", 404, "/v1/orgs/{org}/instances/{id}", nil},
		{"PUT", one + "/volumes/shut", `{"files":[{"path":"s","mode":256,"data":"bmV3"}]}`, 204, "/v1/orgs/{org}/instances/{id}/volumes/{volume}", nil},
		{"GET", one + "/events", "", 200, "/v1/orgs/{org}/instances/{id}/events", nil},
		{"GET", "/v1/orgs/acme/stats?id=" + in.ID, "", 200, "/v1/orgs/{org}/stats", nil},
		{"GET", "/v1/orgs/acme/quota", "", 200, "/v1/orgs/{org}/quota", nil},
		{"PUT", "/v1/orgs/acme/quota", `{"instances":5,"milliCPU":9000}`, 200, "/v1/orgs/{org}/quota", nil},
		{"DELETE", "/v1/orgs/acme/quota", "", 200, "/v1/orgs/{org}/quota", nil},
		{"GET", "/v1/sandboxes", "", 200, "/v1/sandboxes", nil},
		{"GET", one + "/containers/main/log?tail=5&timestamps=true", "", 200, "/v1/orgs/{org}/instances/{id}/containers/{container}/log", nil},
		{"GET", one + "/containers/main/exec?command=id&stdout=true", "", 400, "/v1/orgs/{org}/instances/{id}/containers/{container}/exec", nil},
		{"POST", one + "/containers/main/exec?command=id&stdout=true", "", 400, "/v1/orgs/{org}/instances/{id}/containers/{container}/exec", nil},
		{"GET", one + "/containers/main/attach?stdout=true", "", 400, "/v1/orgs/{org}/instances/{id}/containers/{container}/attach", nil},
		{"POST", one + "/containers/main/attach?stdout=true", "", 400, "/v1/orgs/{org}/instances/{id}/containers/{container}/attach", nil},
		{"POST", one + "/portforward?port=80", "", 400, "/v1/orgs/{org}/instances/{id}/portforward", nil},
		{"GET", "/v1/orgs/acme/watch?cursor=aaaaaaaa.1", "", 410, "/v1/orgs/{org}/watch", nil},
		{"DELETE", one + "?graceSeconds=1", "", 200, "/v1/orgs/{org}/instances/{id}", nil},
		{"GET", "/openapi.json", "", 200, "/openapi.json", nil},
		{"GET", "/openapi.yaml", "", 200, "/openapi.yaml", nil},
	} {
		t.Run(tt.method+" "+tt.path, func(t *testing.T) {
			used[tt.method+" "+tt.op] = true
			resp, text := call(t, env, token, tt.method, tt.path, tt.body, append(tt.header, "Content-Type", "application/json")...)
			if resp.StatusCode != tt.status {
				t.Fatalf("%d %s, want %d", resp.StatusCode, text, tt.status)
			}
			if strings.Contains(text, secret) || strings.Contains(text, "Y29ycmVjdC1ob3JzZS1iYXR0ZXJ5") {
				t.Error("the answer holds a secret")
			}
			item := doc.Paths.Find(tt.op)
			req, err := http.NewRequestWithContext(t.Context(), tt.method, env.URL+tt.path, strings.NewReader(tt.body))
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("Content-Type", "application/json")
			input := &openapi3filter.RequestValidationInput{Request: req, QueryParams: req.URL.Query(), PathParams: params(tt.op, req.URL),
				Route:   &routers.Route{Spec: doc, Path: tt.op, PathItem: item, Method: tt.method, Operation: item.GetOperation(tt.method)},
				Options: &openapi3filter.Options{AuthenticationFunc: openapi3filter.NoopAuthenticationFunc, IncludeResponseStatus: true}}
			if err := openapi3filter.ValidateRequest(t.Context(), input); (err == nil) != (tt.body != "{}") {
				t.Errorf("request: %v", err)
			}
			if strings.HasPrefix(resp.Header.Get("Content-Type"), "text/") || strings.HasSuffix(resp.Header.Get("Content-Type"), "yaml") {
				return // text is text
			}
			out := &openapi3filter.ResponseValidationInput{RequestValidationInput: input, Status: resp.StatusCode, Header: resp.Header, Options: input.Options}
			out.SetBodyBytes([]byte(text))
			if err := openapi3filter.ValidateResponse(t.Context(), out); err != nil {
				t.Errorf("response: %v\n%s", err, text)
			}
		})
	}
	for path, item := range doc.Paths.Map() {
		for method := range item.Operations() {
			if !used[method+" "+path] {
				t.Errorf("%s %s was not tried", method, path)
			}
		}
	}
}

// params takes the path parameters from where the pattern has them.
func params(pattern string, u *url.URL) map[string]string {
	out := map[string]string{}
	got := strings.Split(u.Path, "/")
	for i, p := range strings.Split(pattern, "/") {
		if strings.HasPrefix(p, "{") {
			out[strings.Trim(p, "{}")] = got[i]
		}
	}
	return out
}

// A validator that finds nothing proves nothing.
func TestOpenAPIFindsFaults(t *testing.T) {
	doc := load(t)
	for name, text := range map[string]string{
		"unknown field": `{"items":[],"cursor":"x","extra":1}`,
		"missing field": `{"items":[]}`,
		"wrong type":    `{"items":{},"cursor":"x"}`,
		"deep":          `{"items":[{"id":"i-1"}],"cursor":"x"}`,
	} {
		if visit(t, doc, "InstanceList", text) == nil {
			t.Errorf("%s was not found", name)
		}
	}
}

func visit(t *testing.T, doc *openapi3.T, schema, text string) error {
	t.Helper()
	var v any
	if err := json.Unmarshal([]byte(text), &v); err != nil {
		t.Fatal(err)
	}
	return doc.Components.Schemas[schema].Value.VisitJSON(v, openapi3.EnableJSONSchema2020(), openapi3.VisitAsResponse())
}

func TestWatchLines(t *testing.T) {
	doc := load(t)
	env := servertest.New(t, newMemory, servertest.Options{})
	token := env.Token("cis", servertest.Org("acme", "write"))
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, env.URL+"/v1/orgs/acme/watch", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+token)
	resp, err := oneShot.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if ct := resp.Header.Get("Content-Type"); ct != "application/x-ndjson" {
		t.Errorf("content type %q", ct)
	}
	in := running(t, env, "acme", "k")
	if err := env.Control.Record(ctx, cis.Event{Instance: in.ID, Type: cis.Normal, Reason: "Tried", Message: "it was", Container: "main"}); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(io.LimitReader(resp.Body, 1<<20))
	lines.Buffer(nil, 1<<20)
	seen := map[string]bool{}
	for !(seen["bookmark"] && seen["ready"] && seen["event"]) && lines.Scan() {
		if err := visit(t, doc, "WatchLine", lines.Text()); err != nil {
			t.Errorf("%v\n%s", err, lines.Text())
		}
		if bytes.Contains(lines.Bytes(), []byte(secret)) {
			t.Error("a line holds a secret")
		}
		var line struct {
			Instance *struct {
				ID     string
				Status struct{ Ready bool }
			}
			Event *struct{ Instance string }
		}
		if err := json.Unmarshal(lines.Bytes(), &line); err != nil {
			t.Fatal(err)
		}
		switch {
		case line.Instance != nil:
			seen["ready"] = seen["ready"] || line.Instance.Status.Ready && line.Instance.ID == in.ID
		case line.Event != nil:
			seen["event"] = true
		default:
			seen["bookmark"] = true
		}
	}
	if len(seen) < 3 || !seen["ready"] {
		t.Errorf("saw %v, %v", seen, lines.Err())
	}
}
