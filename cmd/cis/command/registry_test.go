package command

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"cumulet.io/internal/sqldb"
	"cumulet.io/registry/directory"
	"cumulet.io/registry/files"
	"cumulet.io/registry/server"
	"cumulet.io/registry/webhook"
)

// cli runs command lines against a registry of the test's own, logged in as the owner of demo.
type cli struct {
	t       *testing.T
	session string
}

func startCLI(t *testing.T) *cli {
	t.Helper()
	dir := t.TempDir()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	url := "http://" + l.Addr().String()
	db, err := sqldb.Open(t.Context(), "sqlite:"+filepath.Join(dir, "registry.db"))
	if err != nil {
		t.Fatal(err)
	}
	reg, err := server.New(t.Context(), server.Config{DB: db, Dir: dir, PublicURL: url, HashCost: directory.HashCost{MemoryKiB: 64, Passes: 1},
		WebhookNetworks: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}, Logger: slog.New(slog.DiscardHandler),
		Bootstrap: directory.Bootstrap{Admin: directory.Credential{Name: "admin", Password: "pass-of-admin"}, Org: "demo"}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- reg.Run(ctx) }()
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/discovery", func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode(map[string]string{"registry": url, "control": url, "logs": url, "billing": url})
	})
	mux.Handle("/", reg)
	srv := &httptest.Server{Listener: l, Config: &http.Server{Handler: mux}} //nolint:gosec // a test's own client
	srv.Start()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		srv.Close()
		if err := reg.Close(); err != nil {
			t.Error(err)
		}
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	c := &cli{t, filepath.Join(dir, "session.json")}
	c.want(0, "pass-of-admin\n", "login", url, "--org", "demo", "--password-stdin")
	return c
}

// want runs a command line and gives what it printed, to standard output before standard error.
func (c *cli) want(code int, in string, args ...string) string {
	c.t.Helper()
	var out, errs bytes.Buffer
	got := Main(c.t.Context(), Env{Version: "test", In: strings.NewReader(in), Out: &out, Err: &errs}, append([]string{"--session", c.session}, args...))
	if got != code {
		c.t.Fatalf("cis %s: exit code %d, want %d\n%s%s", strings.Join(args, " "), got, code, &out, &errs)
	}
	return out.String() + errs.String()
}

func decode[T any](t *testing.T, text string) (out T) {
	t.Helper()
	if err := json.Unmarshal([]byte(text), &out); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	return out
}

func TestFileCommands(t *testing.T) {
	c := startCLI(t)
	dir := t.TempDir()
	t.Chdir(dir)
	small, large := []byte("hello"), make([]byte, uploadPart+uploadPart/2)
	if _, err := rand.Read(large); err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string][]byte{"small.txt": small, "large.bin": large, "empty": nil} {
		if err := os.WriteFile(name, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	c.want(0, "", "file", "push", "small.txt", "demo/tools:1.0/docs/read me.txt", "--type", "text/plain")
	f := decode[files.File](t, c.want(0, "", "file", "push", "large.bin", "demo/tools:1.0", "-o", "json"))
	if f.Path != "large.bin" || f.Size != int64(len(large)) || f.CreatedBy != "admin" {
		t.Errorf("%+v", f)
	}
	c.want(0, "", "file", "push", "empty", "demo/tools:1.0/")
	if out := c.want(1, "", "file", "push", "small.txt", "demo/tools:1.0/large.bin"); !strings.Contains(out, "other content") {
		t.Error(out)
	}
	c.want(0, "", "file", "push", "small.txt", "demo/tools:1.0/empty", "--replace")
	c.want(2, "", "file", "push", "small.txt", "demo/tools")
	c.want(2, "", "file", "push", "small.txt", "demo/tools:latest/x")
	c.want(2, "", "file", "push", dir, "demo/tools:1.0/x")
	list := decode[[]files.File](t, c.want(0, "", "file", "ls", "demo/tools", "-o", "json"))
	if len(list) != 3 || list[0].Path != "docs/read me.txt" || list[0].MediaType != "text/plain" {
		t.Errorf("%+v", list)
	}
	if out := c.want(0, "", "file", "ls", "demo/tools:1.0", "--prefix", "docs/"); !strings.Contains(out, "read me.txt") || strings.Contains(out, "large") {
		t.Error(out)
	}
	// A download goes on where an earlier one broke off, and a spoilt one is not taken.
	partial := "got." + f.Digest.Encoded()[:12] + ".part"
	if err := os.WriteFile(partial, large[:1000], 0o600); err != nil {
		t.Fatal(err)
	}
	c.want(0, "", "file", "pull", "demo/tools:latest/large.bin", "-O", "got")
	if got, err := os.ReadFile("got"); err != nil || !bytes.Equal(got, large) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	if err := os.WriteFile(partial, []byte("something else"), 0o600); err != nil {
		t.Fatal(err)
	}
	if out := c.want(1, "", "file", "pull", "demo/tools:1.0/large.bin", "-O", "got"); !strings.Contains(out, "thrown away") {
		t.Error(out)
	}
	c.want(0, "", "file", "pull", "demo/tools:1.0/large.bin", "-O", "got")
	c.want(0, "", "file", "pull", "demo/tools:1.0/docs/read me.txt")
	if got, err := os.ReadFile("read me.txt"); err != nil || !bytes.Equal(got, small) {
		t.Errorf("%q %v", got, err)
	}
	c.want(4, "", "file", "pull", "demo/tools:2.0/large.bin")
	c.want(4, "", "file", "pull", "other/tools:1.0/large.bin")
	c.want(0, "", "file", "rm", "demo/tools:1.0/large.bin")
	c.want(4, "", "file", "rm", "demo/tools:1.0/large.bin")
}

func TestWebhookCommands(t *testing.T) {
	c := startCLI(t)
	target := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/broken" {
			w.WriteHeader(http.StatusTeapot)
		}
	}))
	defer target.Close()
	if out := c.want(2, "", "webhook", "create", "http://10.0.0.1/"); !strings.Contains(out, "unless the operator allows it") {
		t.Error(out)
	}
	h := decode[withSecret](t, c.want(0, "", "webhook", "create", target.URL, "--event", "push", "--repository", "demo/**", "--description", "ours", "-o", "json"))
	if !strings.HasPrefix(h.Secret, "whsec_") || h.Description != "ours" {
		t.Errorf("%+v", h)
	}
	if out := c.want(0, "", "webhook", "ping", h.ID); !strings.Contains(out, "delivered: 200") {
		t.Error(out)
	}
	if out := c.want(0, "", "webhook", "set", h.ID, "--url", target.URL+"/broken", "--event", "", "-o", "json"); len(decode[webhook.Hook](t, out).Events) != 0 {
		t.Error(out)
	}
	if out := c.want(1, "", "webhook", "ping", h.ID); !strings.Contains(out, "it answered 418") {
		t.Error(out)
	}
	list := decode[[]webhook.Delivery](t, c.want(0, "", "webhook", "deliveries", h.ID, "-o", "json"))
	if len(list) != 2 || list[0].State != webhook.Failed || list[1].State != webhook.Delivered {
		t.Fatalf("%+v", list)
	}
	if out := c.want(0, "", "webhook", "deliveries", h.ID, list[0].Event); !strings.Contains(out, "418") || !strings.Contains(out, `"type":"ping"`) {
		t.Error(out)
	}
	c.want(0, "", "webhook", "set", h.ID, "--url", target.URL)
	if out := c.want(0, "", "webhook", "redeliver", h.ID, list[0].Event); !strings.Contains(out, "delivered: 200") {
		t.Error(out)
	}
	if out := c.want(0, "", "webhook", "rotate", h.ID, "--overlap", "1h"); !strings.Contains(out, "whsec_") || strings.Contains(out, h.Secret) {
		t.Error(out)
	}
	c.want(0, "", "webhook", "set", h.ID, "--pause")
	if out := c.want(0, "", "webhook", "ls"); !strings.Contains(out, "paused") {
		t.Error(out)
	}
	c.want(2, "", "webhook", "set", h.ID)
	c.want(2, "", "webhook", "set", h.ID, "--pause", "--enable")
	c.want(0, "", "webhook", "show", h.ID, "-o", "wide")
	c.want(0, "", "webhook", "rm", h.ID)
	c.want(4, "", "webhook", "show", h.ID)
	c.want(4, "", "webhook", "ls", "--org", "other")
}
