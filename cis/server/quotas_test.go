package server_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"cumulet.io/cis"
	"cumulet.io/cis/control"
	"cumulet.io/cis/server/servertest"
	"cumulet.io/registry/hubtoken"
)

// What an operator sets holds over the configuration, from the next instance on, and it is told who did it.
func TestQuotas(t *testing.T) {
	env := servertest.New(t, newMemory, servertest.Options{Change: func(c *control.Config) {
		c.Quota, c.OrgQuota = control.Quota{Instances: 2}, map[string]control.Quota{"big": {Instances: 50, MemoryMiB: 1 << 20}}
	}})
	operator := env.Token("cis", hubtoken.Access{Type: hubtoken.TypePlatform, Name: "*", Actions: []string{"operator"}})
	writer := env.Token("cis", servertest.Org("acme", "write"))
	ask := func(status int, method, org, text string) (q cis.OrgQuota, body string) {
		t.Helper()
		resp, body := call(t, env, operator, method, "/v1/orgs/"+org+"/quota", text)
		if resp.StatusCode != status {
			t.Fatalf("%s %s: %d %s, want %d", method, text, resp.StatusCode, body, status)
		}
		if status == http.StatusOK {
			if err := json.Unmarshal([]byte(body), &q); err != nil {
				t.Fatal(err)
			}
		}
		return q, body
	}
	create := func(status int, key string) {
		t.Helper()
		if resp, text := call(t, env, writer, "POST", "/v1/orgs/acme/instances", body(key)); resp.StatusCode != status {
			t.Errorf("create %s: %d %s, want %d", key, resp.StatusCode, text, status)
		}
	}
	if q, _ := ask(200, "GET", "big", ""); q.Source != cis.QuotaConfigured || q.Quota.Instances != 50 || q.Used != (cis.Quota{}) {
		t.Errorf("%+v", q)
	}
	create(201, "a")
	create(201, "b")
	create(429, "c")
	if q, _ := ask(200, "GET", "acme", ""); q.Source != cis.QuotaDefault || q.Quota.Instances != 2 || q.Used.Instances != 2 || q.Used.MilliCPU == 0 || len(q.Changes) != 0 {
		t.Errorf("%+v", q)
	}
	for range 2 { // a repeat is no change
		if q, _ := ask(200, "PUT", "acme", `{"instances":3}`); q.Source != cis.QuotaSet || q.Quota != (cis.Quota{Instances: 3}) || len(q.Changes) != 1 {
			t.Errorf("%+v", q)
		}
	}
	create(201, "c")
	create(429, "d")
	ask(200, "PUT", "acme", `{"instances":1,"milliCPU":1000}`)
	create(429, "d") // and what runs goes on
	if q, _ := ask(200, "GET", "acme", ""); q.Used.Instances != 3 {
		t.Errorf("%+v", q)
	}
	ask(200, "PUT", "acme", `{}`) // no bound at all
	create(201, "d")
	create(201, "e")
	for range 2 {
		q, text := ask(200, "DELETE", "acme", "")
		if q.Source != cis.QuotaDefault || len(q.Changes) != 4 || q.Changes[0].After != nil || *q.Changes[0].Before != (cis.Quota{}) || q.Changes[3].Before != nil ||
			*q.Changes[3].After != (cis.Quota{Instances: 3}) || q.Changes[0].Actor == "" || q.Changes[0].Time.IsZero() {
			t.Errorf("%s", text)
		}
	}
	create(429, "f")
	ask(200, "PUT", "big", `{"memoryMiB":1}`)
	if q, _ := ask(200, "GET", "big", ""); q.Quota != (cis.Quota{MemoryMiB: 1}) { // what is set is all of it
		t.Errorf("%+v", q)
	}
	for text, field := range map[string]string{`{"instances":-1}`: "instances", `{"milliCPU":1099511627777}`: "milliCPU", `{"memory":1}`: "memory", `{"instances":"1"}`: "instances",
		`{"instances":1.5}`: "instances", `[]`: "", ``: "", `{"instances":1}{}`: ""} {
		if _, body := ask(400, "PUT", "acme", text); !strings.Contains(body, field) {
			t.Errorf("%s: %s", text, body)
		}
	}
	ask(413, "PUT", "acme", `{"instances":`+strings.Repeat(" ", 5000)+`1}`)
	ask(400, "GET", "Acme", "")
	if resp, text := call(t, env, operator, "GET", "/v1/orgs/acme/quota?x=1", ""); resp.StatusCode != 400 {
		t.Errorf("%d %s", resp.StatusCode, text)
	}
	for i := range cis.MaxQuotaChanges + 5 {
		ask(200, "PUT", "acme", fmt.Sprintf(`{"instances":%d}`, i+10))
	}
	if q, _ := ask(200, "GET", "acme", ""); len(q.Changes) != cis.MaxQuotaChanges || q.Changes[0].After.Instances != int64(cis.MaxQuotaChanges+14) {
		t.Errorf("%+v", q)
	}
}
