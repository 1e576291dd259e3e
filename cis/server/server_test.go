package server_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"cumulet.io/cis"
	"cumulet.io/cis/engine"
	"cumulet.io/cis/engine/memory"
	"cumulet.io/cis/server"
	"cumulet.io/cis/server/servertest"
	"cumulet.io/internal/problem"
	"cumulet.io/registry/hubtoken"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// oneShot keeps no connection, so that none is taken for a leak.
var oneShot = &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}

func newMemory(s engine.Sink) (engine.Engine, error) {
	return memory.New(memory.Config{Sink: s, Node: "test-1", Region: "test"})
}

const secret = "correct-horse-battery-staple"

// body is a create with about everything in it.
func body(key string) string {
	return `{"key":"` + key + `","spec":{"name":"web","labels":{"app":"web"},"restartPolicy":"Always","hostname":"web","domain":"ns.svc",
	"dns":{"servers":["10.0.0.10"],"searches":["svc"],"options":["ndots:5"]},"hostAliases":[{"ip":"10.1.2.3","hostnames":["db"]}],
	"graceSeconds":1,"securityContext":{"fsGroup":10},"source":{"node":"vk-1","namespace":"ns","name":"web","uid":"u"},
	"registryAuth":[{"server":"registry.test","username":"u","password":"` + secret + `"}],
	"volumes":[{"name":"tmp","emptyDir":{"memory":true,"sizeLimitBytes":1048576}},
		{"name":"open","files":{"files":[{"path":"a/b","mode":420,"data":"aGk="}]}},
		{"name":"shut","files":{"secret":true,"files":[{"path":"s","data":"Y29ycmVjdC1ob3JzZS1iYXR0ZXJ5LXN0YXBsZQ=="}]}}],
	"initContainers":[{"name":"side","image":"registry.test/a/side:1","restartPolicy":"Always"}],
	"containers":[{"name":"main","image":"registry.test/a/b:1","command":["sh","-c","echo hello; pause"],
		"env":[{"name":"A","value":"b"},{"name":"S","value":"` + secret + `","secret":true},{"name":"IP","field":"status.podIP"}],
		"ports":[{"containerPort":80}],"resources":{"requests":{"cpu":"100m","memory":"64Mi"}},
		"mounts":[{"volume":"tmp","path":"/tmp"},{"volume":"shut","path":"/s","readOnly":true}]}]}}`
}

// call makes one request and reads the answer whole.
func call(t testing.TB, env *servertest.Env, token, method, path, body string, header ...string) (*http.Response, string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	t.Cleanup(cancel)
	req, err := http.NewRequestWithContext(ctx, method, env.URL+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := oneShot.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(b)
}

// running makes an instance and waits until it runs.
func running(t testing.TB, env *servertest.Env, org, key string) *cis.Instance {
	t.Helper()
	resp, text := call(t, env, env.Token("cis", servertest.Org(org, "write")), "POST", "/v1/orgs/"+org+"/instances", body(key))
	var in cis.Instance
	if err := json.Unmarshal([]byte(text), &in); err != nil || resp.StatusCode != http.StatusCreated {
		t.Fatalf("%d %s", resp.StatusCode, text)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for _, err := range env.Control.Watch(ctx, org, "", "") {
		if err != nil {
			t.Fatal(err)
		}
		if now, err := env.Control.Get(ctx, org, in.ID); err != nil || now.Status.Ready {
			return now
		}
	}
	return nil
}

// Nobody gets at what is not his: each route, each kind of token.
func TestTenancy(t *testing.T) {
	env := servertest.New(t, newMemory, servertest.Options{})
	mine, theirs := running(t, env, "acme", "k"), running(t, env, "umbrella", "k")
	w := servertest.Org("acme", "write")
	platform := func(action string) hubtoken.Access {
		return hubtoken.Access{Type: hubtoken.TypePlatform, Name: "*", Actions: []string{action}}
	}
	const allowed = 0 // anything but 401, 403
	tokens := []struct {
		name, token           string
		read, write, anyToken int
		quotas                int
	}{
		{"no token", "", 401, 401, 401, 401},
		{"nonsense", "abc.def.ghi", 401, 401, 401, 401},
		{"wrong audience", env.Token("logs", w), 401, 401, 401, 401},
		{"expired", env.Expired("cis", w), 401, 401, 401, 401},
		{"another org", env.Token("cis", servertest.Org("umbrella", "admin")), 403, 403, allowed, 403},
		{"no access", env.Token("cis"), 403, 403, allowed, 403},
		{"meter role", env.Token("cis", platform("meter")), 403, 403, allowed, 403},
		{"repository named as the org", env.Token("cis", hubtoken.Access{Type: "repository", Name: "acme", Actions: []string{"write", "read"}}), 403, 403, allowed, 403},
		{"read only", env.Token("cis", servertest.Org("acme", "read")), allowed, 403, allowed, 403},
		{"operator role", env.Token("cis", platform("operator")), allowed, 403, allowed, allowed},
		{"write", env.Token("cis", w), allowed, allowed, allowed, 403},
		{"org's owner", env.Token("cis", hubtoken.Access{Type: "org", Name: "acme", Actions: []string{"read", "write", "admin", "own"}}), allowed, allowed, allowed, 403},
		{"platform's administrator", env.Token("cis", platform("admin")), 403, 403, allowed, allowed},
		{"node role", env.Token("cis", platform("node")), allowed, allowed, allowed, 403},
	}
	for _, r := range server.Routes() {
		for _, tk := range tokens {
			t.Run(fmt.Sprintf("%s %s/%s", r.Method, r.Path, tk.name), func(t *testing.T) {
				want := map[string]int{"read": tk.read, "write": tk.write, "": tk.anyToken, "operator": tk.quotas}[r.Access]
				if want == allowed && strings.HasSuffix(r.Path, "/watch") {
					return // goes on for ever
				}
				// An id that is not there: what is allowed changes nothing.
				path := fill(r.Path, "acme", "i-00000000000000000000")
				resp, text := call(t, env, tk.token, r.Method, path, "{}")
				got := resp.StatusCode
				if want == allowed {
					if got == 401 || got == 403 {
						t.Errorf("refused: %d %s", got, text)
					}
					return
				}
				if got != want || resp.Header.Get("Content-Type") != "application/problem+json" || (got == 401 && resp.Header.Get("WWW-Authenticate") == "") {
					t.Errorf("got %d %s, want %d", got, text, want)
				}
			})
		}
		if strings.Contains(r.Path, "{id}") {
			t.Run(r.Method+" "+r.Path+"/another org's id", func(t *testing.T) {
				query := map[string]string{"exec": "?command=id&stdout=1", "attach": "?stdout=1", "portforward": "?port=80"}[r.Path[strings.LastIndex(r.Path, "/")+1:]]
				payload := ""
				if r.Method == "PUT" {
					payload = `{"files":[{"path":"s","data":""}]}`
				}
				resp, text := call(t, env, env.Token("cis", w), r.Method, fill(r.Path, "acme", theirs.ID)+query, payload, "Connection", "Upgrade", "Upgrade", "tcp")
				if resp.StatusCode != 404 {
					t.Errorf("got %d %s, want 404", resp.StatusCode, text)
				}
			})
		}
	}
	for _, in := range []*cis.Instance{mine, theirs} {
		now, err := env.Control.Get(t.Context(), in.Org, in.ID)
		if err != nil || now.Version != in.Version {
			t.Errorf("%s was changed by a stranger: version %d, %v", in.Org, now.Version, err)
		}
	}
}

func fill(path, org, id string) string {
	return strings.NewReplacer("{org}", org, "{id}", id, "{container}", "main", "{volume}", "shut").Replace(path)
}

func TestBadInput(t *testing.T) {
	env := servertest.New(t, newMemory, servertest.Options{})
	in := running(t, env, "acme", "k")
	token := env.Token("cis", servertest.Org("acme", "write"))
	const all = "/v1/orgs/acme/instances"
	one := all + "/" + in.ID
	main := one + "/containers/main"
	for _, tt := range []struct {
		method, path, body string
		status             int
		field              string
	}{
		{"GET", all + "?nodes=x", "", 400, "nodes"},
		{"GET", all + "?limit=0", "", 400, "limit"},
		{"GET", all + "?limit=x", "", 400, "limit"},
		{"GET", all + "?limit=1&limit=2", "", 400, "limit"},
		{"GET", all + "?live=yes", "", 400, "live"},
		{"GET", all + "?label=x", "", 400, "label"},
		{"GET", all + "?label=a=1&label=a=2", "", 400, "label"},
		{"GET", all + "?cursor=x", "", 400, "cursor"},
		{"GET", all + "?a=%zz", "", 400, ""},
		{"GET", all + "?a=1;b=2", "", 400, ""},
		{"GET", "/v1/orgs/ACME/instances", "", 400, "org"},
		{"POST", all + "?x=1", body("z"), 400, "x"},
		{"POST", all, `{"key":"z","spec":{"name":"a","containers":[{"name":"a","image":"x","imagee":"y"}]}}`, 400, "spec.containers[0].imagee"},
		{"POST", all, strings.Replace(body("z"), "registry.test/a/b:1", "A B", 1), 400, "spec.containers[0].image"},
		{"POST", all, strings.Replace(body("z"), "100m", "-1", 1), 400, "spec.containers[0].resources.requests.cpu"},
		{"POST", all, strings.Replace(body("z"), `"key":"z"`, `"key":"z z"`, 1), 400, "key"},
		{"POST", all, `{`, 400, ""},
		{"POST", all, "", 400, ""},
		{"POST", all, strings.Replace(body("k"), "hello", "bye", 1), 409, "key"},
		{"POST", all, `{"key":"` + strings.Repeat("x", cis.MaxCreateBytes) + `"}`, 413, ""},
		{"GET", one + "?x", "", 400, "x"},
		{"DELETE", one + "?graceSeconds=-1", "", 400, "graceSeconds"},
		{"DELETE", one + "?graceSeconds=1.5", "", 400, "graceSeconds"},
		{"PUT", one + "/volumes/shut", `{"files":[{"path":"../x","data":""}]}`, 400, "files[0].path"},
		{"PUT", one + "/volumes/shut", `{"file":[]}`, 400, "file"},
		{"PUT", one + "/volumes/nope", `{"files":[]}`, 404, ""},
		{"GET", main + "/log?tail=-1", "", 400, "tail"},
		{"GET", main + "/log?since=yesterday", "", 400, "since"},
		{"GET", main + "/log?limitBytes=0", "", 400, "limitBytes"},
		{"GET", main + "/log?sincee=1", "", 400, "sincee"},
		{"GET", one + "/containers/nope/log", "", 404, ""},
		{"GET", main + "/exec?stdout=1", "", 400, "command"},
		{"GET", main + "/exec?command=a", "", 400, ""},
		{"GET", main + "/exec?command=a&tty=1&stdout=1&stderr=1", "", 400, "stderr"},
		{"GET", main + "/exec?command=a&stdout=1", "", 400, ""},
		{"GET", main + "/attach?command=a&stdout=1", "", 400, "command"},
		{"POST", one + "/portforward", "", 400, "port"},
		{"POST", one + "/portforward?port=65536", "", 400, "port"},
		{"POST", one + "/portforward?port=80", "", 400, ""},
		{"GET", "/v1/orgs/acme/watch?cursor=x", "", 400, "cursor"},
		{"GET", "/v1/orgs/acme/watch?since=x", "", 400, "since"},
		{"GET", "/v1/orgs/acme/watch?cursor=aaaaaaaa.1", "", 410, ""},
		{"GET", "/v1/orgs/acme/instances/i-../events", "", 404, ""},
		{"GET", "/v1/nothing", "", 404, ""},
		{"PATCH", one, "", 405, ""},
		{"GET", "/v1/sandboxes?x=1", "", 400, "x"},
	} {
		t.Run(tt.method+" "+tt.path[:min(len(tt.path), 120)], func(t *testing.T) {
			resp, text := call(t, env, token, tt.method, tt.path, tt.body)
			var d problem.Document
			if err := json.Unmarshal([]byte(text), &d); err != nil {
				t.Fatalf("%d, not a problem: %s", resp.StatusCode, text)
			}
			if resp.StatusCode != tt.status || d.Status != tt.status || d.Field != tt.field || d.RequestID == "" || (d.Status < 404 && d.Detail == "") {
				t.Errorf("got %d %s", resp.StatusCode, text)
			}
			if tt.status == 405 && resp.Header.Get("Allow") != "GET, DELETE" {
				t.Errorf("Allow is %q", resp.Header.Get("Allow"))
			}
		})
	}
	if resp, text := call(t, env, token, "POST", all, body("z"), "Content-Type", "text/yaml"); resp.StatusCode != 400 {
		t.Errorf("YAML as body: %d %s", resp.StatusCode, text)
	}
	list, err := env.Control.List(t.Context(), "acme", cis.ListRequest{})
	if err != nil || len(list.Items) != 1 {
		t.Errorf("bad input left %d instances, %v", len(list.Items), err)
	}
}
