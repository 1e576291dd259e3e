package webhook

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
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	standard "github.com/standard-webhooks/standard-webhooks/libraries/go"
	"go.uber.org/goleak"

	"cumulet.io/internal/problem"
	"cumulet.io/internal/sqldb"
	"cumulet.io/internal/sqldb/sqldbtest"
	"cumulet.io/internal/testenv"
	"cumulet.io/registry"
	"cumulet.io/registry/directory"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(childDir); dir != "" {
		child(dir)
		os.Exit(1)
	}
	goleak.VerifyTestMain(m)
}

var loopback = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")}

// openDB opens a database with the org acme, whose owner is root, and beta.
func openDB(t testing.TB, dsn string) *sqldb.DB {
	t.Helper()
	db := sqldbtest.Open(t, dsn)
	d, err := directory.Open(t.Context(), db, directory.Config{Cost: directory.HashCost{MemoryKiB: 64, Passes: 1}})
	if err != nil {
		t.Fatal(err)
	}
	err = d.CreateAccount(t.Context(), registry.Account{Name: "root", Kind: registry.Person}, "pass-of-root")
	if err != nil && !errors.Is(err, problem.ErrConflict) {
		t.Fatal(err)
	}
	for _, org := range []string{"acme", "beta"} {
		if err := d.CreateOrg(t.Context(), org, "root"); err != nil && !errors.Is(err, problem.ErrConflict) {
			t.Fatal(err)
		}
	}
	return db
}

func sqlite(t testing.TB) *sqldb.DB {
	return openDB(t, sqldbtest.SQLite(t))
}

// eachDialect runs f on SQLite and PostgreSQL.
func eachDialect(t *testing.T, f func(t *testing.T, db *sqldb.DB)) {
	sqldbtest.Each(t, func(t *testing.T, empty func(t testing.TB) string) { f(t, openDB(t, empty(t))) })
}

var keyDirs sync.Map

// newService opens a service that may call loopback; all of one database share a key.
func newService(t testing.TB, db *sqldb.DB, options ...func(*Config)) *Service {
	t.Helper()
	dir, _ := keyDirs.LoadOrStore(db, t.TempDir())
	cfg := Config{DB: db, KeyFile: filepath.Join(dir.(string), "key"), PublicURL: "https://hub.example", Allow: loopback,
		Timeout: 5 * time.Second, Logger: slog.New(slog.NewTextHandler(io.Discard, nil))}
	for _, o := range options {
		o(&cfg)
	}
	s, err := New(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// runService runs s until the test ends or the function that it gives is called.
func runService(t testing.TB, s *Service) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	var once sync.Once
	stop = func() {
		once.Do(func() {
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
		})
	}
	t.Cleanup(stop)
	return stop
}

// call is what a receiver got.
type call struct {
	header http.Header
	body   []byte
}

func (c call) payload(t testing.TB) Payload {
	t.Helper()
	var p Payload
	if err := json.Unmarshal(c.body, &p); err != nil {
		t.Fatal(err)
	}
	return p
}

// receiver is a target on loopback. It answers 200 unless answer says otherwise.
type receiver struct {
	*httptest.Server
	calls chan call
}

func newReceiver(t testing.TB, answer http.HandlerFunc) *receiver {
	t.Helper()
	r := &receiver{calls: make(chan call, 10_000)}
	r.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		body, err := io.ReadAll(req.Body)
		if err != nil {
			return // broken off
		}
		r.calls <- call{req.Header.Clone(), body}
		if answer != nil {
			answer(w, req)
		}
	}))
	t.Cleanup(r.Close)
	return r
}

func (r *receiver) next(t testing.TB) call {
	t.Helper()
	select {
	case c := <-r.calls:
		return c
	case <-time.After(30 * time.Second):
		t.Fatal("no call came")
		return call{}
	}
}

func (r *receiver) none(t testing.TB) {
	t.Helper()
	select {
	case c := <-r.calls:
		t.Errorf("a call that nobody asked for: %s", c.body)
	default:
	}
}

// asRoot is a context in which root acts.
func asRoot(t testing.TB) context.Context {
	return registry.WithActor(t.Context(), registry.Actor{Name: "root", Address: "192.0.2.1"})
}

func mustCreate(t testing.TB, s *Service, org string, spec Spec) (*Hook, string) {
	t.Helper()
	h, secret, err := s.Create(asRoot(t), org, spec)
	if err != nil {
		t.Fatal(err)
	}
	return h, secret
}

func push(id, org, repository string) registry.Event {
	return registry.Event{ID: id, Type: registry.EventPush, Time: time.Date(2026, 11, 25, 12, 0, 0, 5, time.UTC), Org: org, Repository: repository,
		Digest: "sha256:0000", MediaType: "application/vnd.oci.image.manifest.v1+json", Size: 7, Tag: "1", Actor: "wendy"}
}

func mustEmit(t testing.TB, s *Service, events ...registry.Event) {
	t.Helper()
	for _, e := range events {
		if err := s.Emit(t.Context(), e); err != nil {
			t.Fatal(err)
		}
	}
}

// delivery waits until a delivery is as wanted.
func delivery(t testing.TB, s *Service, h *Hook, event string, want func(*DeliveryDetail) bool) *DeliveryDetail {
	t.Helper()
	var d *DeliveryDetail
	testenv.Eventually(t, 30*time.Second, func() error {
		var err error
		if d, err = s.Delivery(t.Context(), h.Org, h.ID, event); err != nil {
			return err
		}
		if !want(d) {
			return fmt.Errorf("delivery %+v", d)
		}
		return nil
	})
	return d
}

func delivered(d *DeliveryDetail) bool { return d.State == Delivered }

func TestDeliver(t *testing.T) {
	eachDialect(t, func(t *testing.T, db *sqldb.DB) {
		s := newService(t, db)
		all, few := newReceiver(t, nil), newReceiver(t, nil)
		h, secret := mustCreate(t, s, "acme", Spec{URL: all.URL + "/in?key=private"})
		mustCreate(t, s, "acme", Spec{URL: few.URL, Events: []registry.EventType{registry.EventDelete}, Repositories: []string{"acme/team/*"}})
		mustCreate(t, s, "beta", Spec{URL: few.URL})
		mustEmit(t, s, push("e1", "acme", "acme/web"), push("e1", "acme", "acme/web"), push("e2", "gamma", "gamma/web"))
		runService(t, s)
		c := all.next(t)
		want := `{"type":"push","timestamp":"2026-11-25T12:00:00.000000005Z","data":{"id":"e1","registry":"https://hub.example","org":"acme","repository":"acme/web","tag":"1","digest":"sha256:0000","mediaType":"application/vnd.oci.image.manifest.v1+json","size":7,"actor":"wendy"}}`
		if string(c.body) != want || c.header.Get("webhook-id") != "e1" || c.header.Get("Content-Type") != "application/json" {
			t.Errorf("%s\n%v", c.body, c.header)
		}
		verify(t, secret, c)
		d := delivery(t, s, h, "e1", delivered)
		if len(d.Log) != 1 || d.Log[0].Status != 200 || string(d.Payload) != want || d.FinishedAt == nil || d.NextAt != nil {
			t.Errorf("%+v", d)
		}
		// An event of another type, repository or org is none of the second hook's.
		del := push("e3", "acme", "acme/team/x")
		del.Type = registry.EventDelete
		mustEmit(t, s, push("e4", "acme", "acme/team/x"), del)
		if c := few.next(t); c.header.Get("webhook-id") != "e3" {
			t.Errorf("%s", c.body)
		}
		few.none(t)
		all.next(t)
		all.next(t)
		testenv.Eventually(t, 30*time.Second, func() error {
			got, err := s.Hook(t.Context(), "acme", h.ID)
			if err != nil || got.SucceededAt == nil || got.FailingSince != nil {
				return fmt.Errorf("%+v %v", got, err)
			}
			return nil
		})
		// Again, by hand: the same id and body.
		if _, err := s.Redeliver(asRoot(t), "acme", h.ID, "e1"); err != nil {
			t.Fatal(err)
		}
		c = all.next(t)
		if string(c.body) != want || c.header.Get("webhook-id") != "e1" {
			t.Errorf("%s", c.body)
		}
		verify(t, secret, c)
		delivery(t, s, h, "e1", func(d *DeliveryDetail) bool { return d.State == Delivered && d.Attempts == 2 })
		page, next, err := s.Deliveries(t.Context(), "acme", h.ID, "", "", 2)
		if err != nil || len(page) != 2 || next == "" {
			t.Errorf("%v %q %v", page, next, err)
		}
		rest, next, err := s.Deliveries(t.Context(), "acme", h.ID, Delivered, next, 2)
		if err != nil || len(rest) != 1 || next != "" || rest[0].Event != "e1" {
			t.Errorf("%v %q %v", rest, next, err)
		}
		// The log is of the org alone.
		for _, err := range []error{
			second(s.Delivery(t.Context(), "beta", h.ID, "e1")), second(s.Redeliver(asRoot(t), "beta", h.ID, "e1")),
			second(s.Ping(asRoot(t), "beta", h.ID)), s.Delete(asRoot(t), "beta", h.ID), second(s.Hook(t.Context(), "beta", h.ID)),
			second(s.Redeliver(asRoot(t), "acme", h.ID, "nothere")),
		} {
			if !errors.Is(err, problem.ErrNotFound) {
				t.Errorf("%v", err)
			}
		}
		if err := s.Delete(asRoot(t), "acme", h.ID); err != nil {
			t.Error(err)
		}
		var n int
		if err := db.QueryRowContext(t.Context(), db.Q(`SELECT count(*) FROM registry_webhook_attempts WHERE hook = ?`), h.ID).Scan(&n); err != nil || n != 0 {
			t.Errorf("%d attempts stay: %v", n, err)
		}
	})
}

func second[T any](_ T, err error) error { return err }

func verify(t testing.TB, secret string, c call) {
	t.Helper()
	w, err := standard.NewWebhook(secret)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Verify(c.body, c.header); err != nil {
		t.Errorf("signature: %v", err)
	}
}

func TestRotate(t *testing.T) {
	now := time.Now()
	var mu sync.Mutex
	clock := func() time.Time { mu.Lock(); defer mu.Unlock(); return now }
	s := newService(t, sqlite(t), func(c *Config) { c.Now = clock })
	r := newReceiver(t, nil)
	h, old := mustCreate(t, s, "acme", Spec{URL: r.URL})
	_, young, err := s.Rotate(asRoot(t), "acme", h.ID, "", time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	runService(t, s)
	mustEmit(t, s, push("e1", "acme", "acme/web"))
	c := r.next(t)
	verify(t, old, c)
	verify(t, young, c)
	mu.Lock()
	now = now.Add(2 * time.Minute)
	mu.Unlock()
	mustEmit(t, s, push("e2", "acme", "acme/web"))
	c = r.next(t)
	w, err := standard.NewWebhook(old)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.VerifyIgnoringTimestamp(c.body, c.header); err == nil {
		t.Error("a secret signs after its end")
	}
	verify(t, young, c)
	got, err := s.Hook(t.Context(), "acme", h.ID)
	if err != nil || len(got.Secrets) != 1 {
		t.Errorf("%+v %v", got, err)
	}
	// One that the receiver chose, and the one before ends at once.
	if _, chosen, err := s.Rotate(asRoot(t), "acme", h.ID, young, 0); err != nil || chosen != young {
		t.Errorf("%v", err)
	}
	for _, bad := range []string{"x", "whsec_", "whsec_AAAA", "whsec_%%%"} {
		if _, _, err := s.Rotate(asRoot(t), "acme", h.ID, bad, 0); !errors.Is(err, problem.ErrInvalid) {
			t.Errorf("%q: %v", bad, err)
		}
	}
	if _, _, err := s.Rotate(asRoot(t), "acme", h.ID, "", 365*24*time.Hour); !errors.Is(err, problem.ErrInvalid) {
		t.Error(err)
	}
}

func TestValidate(t *testing.T) {
	s := newService(t, sqlite(t), func(c *Config) { c.Allow = nil })
	for _, tt := range []struct {
		spec  Spec
		field string
	}{
		{Spec{URL: ""}, "url"},
		{Spec{URL: "ftp://hooks.example"}, "url"},
		{Spec{URL: "https://user:secret@hooks.example"}, "url"},
		{Spec{URL: "https://hooks.example/#x"}, "url"},
		{Spec{URL: "https:///path"}, "url"},
		{Spec{URL: "http://127.0.0.1/"}, "url"},
		{Spec{URL: "http://[::1]:80/"}, "url"},
		{Spec{URL: "http://[::ffff:10.0.0.1]/"}, "url"},
		{Spec{URL: "http://localhost:80/"}, "url"},
		{Spec{URL: "http://x.LOCALHOST./"}, "url"},
		{Spec{URL: "http://169.254.169.254/latest/meta-data"}, "url"},
		{Spec{URL: "https://hooks.example", Events: []registry.EventType{"boom"}}, "events[0]"},
		{Spec{URL: "https://hooks.example", Events: []registry.EventType{TypePing}}, "events[0]"},
		{Spec{URL: "https://hooks.example", Repositories: []string{"acme/WEB"}}, "repositories[0]"},
		{Spec{URL: "https://hooks.example", Repositories: []string{"acme/x$"}}, "repositories[0]"},
		{Spec{URL: "https://hooks.example", Repositories: slices.Repeat([]string{""}, 1)}, "repositories[0]"},
		{Spec{URL: "https://hooks.example", Description: "two\nlines"}, "description"},
		{Spec{URL: "https://hooks.example", Secret: "whsec_x"}, "secret"},
	} {
		_, _, err := s.Create(asRoot(t), "acme", tt.spec)
		var p *problem.Error
		if !errors.As(err, &p) || p.Field != tt.field || !errors.Is(err, problem.ErrInvalid) {
			t.Errorf("%+v: %v, want %s", tt.spec, err, tt.field)
		}
	}
	if _, _, err := s.Create(asRoot(t), "nothere", Spec{URL: "https://hooks.example"}); !errors.Is(err, problem.ErrNotFound) {
		t.Error(err)
	}
	for range MaxHooks {
		mustCreate(t, s, "acme", Spec{URL: "https://hooks.example"})
	}
	if _, _, err := s.Create(asRoot(t), "acme", Spec{URL: "https://hooks.example"}); !errors.Is(err, problem.ErrExhausted) {
		t.Error(err)
	}
}

func TestPatterns(t *testing.T) {
	for _, tt := range []struct {
		pattern, name string
		want          bool
	}{
		{"acme/web", "acme/web", true},
		{"acme/web", "acme/web2", false},
		{"acme/*", "acme/web", true},
		{"acme/*", "acme/team/web", false},
		{"acme/**", "acme/team/web", true},
		{"acme/*-prod", "acme/web-prod", true},
		{"acme/*-prod", "acme/web-dev", false},
		{"**/web", "acme/team/web", true},
		{"acme/a.b", "acme/axb", false},
	} {
		if got := matches(tt.pattern, tt.name); got != tt.want {
			t.Errorf("%s of %s: %v", tt.name, tt.pattern, got)
		}
	}
}

func FuzzPattern(f *testing.F) {
	f.Add("acme/**", "acme/web")
	f.Add("*.*-**", "a.b-c/d")
	f.Fuzz(func(t *testing.T, pattern, name string) {
		if !patternForm.MatchString(pattern) || len(pattern) > MaxPatternBytes {
			t.Skip()
		}
		if pattern == name && !matches(pattern, name) {
			t.Errorf("%q is not of itself", name)
		}
		matches(pattern, name)
	})
}

type auditFunc func(context.Context, registry.AuditEntry) error

func (f auditFunc) Audit(ctx context.Context, e registry.AuditEntry) error { return f(ctx, e) }

// Every change is in the audit log; one that cannot be kept there is not made.
func TestAudit(t *testing.T) {
	var log []registry.AuditEntry
	var fault error
	s := newService(t, sqlite(t), func(c *Config) {
		c.Auditor = auditFunc(func(_ context.Context, e registry.AuditEntry) error {
			if fault == nil {
				log = append(log, e)
			}
			return fault
		})
	})
	h, _ := mustCreate(t, s, "acme", Spec{URL: "https://hooks.example/in?key=private"})
	paused := Paused
	_, err1 := s.Update(asRoot(t), "acme", h.ID, Change{State: &paused})
	_, _, err2 := s.Rotate(asRoot(t), "acme", h.ID, "", 0)
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	fault = errors.New("the disk is full")
	if _, _, err := s.Create(asRoot(t), "acme", Spec{URL: "https://hooks.example"}); !errors.Is(err, fault) {
		t.Error(err)
	}
	if err := s.Delete(asRoot(t), "acme", h.ID); !errors.Is(err, fault) {
		t.Error(err)
	}
	if all, err := s.Hooks(t.Context(), "acme"); err != nil || len(all) != 1 || all[0].State != Paused || all[0].CreatedBy != "root" {
		t.Errorf("%+v %v", all, err)
	}
	fault = nil
	if err := s.Delete(asRoot(t), "acme", h.ID); err != nil {
		t.Fatal(err)
	}
	var actions []string
	for _, e := range log {
		actions = append(actions, e.Action)
		if e.Org != "acme" || e.Actor != "root" || e.Address != "192.0.2.1" || e.Target != "webhook/"+h.ID {
			t.Errorf("%+v", e)
		}
		if b, err := json.Marshal(e); err != nil || bytes.Contains(b, []byte("private")) {
			t.Errorf("%s %v", b, err)
		}
	}
	if got := fmt.Sprint(actions); got != "[webhook.create webhook.change webhook.rotate webhook.delete]" {
		t.Error(got)
	}
}
