package command

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"cumulet.io/cis"
	"cumulet.io/cis/control"
	"cumulet.io/cis/control/store"
	"cumulet.io/cis/engine"
	"cumulet.io/cis/engine/memory"
	cisserver "cumulet.io/cis/server"
	"cumulet.io/internal/sqldb/sqldbtest"
	"cumulet.io/internal/testenv"
)

// startInstances gives the platform a container instance service over the engine that runs nothing but small scripts.
func (p *platform) startInstances() {
	p.t.Helper()
	db := sqldbtest.Open(p.t, sqldbtest.SQLite(p.t))
	ctx, cancel := context.WithCancel(context.Background())
	records, err := store.Open(ctx, store.Config{DB: db, Key: store.Key{1, 2, 3}})
	if err != nil {
		p.t.Fatal(err)
	}
	quiet := slog.New(slog.DiscardHandler)
	service, err := control.New(control.Config{Store: records, Logger: quiet, Node: "n", Region: "r",
		NewEngine: func(s engine.Sink) (engine.Engine, error) {
			return memory.New(memory.Config{Sink: s, Node: "n", Classes: []cis.SandboxClass{cis.GVisor, cis.Runc}})
		}})
	if err != nil {
		p.t.Fatal(err)
	}
	handler, err := cisserver.New(cisserver.Config{Service: service, Verifier: p.reg.Verifier(), Logger: quiet})
	if err != nil {
		p.t.Fatal(err)
	}
	srv := httptest.NewServer(handler)
	p.control = srv.URL
	done := make(chan error, 1)
	go func() { done <- service.Run(ctx) }()
	p.t.Cleanup(func() {
		srv.CloseClientConnections()
		srv.Close()
		cancel()
		if err := <-done; err != nil {
			p.t.Error(err)
		}
		if err := records.Close(); err != nil {
			p.t.Error(err)
		}
	})
}

// Every command of instances, in the ways in which a script uses it: its exit code, what it prints, and where.
func TestInstanceCommands(t *testing.T) {
	p := startPlatform(t)
	p.startInstances()
	type call struct {
		as   string
		args []string
		code int
		out  string // in the output
		errs string // in the errors
	}
	try := func(c call) string {
		t.Helper()
		code, out, errs := p.cis("pass-of-admin", c.as, c.args...)
		if code != c.code || !strings.Contains(out, c.out) || !strings.Contains(errs, c.errs) {
			t.Errorf("cis %q: exit %d, out %q, err %q, want %d, %q and %q", c.args, code, out, errs, c.code, c.out, c.errs)
		}
		return out
	}
	const image = "example.org/app:1"
	script := func(text string, flags ...string) []string {
		return append(append(append([]string{"run"}, flags...), "--entrypoint", image), "sh", "-c", text)
	}
	try(call{"admin", []string{"ps"}, 3, "", "not logged in"})
	try(call{"admin", []string{"login", p.url, "-u", "admin", "--org", "demo", "--password-stdin"}, 0, "logged in as admin", ""})

	web := script("echo up; sleep 3600", "-d", "--name", "web", "--key", "k", "--cpu", "500m", "--memory", "512Mi", "-l", "app=web", "-e", "GREETING=hello")
	id := strings.TrimSpace(try(call{"admin", web, 0, "i-", ""}))
	if again := strings.TrimSpace(try(call{"admin", web, 0, "i-", ""})); again != id {
		t.Errorf("the same create gave %s and %s", id, again)
	}
	try(call{"admin", script("exit 0", "-d", "--key", "k"), 1, "", "another spec"})
	testenv.Eventually(t, 20*time.Second, func() error {
		if _, out, errs := p.cis("", "admin", "logs", "web"); out != "up\n" {
			return fmt.Errorf("the log is %q %q", out, errs)
		}
		return nil
	})
	if got := try(call{"admin", script("echo one; echo two; exit 3", "--name", "three"), 3, "", "exit code 3"}); got != "one\ntwo\n" {
		t.Errorf("run printed %q", got)
	}
	if got := try(call{"admin", []string{"logs", "three", "--tail", "1"}, 0, "", ""}); got != "two\n" {
		t.Errorf("the end of the log is %q", got)
	}
	list := try(call{"admin", []string{"ps", "--all", "-o", "json"}, 0, "", ""})
	var all []cis.Instance
	if err := json.Unmarshal([]byte(list), &all); err != nil || len(all) != 2 || all[0].ID != id {
		t.Errorf("ps -o json: %v in %s", err, list)
	}
	if now := try(call{"admin", []string{"ps"}, 0, "Running", ""}); strings.Contains(now, "three") || strings.Contains(now, "IMAGES") {
		t.Errorf("ps: %s", now)
	}
	for _, c := range []call{
		{"admin", []string{"ps", "-o", "wide"}, 0, "IMAGES", ""},
		{"admin", []string{"ps", "-o", "yaml", "-l", "app=web"}, 0, "name: web", ""},
		{"admin", []string{"ps", "-o", "xml"}, 2, "", "must be table, wide, json or yaml"},
		{"admin", []string{"ps", "--everything"}, 2, "", "unknown flag"},
		{"admin", []string{"ps", "web"}, 2, "", "--help"},
		{"admin", []string{"--org", "other", "ps"}, 3, "", "other"},
		{"admin", []string{"describe", "web"}, 0, "Sandbox:        gvisor", ""},
		{"admin", []string{"describe", id, "-o", "yaml"}, 0, "events:", ""},
		{"admin", []string{"describe", "nothing"}, 4, "", "cis ps --all"},
		{"admin", []string{"run", "--sandbox", "kata", "--name", "vm", image}, 1, "", "kata"},
		{"admin", []string{"events", "vm"}, 0, "SandboxUnavailable", ""},
		{"admin", []string{"events", "vm", "-o", "json"}, 0, `"reason": "SandboxUnavailable"`, ""},
		{"admin", []string{"logs", "nothing"}, 4, "", "nothing"},
		{"admin", []string{"logs", "web", "-c", "other"}, 4, "", "other"},
		{"admin", []string{"exec", "web", "--", "env"}, 0, "GREETING=hello", ""},
		{"admin", []string{"exec", "web", "--", "sh", "-c", "echo oh >&2; exit 5"}, 5, "", "oh"},
		{"admin", []string{"exec", "-c", "main", "web", "--", "sh", "-c", "exit 6"}, 6, "", ""},
		{"admin", []string{"exec", "web", "-c", "main", "--", "sh", "-c", "exit 7"}, 7, "", ""},
		{"admin", []string{"exec", "web", "env"}, 0, "GREETING=hello", ""},
		{"admin", []string{"exec", "web", "sh", "--", "-c", "exit 0"}, 2, "", "cis exec INSTANCE -- COMMAND"},
		{"admin", []string{"exec", "web", "-c", "other", "--", "true"}, 4, "", "other"},
		{"admin", []string{"exec", "-t", "web", "--", "true"}, 2, "", "needs a terminal"},
		{"admin", []string{"exec", "web"}, 2, "", "--help"},
		{"admin", []string{"exec", "three", "--", "true"}, 1, "", "has ended"},
		{"admin", []string{"run"}, 2, "", "--help"},
		{"admin", []string{"run", "-d", "NOT AN IMAGE"}, 2, "", "spec."},
		{"admin", []string{"run", "--cpu", "-1", image}, 2, "", "--cpu"},
		{"admin", []string{"run", "-d", "--sandbox", "chroot", image}, 2, "", "spec.sandbox"},
		{"admin", []string{"rm", "web", "nothing", "--grace", "0"}, 4, id, "nothing"},
		{"admin", []string{"sizes"}, 0, "c0.25-m0.5", ""},
		{"admin", []string{"version", "-o", "json"}, 0, `"version"`, ""},
		{"admin", []string{"completion", "bash"}, 0, "__start_cis", ""},
		{"admin", []string{"lgout"}, 2, "", `did you mean "logout"?`},
		{"admin", []string{"logout"}, 0, "", ""},
		{"admin", []string{"ps"}, 3, "", "not logged in"},
	} {
		try(c)
	}
}
