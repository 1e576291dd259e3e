package directory

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"cumulet.io/internal/problem"
	"cumulet.io/internal/sqldb"
	"cumulet.io/internal/sqldb/sqldbtest"
	"cumulet.io/registry"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// clock is a settable clock.
type clock struct {
	mu sync.Mutex
	t  time.Time
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.t
}

func (c *clock) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.t = c.t.Add(d)
}

// cheap makes hashing fast.
func cheap() HashCost { return HashCost{MemoryKiB: 64, Passes: 1} }

// as is the login of a person by password.
func as(name string) *registry.Login {
	return &registry.Login{Account: registry.Account{Name: name, Kind: registry.Person}}
}

func openStore(t testing.TB, db *sqldb.DB, now func() time.Time) *Store {
	t.Helper()
	s, err := Open(t.Context(), db, Config{Cost: cheap(), Now: now})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestDirectory(t *testing.T) {
	sqldbtest.Each(t, func(t *testing.T, empty func(testing.TB) string) {
		conformance(t, empty)
		for name, test := range map[string]func(*testing.T, string){
			"audit log":        testAudit,
			"quota":            testQuota,
			"teams and grants": testTeamsAndGrants,
			"robots":           testRobots,
			"API keys":         testAPIKeys,
			"device logins":    testDeviceLogins,
			"groups":           testGroups,
			"catalog":          testCatalog,
		} {
			t.Run(name, func(t *testing.T) { test(t, empty(t)) })
		}
	})
}

// conformance holds on either database.
func conformance(t *testing.T, empty func(testing.TB) string) {
	clk := &clock{t: time.Date(2026, 3, 1, 0, 0, 0, 1, time.UTC)}
	db := sqldbtest.Open(t, empty(t))
	s := openStore(t, db, clk.now)
	ctx := context.Background()
	person := func(name string) {
		t.Helper()
		if err := s.CreateAccount(ctx, registry.Account{Name: name, Kind: registry.Person}, "pass-of-"+name); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"ann", "bob", "cat"} {
		person(name)
	}
	is := func(what string, err, class error) {
		t.Helper()
		if !errors.Is(err, class) {
			t.Errorf("%s: err = %v, want %v", what, err, class)
		}
	}
	is("second account", s.CreateAccount(ctx, registry.Account{Name: "ann", Kind: registry.Person}, "pass-of-ann"), problem.ErrConflict)
	for _, a := range []registry.Account{{Name: "Ann", Kind: registry.Person}, {Name: "hubtoken", Kind: registry.Person}, {Name: "", Kind: registry.Person},
		{Name: "x", Kind: "robot"}, {Name: "x", Kind: registry.Person, Platform: []string{"node"}}, {Name: "x", Kind: registry.Service, Platform: []string{"root"}}} {
		is(fmt.Sprint(a), s.CreateAccount(ctx, a, "long enough"), problem.ErrInvalid)
	}
	is("short password", s.CreateAccount(ctx, registry.Account{Name: "x", Kind: registry.Person}, "short"), problem.ErrInvalid)

	t.Run("members", func(t *testing.T) {
		if err := s.CreateOrg(ctx, "acme", "ann"); err != nil {
			t.Fatal(err)
		}
		is("second org", s.CreateOrg(ctx, "acme", "bob"), problem.ErrConflict)
		is("org of nobody", s.CreateOrg(ctx, "beta", "nobody"), problem.ErrNotFound)
		if err := s.CreateOrg(ctx, "beta", "bob"); err != nil {
			t.Fatalf("the failed org is not left behind: %v", err)
		}
		for _, name := range []string{"Acme", "a/b", "", "-a", strings.Repeat("a", 64)} {
			is("org "+name, s.CreateOrg(ctx, name, "ann"), problem.ErrInvalid)
		}
		if err := s.SetMember(ctx, "acme", "cat", registry.RoleReader); err != nil {
			t.Fatal(err)
		}
		if err := s.SetMember(ctx, "acme", "cat", registry.RoleWriter); err != nil {
			t.Fatal(err)
		}
		for _, tc := range []struct {
			account, org string
			want         registry.Role
		}{{"ann", "acme", "owner"}, {"cat", "acme", "writer"}, {"bob", "acme", ""}, {"ann", "missing", ""}, {"missing", "acme", ""}} {
			if got, err := s.RoleOf(ctx, tc.account, tc.org); err != nil || got != tc.want {
				t.Errorf("RoleOf(%s, %s) = %q, %v", tc.account, tc.org, got, err)
			}
		}
		is("role", s.SetMember(ctx, "acme", "cat", "king"), problem.ErrInvalid)
		is("no such org", s.SetMember(ctx, "missing", "cat", registry.RoleReader), problem.ErrNotFound)
		is("no such account", s.SetMember(ctx, "acme", "missing", registry.RoleReader), problem.ErrNotFound)
		is("last owner leaves", s.SetMember(ctx, "acme", "ann", registry.RoleNone), problem.ErrConflict)
		is("last owner steps down", s.SetMember(ctx, "acme", "ann", registry.RoleAdmin), problem.ErrConflict)
		if got, err := s.RoleOf(ctx, "ann", "acme"); err != nil || got != registry.RoleOwner {
			t.Errorf("after that: %q, %v", got, err)
		}
		if ms, err := s.Memberships(ctx, "cat"); err != nil || fmt.Sprint(ms) != "[{acme writer}]" {
			t.Errorf("Memberships = %v, %v", ms, err)
		}
		if err := s.SetMember(ctx, "acme", "cat", registry.RoleNone); err != nil {
			t.Fatal(err)
		}
		if ms, err := s.Memberships(ctx, "cat"); err != nil || len(ms) != 0 {
			t.Errorf("after leaving: %v, %v", ms, err)
		}
	})

	t.Run("owners leave at the same time", func(t *testing.T) {
		if err := s.SetMember(ctx, "beta", "cat", registry.RoleOwner); err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		errs := make([]error, 2)
		for i, name := range []string{"bob", "cat"} {
			wg.Go(func() { errs[i] = s.SetMember(ctx, "beta", name, registry.RoleNone) })
		}
		wg.Wait()
		if (errs[0] == nil) == (errs[1] == nil) {
			t.Errorf("errors = %v: one must leave and one stay", errs)
		}
	})

	t.Run("repositories", func(t *testing.T) {
		names := []string{"acme/a", "acme/a-b", "acme/a/b", "acme/z", "beta/a"}
		var wg sync.WaitGroup
		for range 3 {
			for _, name := range names {
				wg.Go(func() {
					if err := s.Pushed(ctx, name, "ann"); err != nil {
						t.Error(err)
					}
				})
			}
		}
		wg.Wait()
		clk.advance(time.Hour)
		if err := s.Pushed(ctx, "acme/a", "bob"); err != nil {
			t.Fatal(err)
		}
		r, err := s.Repository(ctx, "acme/a")
		if err != nil {
			t.Fatal(err)
		}
		if want := (registry.Repository{Name: "acme/a", Org: "acme", Visibility: registry.Private, Created: clk.now().Add(-time.Hour),
			Pushed: clk.now(), CreatedBy: "ann"}); *r != want {
			t.Errorf("got %+v, want %+v", *r, want)
		}
		is("no org", s.Pushed(ctx, "missing/a", "ann"), problem.ErrNotFound)
		for _, name := range []string{"a", "acme/", "acme//b", "acme/A", "acme/a..b", "Acme/a", "acme/" + strings.Repeat("a", 251)} {
			is("repository "+name, s.Pushed(ctx, name, "ann"), problem.ErrInvalid)
		}
		_, err = s.Repository(ctx, "acme/missing")
		is("missing", err, problem.ErrNotFound)
		if r, err := s.SetVisibility(ctx, "beta/a", registry.Public); err != nil || r.Visibility != registry.Public {
			t.Errorf("SetVisibility = %v, %v", r, err)
		}
		_, err = s.SetVisibility(ctx, "acme/missing", registry.Public)
		is("missing", err, problem.ErrNotFound)
		_, err = s.SetVisibility(ctx, "acme/a", "secret")
		is("visibility", err, problem.ErrInvalid)
		if err := s.Pushed(ctx, "beta/a", "bob"); err != nil {
			t.Fatal(err)
		}
		if r, err := s.Repository(ctx, "beta/a"); err != nil || r.Visibility != registry.Public {
			t.Errorf("a further push makes it %v, %v", r, err)
		}
		list := func(orgs []string, public bool, after string, limit int) string {
			t.Helper()
			rs, err := s.Repositories(ctx, orgs, public, after, limit)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, r := range rs {
				got = append(got, r.Name)
			}
			return strings.Join(got, " ")
		}
		for _, tc := range []struct{ got, want string }{
			{list([]string{"acme"}, false, "", 10), "acme/a acme/a-b acme/a/b acme/z"}, // byte order: - before /
			{list([]string{"acme"}, false, "", 2), "acme/a acme/a-b"},
			{list([]string{"acme"}, false, "acme/a-b", 2), "acme/a/b acme/z"},
			{list([]string{"acme", "beta"}, false, "acme/z", 2), "beta/a"},
			{list(nil, true, "", 10), "beta/a"},
			{list([]string{"acme"}, true, "acme/a/b", 10), "acme/z beta/a"},
			{list(nil, false, "", 10), ""},
		} {
			if tc.got != tc.want {
				t.Errorf("list = %q, want %q", tc.got, tc.want)
			}
		}
	})

	t.Run("passwords", func(t *testing.T) {
		if a, err := s.Authenticate(ctx, "ann", "pass-of-ann", "1.1.1.1"); err != nil || a.Name != "ann" || a.Kind != registry.Person {
			t.Errorf("Authenticate = %+v, %v", a, err)
		}
		var texts []string
		for _, tc := range [][2]string{{"ann", "wrong"}, {"ann", ""}, {"nobody", "pass-of-ann"}, {"bob", "pass-of-ann"}, {"ANN", "pass-of-ann"}, {"ann", strings.Repeat("x", 5000)}} {
			a, err := s.Authenticate(ctx, tc[0], tc[1], "1.1.1.1")
			is(fmt.Sprint(tc[0]), err, problem.ErrUnauthenticated)
			if a != nil {
				t.Error("an account with an error")
			}
			texts = append(texts, err.Error())
		}
		for _, text := range texts {
			if text != texts[0] {
				t.Errorf("%q and %q: the answers differ", text, texts[0])
			}
		}
		if err := s.SetPassword(ctx, "bob", "another one"); err != nil {
			t.Fatal(err)
		}
		_, err := s.Authenticate(ctx, "bob", "pass-of-bob", "1.1.1.1")
		is("old password", err, problem.ErrUnauthenticated)
		if _, err := s.Authenticate(ctx, "bob", "another one", "1.1.1.1"); err != nil {
			t.Error(err)
		}
		is("no such account", s.SetPassword(ctx, "nobody", "another one"), problem.ErrNotFound)
	})

	t.Run("offline tokens", func(t *testing.T) {
		token, err := s.NewOfflineToken(ctx, as("ann"), "registry", "docker\x00\xff")
		if err != nil {
			t.Fatal(err)
		}
		if a, _, err := s.UseOfflineToken(ctx, token, "registry"); err != nil || a.Name != "ann" {
			t.Errorf("UseOfflineToken = %v, %v", a, err)
		}
		_, _, err = s.UseOfflineToken(ctx, token, "cis")
		is("other audience", err, problem.ErrUnauthenticated)
		_, _, err = s.UseOfflineToken(ctx, token+"x", "registry")
		is("other token", err, problem.ErrUnauthenticated)
		clk.advance(offlineIdle - time.Hour)
		if _, _, err := s.UseOfflineToken(ctx, token, "registry"); err != nil {
			t.Error(err)
		}
		clk.advance(offlineIdle - time.Hour)
		if _, _, err := s.UseOfflineToken(ctx, token, "registry"); err != nil {
			t.Errorf("used in between: %v", err)
		}
		if list, err := s.OfflineTokens(ctx, "ann"); err != nil || len(list) != 1 || list[0].Client != "docker??" {
			t.Errorf("OfflineTokens = %+v, %v", list, err)
		}
		if err := s.RevokeOfflineToken(ctx, token); err != nil {
			t.Fatal(err)
		}
		_, _, err = s.UseOfflineToken(ctx, token, "registry")
		is("revoked", err, problem.ErrUnauthenticated)
		if err := s.RevokeOfflineToken(ctx, token); err != nil {
			t.Errorf("twice: %v", err)
		}
		idle, err := s.NewOfflineToken(ctx, as("cat"), "registry", "")
		if err != nil {
			t.Fatal(err)
		}
		clk.advance(offlineIdle + time.Minute)
		_, _, err = s.UseOfflineToken(ctx, idle, "registry")
		is("idle", err, problem.ErrUnauthenticated)

		first, err := s.NewOfflineToken(ctx, as("ann"), "registry", "")
		if err != nil {
			t.Fatal(err)
		}
		for range maxOffline {
			clk.advance(time.Second)
			if _, err := s.NewOfflineToken(ctx, as("ann"), "registry", ""); err != nil {
				t.Fatal(err)
			}
		}
		if list, err := s.OfflineTokens(ctx, "ann"); err != nil || len(list) != maxOffline {
			t.Errorf("%d tokens, %v", len(list), err)
		}
		_, _, err = s.UseOfflineToken(ctx, first, "registry")
		is("pushed out", err, problem.ErrUnauthenticated)
		last, err := s.NewOfflineToken(ctx, as("ann"), "registry", "")
		if err != nil {
			t.Fatal(err)
		}
		if err := s.SetPassword(ctx, "ann", "a new password"); err != nil {
			t.Fatal(err)
		}
		_, _, err = s.UseOfflineToken(ctx, last, "registry")
		is("after the password changed", err, problem.ErrUnauthenticated)
	})

	t.Run("bootstrap", func(t *testing.T) {
		dir := t.TempDir()
		b := Bootstrap{
			Admin: Credential{Name: "root", PasswordFile: filepath.Join(dir, "new", "admin")}, Org: "first",
			Services: []ServiceAccount{{Credential: Credential{Name: "vnode", PasswordFile: filepath.Join(dir, "vnode")}, Platform: []string{"node"}}},
		}
		var wg sync.WaitGroup
		for range 4 { // several processes start at once
			wg.Go(func() {
				if err := s.Bootstrap(ctx, b); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		read := func(path string) string {
			t.Helper()
			st, err := os.Stat(path)
			if err != nil || st.Mode().Perm() != 0o600 {
				t.Fatalf("%s: %v, %v", path, st, err)
			}
			text, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			return strings.TrimSpace(string(text))
		}
		admin, vnode := read(b.Admin.PasswordFile), read(b.Services[0].PasswordFile)
		if len(admin) < 20 || admin == vnode {
			t.Error("the passwords are no good")
		}
		if _, err := s.Authenticate(ctx, "root", admin, "x"); err != nil {
			t.Error(err)
		}
		if role, err := s.RoleOf(ctx, "root", "first"); err != nil || role != registry.RoleOwner {
			t.Errorf("role = %q, %v", role, err)
		}
		if a, err := s.Authenticate(ctx, "vnode", vnode, "x"); err != nil || a.Kind != registry.Service || fmt.Sprint(a.Platform) != "[node]" {
			t.Errorf("service = %+v, %v", a, err)
		}
		is("a service is no member", s.SetMember(ctx, "first", "vnode", registry.RoleReader), problem.ErrInvalid)

		// The admin's own change stays; a service follows its file and its list.
		if err := s.SetPassword(ctx, "root", "chosen by root"); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(b.Services[0].PasswordFile, []byte("replaced-password\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		b.Services[0].Platform = []string{"node", "meter"}
		if err := s.Bootstrap(ctx, b); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Authenticate(ctx, "root", "chosen by root", "x"); err != nil {
			t.Error(err)
		}
		_, err := s.Authenticate(ctx, "vnode", vnode, "x")
		is("old service password", err, problem.ErrUnauthenticated)
		if a, err := s.Authenticate(ctx, "vnode", "replaced-password", "x"); err != nil || fmt.Sprint(a.Platform) != "[node meter]" {
			t.Errorf("service = %+v, %v", a, err)
		}
		if err := os.Chmod(b.Services[0].PasswordFile, 0o644); err != nil {
			t.Fatal(err)
		}
		if err := s.Bootstrap(ctx, b); err == nil || !strings.Contains(err.Error(), "0644") {
			t.Errorf("a password file for all to read: err = %v", err)
		}
		b.Services = []ServiceAccount{{Credential: Credential{Name: "ann", Password: "some long password"}, Platform: []string{"operator"}}}
		is("a person becomes no service", s.Bootstrap(ctx, b), problem.ErrConflict)
	})

	// A second process on the same database.
	again := openStore(t, db, clk.now)
	if _, err := again.Repository(ctx, "acme/a"); err != nil {
		t.Error(err)
	}
}

func TestPasswordHash(t *testing.T) {
	phc, err := hashPassword("right", cheap())
	if err != nil {
		t.Fatal(err)
	}
	for password, want := range map[string]bool{"right": true, "wrong": false, "": false, "righ": false} {
		if got, err := checkPassword(password, phc); err != nil || got != want {
			t.Errorf("%q: %v, %v", password, got, err)
		}
	}
	for _, bad := range []string{"", "right", "$2a$10$abc", "$argon2id$v=18$m=64,t=1,p=1$AA$AA", "$argon2id$v=19$m=999999999,t=1,p=1$AA$AA",
		"$argon2id$v=19$m=64,t=0,p=1$AA$AA", "$argon2id$v=19$m=64,t=1,p=1$AA$AA", "$argon2id$v=19$m=64,t=1,p=1$!$!"} {
		if ok, err := checkPassword("right", bad); err == nil || ok {
			t.Errorf("accepted %q", bad)
		}
	}
}
