package server_test

import (
	"encoding/json"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"

	"cumulet.io/registry"
)

// TestPeople goes through the life of accounts, an org and all in it, each call and answer checked against the document,
// and each operation of the management of people called.
func TestPeople(t *testing.T) {
	h := startHub(t)
	router := document(t, h)
	all := func(user string) string {
		return h.bearer(user, "org:acme:*", "org:gamma:*", "platform:*:*", "account:"+user+":*")
	}
	root := all("root")
	called := map[string]bool{}
	do := func(bearer, method, path, body string, status int, has ...string) string {
		t.Helper()
		resp, text := h.checked(router, status < 400, method, path, body, "Content-Type", "application/json", "Authorization", bearer)
		if resp.StatusCode != status {
			t.Errorf("%s %s: %d %s, want %d", method, path, resp.StatusCode, text, status)
		}
		for _, want := range has {
			if !strings.Contains(text, want) {
				t.Errorf("%s %s: %s, want %s in it", method, path, text, want)
			}
		}
		req, err := http.NewRequestWithContext(t.Context(), method, path, nil)
		if err != nil {
			t.Fatal(err)
		}
		if route, _, err := router.FindRoute(req); err == nil && status < 300 {
			called[route.Operation.OperationID] = true
		}
		return text
	}
	field := func(text, name string) string {
		t.Helper()
		var m map[string]any
		if err := json.Unmarshal([]byte(text), &m); err != nil {
			t.Fatalf("%v: %s", err, text)
		}
		s, _ := m[name].(string)
		return s
	}

	// Accounts.
	password := field(do(root, "POST", "/v1/accounts", `{"name":"zoe"}`, 200, `"kind":"person"`), "password")
	do(root, "POST", "/v1/accounts", `{"name":"zoe"}`, 409)
	do(root, "POST", "/v1/accounts", `{"name":"Zoe!"}`, 400, `"field":"name"`)
	do(root, "POST", "/v1/accounts", `{"name":"yan","password":"short"}`, 400, `"field":"password"`)
	do(root, "POST", "/v1/accounts", `{"name":"yan","password":"pass-of-yan","platform":["node"]}`, 400, `"field":"platform"`)
	if text := do(root, "POST", "/v1/accounts", `{"name":"yan","password":"pass-of-yan","platform":["operator"]}`, 200, `"platform":["operator"]`); strings.Contains(text, "pass-of") {
		t.Errorf("a password is answered: %s", text)
	}
	do(root, "GET", "/v1/accounts?limit=2", "", 200, `"next":"boris"`)
	do(root, "GET", "/v1/accounts?after=yan", "", 200, `[{"name":"zoe"`)
	do(root, "GET", "/v1/accounts/zoe", "", 200)
	do(root, "GET", "/v1/accounts/nobody", "", 404)
	do(root, "PUT", "/v1/accounts/zoe/password", `{"password":"pass-of-zoe"}`, 204)
	if resp, _ := h.request("GET", "/token", "", "Authorization", basic("zoe", password)); resp.StatusCode != 401 {
		t.Errorf("the old password: %d", resp.StatusCode)
	}
	do(root, "PATCH", "/v1/accounts/root", `{"platform":[]}`, 409, "no administrator")
	do(root, "PATCH", "/v1/accounts/root", `{"disabled":true}`, 409, "no administrator")
	do(root, "PATCH", "/v1/accounts/yan", `{"disabled":true}`, 200, `"disabled":true`)
	if resp, text := h.request("GET", "/token", "", "Authorization", basic("yan", "pass-of-yan")); resp.StatusCode != 401 || !strings.Contains(text, "disabled") {
		t.Errorf("a disabled account: %d %s", resp.StatusCode, text)
	}
	do(root, "PATCH", "/v1/accounts/node-agent", `{"disabled":true}`, 409, "no person's")
	do(root, "DELETE", "/v1/accounts/yan", "", 204)
	do(root, "DELETE", "/v1/accounts/boris", "", 409, "only owner")

	// An org with members.
	do(root, "POST", "/v1/orgs", `{"name":"gamma","owner":"zoe"}`, 200, `"name":"gamma"`)
	do(root, "POST", "/v1/orgs", `{"name":"gamma","owner":"zoe"}`, 409)
	do(root, "POST", "/v1/orgs", `{"name":"delta","owner":"nobody"}`, 404)
	do(root, "POST", "/v1/orgs", `{"name":"Delta"}`, 400, `"field":"org"`)
	do(root, "GET", "/v1/orgs?all=true&limit=2", "", 200, `"next":"beta"`)
	do(root, "GET", "/v1/orgs?all=true&after=beta", "", 200, `"gamma"`)
	zoe := all("zoe")
	do(zoe, "GET", "/v1/orgs", "", 200, `"role":"owner"`)
	do(root, "PUT", "/v1/orgs/gamma/quota", `{"bytes":1000,"repositories":2}`, 200)
	do(zoe, "GET", "/v1/orgs/gamma", "", 200, `"quota":{"bytes":1000,"repositories":2}`)
	do(root, "DELETE", "/v1/orgs/gamma/quota", "", 204)
	do(zoe, "GET", "/v1/orgs/gamma", "", 200, `"quota":{"bytes":0,"repositories":0}`)
	do(zoe, "PUT", "/v1/orgs/gamma/members/rita", `{"role":"reader"}`, 200)
	do(zoe, "PUT", "/v1/orgs/gamma/members/wendy", `{"role":"admin"}`, 200)
	do(zoe, "PUT", "/v1/orgs/gamma/members/wendy", `{"role":"king"}`, 400, `"field":"role"`)
	do(zoe, "PUT", "/v1/orgs/gamma/members/nobody", `{"role":"reader"}`, 404)
	do(zoe, "PUT", "/v1/orgs/gamma/members/node-agent", `{"role":"reader"}`, 400)
	wendy := all("wendy")
	do(wendy, "PUT", "/v1/orgs/gamma/members/wendy", `{"role":"owner"}`, 403)
	do(wendy, "DELETE", "/v1/orgs/gamma/members/zoe", "", 403)
	do(zoe, "DELETE", "/v1/orgs/gamma/members/zoe", "", 409, "no owner")
	do(zoe, "GET", "/v1/orgs/gamma/members?limit=2", "", 200, `"next":"wendy"`)

	// Teams and grants.
	do(wendy, "PUT", "/v1/orgs/gamma/teams/dev", `{"description":"who build"}`, 200, `"members":0`)
	do(wendy, "PUT", "/v1/orgs/gamma/teams/dev", `{"description":"who build it"}`, 200, "build it")
	do(wendy, "PUT", "/v1/orgs/gamma/teams/DEV", `{"description":""}`, 400, `"field":"team"`)
	do(wendy, "PUT", "/v1/orgs/gamma/teams/dev/members/rita", "", 204)
	do(wendy, "PUT", "/v1/orgs/gamma/teams/dev/members/boris", "", 404, "no member")
	do(wendy, "PUT", "/v1/orgs/gamma/teams/ops/members/rita", "", 404, "no team")
	do(wendy, "GET", "/v1/orgs/gamma/teams", "", 200, `"members":1`)
	do(wendy, "GET", "/v1/orgs/gamma/teams/dev", "", 200)
	do(wendy, "GET", "/v1/orgs/gamma/teams/dev/members", "", 200, `{"account":"rita","role":"reader","teams":["dev"]}`)
	do(wendy, "GET", "/v1/orgs/gamma/teams/ops/members", "", 404)
	do(wendy, "PUT", "/v1/orgs/gamma/grants", `{"team":"dev","repositories":"gamma/web-*","role":"writer"}`, 204)
	do(wendy, "PUT", "/v1/orgs/gamma/grants", `{"account":"boris","repositories":"gamma/web-1","role":"reader"}`, 204)
	for body, name := range map[string]string{
		`{"team":"dev","account":"boris","repositories":"gamma/x","role":"reader"}`: `"field":"team"`,
		`{"repositories":"gamma/x","role":"reader"}`:                                `"field":"team"`,
		`{"team":"dev","repositories":"acme/web","role":"reader"}`:                  `"field":"repositories"`,
		`{"team":"dev","repositories":"*","role":"reader"}`:                         `"field":"repositories"`,
		`{"team":"dev","repositories":"gamma/x","role":"owner"}`:                    `"field":"role"`,
	} {
		do(wendy, "PUT", "/v1/orgs/gamma/grants", body, 400, name)
	}
	do(wendy, "PUT", "/v1/orgs/gamma/grants", `{"team":"ops","repositories":"gamma/x","role":"reader"}`, 404)
	next := field(do(wendy, "GET", "/v1/orgs/gamma/grants?limit=1", "", 200, `"account":"boris"`), "next")
	do(wendy, "GET", "/v1/orgs/gamma/grants?limit=1&after="+next, "", 200, `"team":"dev"`)
	do(wendy, "GET", "/v1/orgs/gamma/grants?after=zz", "", 400, `"field":"after"`)
	do(h.bearer("rita"), "GET", "/v1/account", "", 200, `"gamma/web-*"`, `"hasPassword":true`)
	do(wendy, "DELETE", "/v1/orgs/gamma/grants?account=boris&repositories=gamma/web-1", "", 204)
	do(wendy, "DELETE", "/v1/orgs/gamma/teams/dev/members/rita", "", 204)
	do(h.bearer("rita"), "GET", "/v1/account", "", 200, `"grants":[]`)
	do(wendy, "DELETE", "/v1/orgs/gamma/teams/dev", "", 204)
	do(wendy, "DELETE", "/v1/orgs/gamma/teams/dev", "", 404)
	do(wendy, "GET", "/v1/orgs/gamma/grants", "", 200, `"items":[]`)

	// Robots.
	const scopes = `"scopes":[{"type":"repository","name":"gamma/*","actions":["pull","push"]}]`
	secret := field(do(wendy, "POST", "/v1/orgs/gamma/robots", `{"name":"ci",`+scopes+`}`, 200, `"account":"gamma+ci"`), "secret")
	do(wendy, "POST", "/v1/orgs/gamma/robots", `{"name":"ci",`+scopes+`}`, 409)
	for body, name := range map[string]string{
		`{"name":"x","scopes":[]}`: `"field":"scopes"`,
		`{"name":"x","scopes":[{"type":"repository","name":"acme/*","actions":["pull"]}]}`:   `"field":"scopes[0].name"`,
		`{"name":"x","scopes":[{"type":"repository","name":"gamma/*","actions":["steal"]}]}`: `"field":"scopes[0].actions"`,
		`{"name":"x","scopes":[{"type":"org","name":"gamma","actions":["admin"]}]}`:          `"field":"scopes[0].actions"`,
		`{"name":"x","scopes":[{"type":"platform","name":"*","actions":["node"]}]}`:          `"field":"scopes[0].type"`,
		`{"name":"x",` + scopes + `,"expires":"2001-01-01T00:00:00Z"}`:                       `"field":"expires"`,
		`{"name":"x/y",` + scopes + `}`:                                                      `"field":"name"`,
	} {
		do(wendy, "POST", "/v1/orgs/gamma/robots", body, 400, name)
	}
	robotStatus := func(secret string) int {
		resp, _ := h.request("GET", "/token", "", "Authorization", basic("gamma+ci", secret))
		return resp.StatusCode
	}
	do(wendy, "GET", "/v1/orgs/gamma/robots", "", 200, `"name":"ci"`)
	do(wendy, "PATCH", "/v1/orgs/gamma/robots/ci", `{"disabled":true,"description":"asleep"}`, 200, "asleep")
	if got := robotStatus(secret); got != 401 {
		t.Errorf("a disabled robot: %d", got)
	}
	do(wendy, "PATCH", "/v1/orgs/gamma/robots/ci", `{"disabled":false,"expires":"2100-01-01T00:00:00Z"}`, 200, "2100")
	do(wendy, "PATCH", "/v1/orgs/gamma/robots/ci", `{"expires":"0001-01-01T00:00:00Z"}`, 200)
	if got := robotStatus(secret); got != 200 {
		t.Errorf("an enabled robot: %d", got)
	}
	do(wendy, "GET", "/v1/orgs/gamma/robots/ci", "", 200, `"used":`)
	rotated := field(do(wendy, "POST", "/v1/orgs/gamma/robots/ci/secret", "", 200), "secret")
	if old, now := robotStatus(secret), robotStatus(rotated); old != 401 || now != 200 {
		t.Errorf("after the rotation: old %d, new %d", old, now)
	}
	do(wendy, "DELETE", "/v1/orgs/gamma/robots/ci", "", 204)
	if got := robotStatus(rotated); got != 401 {
		t.Errorf("a removed robot: %d", got)
	}

	// One's own account.
	key := field(do(zoe, "POST", "/v1/account/keys", `{"name":"laptop","scopes":[{"type":"org","name":"gamma","actions":["read"]}]}`, 200), "key")
	do(zoe, "POST", "/v1/account/keys", `{"name":"laptop"}`, 409)
	do(zoe, "POST", "/v1/account/keys", `{"name":"x","expires":"2001-01-01T00:00:00Z"}`, 400, `"field":"expires"`)
	do(zoe, "POST", "/v1/account/keys", `{"name":"x","scopes":[{"type":"org","name":"gamma","actions":[]}]}`, 400, `"field":"scopes[0].actions"`)
	do(zoe, "GET", "/v1/account/keys", "", 200, `"laptop"`)
	keyStatus := func(user string) int {
		resp, _ := h.request("GET", "/token", "", "Authorization", basic(user, key))
		return resp.StatusCode
	}
	if of, other := keyStatus("zoe"), keyStatus("wendy"); of != 200 || other != 401 {
		t.Errorf("the key: %d, as another: %d", of, other)
	}
	offline := h.postToken(url.Values{"grant_type": {"password"}, "username": {"zoe"}, "password": {key}, "access_type": {"offline"}, "client_id": {"ci"}}).RefreshToken
	refresh := func(token string) int {
		return h.postToken(url.Values{"grant_type": {"refresh_token"}, "refresh_token": {token}}).status
	}
	id := field(strings.TrimSuffix(strings.TrimPrefix(strings.TrimSpace(do(zoe, "GET", "/v1/account/tokens", "", 200, `"client":"ci"`)), `{"items":[`), `]}`), "id")
	if got := refresh(offline); got != 200 {
		t.Errorf("the key's refresh token: %d", got)
	}
	do(zoe, "DELETE", "/v1/account/keys/laptop", "", 204)
	do(zoe, "DELETE", "/v1/account/keys/laptop", "", 404)
	if got := keyStatus("zoe"); got != 401 {
		t.Errorf("a removed key: %d", got)
	}
	if got := refresh(offline); got != 401 {
		t.Errorf("what was got with it: %d", got)
	}
	do(zoe, "DELETE", "/v1/account/tokens/"+id, "", 404)
	offline = h.getToken("zoe", url.Values{"offline_token": {"true"}}).RefreshToken
	id = field(strings.TrimSuffix(strings.TrimPrefix(strings.TrimSpace(do(zoe, "GET", "/v1/account/tokens", "", 200)), `{"items":[`), `]}`), "id")
	do(zoe, "DELETE", "/v1/account/tokens/"+id, "", 204)
	if got := refresh(offline); got != 401 {
		t.Errorf("a revoked token: %d", got)
	}
	do(zoe, "PUT", "/v1/account/password", `{"current":"wrong","password":"a new password"}`, 403, `"field":"current"`)
	do(zoe, "PUT", "/v1/account/password", `{"current":"pass-of-zoe","password":"short"}`, 400, `"field":"password"`)
	do(zoe, "PUT", "/v1/account/password", `{"current":"pass-of-zoe","password":"a new password"}`, 204)

	// The end of an org.
	do(h.bearer("rita", "org:gamma:read"), "DELETE", "/v1/orgs/gamma/members/rita", "", 204)
	if err := h.Directory().Pushed(t.Context(), "gamma/web", "zoe"); err != nil {
		t.Fatal(err)
	}
	do(zoe, "DELETE", "/v1/orgs/gamma", "", 409, "1 repositories")
	do(root, "POST", "/v1/orgs", `{"name":"empty"}`, 200, `"role":"owner"`)
	do(root, "DELETE", "/v1/orgs/empty", "", 204)

	// All of it is in the audit log, and no secret is.
	log := do(zoe, "GET", "/v1/orgs/gamma/audit?limit=1000", "", 200)
	for _, action := range []string{"org.create", "quota.set", "quota.reset", "member.set", "member.remove", "team.create", "team.update", "team.member.add",
		"team.member.remove", "team.delete", "grant.set", "grant.remove", "robot.create", "robot.update", "robot.rotate", "robot.delete", "access"} {
		if !strings.Contains(log, `"action":"`+action+`"`) {
			t.Errorf("no %s in the audit log", action)
		}
	}
	platform := do(root, "GET", "/v1/audit?limit=1000", "", 200, "account.create", "account.update", "account.delete", "account.password", "apikey.create", "apikey.delete", "token.revoke", `"login"`)
	for _, text := range []string{log, platform, h.log.String()} {
		for _, secret := range []string{secret, rotated, key, offline, password, "pass-of", "a new password"} {
			if strings.Contains(text, secret) {
				t.Errorf("a secret is written: %s", secret)
			}
		}
	}
	next = field(do(zoe, "GET", "/v1/orgs/gamma/audit?limit=1&action=member&actor=zoe&denied=false&target=account/*&since=2020-01-01T00:00:00Z&until=2100-01-01T00:00:00Z", "", 200, "member."), "next")
	do(zoe, "GET", "/v1/orgs/gamma/audit?after="+next, "", 200)
	do(root, "GET", "/v1/audit?org=gamma&limit=1", "", 200, `"org":"gamma"`)
	for query, name := range map[string]string{"since=x": "since", "denied=perhaps": "denied", "after=x": "after", "limit=x": "limit"} {
		do(zoe, "GET", "/v1/orgs/gamma/audit?"+query, "", 400, `"field":"`+name+`"`)
	}

	doc, err := openapi3.NewLoader().LoadFromData(registry.OpenAPI())
	if err != nil {
		t.Fatal(err)
	}
	for path, item := range doc.Paths.Map() {
		for method, op := range item.Operations() {
			switch op.Tags[0] {
			case "account", "accounts", "orgs", "members", "robots", "audit":
				if !called[op.OperationID] && !strings.HasSuffix(path, "/identities") { // see TestOIDC
					t.Errorf("%s %s is never called", method, path)
				}
			}
		}
	}
}
