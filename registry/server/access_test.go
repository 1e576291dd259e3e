package server_test

import (
	"fmt"
	"net/http"
	"net/netip"
	"strings"
	"testing"

	"cumulet.io/registry"
	"cumulet.io/registry/directory"
	"cumulet.io/registry/server"
)

// behindProxies makes the hub believe X-Forwarded-For, so that a test's requests come from many addresses.
func behindProxies(c *server.Config) {
	c.TrustedProxies = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
}

// robot makes a robot of acme and gives its account and secret.
func (h *hub) robot(name string, scopes ...string) (account, secret string) {
	h.t.Helper()
	r := registry.RobotAccount{Org: "acme", Name: name}
	for _, text := range scopes {
		sc, err := registry.ParseScope("scope", text)
		if err != nil {
			h.t.Fatal(err)
		}
		r.Scopes = append(r.Scopes, sc)
	}
	made, secret, err := h.Directory().CreateRobot(h.t.Context(), r)
	if err != nil {
		h.t.Fatal(err)
	}
	return made.Account, secret
}

// key makes an API key of an account.
func (h *hub) key(account, name string, scopes ...string) string {
	h.t.Helper()
	k := registry.APIKey{Account: account, Name: name}
	for _, text := range scopes {
		sc, err := registry.ParseScope("scope", text)
		if err != nil {
			h.t.Fatal(err)
		}
		k.Scopes = append(k.Scopes, sc)
	}
	_, secret, err := h.Directory().CreateAPIKey(h.t.Context(), k)
	if err != nil {
		h.t.Fatal(err)
	}
	return secret
}

// TestEveryRouteForEveryCaller asks every management call as everyone, for things that are not there, so that nothing
// changes: who may gets past the check, who may not is told so and leaves an entry in the audit log.
func TestEveryRouteForEveryCaller(t *testing.T) {
	h := startHub(t, behindProxies)
	if err := h.Directory().Pushed(t.Context(), "acme/web", "wendy"); err != nil {
		t.Fatal(err)
	}
	robot, secret := h.robot("ci", "repository:acme/*:pull,push,delete", "org:acme:read,write")
	everything := []string{"org:acme:*", "org:beta:*", "platform:*:*", "repository:acme/other:*"}
	token := func(user, password string) string {
		query := "/token?service=" + h.host + "&scope=" + strings.Join(append(everything, "account:"+user+":*"), "&scope=")
		resp, text := h.request(http.MethodGet, query, "", "Authorization", basic(user, password))
		a := h.answer(resp, text)
		if a.status != http.StatusOK {
			t.Fatalf("%s: %d %s", user, a.status, text)
		}
		return "Bearer " + a.Token
	}
	refreshed := h.getToken("adam", map[string][]string{"service": {h.host}, "offline_token": {"true"}}).RefreshToken
	docker := h.postToken(map[string][]string{"grant_type": {"refresh_token"}, "refresh_token": {refreshed}, "service": {h.host},
		"scope": {strings.Join(append(everything, "account:adam:*"), " ")}})
	// Who holds which rights: on acme, on the platform, and on their own account.
	callers := []struct{ name, bearer, rights string }{
		{"nobody", "", ""},
		{"anonymous token", "Bearer " + h.getToken("", map[string][]string{"scope": everything}).Token, "token"},
		{"another audience", "Bearer " + h.getToken("adam", map[string][]string{"service": {"cis"}, "scope": everything}).Token, ""},
		{"reader", token("rita", "pass-of-rita"), "token read self selfwrite"},
		{"writer", token("wendy", "pass-of-wendy"), "token read push self selfwrite"},
		{"admin", token("adam", "pass-of-adam"), "token read push admin self selfwrite"},
		{"owner and platform administrator", token("root", "pass-of-root"), "token read push admin own platform platformread self selfwrite manage"},
		{"owner of another org", token("boris", "pass-of-boris"), "token self selfwrite"},
		{"robot", token(robot, secret), "token read push"},
		{"robot that runs instances", token(h.robot("run", "org:acme:read,write")), "token read"},
		{"API key of an admin", token("adam", h.key("adam", "all")), "token read push admin self"},
		{"API key of an admin, limited", token("adam", h.key("adam", "some", "org:acme:read")), "token read self"},
		{"API key of the platform's administrator", token("root", h.key("root", "all")), "token read push admin own self"},
		{"what docker login left", "Bearer " + docker.Token, "token push"},
		{"node", token("node-agent", "pass-of-node-agent"), "token read"},
		{"operator", token("platform-auditor", "pass-of-platform-auditor"), "token read platformread adminread"},
	}
	routes := []struct{ method, path, body, needs string }{
		{"GET", "/v1/account", "", "token"},
		{"PUT", "/v1/account/password", `[]`, "selfwrite"},
		{"GET", "/v1/account/keys", "", "self"},
		{"POST", "/v1/account/keys", `{}`, "selfwrite"},
		{"DELETE", "/v1/account/keys/x", "", "selfwrite"},
		{"GET", "/v1/account/tokens", "", "self"},
		{"DELETE", "/v1/account/tokens/x", "", "selfwrite"},
		{"GET", "/v1/accounts", "", "platformread"},
		{"POST", "/v1/accounts", `{}`, "platform"},
		{"GET", "/v1/accounts/x", "", "platformread"},
		{"PATCH", "/v1/accounts/x", `{}`, "platform"},
		{"DELETE", "/v1/accounts/x", "", "platform"},
		{"PUT", "/v1/accounts/x/password", `{}`, "platform"},
		{"GET", "/v1/orgs", "", "token"},
		{"GET", "/v1/orgs?all=true", "", "platformread"},
		{"POST", "/v1/orgs", `{}`, "platform"},
		{"GET", "/v1/orgs/acme", "", "read"},
		{"DELETE", "/v1/orgs/acme", "", "own"},
		{"PUT", "/v1/orgs/nothere/quota", `{"bytes":-1}`, "platform"},
		{"DELETE", "/v1/orgs/nothere/quota", "", "platform"},
		{"GET", "/v1/orgs/acme/members", "", "read"},
		{"PUT", "/v1/orgs/acme/members/x", `{}`, "admin"},
		{"PUT", "/v1/orgs/acme/members/x", `{"role":"owner"}`, "own"},
		{"PUT", "/v1/orgs/acme/members/root", `{"role":"reader"}`, "own"},
		{"DELETE", "/v1/orgs/acme/members/x", "", "admin"},
		{"DELETE", "/v1/orgs/acme/members/root", "", "own"},
		{"GET", "/v1/orgs/acme/teams", "", "read"},
		{"GET", "/v1/orgs/acme/teams/x", "", "read"},
		{"PUT", "/v1/orgs/acme/teams/x", `[]`, "admin"},
		{"DELETE", "/v1/orgs/acme/teams/x", "", "admin"},
		{"GET", "/v1/orgs/acme/teams/x/members", "", "read"},
		{"PUT", "/v1/orgs/acme/teams/x/members/rita", "", "admin"},
		{"DELETE", "/v1/orgs/acme/teams/x/members/rita", "", "admin"},
		{"GET", "/v1/orgs/acme/grants", "", "read"},
		{"PUT", "/v1/orgs/acme/grants", `{}`, "admin"},
		{"DELETE", "/v1/orgs/acme/grants", "", "admin"},
		{"GET", "/v1/orgs/acme/robots", "", "adminread"},
		{"POST", "/v1/orgs/acme/robots", `{}`, "admin"},
		{"GET", "/v1/orgs/acme/robots/x", "", "adminread"},
		{"PATCH", "/v1/orgs/acme/robots/x", `{}`, "admin"},
		{"DELETE", "/v1/orgs/acme/robots/x", "", "admin"},
		{"POST", "/v1/orgs/acme/robots/x/secret", "", "admin"},
		{"GET", "/v1/orgs/acme/audit", "", "adminread"},
		{"GET", "/v1/audit", "", "platformread"},
		{"GET", "/v1/orgs/acme/repositories", "", "read"},
		{"GET", "/v1/repositories/acme/web", "", "read"},
		{"PATCH", "/v1/repositories/acme/web", `{}`, "admin"},
		{"DELETE", "/v1/repositories/acme/other", "", "admin"},
		{"GET", "/v1/tags/acme/web", "", "read"},
		{"GET", "/v1/tag-history/acme/web", "", "read"},
		{"GET", "/v1/rules/acme/web", "", "read"},
		{"PUT", "/v1/rules/acme/web", `[]`, "admin"},
		{"POST", "/v1/retention/acme/web?dryRun=true", "", "read"},
		{"POST", "/v1/retention/acme/web", "", "admin"},
		{"GET", "/v1/images/acme/web?reference=x", "", "read"},
		{"POST", "/v1/images/acme/other?reference=x", `{}`, "push"},
		{"GET", "/v1/orgs/acme/images", "", "read"},
		{"GET", "/v1/orgs/acme/layers/sha256:x", "", "read"},
		{"GET", "/v1/orgs/acme/usage", "", "read"},
		{"GET", "/v1/orgs/acme/webhooks", "", "admin"},
		{"POST", "/v1/orgs/acme/webhooks", `[]`, "admin"},
		{"GET", "/v1/orgs/acme/webhooks/x", "", "admin"},
		{"PATCH", "/v1/orgs/acme/webhooks/x", `{}`, "admin"},
		{"DELETE", "/v1/orgs/acme/webhooks/x", "", "admin"},
		{"POST", "/v1/orgs/acme/webhooks/x/rotate-secret", `{}`, "admin"},
		{"POST", "/v1/orgs/acme/webhooks/x/ping", "", "admin"},
		{"GET", "/v1/orgs/acme/webhooks/x/deliveries", "", "admin"},
		{"GET", "/v1/orgs/acme/webhooks/x/deliveries/x", "", "admin"},
		{"POST", "/v1/orgs/acme/webhooks/x/deliveries/x/redeliver", "", "admin"},
		{"GET", "/v1/account/identities", "", "self"},
		{"POST", "/v1/account/identities", "", "selfwrite"},
		{"DELETE", "/v1/account/identities?issuer=x&subject=x", "", "selfwrite"},
	}
	denials := func() map[string]bool {
		out := map[string]bool{}
		list, err := h.Directory().AuditLog(t.Context(), directory.AuditFilter{All: true, Action: "access", Limit: 1000})
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range list {
			out[e.Address] = true
		}
		return out
	}
	type asked struct {
		what, address, text string
		status              int
		may                 bool
	}
	for i, route := range routes {
		var all []asked
		for j, c := range callers {
			rights := strings.Fields(c.rights)
			may := false
			for _, r := range rights {
				may = may || r == route.needs || route.needs == "adminread" && r == "admin"
			}
			address := fmt.Sprintf("10.0.%d.%d", i, j)
			header := []string{"Content-Type", "application/json", "X-Forwarded-For", address}
			if c.bearer != "" {
				header = append(header, "Authorization", c.bearer)
			}
			resp, text := h.request(route.method, route.path, route.body, header...)
			all = append(all, asked{fmt.Sprintf("%s %s by %s", route.method, route.path, c.name), address, text, resp.StatusCode, may})
		}
		denied := denials()
		for _, a := range all {
			refused := a.status == http.StatusUnauthorized || a.status == http.StatusForbidden || a.status == http.StatusNotFound && strings.Contains(a.text, "your token has access to")
			if a.may == refused || a.status >= 500 && a.status != http.StatusNotImplemented { // there is no provider
				t.Errorf("%s: %d %s, may = %v", a.what, a.status, a.text, a.may)
			}
			if denied[a.address] == a.may {
				t.Errorf("%s: in the audit log as a denial: %v, may = %v", a.what, denied[a.address], a.may)
			}
		}
	}
	if role, err := h.Directory().RoleOf(t.Context(), "root", "acme"); err != nil || role != registry.RoleOwner {
		t.Errorf("root is %q, %v: something was changed", role, err)
	}
}
