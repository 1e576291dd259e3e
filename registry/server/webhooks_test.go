package server_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	standard "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"cumulet.io/internal/testenv"
	"cumulet.io/registry/directory"
	"cumulet.io/registry/server"
)

func TestWebhooks(t *testing.T) {
	type call struct {
		header http.Header
		body   []byte
	}
	calls := make(chan call, 100)
	target := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err == nil {
			calls <- call{r.Header, body}
		}
	}))
	defer target.Close()
	h := startHub(t, func(c *server.Config) { c.WebhookNetworks = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")} })
	h.runAll()
	router := document(t, h)
	admin, writer, stranger := h.bearer("adam", "org:acme:read,admin"), h.bearer("wendy", "org:acme:read,write"), h.bearer("boris", "org:beta:admin", "org:acme:read")
	do := func(valid bool, method, path, body, bearer string, want int) map[string]any {
		t.Helper()
		header := []string{"Content-Type", "application/json"}
		if bearer != "" {
			header = append(header, "Authorization", bearer)
		}
		resp, text := h.checked(router, valid, method, path, body, header...)
		if resp.StatusCode != want {
			t.Fatalf("%s %s: %d %s, want %d", method, path, resp.StatusCode, text, want)
		}
		out := map[string]any{}
		if text != "" {
			if err := json.Unmarshal([]byte(text), &out); err != nil {
				t.Fatal(err)
			}
		}
		return out
	}
	const hooks = "/v1/orgs/acme/webhooks"
	made := do(true, "POST", hooks, fmt.Sprintf(`{"url":%q,"events":["push"],"repositories":["acme/**"]}`, target.URL), admin, 201)
	id, secret := made["id"].(string), made["secret"].(string)
	one := hooks + "/" + id
	if got := do(true, "GET", one, "", admin, 200); got["secret"] != nil || got["state"] != "enabled" || got["createdBy"] != "adam" {
		t.Errorf("%v", got)
	}
	if got := do(true, "GET", hooks, "", admin, 200); len(got["items"].([]any)) != 1 {
		t.Errorf("%v", got)
	}
	// Nobody else sees or changes anything.
	for _, c := range [][3]string{{"GET", hooks, ""}, {"POST", hooks, `{"url":"https://x.example"}`}, {"GET", one, ""}, {"PATCH", one, `{}`},
		{"DELETE", one, ""}, {"POST", one + "/rotate-secret", `{}`}, {"POST", one + "/ping", ""}, {"GET", one + "/deliveries", ""},
		{"GET", one + "/deliveries/x", ""}, {"POST", one + "/deliveries/x/redeliver", ""}} {
		do(true, c[0], c[1], c[2], writer, 403)
		do(true, c[0], c[1], c[2], stranger, 404)
		do(true, c[0], c[1], c[2], "", 401)
		do(true, c[0], strings.Replace(c[1], "acme", "beta", 1), c[2], admin, 404)
	}
	// An id of another org is nothing.
	do(true, "GET", "/v1/orgs/beta/webhooks/"+id, "", stranger, 404)
	do(false, "POST", hooks, `{"url":"http://169.254.169.254/"}`, admin, 400)
	do(false, "POST", hooks, `{"url":"https://x.example","boom":1}`, admin, 400)
	do(false, "POST", hooks, `{"url":"`+strings.Repeat("x", 70<<10)+`"}`, admin, 413)
	do(false, "PATCH", one, `{"state":"disabled"}`, admin, 400)
	do(false, "POST", one+"/rotate-secret", `{"overlap":"soon"}`, admin, 400)
	do(false, "GET", one+"/deliveries?limit=0", "", admin, 400)
	do(false, "GET", one+"/deliveries?state=odd", "", admin, 400)
	do(true, "GET", one+"/deliveries/nothere", "", admin, 404)

	receive := func(secrets ...string) (string, string) {
		t.Helper()
		select {
		case c := <-calls:
			for _, secret := range secrets {
				w, err := standard.NewWebhook(secret)
				if err != nil {
					t.Fatal(err)
				}
				if err := w.Verify(c.body, c.header); err != nil {
					t.Error(err)
				}
			}
			return c.header.Get("webhook-id"), string(c.body)
		case <-time.After(30 * time.Second):
			t.Fatal("no call came")
			return "", ""
		}
	}
	ping := do(true, "POST", one+"/ping", "", admin, 202)
	if event, body := receive(secret); event != ping["event"] || !strings.Contains(body, `"type":"ping"`) {
		t.Errorf("%s %s", event, body)
	}
	// A real push of a real image.
	img := randomImage(t)
	push(t, h, "wendy", "acme/deep/web:1", img)
	rotated := do(true, "POST", one+"/rotate-secret", `{"overlap":"1h"}`, admin, 200)
	event, body := receive(secret)
	if !strings.Contains(body, `"repository":"acme/deep/web"`) || !strings.Contains(body, digestOf(t, img).String()) || !strings.Contains(body, `"actor":"wendy"`) {
		t.Errorf("%s", body)
	}
	testenv.Eventually(t, 30*time.Second, func() error {
		if got := do(true, "GET", one+"/deliveries?state=delivered", "", admin, 200); len(got["items"].([]any)) != 2 {
			return fmt.Errorf("%v", got)
		}
		return nil
	})
	do(true, "POST", one+"/deliveries/"+event+"/redeliver", "", admin, 202)
	if again, same := receive(secret, rotated["secret"].(string)); again != event || same != body {
		t.Errorf("%s %s", again, same)
	}
	if got := do(true, "PATCH", one, `{"state":"paused","description":"ours"}`, admin, 200); got["state"] != "paused" || got["description"] != "ours" {
		t.Errorf("%v", got)
	}
	do(true, "DELETE", one, "", admin, 204)
	do(true, "DELETE", one, "", admin, 404)

	denied := true
	log, err := h.Directory().AuditLog(t.Context(), directory.AuditFilter{Org: "acme", Action: "access", Denied: &denied, Limit: 10})
	if err != nil || len(log) == 0 || log[0].Actor == "" {
		t.Errorf("%+v %v", log, err)
	}
	changed := false
	log, err = h.Directory().AuditLog(t.Context(), directory.AuditFilter{Org: "acme", Actor: "adam", Action: "webhook", Denied: &changed, Limit: 10})
	if err != nil || len(log) != 5 || log[0].Action != "webhook.delete" || log[0].Address != "127.0.0.1" {
		t.Errorf("%+v %v", log, err)
	}
}

// runAll runs the registry's background work until the test ends.
func (h *hub) runAll() {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- h.Run(ctx) }()
	h.t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			h.t.Error(err)
		}
	})
}
