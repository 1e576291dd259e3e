package server_test

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"cumulet.io/registry"
	"cumulet.io/registry/hubtoken"
	"cumulet.io/registry/server"
)

func accessText(c *hubtoken.Claims) string {
	var out []string
	for _, a := range c.Access {
		out = append(out, a.String())
	}
	return strings.Join(out, " ")
}

func TestScopes(t *testing.T) {
	h := startHub(t)
	d := h.Directory()
	for repository, account := range map[string]string{"acme/web": "wendy", "acme/open": "wendy", "beta/secret": "boris"} {
		if err := d.Pushed(t.Context(), repository, account); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := d.SetVisibility(t.Context(), "acme/open", registry.Public); err != nil {
		t.Fatal(err)
	}
	both := []string{"acme", "beta"}
	if err := d.CreateAccount(t.Context(), registry.Account{Name: "duo", Kind: registry.Person}, "pass-of-duo"); err != nil {
		t.Fatal(err)
	}
	for _, org := range both {
		if err := d.SetMember(t.Context(), org, "duo", registry.RoleWriter); err != nil {
			t.Fatal(err)
		}
	}
	for _, tc := range []struct {
		name, user, service string
		scopes              []string
		audience, org, want string
	}{
		{"login asks for nothing", "wendy", "", nil, "registry", "acme", ""},
		{"pull", "rita", "", []string{"repository:acme/web:pull"}, "registry", "acme", "repository:acme/web:pull"},
		{"push,pull keeps its order", "wendy", "", []string{"repository:acme/web:push,pull"}, "registry", "acme", "repository:acme/web:push,pull"},
		{"reduced", "rita", "", []string{"repository:acme/web:pull,push,delete"}, "registry", "acme", "repository:acme/web:pull"},
		{"a writer does not delete", "wendy", "", []string{"repository:acme/web:delete"}, "registry", "acme", ""},
		{"an admin does", "adam", "", []string{"repository:acme/web:delete"}, "registry", "acme", "repository:acme/web:delete"},
		{"all that there is", "root", "", []string{"repository:acme/web:*"}, "registry", "acme", "repository:acme/web:pull,push,delete"},
		{"repeated (skopeo)", "wendy", "", []string{"repository:acme/web:pull,push", "repository:acme/open:pull"}, "registry", "acme", "repository:acme/web:pull,push repository:acme/open:pull"},
		{"joined with duplicates (containerd)", "wendy", "", []string{"repository:acme/web:pull repository:acme/web:pull,push repository:acme/web:push"}, "registry", "acme", "repository:acme/web:pull,push"},
		{"a new repository", "wendy", "", []string{"repository:acme/new/deep:pull,push"}, "registry", "acme", "repository:acme/new/deep:pull,push"},
		{"another org's", "boris", "", []string{"repository:acme/web:pull"}, "registry", "beta", ""},
		{"a missing one of another org", "boris", "", []string{"repository:acme/missing:pull"}, "registry", "beta", ""},
		{"another org's public one", "boris", "", []string{"repository:acme/open:pull,push"}, "registry", "beta", "repository:acme/open:pull"},
		{"nobody, public", "", "", []string{"repository:acme/open:pull,push"}, "registry", "", "repository:acme/open:pull"},
		{"nobody, private", "", "", []string{"repository:acme/web:pull"}, "registry", "", ""},
		{"no org", "root", "", []string{"repository:web:pull", "repository:nowhere/web:push"}, "registry", "acme", ""},
		{"no such name", "root", "", []string{"repository:acme/../beta/secret:pull", "repository:acme/UP:pull", "garbage", "a:b"}, "registry", "acme", ""},
		{"host in name", "root", "", []string{"repository:hub:5000/acme/web:pull"}, "registry", "acme", ""},
		{"unknown action and type", "root", "", []string{"repository:acme/web:pull,steal", "rocket:acme:fly"}, "registry", "acme", "repository:acme/web:pull"},
		{"catalog", "rita", "", []string{"registry:catalog:*"}, "registry", "acme", "registry:catalog:*"},
		{"catalog for nobody", "", "", []string{"registry:catalog:*"}, "registry", "", ""},
		{"two orgs, nothing asked", "duo", "", nil, "registry", "", ""},
		{"two orgs, one asked", "duo", "cis", []string{"org:beta:read,write,admin"}, "cis", "beta", "org:beta:read,write"},
		{"two orgs, both asked", "duo", "cis", []string{"org:beta:read", "org:acme:read"}, "cis", "", "org:beta:read org:acme:read"},
		{"cis reader", "rita", "cis", []string{"org:acme:read,write,admin"}, "cis", "acme", "org:acme:read"},
		{"cis owner", "root", "cis", []string{"org:acme:read,write,admin"}, "cis", "acme", "org:acme:read,write,admin"},
		{"logs", "rita", "logs", []string{"org:acme:read"}, "logs", "acme", "org:acme:read"},
		{"billing of another org", "rita", "billing", []string{"org:beta:read"}, "billing", "acme", ""},
		{"repository at another audience", "root", "cis", []string{"repository:acme/web:pull"}, "cis", "acme", ""},
		{"platform for a member", "root", "cis", []string{"platform:*:node,operator,meter"}, "cis", "acme", ""},
		{"platform for the node agent", "node-agent", "cis", []string{"platform:*:node,operator,meter"}, "cis", "", "platform:*:node"},
		{"platform name", "node-agent", "cis", []string{"platform:acme:node"}, "cis", "", ""},
		{"operator", "platform-auditor", "billing", []string{"platform:*:operator"}, "billing", "", "platform:*:operator"},
		{"a service is no member", "node-agent", "cis", []string{"org:acme:read"}, "cis", "", ""},
		{"service by its own name", "rita", "registry", []string{"repository:acme/web:pull"}, "registry", "acme", "repository:acme/web:pull"},
		{"service by another host", "rita", "hub.example", []string{"repository:acme/web:pull"}, "registry", "acme", "repository:acme/web:pull"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			service := tc.service
			if service == "" {
				service = h.host
			}
			a := h.getToken(tc.user, url.Values{"service": {service}, "scope": tc.scopes})
			if a.status != http.StatusOK {
				t.Fatalf("%d %s", a.status, a.body)
			}
			c := h.claims(a.Token, tc.audience)
			if got := accessText(c); got != tc.want {
				t.Errorf("access = %q, want %q", got, tc.want)
			}
			if c.Org != tc.org || c.Subject != tc.user || c.Issuer != h.url || c.Access == nil {
				t.Errorf("claims = %+v", c)
			}
			if a.AccessToken != a.Token || a.ExpiresIn != 300 || time.Since(a.IssuedAt) > time.Minute || a.RefreshToken != "" ||
				a.header.Get("Cache-Control") != "no-store" {
				t.Errorf("answer = %+v", a)
			}
			if tc.user == "" {
				return
			}
			// The OAuth2 form gives the same, with one space-joined scope.
			p := h.postToken(url.Values{"grant_type": {"password"}, "username": {tc.user}, "password": {"pass-of-" + tc.user},
				"service": {service}, "scope": {strings.Join(tc.scopes, " ")}, "client_id": {"test"}})
			if p.status != http.StatusOK || p.Scope != tc.want {
				t.Fatalf("POST: %d %s", p.status, p.body)
			}
			if got := h.claims(p.AccessToken, tc.audience); !reflect.DeepEqual(got.Access, c.Access) {
				t.Errorf("POST gives %v", got.Access)
			}
		})
	}
}

func TestTokenRequestsRefused(t *testing.T) {
	h := startHub(t)
	form := []string{"Content-Type", "application/x-www-form-urlencoded"}
	for _, tc := range []struct {
		name, method, path, body string
		header                   []string
		status                   int
		has                      string
	}{
		{"wrong password", "GET", "/token?service=registry", "", []string{"Authorization", basic("root", "wrong")}, 401, "wrong"},
		{"no such user", "GET", "/token?service=registry", "", []string{"Authorization", basic("ghost", "wrong")}, 401, "wrong"},
		{"empty credentials", "GET", "/token?service=registry", "", []string{"Authorization", basic("", "")}, 401, "wrong"},
		{"not Basic", "GET", "/token?service=registry", "", []string{"Authorization", "Bearer abc"}, 401, "Basic"},
		{"service", "GET", "/token?service=evil.example", "", nil, 400, `"field":"service"`},
		{"service, form", "POST", "/token", "grant_type=password&service=evil.example", form, 400, `"field":"service"`},
		{"form: wrong password", "POST", "/token", "grant_type=password&username=root&password=wrong", form, 401, "invalid_grant"},
		{"form: nothing", "POST", "/token", "grant_type=password", form, 401, "invalid_grant"},
		{"form: grant type", "POST", "/token", "grant_type=magic", form, 400, "unsupported_grant_type"},
		{"form: refresh token", "POST", "/token", "grant_type=refresh_token&refresh_token=abc", form, 401, "invalid_grant"},
		{"form: password in the URL", "POST", "/token?grant_type=password&username=root&password=pass-of-root", "", form, 400, "unsupported_grant_type"},
		{"form: JSON", "POST", "/token", "{}", []string{"Content-Type", "application/json"}, 400, "invalid_request"},
		{"form: escape", "POST", "/token", "grant_type=%zz", form, 400, "invalid_request"},
		{"form: too large", "POST", "/token", strings.Repeat("a", 300<<10), form, 413, "large"},
		{"method", "PUT", "/token", "", nil, 405, ""},
		{"revoke nothing", "POST", "/token/revoke", "", form, 400, "invalid_request"},
		{"revoke the unknown", "POST", "/token/revoke", "token=abc", form, 200, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			resp, body := h.request(tc.method, tc.path, tc.body, tc.header...)
			if resp.StatusCode != tc.status || !strings.Contains(body, tc.has) {
				t.Errorf("%d %s, want %d and %q", resp.StatusCode, body, tc.status, tc.has)
			}
			if (tc.status == 401) != strings.HasPrefix(resp.Header.Get("WWW-Authenticate"), "Basic ") {
				t.Errorf("challenge = %q", resp.Header.Get("WWW-Authenticate"))
			}
			if tc.status != 405 && resp.Header.Get("Cache-Control") != "no-store" {
				t.Error("may be cached")
			}
		})
	}
	if log := h.log.String(); strings.Contains(log, "pass-of") || strings.Contains(log, `:"wrong"`) {
		t.Errorf("a password is in the log:\n%s", log)
	}
}

func TestLockout(t *testing.T) {
	h := startHub(t)
	q := url.Values{"service": {h.host}}.Encode()
	get := func(password string) *http.Response {
		resp, _ := h.request(http.MethodGet, "/token?"+q, "", "Authorization", basic("wendy", password))
		return resp
	}
	for i := range 5 {
		if resp := get("guess"); resp.StatusCode != http.StatusUnauthorized {
			t.Fatalf("guess %d: %d", i, resp.StatusCode)
		}
	}
	resp := get("pass-of-wendy")
	if resp.StatusCode != http.StatusTooManyRequests || resp.Header.Get("Retry-After") == "" {
		t.Errorf("after five guesses: %d, Retry-After %q", resp.StatusCode, resp.Header.Get("Retry-After"))
	}
	if a := h.getToken("rita", url.Values{}); a.status != http.StatusOK {
		t.Errorf("another user: %d", a.status)
	}
}

func TestOfflineToken(t *testing.T) {
	h := startHub(t)
	scope := "repository:acme/web:pull,push"
	byGet := h.getToken("wendy", url.Values{"service": {h.host}, "offline_token": {"true"}, "client_id": {"docker"}})
	byPost := h.postToken(url.Values{"grant_type": {"password"}, "username": {"wendy"}, "password": {"pass-of-wendy"},
		"service": {h.host}, "access_type": {"offline"}, "client_id": {"containerd"}})
	refresh := func(token, service string) tokenAnswer {
		return h.postToken(url.Values{"grant_type": {"refresh_token"}, "refresh_token": {token}, "service": {service}, "scope": {scope}})
	}
	for _, a := range []tokenAnswer{byGet, byPost} {
		if a.RefreshToken == "" {
			t.Fatalf("no refresh token: %s", a.body)
		}
		got := refresh(a.RefreshToken, h.host)
		if got.status != http.StatusOK || got.Scope != scope {
			t.Fatalf("refresh: %d %s", got.status, got.body)
		}
		if c := h.claims(got.Token, "registry"); c.Subject != "wendy" || c.Org != "acme" {
			t.Errorf("claims = %+v", c)
		}
		if got := refresh(a.RefreshToken, "cis"); got.status != http.StatusUnauthorized {
			t.Errorf("for another service: %d", got.status)
		}
	}
	// The command line's login serves every service.
	cli := h.postToken(url.Values{"grant_type": {"password"}, "username": {"wendy"}, "password": {"pass-of-wendy"},
		"service": {"cis"}, "access_type": {"offline"}, "client_id": {"cis"}})
	for service, audience := range map[string]string{"cis": "cis", "logs": "logs", "billing": "billing", h.host: "registry"} {
		got := h.postToken(url.Values{"grant_type": {"refresh_token"}, "refresh_token": {cli.RefreshToken}, "service": {service}, "scope": {"org:acme:read,write"}})
		if got.status != http.StatusOK || !h.claims(got.Token, audience).AllowsOrg("acme", "write") {
			t.Errorf("the login of cis at %s: %d %s", service, got.status, got.body)
		}
	}
	// Rights are decided anew each time.
	if err := h.Directory().SetMember(t.Context(), "acme", "wendy", registry.RoleReader); err != nil {
		t.Fatal(err)
	}
	if got := refresh(byGet.RefreshToken, h.host); got.Scope != "repository:acme/web:pull" {
		t.Errorf("after the role changed: %q", got.Scope)
	}
	resp, _ := h.request(http.MethodPost, "/token/revoke", url.Values{"token": {byGet.RefreshToken}}.Encode(), "Content-Type", "application/x-www-form-urlencoded")
	if got := refresh(byGet.RefreshToken, h.host); resp.StatusCode != http.StatusOK || got.status != http.StatusUnauthorized {
		t.Errorf("revoked: %d, then %d", resp.StatusCode, got.status)
	}
	if got := refresh(byPost.RefreshToken, h.host); got.status != http.StatusOK {
		t.Errorf("the other one: %d", got.status)
	}
	for _, user := range []string{"", "node-agent"} {
		if a := h.getToken(user, url.Values{"offline_token": {"true"}}); user == "" && a.RefreshToken != "" {
			t.Errorf("%q has a refresh token", user)
		}
	}
}

func TestPullCredential(t *testing.T) {
	h := startHub(t)
	img := randomImage(t)
	push(t, h, "wendy", "acme/app:v1", img)
	push(t, h, "wendy", "acme/other:v1", img)
	push(t, h, "boris", "beta/secret:v1", img)
	push(t, h, "boris", "beta/open:v1", img)
	if _, err := h.Directory().SetVisibility(t.Context(), "beta/open", registry.Public); err != nil {
		t.Fatal(err)
	}
	post := func(bearer, body string) (*http.Response, string) {
		return h.request(http.MethodPost, "/v1/pull-credentials", body, "Authorization", bearer, "Content-Type", "application/json")
	}
	body := `{"org":"acme","repositories":["acme/app","beta/secret","beta/open","acme/app"]}`
	node := h.bearer("node-agent", "platform:*:node")
	for name, tc := range map[string]struct {
		bearer, body string
		status       int
	}{
		"a member":       {h.bearer("root", "org:acme:admin", "platform:*:node"), body, 403},
		"the operator":   {h.bearer("platform-auditor", "platform:*:operator"), body, 403},
		"nobody":         {"", body, 401},
		"unknown field":  {node, `{"org":"acme","repos":[]}`, 400},
		"two objects":    {node, body + body, 400},
		"bad org":        {node, `{"org":"Acme","repositories":[]}`, 400},
		"bad repository": {node, `{"org":"acme","repositories":["app"]}`, 400},
		"too many":       {node, `{"org":"acme","repositories":["` + strings.Repeat(`a/b","a/c","`, 40) + `a/d"]}`, 400},
	} {
		if resp, text := post(tc.bearer, tc.body); resp.StatusCode != tc.status {
			t.Errorf("%s: %d %s, want %d", name, resp.StatusCode, text, tc.status)
		}
	}
	resp, text := post(node, body)
	var cred struct{ Username, Password string }
	if resp.StatusCode != http.StatusOK || json.Unmarshal([]byte(text), &cred) != nil || cred.Username != "hubtoken" {
		t.Fatalf("%d %s", resp.StatusCode, text)
	}
	user, password, err := h.Tokens().Delegate(t.Context(), "acme", []string{"acme/app", "beta/secret", "beta/open"})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range [][2]string{{cred.Username, cred.Password}, {user, password}} {
		all := []string{"repository:acme/app:pull,push", "repository:acme/other:pull", "repository:beta/secret:pull", "repository:beta/open:pull", "org:acme:read", "registry:catalog:*"}
		want := "repository:acme/app:pull repository:beta/open:pull"
		resp, text := h.request(http.MethodGet, "/token?"+url.Values{"service": {h.host}, "scope": all, "offline_token": {"true"}}.Encode(), "", "Authorization", basic(c[0], c[1]))
		got := h.answer(resp, text)
		if got.status != http.StatusOK || got.RefreshToken != "" {
			t.Fatalf("exchange: %d %s", got.status, got.body)
		}
		if claims := h.claims(got.Token, "registry"); accessText(claims) != want || claims.Org != "acme" {
			t.Errorf("access = %q, want %q", accessText(claims), want)
		}
		form := h.postToken(url.Values{"grant_type": {"password"}, "username": {c[0]}, "password": {c[1]}, "service": {h.host}, "scope": {strings.Join(all, " ")}})
		if form.Scope != want {
			t.Errorf("by form: %q", form.Scope)
		}
		pullAs(t, h, c[0], c[1], "acme/app:v1", http.StatusOK)
		pullAs(t, h, c[0], c[1], "beta/open:v1", http.StatusOK)
		pullAs(t, h, c[0], c[1], "acme/other:v1", http.StatusUnauthorized)
		pullAs(t, h, c[0], c[1], "beta/secret:v1", http.StatusUnauthorized)
		// It is no token for anything itself, and no other token is such a credential.
		if resp, _ := h.request(http.MethodGet, "/v2/", "", "Authorization", "Bearer "+c[1]); resp.StatusCode != http.StatusUnauthorized {
			t.Errorf("as bearer: %d", resp.StatusCode)
		}
		if resp, _ := h.request(http.MethodGet, "/token", "", "Authorization", basic(c[0], got.Token)); resp.StatusCode != http.StatusUnauthorized {
			t.Errorf("a registry token as credential: %d", resp.StatusCode)
		}
	}
	if _, err := h.Directory().SetVisibility(t.Context(), "beta/open", registry.Private); err != nil {
		t.Fatal(err)
	}
	pullAs(t, h, user, password, "beta/open:v1", http.StatusUnauthorized)
}

func TestTokensOnTheRegistry(t *testing.T) {
	h := startHub(t)
	push(t, h, "wendy", "acme/app:v1", randomImage(t))
	get := func(token string) (int, string) {
		resp, _ := h.request(http.MethodGet, "/v2/acme/app/tags/list", "", "Authorization", "Bearer "+token)
		return resp.StatusCode, resp.Header.Get("WWW-Authenticate")
	}
	scope := "repository:acme/app:pull"
	good := h.getToken("rita", url.Values{"service": {h.host}, "scope": {scope}}).Token
	if status, _ := get(good); status != http.StatusOK {
		t.Fatalf("good token: %d", status)
	}

	keys, err := hubtoken.OpenKeys(hubtoken.KeysConfig{Path: filepath.Join(h.dir, "keys", "hubtoken.json"),
		Now: func() time.Time { return time.Now().Add(-time.Hour) }})
	if err != nil {
		t.Fatal(err)
	}
	claims := hubtoken.Claims{RegisteredClaims: jwt.RegisteredClaims{Subject: "rita", Audience: jwt.ClaimStrings{"registry"}},
		Access: []hubtoken.Access{{Type: "repository", Name: "acme/app", Actions: []string{"pull"}}}}
	expired, err := hubtoken.NewIssuer(keys, h.Issuer()).Sign(claims, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	alive, err := hubtoken.NewIssuer(keys, h.Issuer()).Sign(claims, 2*time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if status, _ := get(alive); status != http.StatusOK {
		t.Errorf("a token made an hour ago for two: %d", status)
	}
	_, foreign, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	parts := strings.Split(good, ".")
	sig := ed25519.Sign(foreign, []byte(parts[0]+"."+parts[1]))
	for name, token := range map[string]string{
		"expired":        expired,
		"wrong audience": h.getToken("rita", url.Values{"service": {"cis"}, "scope": {"org:acme:read"}}).Token,
		"tampered":       parts[0] + "." + base64.RawURLEncoding.EncodeToString([]byte(`{"iss":"`+h.url+`","aud":["registry"],"exp":9999999999,"access":[{"type":"repository","name":"acme/app","actions":["pull"]}]}`)) + "." + parts[2],
		"foreign key":    parts[0] + "." + parts[1] + "." + base64.RawURLEncoding.EncodeToString(sig),
		"no token":       "zzz",
	} {
		status, challenge := get(token)
		want := fmt.Sprintf(`Bearer realm="%s/token",service="%s",scope="%s",error="invalid_token"`, h.url, h.host, scope)
		if status != http.StatusUnauthorized || challenge != want {
			t.Errorf("%s: %d %s", name, status, challenge)
		}
	}
	if status, challenge := get(h.getToken("boris", url.Values{"scope": {scope}}).Token); status != http.StatusUnauthorized || !strings.Contains(challenge, `error="insufficient_scope"`) {
		t.Errorf("a token without the right: %d %s", status, challenge)
	}

	t.Run("rotation", func(t *testing.T) {
		remote, err := hubtoken.NewVerifier(hubtoken.Config{JWKSURL: h.url + "/.well-known/jwks.json", Issuer: h.Issuer(), Refetch: 10 * time.Millisecond})
		if err != nil {
			t.Fatal(err)
		}
		tokens := []string{good}
		for range 3 {
			if err := h.RotateKeys(); err != nil {
				t.Fatal(err)
			}
			tokens = append(tokens, h.getToken("rita", url.Values{"scope": {scope}}).Token)
			for i, token := range tokens {
				if status, _ := get(token); status != http.StatusOK {
					t.Errorf("token %d of %d: %d", i, len(tokens), status)
				}
				if _, err := remote.Verify(t.Context(), token, "registry"); err != nil {
					t.Errorf("token %d of %d by JWKS: %v", i, len(tokens), err)
				}
			}
		}
		kids := map[string]bool{}
		for _, token := range tokens {
			kids[strings.Split(token, ".")[0]] = true
		}
		if len(kids) != len(tokens) {
			t.Errorf("%d keys signed %d tokens", len(kids), len(tokens))
		}
	})
}

func TestSource(t *testing.T) {
	h := startHub(t, func(c *server.Config) { c.KeyAlgorithm = hubtoken.ES256 })
	src, err := hubtoken.NewPasswordSource(hubtoken.PasswordConfig{Realm: h.url + "/token", Service: "cis", Scopes: []string{"platform:*:node"},
		Username: "node-agent", ReadPassword: func() (string, error) { return "pass-of-node-agent", nil }})
	if err != nil {
		t.Fatal(err)
	}
	token, err := src.Token(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if c := h.claims(token, "cis"); !c.AllowsOrg("any", "write") || c.AllowsOrg("any", "admin") {
		t.Errorf("claims = %+v", c)
	}
}
