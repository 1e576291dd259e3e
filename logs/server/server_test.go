package server_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"
	"github.com/getkin/kin-openapi/routers/gorillamux"
	"go.uber.org/goleak"

	"cumulet.io/cis"
	"cumulet.io/internal/problem"
	"cumulet.io/logs"
	"cumulet.io/logs/client"
	"cumulet.io/logs/crilog"
	"cumulet.io/logs/logstest"
	"cumulet.io/logs/memory"
	"cumulet.io/logs/server"
	"cumulet.io/registry/hubtoken"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// verifier takes "ORG" as a token that may read ORG.
type verifier struct{}

func (verifier) Verify(_ context.Context, token, audience string) (*hubtoken.Claims, error) {
	if audience != hubtoken.AudienceLogs || token == "expired" {
		return nil, hubtoken.ErrInvalidToken
	}
	return &hubtoken.Claims{Access: []hubtoken.Access{{Type: hubtoken.TypeOrg, Name: token, Actions: []string{hubtoken.ActionRead}}}}, nil
}

type token string

func (t token) Token(context.Context) (string, error) { return string(t), nil }

type service struct {
	store *memory.Store
	srv   *httptest.Server
	c     *client.Client
}

func start(t *testing.T, st server.Store, org string) *service {
	t.Helper()
	mem := &memory.Store{}
	if st == nil {
		st = mem
	}
	h := server.New(server.Config{Store: st, Verifier: verifier{}, Logger: slog.New(slog.DiscardHandler), Poll: time.Millisecond, MaxStreams: 2})
	srv := httptest.NewServer(h)
	tr := &http.Transport{}
	t.Cleanup(func() { tr.CloseIdleConnections(); srv.Close() })
	c, err := client.New(client.Config{BaseURL: srv.URL, Source: token(org), HTTPClient: &http.Client{Transport: tr}})
	if err != nil {
		t.Fatal(err)
	}
	return &service{mem, srv, c}
}

// TestStoreOverTheWire runs the whole suite through server and client: the API loses nothing of the contract.
func TestStoreOverTheWire(t *testing.T) {
	logstest.Run(t, func(t *testing.T) (logs.Store, logstest.Seed) {
		mem := &memory.Store{}
		return &anyOrg{t: t, mem: mem}, func(_ *testing.T, recs ...logs.Record) { mem.Add(recs...) }
	})
}

// anyOrg is a client with a token for whatever org the query names.
type anyOrg struct {
	t   *testing.T
	mem *memory.Store
}

func (a *anyOrg) Search(ctx context.Context, q logs.Query) (logs.Page, error) {
	return start(a.t, a.mem, q.Org).c.Search(ctx, q)
}

func get(t *testing.T, s *service, token, accept, path string) (*http.Response, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.srv.URL+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	if accept != "" {
		req.Header.Set("Accept", accept)
	}
	resp, err := s.srv.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(b)
}

func TestRefused(t *testing.T) {
	s := start(t, nil, "acme")
	for _, c := range []struct {
		token, accept, path string
		status              int
		field               string
	}{
		{"", "", "/v1/orgs/acme/logs", 401, ""},
		{"expired", "", "/v1/orgs/acme/logs", 401, ""},
		{"umbrella", "", "/v1/orgs/acme/logs", 403, ""},
		{"acme", "", "/v1/orgs/acme/log", 404, ""},
		{"", "", "/", 404, ""},
		{"acme", "text/html", "/v1/orgs/acme/logs", 400, "Accept"},
		{"acme", "", "/v1/orgs/acme/logs?org=umbrella", 400, "org"},
		{"acme", "", "/v1/orgs/acme/logs?instance=a&instance=b", 400, "instance"},
		{"acme", "", "/v1/orgs/acme/logs?instance=", 400, "instance"},
		{"acme", "", "/v1/orgs/acme/logs?limit=0", 400, "limit"},
		{"acme", "", "/v1/orgs/acme/logs?limit=10001", 400, "limit"},
		{"acme", "", "/v1/orgs/acme/logs?attempt=latest", 400, "attempt"},
		{"acme", "", "/v1/orgs/acme/logs?attempt=-1", 400, "attempt"},
		{"acme", "", "/v1/orgs/acme/logs?stream=both", 400, "stream"},
		{"acme", "", "/v1/orgs/acme/logs?from=yesterday", 400, "from"},
		{"acme", "", "/v1/orgs/acme/logs?order=up", 400, "order"},
		{"acme", "", "/v1/orgs/acme/logs?cursor=nonsense", 400, "cursor"},
		{"acme", "", "/v1/orgs/acme/logs?tail=1", 400, "tail"},
		{"acme", "", "/v1/orgs/acme/logs?follow=true", 400, "follow"},
		{"acme", "application/x-ndjson", "/v1/orgs/acme/logs?follow=true&order=desc", 400, "follow"},
		{"acme", "application/x-ndjson", "/v1/orgs/acme/logs?follow=true&limit=5", 400, "follow"},
		{"acme", "text/plain", "/v1/orgs/acme/logs?container=c", 400, "instance"},
		{"acme", "text/plain", "/v1/orgs/acme/logs?instance=i", 400, "container"},
		{"acme", "text/plain", "/v1/orgs/acme/logs?instance=i&container=c", 404, ""},
		{"acme", "text/plain", "/v1/orgs/acme/logs?instance=i&container=c&limit=1", 400, "limit"},
	} {
		resp, body := get(t, s, c.token, c.accept, c.path)
		var d problem.Document
		if err := json.Unmarshal([]byte(body), &d); err != nil || resp.StatusCode != c.status || d.Field != c.field || d.Status != c.status {
			t.Errorf("%s as %q: %d %s", c.path, c.accept, resp.StatusCode, body)
		}
		if resp.Header.Get("Content-Type") != "application/problem+json" {
			t.Errorf("%s: %s", c.path, resp.Header.Get("Content-Type"))
		}
	}
}

// TestTextIsTheFile holds that every form of kubectl logs gives the same bytes from the store as from the file.
func TestTextIsTheFile(t *testing.T) {
	s := start(t, nil, "acme")
	path := filepath.Join(t.TempDir(), "0.log")
	base := time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)
	var file []byte
	for i := range 3000 {
		e := crilog.Entry{Time: base.Add(time.Duration(i*7%3000) * time.Second), Stream: logs.Stdout, Partial: i%5 == 0, Text: fmt.Appendf(nil, "line %d \r", i)}
		if i%3 == 0 {
			e.Stream = logs.Stderr
		}
		s.store.Add(logs.Record{Org: "acme", Instance: "i", Container: "c", Attempt: 1, Stream: e.Stream, Time: e.Time,
			Offset: int64(len(file)), Partial: e.Partial, Message: string(e.Text)})
		file = crilog.AppendRecord(file, e)
	}
	s.store.Add(logs.Record{Org: "acme", Instance: "i", Container: "c", Time: base.Add(-time.Hour), Message: "before", Stream: logs.Stdout})
	if err := os.WriteFile(path, file, 0o600); err != nil {
		t.Fatal(err)
	}
	n := func(n int64) *int64 { return &n }
	for i, req := range []cis.LogRequest{
		{}, {Timestamps: true}, {Tail: n(0)}, {Tail: n(1)}, {Tail: n(999)}, {Tail: n(1000)}, {Tail: n(2500)}, {Tail: n(2999)}, {Tail: n(5000)},
		{LimitBytes: 1}, {LimitBytes: 5000}, {Tail: n(2000), LimitBytes: 100, Timestamps: true}, {Since: base.Add(1000 * time.Second)},
	} {
		req.Container = "c"
		var want bytes.Buffer
		if err := crilog.Copy(t.Context(), &want, path, crilog.Options{Tail: req.Tail, Since: req.Since, LimitBytes: req.LimitBytes, Timestamps: req.Timestamps}); err != nil {
			t.Fatal(err)
		}
		rc, err := s.c.Logs(t.Context(), "acme", "i", req)
		if err != nil {
			t.Fatal(i, err)
		}
		got, err := io.ReadAll(rc)
		if err = errors.Join(err, rc.Close()); err != nil {
			t.Fatal(i, err)
		}
		if !bytes.Equal(got, want.Bytes()) {
			t.Errorf("request %d: %d bytes, want %d", i, len(got), want.Len())
		}
	}
	rc, err := s.c.Logs(t.Context(), "acme", "i", cis.LogRequest{Container: "c", Previous: true, Follow: true})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(rc); err != nil || string(got) != "before\n" {
		t.Errorf("previous: %q %v", got, err)
	}
	_ = rc.Close()
	if _, err := s.c.Logs(t.Context(), "acme", "other", cis.LogRequest{Container: "c"}); !errors.Is(err, problem.ErrNotFound) {
		t.Errorf("no lines: %v", err)
	}
	if _, err := s.c.Logs(t.Context(), "umbrella", "i", cis.LogRequest{Container: "c"}); !errors.Is(err, problem.ErrForbidden) {
		t.Errorf("another org: %v", err)
	}
}

func rec(n int) logs.Record {
	r := logstest.Record("acme", "i", "c", 0, n)
	r.Message = fmt.Sprint(n)
	return r
}

func TestFollow(t *testing.T) {
	s := start(t, nil, "acme")
	s.store.Add(rec(0), rec(1))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	one := int64(1)
	text, err := s.c.Text(ctx, "acme", "i", cis.LogRequest{Container: "c", Follow: true, Tail: &one})
	if err != nil {
		t.Fatal(err)
	}
	defer text.Close()
	expect := func(want string) {
		t.Helper()
		b := make([]byte, len(want))
		if _, err := io.ReadFull(text, b); err != nil || string(b) != want {
			t.Fatalf("got %q, %v, want %q", b, err, want)
		}
	}
	expect("1\n")
	n := 1
	for r, err := range s.c.Stream(ctx, logs.Query{Org: "acme", From: rec(1).Time}, true) {
		if n++; n > 6 {
			break
		}
		// The first look gives 0 and 1 (of equal time), then each is added when the one before has come.
		if err != nil || r.Message != fmt.Sprint(n-2) {
			t.Fatalf("got %v, %v, want %d", r, err, n-2)
		}
		s.store.Add(rec(n))
	}
	expect("2\n3\n4\n5\n6\n")
	cancel()
	if b, err := io.ReadAll(text); err == nil {
		t.Errorf("a stream that was cut ended well, with %q", b)
	}
}

func TestStreams(t *testing.T) {
	s := start(t, nil, "acme")
	for i := range 2500 {
		s.store.Add(rec(i))
	}
	count := func(q logs.Query) (n int) {
		for r, err := range s.c.Stream(t.Context(), q, false) {
			if err != nil || r.Message != fmt.Sprint(n) {
				t.Fatalf("record %d: %v, %v", n, r, err)
			}
			n++
		}
		return n
	}
	if n := count(logs.Query{Org: "acme"}); n != 2500 {
		t.Errorf("%d records", n)
	}
	if n := count(logs.Query{Org: "acme", Limit: 17}); n != 17 {
		t.Errorf("%d records", n)
	}
}

// broken fails after the first page.
type broken struct{ *memory.Store }

func (b broken) Search(ctx context.Context, q logs.Query) (logs.Page, error) {
	if q.After != "" {
		return logs.Page{}, errors.New("disk on fire at /secret/path")
	}
	return b.Store.Search(ctx, q)
}

func TestBrokenStreamIsNotWhole(t *testing.T) {
	mem := &memory.Store{}
	for i := range 1500 {
		mem.Add(rec(i))
	}
	s := start(t, broken{mem}, "acme")
	n := 0
	var last error
	for _, err := range s.c.Stream(t.Context(), logs.Query{Org: "acme"}, false) {
		if last = err; err == nil {
			n++
		}
	}
	if last == nil || n > 1000 {
		t.Errorf("%d records, then %v", n, last)
	}
	p, err := s.c.Search(t.Context(), logs.Query{Org: "acme", Limit: 10})
	if err != nil {
		t.Fatal(err)
	}
	if _, err = s.c.Search(t.Context(), logs.Query{Org: "acme", Limit: 10, After: p.Next}); err == nil || strings.Contains(err.Error(), "fire") {
		t.Errorf("%v", err)
	}
}

func TestTooManyStreams(t *testing.T) {
	s := start(t, nil, "acme")
	s.store.Add(rec(0))
	for range 2 {
		rc, err := s.c.Text(t.Context(), "acme", "i", cis.LogRequest{Container: "c", Follow: true})
		if err != nil {
			t.Fatal(err)
		}
		defer rc.Close()
	}
	if _, err := s.c.Logs(t.Context(), "acme", "i", cis.LogRequest{Container: "c"}); !errors.Is(err, problem.ErrExhausted) {
		t.Errorf("%v", err)
	}
}

// TestOpenAPI holds that the document is valid and that requests and answers are as it says.
func TestOpenAPI(t *testing.T) {
	s := start(t, nil, "acme")
	_, text := get(t, s, "", "", "/v1/openapi.yaml")
	doc, err := openapi3.NewLoader().LoadFromData([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	if err := doc.Validate(t.Context()); err != nil {
		t.Fatal(err)
	}
	router, err := gorillamux.NewRouter(doc)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 5 {
		r := rec(i)
		r.Partial = i%2 == 0
		s.store.Add(r)
	}
	openapi3filter.RegisterBodyDecoder("application/problem+json", openapi3filter.JSONBodyDecoder)
	openapi3filter.RegisterBodyDecoder("application/x-ndjson", openapi3filter.PlainBodyDecoder)
	for _, c := range []struct {
		accept, query string
		status        int
	}{
		{"application/json", "instance=i&container=c&attempt=0&from=2026-01-01T00:00:00Z&to=2027-01-01T00:00:00Z&contains=1&order=desc&limit=2", 200},
		{"application/json", "limit=2", 200},
		{"application/json", "stream=stdout", 200},
		{"application/x-ndjson", "limit=2&follow=false", 200},
		{"text/plain", "instance=i&container=c&attempt=latest&tail=2&limitBytes=9&timestamps=true&follow=false", 200},
		{"text/plain", "instance=i&container=c&attempt=previous", 404},
		{"application/json", "cursor=x", 400},
	} {
		req := httptest.NewRequest(http.MethodGet, "/v1/orgs/acme/logs?"+c.query, nil)
		req.Header.Set("Accept", c.accept)
		route, params, err := router.FindRoute(req)
		if err != nil {
			t.Fatal(err)
		}
		in := &openapi3filter.RequestValidationInput{Request: req, PathParams: params, Route: route,
			Options: &openapi3filter.Options{AuthenticationFunc: openapi3filter.NoopAuthenticationFunc}}
		if err := openapi3filter.ValidateRequest(t.Context(), in); err != nil {
			t.Errorf("%s: %v", c.query, err)
		}
		resp, body := get(t, s, "acme", c.accept, "/v1/orgs/acme/logs?"+c.query)
		if resp.StatusCode != c.status {
			t.Errorf("%s: %d %s", c.query, resp.StatusCode, body)
		}
		if err := openapi3filter.ValidateResponse(t.Context(), &openapi3filter.ResponseValidationInput{RequestValidationInput: in,
			Status: resp.StatusCode, Header: resp.Header, Body: io.NopCloser(strings.NewReader(body))}); err != nil {
			t.Errorf("%s: %v", c.query, err)
		}
	}
	// Every parameter of the document is read, and none but those: strictness refuses the rest.
	for _, p := range doc.Paths.Find("/v1/orgs/{org}/logs").Get.Parameters {
		if p.Value.In != "query" {
			continue
		}
		known := false
		for _, accept := range []string{"application/json", "application/x-ndjson", "text/plain"} {
			_, body := get(t, s, "acme", accept, "/v1/orgs/acme/logs?"+p.Value.Name+"=%00")
			known = known || !strings.Contains(body, "is not a parameter")
		}
		if !known {
			t.Errorf("the document has the parameter %s, the server has not", p.Value.Name)
		}
	}
}
