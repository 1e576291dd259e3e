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

func (h *hub) beginLogin() registry.DeviceAuthorization {
	h.t.Helper()
	resp, text := h.request("POST", "/token/device", "client_id=cis", "Content-Type", "application/x-www-form-urlencoded")
	var d registry.DeviceAuthorization
	if err := json.Unmarshal([]byte(text), &d); err != nil || resp.StatusCode != http.StatusOK {
		h.t.Fatalf("%d %s", resp.StatusCode, text)
	}
	return d
}

// poll asks once for the token of a login, and gives the error code instead.
func (h *hub) poll(d registry.DeviceAuthorization) (tokenAnswer, string) {
	h.t.Helper()
	a := h.postToken(url.Values{"grant_type": {"urn:ietf:params:oauth:grant-type:device_code"}, "device_code": {d.DeviceCode}, "service": {"cis"},
		"scope": {"org:acme:*"}, "access_type": {"offline"}, "client_id": {"cis"}})
	var e struct{ Error string }
	if a.status != http.StatusOK {
		if err := json.Unmarshal([]byte(a.body), &e); err != nil {
			h.t.Fatal(a.body)
		}
	}
	return a, e.Error
}

func TestOIDC(t *testing.T) {
	people := map[string]string{"ann@corp.example": "u1", "root@corp.example": "u2", "eve@evil.example": "u3", "wei@corp.example": "!u4"}
	var provider weblogin.Provider
	h := startHub(t, func(c *server.Config) {
		provider = weblogin.Provider{Name: "corp", Issuer: testenv.OpenIDProvider(t, c.PublicURL+"/login/callback/corp", people).Issuer, ClientID: "cumulet", ClientSecret: "secret",
			SignUp: true, EmailDomains: []string{"corp.example"}, SignUpOrg: "acme", SignUpRole: registry.RoleReader}
		c.OIDC = []weblogin.Provider{provider}
		behindProxies(c)
	})
	router := document(t, h)

	t.Run("sign up and log in", func(t *testing.T) {
		for range 2 { // the second time there is an account
			d := h.beginLogin()
			if _, code := h.poll(d); code != "authorization_pending" {
				t.Errorf("before: %s", code)
			}
			if _, code := h.poll(d); code != "slow_down" {
				t.Errorf("at once again: %s", code)
			}
			if status, page := testenv.NewBrowser(t).LogIn(d.VerificationURIComplete, "ann@corp.example"); status != http.StatusOK || !strings.Contains(page, "logged in as ann") {
				t.Fatalf("%d %s", status, page)
			}
			a, code := h.poll(d)
			if code != "" || a.RefreshToken == "" {
				t.Fatalf("after: %s %s", code, a.body)
			}
			if c := h.claims(a.Token, "cis"); c.Subject != "ann" || accessText(c) != "org:acme:read" {
				t.Errorf("claims = %+v", c)
			}
			if _, code := h.poll(d); code != "expired_token" {
				t.Errorf("a second time: %s", code)
			}
			me := h.postToken(url.Values{"grant_type": {"refresh_token"}, "refresh_token": {a.RefreshToken}, "service": {"registry"}, "scope": {"account:ann:read,write"}})
			if me.Scope != "account:ann:read,write" {
				t.Errorf("their own account: %s", me.body)
			}
			h.checked(router, true, "GET", "/v1/account/identities", "", "Authorization", "Bearer "+me.Token)
		}
		if ids, err := h.Directory().Identities(t.Context(), "ann"); err != nil || len(ids) != 1 || ids[0].Subject != "u1" || ids[0].Email != "ann@corp.example" {
			t.Errorf("identities = %+v, %v", ids, err)
		}
		// No password lets in who has none.
		for _, password := range []string{"", "secret"} {
			if resp, _ := h.request("GET", "/token", "", "Authorization", basic("ann", password)); resp.StatusCode != http.StatusUnauthorized {
				t.Errorf("password %q: %d", password, resp.StatusCode)
			}
		}
	})

	t.Run("refused", func(t *testing.T) {
		for user, why := range map[string]string{
			"root@corp.example": "is taken",       // an account of that name is not taken over
			"eve@evil.example":  "verified email", // not of the domain
			"wei@corp.example":  "verified email", // of the domain, perhaps
		} {
			d := h.beginLogin()
			if status, page := testenv.NewBrowser(t).LogIn(d.VerificationURIComplete, user); status != http.StatusUnauthorized || !strings.Contains(page, why) {
				t.Errorf("%s: %d %s", user, status, page)
			}
			if _, code := h.poll(d); code != "access_denied" {
				t.Errorf("%s: %s", user, code)
			}
		}
		list, err := h.Directory().AuditLog(t.Context(), directory.AuditFilter{All: true, Action: "login", Limit: 10})
		if err != nil || !slices.ContainsFunc(list, func(e registry.AuditEntry) bool { return e.Detail["subject"] == "u3" && e.Actor == "" }) {
			t.Errorf("audit log: %+v, %v", list, err)
		}
	})

	t.Run("link", func(t *testing.T) {
		root := h.bearer("root", "account:root:*")
		link := func() registry.DeviceAuthorization {
			t.Helper()
			_, text := h.checked(router, true, "POST", "/v1/account/identities", "", "Authorization", root)
			var d registry.DeviceAuthorization
			if err := json.Unmarshal([]byte(text), &d); err != nil {
				t.Fatal(text)
			}
			return d
		}
		d := link()
		b := testenv.NewBrowser(t)
		if _, page := b.Send("GET", d.VerificationURIComplete, nil); !strings.Contains(page, "The account root wants to be linked") {
			t.Errorf("the person is not told: %s", page)
		}
		if status, page := b.LogIn(d.VerificationURIComplete, "root@corp.example"); status != http.StatusOK || !strings.Contains(page, "linked to the account root") {
			t.Fatalf("%d %s", status, page)
		}
		if status, page := testenv.NewBrowser(t).LogIn(link().VerificationURIComplete, "ann@corp.example"); status != http.StatusConflict {
			t.Errorf("another's identity: %d %s", status, page)
		}
		login := h.beginLogin()
		if _, page := testenv.NewBrowser(t).LogIn(login.VerificationURIComplete, "root@corp.example"); !strings.Contains(page, "logged in as root") {
			t.Errorf("after: %s", page)
		}
		if a, code := h.poll(login); code != "" || h.claims(a.Token, "cis").Subject != "root" {
			t.Errorf("after: %s %s", code, a.body)
		}
		unlink := "/v1/account/identities?" + url.Values{"issuer": {provider.Issuer}, "subject": {"u2"}}.Encode()
		if resp, text := h.checked(router, true, "DELETE", unlink, "", "Authorization", root); resp.StatusCode != http.StatusNoContent {
			t.Errorf("unlink: %d %s", resp.StatusCode, text)
		}
		if resp, _ := h.checked(router, true, "DELETE", unlink, "", "Authorization", root); resp.StatusCode != http.StatusNotFound {
			t.Errorf("unlink again: %d", resp.StatusCode)
		}
		if err := h.Directory().UnlinkIdentity(t.Context(), "ann", provider.Issuer, "u1"); err == nil {
			t.Error("the last way to log in is taken")
		}
	})

	t.Run("tricks", func(t *testing.T) {
		d := h.beginLogin()
		b := testenv.NewBrowser(t)
		_, form := b.Send("GET", d.VerificationURIComplete, nil)
		token := testenv.Input(t, form, "token")
		good := url.Values{"token": {token}, "code": {d.UserCode}, "provider": {"corp"}}
		for name, tc := range map[string]struct {
			browser *testenv.Browser
			form    url.Values
			header  []string
			status  int
		}{
			"of another site":    {b, good, []string{"Sec-Fetch-Site", "cross-site"}, http.StatusForbidden},
			"with no token":      {b, url.Values{"code": {d.UserCode}}, nil, http.StatusForbidden},
			"of another browser": {testenv.NewBrowser(t), good, nil, http.StatusForbidden},
			"with no such code":  {b, url.Values{"token": {token}, "code": {"BCDF-GHJK"}, "provider": {"corp"}}, nil, http.StatusNotFound},
			"with no provider":   {b, url.Values{"token": {token}, "code": {d.UserCode}}, nil, http.StatusBadRequest},
			"with another":       {b, url.Values{"token": {token}, "code": {d.UserCode}, "provider": {"evil"}}, nil, http.StatusBadRequest},
		} {
			if resp, page := tc.browser.Send("POST", h.url+"/login", tc.form, tc.header...); resp.StatusCode != tc.status {
				t.Errorf("a form %s: %d %s", name, resp.StatusCode, page)
			}
		}
		// Who was sent on is who must come back: a callback in another browser is worth nothing, nor is one twice.
		at, page := b.Confirm(d.VerificationURIComplete)
		b.CheckRedirect = func(req *http.Request, _ []*http.Request) error {
			if req.URL.Path == "/login/callback/corp" {
				return http.ErrUseLastResponse
			}
			return nil
		}
		resp, _ := b.Credentials(at, page, "ann@corp.example")
		callback := resp.Header.Get("Location")
		if resp, page := testenv.NewBrowser(t).Send("GET", callback, nil); resp.StatusCode != http.StatusNotFound {
			t.Errorf("another browser: %d %s", resp.StatusCode, page)
		}
		if resp, page := b.Send("GET", callback, nil); resp.StatusCode != http.StatusOK {
			t.Errorf("the browser: %d %s", resp.StatusCode, page)
		}
		if resp, page := b.Send("GET", callback, nil); resp.StatusCode != http.StatusNotFound {
			t.Errorf("twice: %d %s", resp.StatusCode, page)
		}
		if resp, page := b.Send("GET", h.url+"/login/callback/corp?state=&code=x", nil); resp.StatusCode != http.StatusNotFound {
			t.Errorf("no state: %d %s", resp.StatusCode, page)
		}
		for _, header := range []string{"Content-Security-Policy", "X-Frame-Options", "Referrer-Policy"} {
			if resp, _ := b.Send("GET", h.url+"/login", nil); resp.Header.Get(header) == "" {
				t.Errorf("no %s", header)
			}
		}
		if _, page := b.Send("GET", h.url+"/login?code=<script>x</script>", nil); strings.Contains(page, "<script>") {
			t.Errorf("what is in the URL is in the page: %s", page)
		}
		// Nobody tries all codes.
		status := 0
		for range 40 {
			resp, _ := b.Send("GET", h.url+"/login?code=BCDF-GHJK", nil)
			status = resp.StatusCode
		}
		if status != http.StatusTooManyRequests {
			t.Errorf("after many codes: %d", status)
		}
		if log := h.log.String(); strings.Contains(log, d.DeviceCode) || strings.Contains(log, d.UserCode) {
			t.Error("a code is in the log")
		}
	})

	t.Run("a disabled account", func(t *testing.T) {
		off := true
		if _, err := h.Directory().UpdateAccount(t.Context(), "ann", directory.AccountPatch{Disabled: &off}); err != nil {
			t.Fatal(err)
		}
		d := h.beginLogin()
		if status, page := testenv.NewBrowser(t).LogIn(d.VerificationURIComplete, "ann@corp.example"); status != http.StatusUnauthorized || !strings.Contains(page, "disabled") {
			t.Errorf("%d %s", status, page)
		}
	})
}

func TestNoOIDC(t *testing.T) {
	h := startHub(t)
	router := document(t, h)
	if resp, text := h.checked(router, true, "POST", "/token/device", "", "Content-Type", "application/x-www-form-urlencoded"); resp.StatusCode != http.StatusNotImplemented {
		t.Errorf("%d %s", resp.StatusCode, text)
	}
	if resp, text := h.checked(router, true, "POST", "/v1/account/identities", "", "Authorization", h.bearer("rita", "account:rita:*")); resp.StatusCode != http.StatusNotImplemented {
		t.Errorf("%d %s", resp.StatusCode, text)
	}
}

// A provider that does not answer stops nobody else, and is asked again later.
func TestOIDCProviderIsDown(t *testing.T) {
	h := startHub(t, func(c *server.Config) {
		c.OIDC = []weblogin.Provider{{Name: "corp", Issuer: "http://127.0.0.1:1", ClientID: "cumulet"}}
	})
	d := h.beginLogin()
	if resp, page := testenv.NewBrowser(t).Confirm(d.VerificationURIComplete); resp.StatusCode != http.StatusServiceUnavailable || !strings.Contains(page, "try again") {
		t.Errorf("%d %s", resp.StatusCode, page)
	}
	if a := h.getToken("rita", url.Values{}); a.status != http.StatusOK {
		t.Errorf("by password: %d", a.status)
	}
}
