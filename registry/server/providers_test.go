package server_test

import (
	"encoding/json"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"

	"cumulet.io/internal/testenv"
	"cumulet.io/registry"
	"cumulet.io/registry/directory"
	"cumulet.io/registry/server"
	"cumulet.io/registry/weblogin"
)

// Two providers know people of the same subjects and names; each leads to its own accounts alone, and its groups to what
// the configuration says of that provider's.
func TestOIDCProviders(t *testing.T) {
	corpPeople := map[string]string{"ann@corp.example": "1 devs staff", "partner-bob@corp.example": "2", "lea@corp.example": "3 ghosts"}
	partnerPeople := map[string]string{"ann@partner.example": "1 devs", "root@partner.example": "9 staff"}
	var corp, partner *testenv.OpenID
	h := startHub(t, func(c *server.Config) {
		corp = testenv.OpenIDProvider(t, c.PublicURL+"/login/callback/corp", corpPeople)
		partner = testenv.OpenIDProvider(t, c.PublicURL+"/login/callback/partner", partnerPeople)
		c.OIDC = []weblogin.Provider{
			{Name: "corp", Issuer: corp.Issuer, ClientID: "cumulet", ClientSecret: "secret", SignUp: true, GroupsClaim: "groups", Groups: []weblogin.Group{
				{Name: "staff", GroupRight: directory.GroupRight{Org: "acme"}},
				{Name: "devs", GroupRight: directory.GroupRight{Org: "acme", Team: "web", Role: registry.RoleWriter}},
				{Name: "ghosts", GroupRight: directory.GroupRight{Org: "nowhere"}}}},
			{Name: "partner", Issuer: partner.Issuer, ClientID: "cumulet", ClientSecret: "secret", SignUp: true, AccountPrefix: "partner-", GroupsClaim: "groups", Groups: []weblogin.Group{
				{Name: "devs", GroupRight: directory.GroupRight{Org: "beta", Role: registry.RoleReader}}}},
		}
		behindProxies(c)
	})
	ctx := t.Context()
	if _, err := h.Directory().SetTeam(ctx, "acme", "web", ""); err != nil {
		t.Fatal(err)
	}
	if err := h.Directory().SetGrant(ctx, registry.Grant{Org: "acme", Team: "web", Repositories: "acme/web-*", Role: registry.RoleAdmin}); err != nil {
		t.Fatal(err)
	}
	// logIn gives the account and the page of a login.
	logIn := func(provider, user string) (string, string) {
		t.Helper()
		d := h.beginLogin()
		_, page := testenv.NewBrowser(t).LogIn(d.VerificationURIComplete, user, provider)
		a, code := h.poll(d)
		if code != "" {
			return "", page
		}
		return h.claims(a.Token, "cis").Subject, page
	}
	has := func(account string) string {
		t.Helper()
		list, err := h.Directory().Memberships(ctx, account)
		if err != nil {
			t.Fatal(err)
		}
		var out []string
		for _, m := range list {
			out = append(out, m.Org+":"+string(m.Role))
		}
		grants, err := h.Directory().GrantsOf(ctx, account)
		if err != nil {
			t.Fatal(err)
		}
		for _, g := range grants {
			out = append(out, g.Repositories+":"+string(g.Role))
		}
		return strings.Join(out, " ")
	}
	expect := func(account, want string) {
		t.Helper()
		if got := has(account); got != want {
			t.Errorf("%s has %q, want %q", account, got, want)
		}
	}

	for range 2 {
		if got, page := logIn("corp", "ann@corp.example"); got != "ann" {
			t.Fatalf("%q %s", got, page)
		}
		// The same subject and the same name, but not the same person.
		if got, page := logIn("partner", "ann@partner.example"); got != "partner-ann" {
			t.Fatalf("%q %s", got, page)
		}
	}
	expect("ann", "acme:writer acme/web-*:admin")
	expect("partner-ann", "beta:reader")
	// The token of a login says the same.
	d := h.beginLogin()
	testenv.NewBrowser(t).LogIn(d.VerificationURIComplete, "ann@corp.example", "corp")
	a, _ := h.poll(d)
	again := h.postToken(url.Values{"grant_type": {"refresh_token"}, "refresh_token": {a.RefreshToken}, "service": {"registry"}, "scope": {"account:ann:read,write org:acme:*"}})
	if c := h.claims(again.Token, "registry"); accessText(c) != "account:ann:read,write org:acme:read,write" {
		t.Errorf("%+v", c)
	}
	// Names of the one are not to be had at the other, and what is there is never taken over.
	if got, page := logIn("corp", "partner-bob@corp.example"); got != "" || !strings.Contains(page, "of the provider partner alone") {
		t.Errorf("%q %s", got, page)
	}
	if got, page := logIn("partner", "root@partner.example"); got != "partner-root" {
		t.Errorf("%q %s", got, page)
	}
	expect("partner-root", "") // staff is a group of the other provider
	if got, page := logIn("corp", "lea@corp.example"); got != "lea" {
		t.Errorf("what a group names and is not there keeps a person out: %q %s", got, page)
	}
	if text := h.log.String(); !strings.Contains(text, "organisation nowhere") {
		t.Error("nobody is told that a group names what is not there")
	}

	t.Run("identities", func(t *testing.T) {
		_, text := h.checked(document(t, h), true, "GET", "/v1/account/identities", "", "Authorization", "Bearer "+again.Token)
		var list registry.Page[registry.Identity]
		if err := json.Unmarshal([]byte(text), &list); err != nil || len(list.Items) != 1 || list.Items[0].Provider != "corp" || list.Items[0].Issuer != corp.Issuer {
			t.Errorf("%s", text)
		}
		log, err := h.Directory().AuditLog(ctx, directory.AuditFilter{All: true, Limit: 1000})
		if err != nil || !slices.ContainsFunc(log, func(e registry.AuditEntry) bool {
			return e.Action == "account.signup" && e.Target == "account/partner-ann" && e.Detail["provider"] == "partner"
		}) || !slices.ContainsFunc(log, func(e registry.AuditEntry) bool {
			return e.Action == "member.set" && e.Org == "acme" && e.Target == "account/ann" && e.Detail["issuer"] == corp.Issuer
		}) {
			t.Errorf("%+v %v", log, err)
		}
	})

	t.Run("groups change", func(t *testing.T) {
		corp.SetGroups(map[string]string{"ann@corp.example": "1 staff"})
		logIn("corp", "ann@corp.example")
		expect("ann", "acme:reader")
		corp.SetGroups(map[string]string{"ann@corp.example": "1"})
		logIn("corp", "ann@corp.example")
		expect("ann", "")
		corp.SetGroups(map[string]string{"ann@corp.example": "1 devs"})
		logIn("corp", "ann@corp.example")
		expect("ann", "acme:writer acme/web-*:admin")
		expect("partner-ann", "beta:reader")
	})

	t.Run("mixed up", func(t *testing.T) {
		// An answer of one provider, brought to the other's address, or said to be of another, logs nobody in.
		for name, change := range map[string]func(u *url.URL){
			"another's address": func(u *url.URL) { u.Path = "/login/callback/partner" },
			"no one's address":  func(u *url.URL) { u.Path = "/login/callback/evil" },
			"another's name":    func(u *url.URL) { u.RawQuery += "&iss=" + url.QueryEscape(partner.Issuer) },
		} {
			d := h.beginLogin()
			b := testenv.NewBrowser(t)
			at, page := b.Confirm(d.VerificationURIComplete, "corp")
			b.CheckRedirect = func(req *http.Request, _ []*http.Request) error {
				if strings.HasPrefix(req.URL.Path, "/login/callback/") {
					return http.ErrUseLastResponse
				}
				return nil
			}
			resp, _ := b.Credentials(at, page, "ann@corp.example")
			callback, err := resp.Location()
			if err != nil {
				t.Fatal(err)
			}
			change(callback)
			if resp, page := b.Send("GET", callback.String(), nil); resp.StatusCode != http.StatusUnauthorized || !strings.Contains(page, "not the answer") {
				t.Errorf("%s: %d %s", name, resp.StatusCode, page)
			}
			if _, code := h.poll(d); code != "access_denied" {
				t.Errorf("%s: %s", name, code)
			}
		}
	})
}
