package directory

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"cumulet.io/internal/problem"
	"cumulet.io/internal/sqldb/sqldbtest"
	"cumulet.io/registry"
)

// outbox collects events, or fails.
type outbox struct {
	mu     sync.Mutex
	err    error
	events []registry.Event
}

func (o *outbox) Emit(_ context.Context, e registry.Event) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.err != nil {
		return o.err
	}
	o.events = append(o.events, e)
	return nil
}

func (o *outbox) take() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	var out []string
	for _, e := range o.events {
		out = append(out, fmt.Sprintf("%s %s %s by %s", e.Org, e.Data["action"], e.Data["target"], e.Actor))
	}
	o.events = nil
	return strings.Join(out, "; ")
}

func entries(t *testing.T, s *Store, f AuditFilter) []string {
	t.Helper()
	f.Limit = 1000
	list, err := s.AuditLog(t.Context(), f)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, e := range list {
		text := strings.TrimSpace(fmt.Sprintf("%s %s %s", e.Actor, e.Action, e.Target))
		if e.Denied {
			text += " denied"
		}
		if n := e.Detail["repeated"] + e.Detail["entries"]; n != "" {
			text += " x" + n
		}
		out = append(out, text)
	}
	return out
}

func testAudit(t *testing.T, dsn string) {
	clk := &clock{t: time.Date(2026, 3, 1, 0, 0, 0, 1, time.UTC)}
	s := openStore(t, sqldbtest.Open(t, dsn), clk.now)
	ctx := t.Context()
	put := func(e registry.AuditEntry) {
		t.Helper()
		if err := s.Audit(ctx, e); err != nil {
			t.Fatal(err)
		}
		clk.advance(time.Second)
	}
	put(registry.AuditEntry{Org: "acme", Actor: "ann", Address: "10.0.0.1", Action: "repository.delete", Target: "acme/web", Detail: map[string]string{"k": "v"}})
	put(registry.AuditEntry{Org: "acme", Actor: "bob", Action: "repository.visibility", Target: "acme/web-2"})
	put(registry.AuditEntry{Org: "acme", Actor: "bob", Action: "repositoryx", Target: "acme/%"})
	put(registry.AuditEntry{Org: "beta", Actor: "ann", Action: "member.set", Target: "account/x"})
	put(registry.AuditEntry{Actor: "eve\x00\xff", Action: "login", Target: strings.Repeat("ü", 1000), Denied: true, Detail: map[string]string{"reason": "wrong password"}})
	yes, no := true, false
	start := time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC)
	for name, tc := range map[string]struct {
		f    AuditFilter
		want int
	}{
		"org":            {AuditFilter{Org: "acme"}, 3},
		"all":            {AuditFilter{All: true}, 5},
		"actor":          {AuditFilter{All: true, Actor: "ann"}, 2},
		"noun":           {AuditFilter{All: true, Action: "repository"}, 2},
		"action":         {AuditFilter{All: true, Action: "repository.delete"}, 1},
		"no wildcard":    {AuditFilter{All: true, Action: "repo%"}, 0},
		"target":         {AuditFilter{All: true, Target: "acme/web"}, 1},
		"target prefix":  {AuditFilter{All: true, Target: "acme/web*"}, 2},
		"target percent": {AuditFilter{All: true, Target: "acme/%*"}, 1},
		"denied":         {AuditFilter{All: true, Denied: &yes}, 1},
		"changes":        {AuditFilter{All: true, Denied: &no}, 4},
		"since":          {AuditFilter{All: true, Since: start.Add(2 * time.Second)}, 3},
		"until":          {AuditFilter{All: true, Until: start.Add(2 * time.Second)}, 2},
		"bytes":          {AuditFilter{All: true, Actor: "\x00\xff"}, 0},
	} {
		if got := entries(t, s, tc.f); len(got) != tc.want {
			t.Errorf("%s: %d entries %q, want %d", name, len(got), got, tc.want)
		}
	}
	if _, err := s.AuditLog(ctx, AuditFilter{}); !errors.Is(err, problem.ErrInvalid) {
		t.Errorf("no org: %v", err)
	}
	// Pages meet each entry once, newest first, while others are added.
	var got []string
	f := AuditFilter{All: true, Limit: 2}
	for {
		page, err := s.AuditLog(ctx, f)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range page {
			got = append(got, e.Action)
			f.Before = e.ID
		}
		if len(page) < 2 {
			break
		}
		put(registry.AuditEntry{Org: "acme", Action: "later"})
	}
	if want := "login member.set repositoryx repository.visibility repository.delete"; strings.Join(got, " ") != want {
		t.Errorf("pages = %v, want %s", got, want)
	}
	clk.advance(366 * 24 * time.Hour)
	put(registry.AuditEntry{Org: "acme", Action: "new"})
	if err := s.Housekeep(ctx); err != nil {
		t.Fatal(err)
	}
	if got := entries(t, s, AuditFilter{All: true}); len(got) != 1 {
		t.Errorf("after a year: %q", got)
	}
}

// A guesser writes little, whatever it tries, and what it did can be told all the same.
func TestDenialsAreBounded(t *testing.T) {
	clk := &clock{t: time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC)}
	s := openStore(t, sqldbtest.Open(t, sqldbtest.SQLite(t)), clk.now)
	deny := func(actor, address string) {
		t.Helper()
		if err := s.Audit(t.Context(), registry.AuditEntry{Actor: actor, Address: address, Action: "login", Denied: true, Detail: map[string]string{"reason": "no"}}); err != nil {
			t.Fatal(err)
		}
	}
	count := func() int { return len(entries(t, s, AuditFilter{All: true})) }
	for range 1000 {
		deny("ann", "1.1.1.1")
	}
	if got := count(); got != 1 {
		t.Errorf("equal denials: %d entries", got)
	}
	clk.advance(repeatWindow)
	if err := s.Housekeep(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := entries(t, s, AuditFilter{All: true}); fmt.Sprint(got) != "[ann login denied x999 ann login denied]" {
		t.Errorf("after the window: %q", got)
	}
	for i := range 1000 {
		deny(fmt.Sprint("name", i), "2.2.2.2")
	}
	if got := count(); got != 2+addressBurst {
		t.Errorf("many names from one address: %d entries", got)
	}
	for i := range 3000 {
		deny("ann", fmt.Sprint("3.3.3.", i))
	}
	if got := count(); got > 2+allBurst {
		t.Errorf("many addresses: %d entries", got)
	}
	if err := s.Housekeep(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := entries(t, s, AuditFilter{All: true, Action: "audit.folded"}); len(got) != 1 || got[0] == "audit.folded denied x0" {
		t.Errorf("folded: %q", got)
	}
	clk.advance(time.Hour)
	deny("late", "2.2.2.2")
	if got := entries(t, s, AuditFilter{All: true, Actor: "late"}); len(got) != 1 {
		t.Errorf("after a while: %q", got)
	}
	// What was counted is written at the end.
	deny("late", "2.2.2.2")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Run(ctx); err != nil {
		t.Fatal(err)
	}
	if got := entries(t, s, AuditFilter{All: true, Actor: "late"}); len(got) != 2 {
		t.Errorf("at the end: %q", got)
	}
}

func testQuota(t *testing.T, dsn string) {
	s, err := Open(t.Context(), sqldbtest.Open(t, dsn), Config{Cost: cheap(), Quota: registry.Quota{Bytes: 7}})
	if err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	if err := s.CreateAccount(ctx, registry.Account{Name: "ann", Kind: registry.Person}, "pass-of-ann"); err != nil {
		t.Fatal(err)
	}
	if err := s.CreateOrg(ctx, "acme", "ann"); err != nil {
		t.Fatal(err)
	}
	is := func(want registry.Quota) {
		t.Helper()
		if got, err := s.Quota(ctx, "acme"); err != nil || got != want {
			t.Errorf("quota = %+v, %v, want %+v", got, err, want)
		}
	}
	is(registry.Quota{Bytes: 7})
	for _, q := range []registry.Quota{{Bytes: 1 << 40, Repositories: 3}, {}, {Repositories: 1}} {
		if err := s.SetQuota(ctx, "acme", &q); err != nil {
			t.Fatal(err)
		}
		is(q)
	}
	if err := s.MayPush(ctx, "acme/one"); err != nil {
		t.Errorf("the first repository: %v", err)
	}
	if err := s.Pushed(ctx, "acme/one", "ann"); err != nil {
		t.Fatal(err)
	}
	if err := s.MayPush(ctx, "acme/one"); err != nil {
		t.Errorf("into one that is there: %v", err)
	}
	if err := s.MayPush(ctx, "acme/two"); !errors.Is(err, problem.ErrExhausted) {
		t.Errorf("one too many: %v", err)
	}
	if err := s.SetQuota(ctx, "acme", nil); err != nil {
		t.Fatal(err)
	}
	is(registry.Quota{Bytes: 7})
	if err := s.MayPush(ctx, "acme/two"); err != nil {
		t.Errorf("without a bound: %v", err)
	}
	if err := s.SetQuota(ctx, "acme", &registry.Quota{Bytes: -1}); !errors.Is(err, problem.ErrInvalid) {
		t.Errorf("negative: %v", err)
	}
	for _, err := range []error{s.SetQuota(ctx, "beta", nil), func() error { _, err := s.Quota(ctx, "beta"); return err }()} {
		if !errors.Is(err, problem.ErrNotFound) {
			t.Errorf("no org: %v", err)
		}
	}
	if got := entries(t, s, AuditFilter{Org: "acme", Action: "quota"}); len(got) != 4 {
		t.Errorf("audit = %q", got)
	}
}
