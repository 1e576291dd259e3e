package command

import (
	"log/slog"
	"net/http/httptest"
	"strings"
	"testing"

	"cumulet.io/cis/control"
	"cumulet.io/cis/control/store"
	"cumulet.io/cis/engine"
	"cumulet.io/cis/engine/memory"
	cisserver "cumulet.io/cis/server"
	"cumulet.io/internal/sqldb/sqldbtest"
)

func TestQuotaCommands(t *testing.T) {
	p := startPlatform(t)
	records, err := store.Open(t.Context(), store.Config{DB: sqldbtest.Open(t, sqldbtest.SQLite(t)), Key: store.Key{1, 2, 3}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := records.Close(); err != nil {
			t.Error(err)
		}
	})
	service, err := control.New(control.Config{Store: records, Quota: control.Quota{Instances: 7}, Logger: slog.New(slog.DiscardHandler),
		NewEngine: func(s engine.Sink) (engine.Engine, error) { return memory.New(memory.Config{Sink: s, Node: "n"}) }})
	if err != nil {
		t.Fatal(err)
	}
	handler, err := cisserver.New(cisserver.Config{Service: service, Verifier: p.reg.Verifier()})
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(handler)
	t.Cleanup(srv.Close)
	p.control = srv.URL
	keep := ""
	for _, tc := range []struct {
		as, in, line string
		code         int
		want         string
	}{
		{"admin", "pass-of-admin", "login URL -u admin --org demo --password-stdin", 0, "logged in"},
		{"admin", "", "quota show", 0, "demo   0 of 7      0 of no bound   0 GiB of no bound   default"},
		{"admin", "", "quota set demo --instances 50 --cpu 16.5 --memory-gib 64", 0, "demo   0 of 50     0 of 16.5   0 GiB of 64 GiB   set"},
		{"admin", "", "quota set demo --cpu 16", 0, "0 of no bound   0 of 16"},
		{"admin", "", "quota show demo", 0, "50 instances, 16.5 cpu, 64 GiB memory   any instances, 16 cpu, any memory"},
		{"admin", "", "quota show other -o json", 0, `"source": "default"`},
		{"admin", "", "quota unset demo", 0, "default"},
		{"admin", "", "quota set demo", 2, "give at least one"},
		{"admin", "", "quota set demo --cpu -1", 2, "must be 0"},
		{"admin", "", "quota set demo --instances -1", 2, "instances"},
		{"admin", "", "quota set Demo --instances 1", 2, "org"},
		{"admin", "", "quota set", 2, "accepts 1 arg"},
		{"admin", "", "account create zoe", 0, ""},
		{"admin", "", "member set zoe owner", 0, "zoe is owner"},
		{"zoe", "{}", "login URL -u zoe --org demo --password-stdin", 0, "logged in"},
		{"zoe", "", "quota show", 3, "operators and administrators"},
		{"zoe", "", "quota set demo --instances 1000", 3, "operators and administrators"},
		{"zoe", "", "quota unset demo", 3, "operators and administrators"},
	} {
		line := strings.Fields(strings.ReplaceAll(tc.line, "URL", p.url))
		code, out, errs := p.cis(strings.ReplaceAll(tc.in, "{}", keep), tc.as, line...)
		if text := out + errs; code != tc.code || !strings.Contains(text, tc.want) {
			t.Errorf("cis %s: exit %d, out %q, err %q, want %d and %q", tc.line, code, out, errs, tc.code, tc.want)
		}
		if strings.HasPrefix(tc.line, "account create") {
			keep = strings.TrimSpace(out)
		}
	}
}
