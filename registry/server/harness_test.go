package server_test

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/opencontainers/go-digest"
	"go.uber.org/goleak"

	"cumulet.io/internal/sqldb"
	"cumulet.io/internal/testenv"
	"cumulet.io/registry"
	"cumulet.io/registry/directory"
	"cumulet.io/registry/hubtoken"
	"cumulet.io/registry/index"
	"cumulet.io/registry/server"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(childDir); dir != "" {
		fmt.Fprintln(os.Stderr, serveChild(dir, os.Getenv(childAddr)))
		os.Exit(1)
	}
	// The core starts one for its notifications, which are not used, and gives no way to end it.
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("github.com/docker/go-events.(*Broadcaster).run"))
}

// hub is a registry on loopback with these people, all with password "pass-of-NAME":
// root owns acme; wendy writes, rita reads, adam administers acme; boris owns beta; and the services node-agent (node)
// and platform-auditor (operator).
type hub struct {
	*server.Server
	t    testing.TB
	host string // 127.0.0.1:port
	url  string
	dir  string
	db   *sqldb.DB
	log  *lockedBuffer

	mu     sync.Mutex
	events []registry.Event
}

// lockedBuffer is a log that a test may read while it is written.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func startHub(t testing.TB, options ...func(*server.Config)) *hub {
	t.Helper()
	ctx := context.Background()
	h := &hub{t: t, dir: t.TempDir(), log: &lockedBuffer{}}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	h.host = l.Addr().String()
	h.url = "http://" + h.host
	db, err := sqldb.Open(ctx, "sqlite:"+filepath.Join(h.dir, "registry.db"))
	if err != nil {
		t.Fatal(err)
	}
	h.db = db
	cred := func(name string) directory.Credential {
		return directory.Credential{Name: name, Password: "pass-of-" + name}
	}
	cfg := server.Config{
		DB: db, Dir: h.dir, PublicURL: h.url, HashCost: directory.HashCost{MemoryKiB: 64, Passes: 1},
		Hosts:  []string{"hub.example"},
		Logger: slog.New(slog.NewJSONHandler(h.log, nil)),
		Bootstrap: directory.Bootstrap{Admin: cred("root"), Org: "acme", Services: []directory.ServiceAccount{
			{Credential: cred("node-agent"), Platform: []string{"node"}},
			{Credential: cred("platform-auditor"), Platform: []string{"operator"}},
		}},
		Outbox: outboxFunc(func(_ context.Context, e registry.Event) error {
			h.mu.Lock()
			defer h.mu.Unlock()
			h.events = append(h.events, e)
			return nil
		}),
	}
	for _, o := range options {
		o(&cfg)
	}
	if h.Server, err = server.New(ctx, cfg); err != nil {
		t.Fatal(err)
	}
	d := h.Directory()
	for name, role := range map[string]registry.Role{"wendy": registry.RoleWriter, "rita": registry.RoleReader, "adam": registry.RoleAdmin, "boris": ""} {
		if err := d.CreateAccount(ctx, registry.Account{Name: name, Kind: registry.Person}, "pass-of-"+name); err != nil {
			t.Fatal(err)
		}
		if role != "" {
			if err := d.SetMember(ctx, "acme", name, role); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := d.CreateOrg(ctx, "beta", "boris"); err != nil {
		t.Fatal(err)
	}
	srv := &httptest.Server{Listener: l, Config: &http.Server{Handler: h.Server}} //nolint:gosec // a test's own client
	srv.Start()
	t.Cleanup(func() {
		srv.Close()
		if err := h.Close(); err != nil {
			t.Error(err)
		}
		if err := db.Close(); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Log("server log:\n" + h.log.String())
		}
	})
	return h
}

// tokenAnswer is what /token said.
type tokenAnswer struct {
	hubtoken.TokenResponse
	status int
	header http.Header
	body   string
}

func (h *hub) request(method, path, body string, header ...string) (*http.Response, string) {
	h.t.Helper()
	return testenv.Request(h.t, method, h.url+path, strings.NewReader(body), header...)
}

func basic(user, password string) string {
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(user+":"+password))
}

func (h *hub) answer(resp *http.Response, body string) tokenAnswer {
	h.t.Helper()
	a := tokenAnswer{status: resp.StatusCode, header: resp.Header, body: body}
	if resp.StatusCode == http.StatusOK {
		if err := json.Unmarshal([]byte(body), &a.TokenResponse); err != nil {
			h.t.Fatalf("token answer: %v: %s", err, body)
		}
	}
	return a
}

// getToken asks as user, "" for nobody, whose password is "pass-of-USER".
func (h *hub) getToken(user string, query url.Values) tokenAnswer {
	h.t.Helper()
	var header []string
	if user != "" {
		header = []string{"Authorization", basic(user, "pass-of-"+user)}
	}
	return h.answer(h.request(http.MethodGet, "/token?"+query.Encode(), "", header...))
}

func (h *hub) postToken(form url.Values) tokenAnswer {
	h.t.Helper()
	return h.answer(h.request(http.MethodPost, "/token", form.Encode(), "Content-Type", "application/x-www-form-urlencoded"))
}

// bearer gives an Authorization header for user and the registry with these scopes.
func (h *hub) bearer(user string, scopes ...string) string {
	h.t.Helper()
	a := h.getToken(user, url.Values{"service": {h.host}, "scope": scopes})
	if a.status != http.StatusOK {
		h.t.Fatalf("token for %s: %d %s", user, a.status, a.body)
	}
	return "Bearer " + a.Token
}

func (h *hub) claims(token, audience string) *hubtoken.Claims {
	h.t.Helper()
	c, err := h.Verifier().Verify(context.Background(), token, audience)
	if err != nil {
		h.t.Fatal(err)
	}
	return c
}

type outboxFunc func(ctx context.Context, e registry.Event) error

func (f outboxFunc) Emit(ctx context.Context, e registry.Event) error { return f(ctx, e) }

// pushed is every event but those of members, which the harness makes itself.
func (h *hub) pushed() []registry.Event {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(h.events), func(e registry.Event) bool { return e.Type == registry.EventMember })
}

func writeFile(t testing.TB, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// serve asks a handler without a connection.
func serve(handler http.Handler, path, authorization string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(http.MethodGet, path, nil)
	if authorization != "" {
		r.Header.Set("Authorization", authorization)
	}
	w := httptest.NewRecorder()
	handler.ServeHTTP(w, r)
	return w
}

func digestAs(h v1.Hash) digest.Digest { return digest.Digest(h.String()) }

// tagMany points n tags, t00000 and so on, at a manifest that is there.
func (h *hub) tagMany(t testing.TB, m *index.Manifest, n int) {
	t.Helper()
	err := h.db.InTx(t.Context(), func(tx *sql.Tx) error {
		for i := range n {
			if _, err := tx.ExecContext(t.Context(), `INSERT INTO index_tags (repository, tag, digest, seq, pushed, pushed_by) VALUES (?, ?, ?, 1, 1, '')`,
				m.Repository, fmt.Sprintf("t%05d", i), m.Digest); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
