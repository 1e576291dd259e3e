package server_test

import (
	"net/http"
	"net/url"
	"strings"
	"testing"

	"cumulet.io/registry"
	"cumulet.io/registry/directory"
)

// TestWhoMayWhat asks the token service for access as those who have it by role, grant, team, scope or key, by GET and
// by POST alike.
func TestWhoMayWhat(t *testing.T) {
	h := startHub(t, behindProxies)
	d, ctx := h.Directory(), t.Context()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(d.Pushed(ctx, "acme/open", "wendy"))
	_, err := d.SetVisibility(ctx, "acme/open", registry.Public)
	must(err)
	_, err = d.SetTeam(ctx, "acme", "web", "")
	must(err)
	must(d.SetTeamMember(ctx, "acme", "web", "rita", true))
	must(d.SetGrant(ctx, registry.Grant{Org: "acme", Team: "web", Repositories: "acme/web-*", Role: registry.RoleWriter}))
	must(d.SetGrant(ctx, registry.Grant{Org: "acme", Account: "rita", Repositories: "acme/tools/one", Role: registry.RoleAdmin}))
	must(d.SetGrant(ctx, registry.Grant{Org: "acme", Account: "boris", Repositories: "acme/shared/*", Role: registry.RoleReader}))

	robot, robotSecret := h.robot("ci", "repository:acme/app*:pull,push", "org:acme:read,write")
	puller, pullerSecret := h.robot("puller", "repository:acme/*:pull")
	secrets := map[string][2]string{
		"robot": {robot, robotSecret}, "puller": {puller, pullerSecret},
		"key": {"adam", h.key("adam", "all")}, "pull key": {"adam", h.key("adam", "pull", "repository:acme/app:pull,push")},
		"read key": {"adam", h.key("adam", "read", "org:acme:read")}, "reader's key": {"rita", h.key("rita", "big", "repository:acme/*:pull,push,delete", "org:acme:read,write,admin,own")},
		"owner's key": {"root", h.key("root", "all")},
	}
	for _, name := range []string{"root", "adam", "wendy", "rita", "boris"} {
		secrets[name] = [2]string{name, "pass-of-" + name}
	}
	for _, tc := range []struct{ who, service, scope, want, org string }{
		{"rita", "", "repository:acme/web-1:pull,push,delete", "repository:acme/web-1:pull,push", "acme"},
		{"rita", "", "repository:acme/webx:pull,push", "repository:acme/webx:pull", "acme"},
		{"rita", "", "repository:acme/tools/one:*", "repository:acme/tools/one:pull,push,delete", "acme"},
		{"rita", "", "repository:acme/tools/one2:push", "", "acme"},
		{"boris", "", "repository:acme/shared/a/b:pull,push", "repository:acme/shared/a/b:pull", "beta"},
		{"boris", "", "repository:acme/shared:pull", "", "beta"},
		{"boris", "", "repository:acme/open:pull,push", "repository:acme/open:pull", "beta"},
		{"boris", "cis", "org:acme:read", "", "beta"},
		{"robot", "", "repository:acme/app:pull,push,delete", "repository:acme/app:pull,push", "acme"},
		{"robot", "", "repository:acme/app2/x:push", "repository:acme/app2/x:push", "acme"},
		{"robot", "", "repository:acme/web:pull", "", "acme"},
		{"robot", "", "repository:acme/open:pull,push", "repository:acme/open:pull", "acme"},
		{"robot", "", "repository:beta/app:pull", "", "acme"},
		{"robot", "cis", "org:acme:read,write,admin", "org:acme:read,write", "acme"},
		{"robot", "cis", "repository:acme/app:pull", "", "acme"},
		{"robot", "", "registry:catalog:* account:acme+ci:write platform:*:admin", "registry:catalog:*", "acme"},
		{"pull key", "", "registry:catalog:*", "", "acme"},
		{"puller", "", "repository:acme/any/thing:pull,push", "repository:acme/any/thing:pull", "acme"},
		{"puller", "cis", "org:acme:read", "", "acme"},
		{"key", "", "repository:acme/x:*", "repository:acme/x:pull,push,delete", "acme"},
		{"key", "cis", "org:acme:*", "org:acme:read,write,admin", "acme"},
		{"key", "", "account:adam:read,write", "account:adam:read", "acme"},
		{"pull key", "", "repository:acme/app:*", "repository:acme/app:pull,push", "acme"},
		{"pull key", "", "repository:acme/other:pull", "", "acme"},
		{"pull key", "", "repository:acme/open:pull,push", "repository:acme/open:pull", "acme"},
		{"pull key", "cis", "org:acme:read", "", "acme"},
		{"read key", "logs", "org:acme:read,write", "org:acme:read", "acme"},
		{"reader's key", "", "repository:acme/x:pull,push,delete", "repository:acme/x:pull", "acme"},
		{"reader's key", "", "repository:acme/web-1:pull,push,delete", "repository:acme/web-1:pull,push", "acme"},
		{"reader's key", "cis", "org:acme:*", "org:acme:read", "acme"},
		{"owner's key", "", "platform:*:admin", "", "acme"},
		{"root", "", "platform:*:admin,operator,node", "platform:*:admin", "acme"},
		{"root", "cis", "org:acme:*", "org:acme:read,write,admin,own", "acme"},
		{"adam", "", "org:acme:own account:adam:* account:root:*", "account:adam:read,write", "acme"},
		{"adam", "cis", "account:adam:*", "", "acme"},
	} {
		t.Run(tc.who+" "+tc.scope, func(t *testing.T) {
			service := tc.service
			if service == "" {
				service = "registry"
			}
			user, password := secrets[tc.who][0], secrets[tc.who][1]
			get := h.answer(h.request(http.MethodGet, "/token?"+url.Values{"service": {service}, "scope": {tc.scope}}.Encode(), "", "Authorization", basic(user, password)))
			post := h.postToken(url.Values{"grant_type": {"password"}, "username": {user}, "password": {password}, "service": {service}, "scope": {tc.scope}, "access_type": {"offline"}})
			if get.status != http.StatusOK || post.status != http.StatusOK {
				t.Fatalf("GET %d %s, POST %d %s", get.status, get.body, post.status, post.body)
			}
			// What was got offline has the same rights, where it is for the same service.
			again := h.postToken(url.Values{"grant_type": {"refresh_token"}, "refresh_token": {post.RefreshToken}, "service": {service}, "scope": {tc.scope}})
			for how, token := range map[string]string{"GET": get.Token, "POST": post.Token, "refresh": again.Token} {
				c := h.claims(token, service)
				want := tc.want
				if how == "refresh" && service == "registry" && !strings.HasPrefix(tc.want, "repository:") && !strings.HasPrefix(tc.want, "registry:") {
					want = "" // images alone
				}
				if got := accessText(c); got != want || c.Org != tc.org || c.Subject != user {
					t.Errorf("%s: %q of %q in %q, want %q in %q", how, got, c.Subject, c.Org, want, tc.org)
				}
			}
		})
	}

	t.Run("removal", func(t *testing.T) {
		scope := "repository:acme/web-1:pull"
		asks := func(user, password string) string {
			return h.postToken(url.Values{"grant_type": {"password"}, "username": {user}, "password": {password}, "scope": {scope}}).Scope
		}
		offline := h.getToken("rita", url.Values{"offline_token": {"true"}}).RefreshToken
		must(d.SetMember(ctx, "acme", "rita", registry.RoleNone))
		if got := asks("rita", "pass-of-rita") + asks("rita", secrets["reader's key"][1]); got != "" {
			t.Errorf("a member who has left: %q", got)
		}
		if grants, err := d.GrantsOf(ctx, "rita"); err != nil || len(grants) != 0 {
			t.Errorf("their grants: %v, %v", grants, err)
		}
		if a := h.postToken(url.Values{"grant_type": {"refresh_token"}, "refresh_token": {offline}}); a.status != http.StatusUnauthorized {
			t.Errorf("their refresh token: %d %s", a.status, a.body)
		}
	})

	t.Run("denials", func(t *testing.T) {
		ask := func(user, scope, address string) {
			header := []string{"X-Forwarded-For", address}
			if user != "" {
				header = append(header, "Authorization", basic(user, "pass-of-"+user))
			}
			h.request(http.MethodGet, "/token?scope="+scope, "", header...)
		}
		for i := range 20 {
			ask("boris", "repository:acme/secret:pull", "10.9.9.9, 10.1.1.1")
			ask("", "repository:acme/secret:pull", "10.1.1.2")
			h.request(http.MethodGet, "/token", "", "Authorization", basic("boris", "guess"+strings.Repeat("x", i)), "X-Forwarded-For", "10.1.1.3")
			h.request(http.MethodGet, "/token", "", "Authorization", basic("My Secret Password", "boris"), "X-Forwarded-For", "10.1.1.4")
		}
		var got []string
		list, err := d.AuditLog(ctx, directory.AuditFilter{All: true, Limit: 1000})
		must(err)
		for _, e := range list {
			if strings.HasPrefix(e.Address, "10.1.1.") {
				got = append(got, strings.Join([]string{e.Address, e.Org, e.Actor, e.Action, e.Target, e.Detail["reason"]}, " "))
			}
		}
		want := `10.1.1.3  boris login  too many failed logins: wait before the next
10.1.1.4   login  the user name or the password is wrong
10.1.1.3  boris login  the user name or the password is wrong
10.1.1.2 acme  token.scope repository:acme/secret:pull no right to it
10.1.1.1 acme boris token.scope repository:acme/secret:pull no right to it`
		if strings.Join(got, "\n") != want {
			t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), want)
		}
	})
}
