package directory

import (
	"strings"
	"testing"

	"cumulet.io/internal/problem"
	"cumulet.io/internal/sqldb/sqldbtest"
	"cumulet.io/registry"
)

func testCatalog(t *testing.T, dsn string) {
	s := openStore(t, sqldbtest.Open(t, dsn), nil)
	ctx := t.Context()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"owner", "member", "guest", "teamed", "stranger"} {
		must(s.CreateAccount(ctx, registry.Account{Name: name, Kind: registry.Person}, "pass-of-"+name))
	}
	must(s.CreateAccount(ctx, registry.Account{Name: "root", Kind: registry.Person, Platform: []string{"admin"}}, "pass-of-root"))
	must(s.CreateAccount(ctx, registry.Account{Name: "kubelet", Kind: registry.Service, Platform: []string{"node"}}, "a-password-that-nobody-types"))
	for org, repositories := range map[string]string{"acme": "app app-x app/deep web web-1 web-2 x_y xzy", "beta": "app secret"} {
		must(s.CreateOrg(ctx, org, "owner"))
		for _, r := range strings.Fields(repositories) {
			must(s.Pushed(ctx, org+"/"+r, "owner"))
		}
	}
	must(s.SetMember(ctx, "acme", "member", registry.RoleReader))
	must(s.SetMember(ctx, "beta", "teamed", registry.RoleReader))
	must(s.SetMember(ctx, "acme", "teamed", registry.RoleReader))
	_, err := s.SetTeam(ctx, "acme", "web", "")
	must(err)
	must(s.SetTeamMember(ctx, "acme", "web", "teamed", true))
	grant := func(g registry.Grant) { t.Helper(); must(s.SetGrant(ctx, g)) }
	grant(registry.Grant{Org: "acme", Account: "guest", Repositories: "acme/web-*", Role: registry.RoleWriter})
	grant(registry.Grant{Org: "acme", Account: "guest", Repositories: "acme/app", Role: registry.RoleReader})
	grant(registry.Grant{Org: "acme", Account: "guest", Repositories: "acme/x_y", Role: registry.RoleReader})
	grant(registry.Grant{Org: "acme", Team: "web", Repositories: "acme/app*", Role: registry.RoleReader})
	grant(registry.Grant{Org: "beta", Account: "member", Repositories: "beta/*", Role: registry.RoleAdmin})
	_, err = s.SetVisibility(ctx, "beta/app", registry.Public)
	must(err)
	const all = "acme/app acme/app-x acme/app/deep acme/web acme/web-1 acme/web-2 acme/x_y acme/xzy beta/app beta/secret"
	pages := func(account string, limit int) string {
		t.Helper()
		var out []string
		for after := ""; ; {
			names, err := s.Catalog(ctx, account, after, limit)
			must(err)
			out = append(out, names...)
			if len(names) < limit {
				return strings.Join(out, " ")
			}
			after = names[len(names)-1]
		}
	}
	robot := func(name string, scopes ...string) {
		t.Helper()
		r := registry.RobotAccount{Org: "acme", Name: name}
		for _, n := range scopes {
			r.Scopes = append(r.Scopes, registry.Scope{Type: "repository", Name: n, Actions: []string{"pull", "push"}})
		}
		_, _, err := s.CreateRobot(ctx, r)
		must(err)
	}
	robot("ci", "acme/web-*", "acme/app")
	for account, want := range map[string]string{
		"owner": all, "root": all,
		"member":   all, // by membership, and by a grant
		"guest":    "acme/app acme/web-1 acme/web-2 acme/x_y",
		"teamed":   all,
		"stranger": "", "kubelet": "", // public is not theirs
		"acme+ci": "acme/app acme/web-1 acme/web-2",
	} {
		for _, limit := range []int{1, 2, 3, 1000} {
			if got := pages(account, limit); got != want {
				t.Errorf("%s by %d: %s, want %s", account, limit, got, want)
			}
		}
	}
	// Out of the org, out of the team, out of the catalog.
	must(s.SetMember(ctx, "acme", "teamed", registry.RoleNone))
	if got := pages("teamed", 10); got != "beta/app beta/secret" {
		t.Errorf("after leaving: %s", got)
	}
	_, err = s.Catalog(ctx, "nobody", "", 10)
	check(t, "nobody", err, problem.ErrNotFound)
}
