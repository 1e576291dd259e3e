package server

import (
	"context"
	"io"
	"iter"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"github.com/golang-jwt/jwt/v5"

	"cumulet.io/cis"
	"cumulet.io/internal/problem"
	"cumulet.io/registry/hubtoken"
)

// nothing is a service that has nothing: a fuzzed request ends at its decoder, or here.
type nothing struct{ t *testing.T }

func (n nothing) none() error { return problem.New(problem.ErrNotFound, "nothing here") }
func (n nothing) Create(_ context.Context, _ string, _ cis.CreateRequest) (*cis.Instance, bool, error) {
	return nil, false, n.none()
}
func (n nothing) Get(context.Context, string, string) (*cis.Instance, error) { return nil, n.none() }
func (n nothing) List(_ context.Context, _ string, r cis.ListRequest) (*cis.InstanceList, error) {
	if r.Limit < 0 || r.Limit > 1000 || len(r.Node) > 253 || len(r.Cursor) > 256 || len(r.Labels) > 64 {
		n.t.Errorf("let through %+v", r)
	}
	return nil, n.none()
}
func (n nothing) Delete(_ context.Context, _, _ string, g *int64) (*cis.Instance, error) {
	if g != nil && *g < 0 {
		n.t.Errorf("let through a grace of %d", *g)
	}
	return nil, n.none()
}
func (n nothing) UpdateVolume(context.Context, string, string, string, cis.FilesVolume) error {
	return n.none()
}
func (n nothing) Watch(context.Context, string, string, string) iter.Seq2[cis.WatchItem, error] {
	return func(yield func(cis.WatchItem, error) bool) { yield(cis.WatchItem{}, n.none()) }
}
func (n nothing) Events(context.Context, string, string) ([]cis.Event, error) { return nil, n.none() }
func (n nothing) Exec(context.Context, string, string, cis.ExecRequest) error {
	n.t.Error("a command was run without a session")
	return n.none()
}
func (n nothing) Logs(_ context.Context, _, _ string, r cis.LogRequest) (io.ReadCloser, error) {
	if r.Tail != nil && *r.Tail < 0 || r.LimitBytes < 0 {
		n.t.Errorf("let through %+v", r)
	}
	return nil, n.none()
}
func (n nothing) PortForward(_ context.Context, _, _ string, p uint16) (io.ReadWriteCloser, error) {
	if p == 0 {
		n.t.Error("let through port 0")
	}
	return nil, n.none()
}
func (n nothing) Stats(context.Context, string, []string) ([]cis.Stats, error) { return nil, n.none() }
func (n nothing) Quota(context.Context, string) (*cis.OrgQuota, error)         { return nil, n.none() }
func (n nothing) SetQuota(_ context.Context, _, _ string, q *cis.Quota) (*cis.OrgQuota, error) {
	return nil, n.none()
}
func (n nothing) Sandboxes(context.Context) (*cis.Sandboxes, error) { return nil, n.none() }

type anyone struct{}

func (anyone) Verify(context.Context, string, string) (*hubtoken.Claims, error) {
	return &hubtoken.Claims{RegisteredClaims: jwt.RegisteredClaims{Subject: "fuzz"}, Access: []hubtoken.Access{{Type: hubtoken.TypePlatform, Name: "*", Actions: []string{hubtoken.ActionNode, hubtoken.ActionOperator}}}}, nil
}

// FuzzRequest throws paths, queries and bodies at every route: each is refused or understood as a 4xx, and nothing panics.
func FuzzRequest(f *testing.F) {
	for i, q := range []string{"", "limit=5&live=true&label=a=b&cursor=x&node=n", "tail=1&since=2026-01-01T00:00:00Z&follow=1", "command=a&command=b&stdin=1&tty=true",
		"port=80", "graceSeconds=3", "id=1&id=2", "a=%zz", "a;b", "limit=99999999999999999999", "tail=-0"} {
		f.Add(uint8(i), "acme", "i-00000000000000000000", q, `{"key":"k","spec":{"name":"a","containers":[{"name":"a","image":"b"}]}}`)
	}
	f.Add(uint8(4), "..", "%2e%2e/%00", "x=%ff", "{")
	f.Fuzz(func(t *testing.T, n uint8, org, id, query, body string) {
		h, err := New(Config{Service: nothing{t}, Verifier: anyone{}})
		if err != nil {
			t.Fatal(err)
		}
		routes := (&server{}).routes()
		rt := routes[int(n)%len(routes)]
		r := httptest.NewRequest(rt.method, "/", nil)
		r.URL = &url.URL{Path: strings.NewReplacer("{org}", org, "{id}", id, "{container}", "main", "{volume}", "v").Replace(rt.path), RawQuery: query}
		r.Body = io.NopCloser(strings.NewReader(body))
		r.Header.Set("Authorization", "Bearer x")
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if w.Code < 300 || w.Code >= 500 && w.Code != http.StatusNotImplemented {
			t.Errorf("%s %s answered %d %s", rt.method, r.URL, w.Code, w.Body)
		}
	})
}
