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

// people is a directory with the persons ann, bob and cat, and ann's org acme, on either database.
func people(t *testing.T, dsn string) (*Store, *clock, *outbox) {
	t.Helper()
	clk := &clock{t: time.Date(2026, 3, 1, 0, 0, 0, 1, time.UTC)}
	box := &outbox{}
	s, err := Open(t.Context(), sqldbtest.Open(t, dsn), Config{Cost: cheap(), Now: clk.now, Outbox: box})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"ann", "bob", "cat"} {
		if err := s.CreateAccount(t.Context(), registry.Account{Name: name, Kind: registry.Person}, "pass-of-"+name); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.CreateOrg(t.Context(), "acme", "ann"); err != nil {
		t.Fatal(err)
	}
	return s, clk, box
}

func check(t *testing.T, what string, err, class error) {
	t.Helper()
	if class == nil && err != nil || class != nil && !errors.Is(err, class) {
		t.Errorf("%s: err = %v, want %v", what, err, class)
	}
}

func testTeamsAndGrants(t *testing.T, dsn string) {
	s, clk, box := people(t, dsn)
	ctx := registry.WithActor(t.Context(), registry.Actor{Name: "ann", Address: "10.0.0.1"})
	team := func(name string) { t.Helper(); _, err := s.SetTeam(ctx, "acme", name, ""); check(t, name, err, nil) }
	grant := func(team, account, pattern string, role registry.Role) error {
		clk.advance(time.Second)
		return s.SetGrant(ctx, registry.Grant{Org: "acme", Team: team, Account: account, Repositories: pattern, Role: role})
	}
	of := func(account string) string {
		t.Helper()
		grants, err := s.GrantsOf(ctx, account)
		if err != nil {
			t.Fatal(err)
		}
		var out []string
		for _, g := range grants {
			out = append(out, g.Team+g.Account+" "+g.Repositories+" "+string(g.Role))
		}
		return strings.Join(out, "; ")
	}
	check(t, "bob joins", s.SetMember(ctx, "acme", "bob", registry.RoleReader), nil)
	check(t, "again", s.SetMember(ctx, "acme", "bob", registry.RoleReader), nil)
	team("web")
	team("web")
	team("ops")
	check(t, "a stranger in a team", s.SetTeamMember(ctx, "acme", "web", "cat", true), problem.ErrNotFound)
	check(t, "no team", s.SetTeamMember(ctx, "acme", "none", "bob", true), problem.ErrNotFound)
	check(t, "no org", s.SetTeamMember(ctx, "none", "web", "bob", true), problem.ErrNotFound)
	check(t, "in", s.SetTeamMember(ctx, "acme", "web", "bob", true), nil)
	check(t, "in again", s.SetTeamMember(ctx, "acme", "web", "bob", true), nil)
	check(t, "grant", grant("web", "", "acme/web-*", registry.RoleWriter), nil)
	check(t, "grant again", grant("web", "", "acme/web-*", registry.RoleWriter), nil)
	check(t, "raised", grant("web", "", "acme/web-*", registry.RoleAdmin), nil)
	check(t, "to a person", grant("", "bob", "acme/b", registry.RoleReader), nil)
	check(t, "to a stranger", grant("", "cat", "acme/c", registry.RoleReader), nil)
	check(t, "to no team", grant("none", "", "acme/c", registry.RoleReader), problem.ErrNotFound)
	check(t, "to nobody", grant("", "nobody", "acme/c", registry.RoleReader), problem.ErrNotFound)
	check(t, "of another org", grant("", "bob", "beta/c", registry.RoleReader), problem.ErrInvalid)
	if got := of("bob"); got != "bob acme/b reader; web acme/web-* admin" {
		t.Errorf("bob: %s", got)
	}
	if got := of("cat"); got != "cat acme/c reader" {
		t.Errorf("cat: %s", got)
	}
	var all []string
	after := registry.Grant{}
	for {
		page, err := s.Grants(ctx, "acme", after, 1)
		if err != nil {
			t.Fatal(err)
		}
		if len(page) == 0 {
			break
		}
		after = page[0]
		all = append(all, after.Repositories)
	}
	if got := strings.Join(all, " "); got != "acme/b acme/c acme/web-*" {
		t.Errorf("pages of grants: %s", got)
	}
	for _, tc := range []struct{ team, after, want string }{{"", "", "ann:owner[] bob:reader[web]"}, {"", "ann", "bob:reader[web]"}, {"web", "", "bob:reader[web]"}, {"ops", "", ""}} {
		members, err := s.Members(ctx, "acme", tc.team, tc.after, 10)
		check(t, "members", err, nil)
		var got []string
		for _, m := range members {
			got = append(got, fmt.Sprintf("%s:%s%v", m.Account, m.Role, m.Teams))
		}
		if strings.Join(got, " ") != tc.want {
			t.Errorf("members of %q after %q: %v, want %s", tc.team, tc.after, got, tc.want)
		}
	}
	teams, err := s.Teams(ctx, "acme", "", 10)
	if err != nil || len(teams) != 2 || teams[1].Name != "web" || teams[1].Members != 1 {
		t.Errorf("teams = %+v, %v", teams, err)
	}
	check(t, "out of the team", s.SetTeamMember(ctx, "acme", "web", "bob", false), nil)
	check(t, "in", s.SetTeamMember(ctx, "acme", "web", "bob", true), nil)
	check(t, "bob leaves", s.SetMember(ctx, "acme", "bob", registry.RoleNone), nil)
	if got := of("bob"); got != "" {
		t.Errorf("bob, who has left: %s", got)
	}
	check(t, "the team goes", s.DeleteTeam(ctx, "acme", "web"), nil)
	check(t, "again", s.DeleteTeam(ctx, "acme", "web"), problem.ErrNotFound)
	if got := box.take(); got != "acme member.set account/bob by ann; acme team.create team/web by ann; acme team.create team/ops by ann; "+
		"acme team.member.add team/web by ann; acme grant.set acme/web-* by ann; acme grant.set acme/web-* by ann; acme grant.set acme/b by ann; acme grant.set acme/c by ann; "+
		"acme team.member.remove team/web by ann; acme team.member.add team/web by ann; acme member.remove account/bob by ann; acme team.delete team/web by ann" {
		t.Errorf("events: %s", got)
	}
	// What the outbox does not take is handed over later, once.
	box.err = errors.New("full")
	team("late")
	if got := box.take(); got != "" {
		t.Errorf("events: %s", got)
	}
	box.err = nil
	for range 2 {
		check(t, "housekeeping", s.Housekeep(ctx), nil)
	}
	if got := box.take(); got != "acme team.create team/late by ann" {
		t.Errorf("events: %s", got)
	}
	check(t, "push", s.Pushed(ctx, "acme/x", "ann"), nil)
	check(t, "delete org with repositories", s.DeleteOrg(ctx, "acme"), problem.ErrConflict)
}

func testRobots(t *testing.T, dsn string) {
	s, clk, _ := people(t, dsn)
	ctx := t.Context()
	scopes := []registry.Scope{{Type: "repository", Name: "acme/*", Actions: []string{"pull"}}}
	r, secret, err := s.CreateRobot(ctx, registry.RobotAccount{Org: "acme", Name: "ci", Scopes: scopes, Expires: clk.now().Add(time.Hour)})
	if err != nil || r.Account != "acme+ci" || !r.Used.IsZero() {
		t.Fatalf("%+v, %v", r, err)
	}
	_, _, err = s.CreateRobot(ctx, registry.RobotAccount{Org: "acme", Name: "ci", Scopes: scopes})
	check(t, "again", err, problem.ErrConflict)
	_, _, err = s.CreateRobot(ctx, registry.RobotAccount{Org: "none", Name: "ci", Scopes: []registry.Scope{{Type: "org", Name: "none", Actions: []string{"read"}}}})
	check(t, "no org", err, problem.ErrNotFound)
	login := func(secret string) error {
		l, err := s.Login(ctx, "acme+ci", secret, "10.0.0.1")
		if err == nil && (l.Kind != registry.Robot || fmt.Sprint(l.Scopes) != fmt.Sprint(scopes)) {
			t.Errorf("login = %+v", l)
		}
		return err
	}
	check(t, "in", login(secret), nil)
	for name, secret := range map[string]string{"empty": "", "wrong": secret + "x", "hash": hashSecret(secret), "another kind": keyPrefix + secret} {
		check(t, name, login(secret), problem.ErrUnauthenticated)
	}
	for _, name := range []string{"acme+none", "none+ci", "+", "acme+", "+ci", "acme+ci+x", "acme+CI"} {
		_, err := s.Login(ctx, name, secret, "10.0.0.1")
		check(t, name, err, problem.ErrUnauthenticated)
	}
	offline := func() string {
		t.Helper()
		l, err := s.Login(ctx, "acme+ci", secret, "")
		check(t, "in", err, nil)
		token, err := s.NewOfflineToken(ctx, l, "registry", "test")
		check(t, "offline", err, nil)
		l, _, err = s.UseOfflineToken(ctx, token, "registry")
		if err != nil || fmt.Sprint(l.Scopes) != fmt.Sprint(scopes) {
			t.Errorf("offline login = %+v, %v", l, err)
		}
		return token
	}
	gone := func(what, token string) {
		t.Helper()
		_, _, err := s.UseOfflineToken(ctx, token, "registry")
		check(t, what, err, problem.ErrUnauthenticated)
	}
	token := offline()
	yes, no := true, false
	if _, err := s.UpdateRobot(ctx, "acme", "ci", RobotPatch{Disabled: &yes}); err != nil {
		t.Fatal(err)
	}
	check(t, "disabled", login(secret), problem.ErrUnauthenticated)
	gone("disabled", token)
	if _, err := s.UpdateRobot(ctx, "acme", "ci", RobotPatch{Disabled: &no}); err != nil {
		t.Fatal(err)
	}
	token = offline()
	old := secret
	if _, secret, err = s.RotateRobot(ctx, "acme", "ci"); err != nil {
		t.Fatal(err)
	}
	check(t, "old secret", login(old), problem.ErrUnauthenticated)
	check(t, "new secret", login(secret), nil)
	gone("rotated", token)
	token = offline()
	clk.advance(time.Hour)
	check(t, "expired", login(secret), problem.ErrUnauthenticated)
	gone("expired", token)
	never := time.Time{}
	if r, err = s.UpdateRobot(ctx, "acme", "ci", RobotPatch{Expires: &never}); err != nil || !r.Expires.IsZero() {
		t.Errorf("%+v, %v", r, err)
	}
	token = offline()
	if robots, err := s.Robots(ctx, "acme", "", 10); err != nil || len(robots) != 1 || robots[0].Used.IsZero() {
		t.Errorf("robots = %+v, %v", robots, err)
	}
	if accounts, err := s.Accounts(ctx, "", 10); err != nil || len(accounts) != 3 {
		t.Errorf("accounts = %+v, %v", accounts, err)
	}
	check(t, "a robot as member", s.SetMember(ctx, "acme", "acme+ci", registry.RoleReader), problem.ErrInvalid)
	check(t, "a robot's password", s.SetPassword(ctx, "acme+ci", "long enough"), problem.ErrInvalid)
	check(t, "delete", s.DeleteRobot(ctx, "acme", "ci"), nil)
	check(t, "again", s.DeleteRobot(ctx, "acme", "ci"), problem.ErrNotFound)
	gone("deleted", token)
	if _, secret, err = s.CreateRobot(ctx, registry.RobotAccount{Org: "acme", Name: "ci", Scopes: scopes}); err != nil {
		t.Fatal(err)
	}
	token = offline()
	check(t, "the org goes", s.DeleteOrg(ctx, "acme"), nil)
	check(t, "its robot", login(secret), problem.ErrUnauthenticated)
	gone("its robot", token)
}

func testAPIKeys(t *testing.T, dsn string) {
	s, clk, _ := people(t, dsn)
	ctx := t.Context()
	limit := []registry.Scope{{Type: "org", Name: "acme", Actions: []string{"read"}}}
	k, secret, err := s.CreateAPIKey(ctx, registry.APIKey{Account: "bob", Name: "laptop", Scopes: limit, Expires: clk.now().Add(time.Hour)})
	if err != nil {
		t.Fatal(err)
	}
	_, _, err = s.CreateAPIKey(ctx, registry.APIKey{Account: "bob", Name: "laptop"})
	check(t, "again", err, problem.ErrConflict)
	_, _, err = s.CreateAPIKey(ctx, registry.APIKey{Account: "nobody", Name: "laptop"})
	check(t, "nobody", err, problem.ErrNotFound)
	l, err := s.Login(ctx, "bob", secret, "")
	if err != nil || l.Name != "bob" || l.KeyID != k.ID || !l.Limited || len(l.Limits) != 1 {
		t.Errorf("login = %+v, %v", l, err)
	}
	for _, tc := range [][2]string{{"ann", secret}, {"bob", secret + "x"}, {"bob", keyPrefix}, {"", secret}} {
		_, err := s.Login(ctx, tc[0], tc[1], "")
		check(t, tc[0], err, problem.ErrUnauthenticated)
	}
	token, err := s.NewOfflineToken(ctx, l, "cis", "")
	check(t, "offline", err, nil)
	if l, _, err := s.UseOfflineToken(ctx, token, "cis"); err != nil || l.KeyID != k.ID || !l.Limited {
		t.Errorf("offline = %+v, %v", l, err)
	}
	clk.advance(time.Hour)
	_, err = s.Login(ctx, "bob", secret, "")
	check(t, "expired", err, problem.ErrUnauthenticated)
	_, _, err = s.UseOfflineToken(ctx, token, "cis")
	check(t, "expired", err, problem.ErrUnauthenticated)
	check(t, "delete another's", s.DeleteAPIKey(ctx, "ann", "laptop"), problem.ErrNotFound)
	check(t, "delete", s.DeleteAPIKey(ctx, "bob", "laptop"), nil)
	_, secret, err = s.CreateAPIKey(ctx, registry.APIKey{Account: "bob", Name: "all"})
	check(t, "create", err, nil)
	if l, err := s.Login(ctx, "bob", secret, ""); err != nil || l.Limited {
		t.Errorf("unlimited = %+v, %v", l, err)
	}
	if keys, err := s.APIKeys(ctx, "bob", "", 10); err != nil || len(keys) != 1 || keys[0].Used.IsZero() {
		t.Errorf("keys = %+v, %v", keys, err)
	}
	off := true
	_, err = s.UpdateAccount(ctx, "bob", AccountPatch{Disabled: &off})
	check(t, "disable", err, nil)
	_, err = s.Login(ctx, "bob", secret, "")
	check(t, "disabled", err, problem.ErrUnauthenticated)
	check(t, "ann is the only owner", s.DeleteAccount(ctx, "ann"), problem.ErrConflict)
	check(t, "bob goes", s.DeleteAccount(ctx, "bob"), nil)
	_, err = s.Login(ctx, "bob", secret, "")
	check(t, "gone", err, problem.ErrUnauthenticated)
}

func testDeviceLogins(t *testing.T, dsn string) {
	s, clk, _ := people(t, dsn)
	ctx := registry.WithActor(t.Context(), registry.Actor{Address: "10.0.0.1"})
	begin := func() *DeviceLogin {
		t.Helper()
		d, err := s.NewDeviceLogin(ctx, "")
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	browse := func(d *DeviceLogin) *BrowserLogin {
		t.Helper()
		check(t, "begin", s.BeginBrowser(ctx, strings.ToLower(d.Code), "cookie", "state"+d.Code, BrowserLogin{Nonce: "n", Verifier: "v"}), nil)
		b, err := s.EndBrowser(ctx, "cookie", "state"+d.Code)
		if err != nil || b.Nonce != "n" || b.Verifier != "v" {
			t.Fatalf("%+v, %v", b, err)
		}
		_, err = s.EndBrowser(ctx, "cookie", "state"+d.Code)
		check(t, "twice", err, problem.ErrNotFound)
		return b
	}
	poll := func(d *DeviceLogin) error { _, err := s.PollDevice(ctx, d.Device); return err }
	d := begin()
	check(t, "pending", poll(d), registry.ErrLoginPending)
	check(t, "too soon", poll(d), registry.ErrLoginSlowDown)
	clk.advance(DeviceInterval)
	check(t, "pending", poll(d), registry.ErrLoginPending)
	b := browse(d)
	check(t, "finish", s.FinishDevice(ctx, b, "bob"), nil)
	check(t, "finish twice", s.FinishDevice(ctx, b, "ann"), problem.ErrNotFound)
	// Of several that ask at once one gets it.
	var wg sync.WaitGroup
	errs := make([]error, 4)
	for i := range errs {
		wg.Go(func() {
			l, err := s.PollDevice(context.WithoutCancel(ctx), d.Device)
			if err == nil && l.Name != "bob" {
				t.Errorf("login = %+v", l)
			}
			errs[i] = err
		})
	}
	wg.Wait()
	ok := 0
	for _, err := range errs {
		if err == nil {
			ok++
		} else {
			check(t, "the others", err, registry.ErrLoginExpired)
		}
	}
	if ok != 1 {
		t.Errorf("%d got it: %v", ok, errs)
	}
	d = begin()
	check(t, "refuse", s.FinishDevice(ctx, browse(d), ""), nil)
	check(t, "denied", poll(d), registry.ErrLoginDenied)
	check(t, "after", poll(d), registry.ErrLoginExpired)
	d = begin()
	b = browse(d)
	clk.advance(DeviceLife + time.Second)
	check(t, "expired", poll(d), registry.ErrLoginExpired)
	_, err := s.DeviceLink(ctx, d.Code)
	check(t, "expired", err, problem.ErrNotFound)
	check(t, "no state", s.FinishDevice(ctx, b, "bob"), nil)
	check(t, "expired all the same", poll(d), registry.ErrLoginExpired)
	for range maxAddressDevices {
		begin()
	}
	_, err = s.NewDeviceLogin(ctx, "")
	check(t, "too many", err, problem.ErrExhausted)
	other := registry.WithActor(ctx, registry.Actor{Address: "10.0.0.2"})
	_, err = s.NewDeviceLogin(other, "")
	check(t, "from elsewhere", err, nil)
	for range codeBurst {
		_, err = s.DeviceLink(other, "BCDF-GHJK")
		check(t, "guess", err, problem.ErrNotFound)
	}
	_, err = s.DeviceLink(other, "BCDF-GHJK")
	check(t, "too many guesses", err, problem.ErrExhausted)

	i := registry.Identity{Issuer: "https://id.example", Subject: "1", Account: "dora", Email: "d@x"}
	check(t, "sign up", s.SignUp(ctx, i, "acme", registry.RoleReader), nil)
	check(t, "again", s.SignUp(ctx, i, "", ""), problem.ErrConflict)
	i.Account = "dora2"
	check(t, "the same person", s.SignUp(ctx, i, "", ""), problem.ErrConflict)
	if _, err := s.Account(ctx, "dora2"); !errors.Is(err, problem.ErrNotFound) {
		t.Errorf("half an account: %v", err)
	}
	i.Account = "ann"
	check(t, "another's", s.LinkIdentity(ctx, i), problem.ErrConflict)
	check(t, "no way in", s.UnlinkIdentity(ctx, "dora", i.Issuer, "1"), problem.ErrConflict)
	i.Subject = "2"
	check(t, "link", s.LinkIdentity(ctx, i), nil)
	check(t, "again", s.LinkIdentity(ctx, i), nil)
	if got, err := s.Identity(ctx, i.Issuer, "2"); err != nil || got.Account != "ann" {
		t.Errorf("identity = %+v, %v", got, err)
	}
	check(t, "unlink", s.UnlinkIdentity(ctx, "ann", i.Issuer, "2"), nil)
	check(t, "again", s.UnlinkIdentity(ctx, "ann", i.Issuer, "2"), problem.ErrNotFound)
}

func FuzzDeviceCode(f *testing.F) {
	f.Add("BCDF-GHJK")
	f.Add("bcdfghjk")
	f.Fuzz(func(t *testing.T, code string) {
		if n := normalCode(code); n != "" && normalCode(n) != n {
			t.Fatalf("%q is %q, then %q", code, n, normalCode(n))
		}
	})
}
