package collect

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func put(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func key(path string) string { return "filestream::cumulet-logs::path::" + path }

func TestReadRegistry(t *testing.T) {
	dir := t.TempDir()
	if r, err := readRegistry(dir); err != nil || len(r) != 0 {
		t.Fatal(r, err)
	}
	put(t, filepath.Join(dir, "7.json"), `[{"_key":"`+key("/a")+`","cursor":{"offset":10},"ttl":1},{"_key":"`+key("/b")+`","cursor":null},
		{"_key":"`+key("/gone")+`","cursor":{"offset":5}},{"_key":"other::x","cursor":{"offset":5}}]`)
	put(t, filepath.Join(dir, "active.dat"), "/moved/elsewhere/7.json\n")
	put(t, filepath.Join(dir, "log.json"), strings.Join([]string{
		`{"op":"set","id":6}`, `{"k":"` + key("/a") + `","v":{"cursor":{"offset":1}}}`, // before the checkpoint
		`{"op":"set","id":8}`, `{"k":"` + key("/b") + `","v":{"cursor":{"offset":20}}}`,
		`{"op":"remove","id":9}`, `{"k":"` + key("/gone") + `"}`,
		`{"op":"set","id":10}`, `{"k":"` + key("/a") + `","v":{"cursor":{"offs`}, "\n"))
	r, err := readRegistry(dir)
	if err != nil || len(r) != 2 || r["/a"] != 10 || r["/b"] != 20 {
		t.Fatal(r, err)
	}
	put(t, filepath.Join(dir, "7.json"), `[{"_key":`)
	if _, err := readRegistry(dir); err == nil {
		t.Error("a broken checkpoint is no error")
	}
}

func TestShippedAndReaper(t *testing.T) {
	dir := t.TempDir()
	c, err := New(Options{Binary: "filebeat", Dir: dir + "/fb", LogRoot: dir + "/logs", MeterDir: dir + "/meter", Store: "http://127.0.0.1:1",
		User: "u", Password: "password-1"}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	at := func(name string) string { return filepath.Join(dir, "logs", name) }
	put(t, at("acme/done/main/0.log"), "one\ntwo\n")
	put(t, at("acme/done/main/1.log"), "")
	put(t, at("acme/torn/main/0.log"), "one\ntwo\nthr")
	put(t, at("acme/half/main/0.log"), "one\ntwo\n")
	put(t, at("acme/live/main/0.log"), "one\n")
	put(t, at("acme/never/main/0.log"), "one\n")
	var reg []string
	for name, offset := range map[string]string{"done": "8", "torn": "8", "half": "4", "live": "4"} {
		reg = append(reg, `{"op":"set","id":1}`, `{"k":"`+key(at("acme/"+name+"/main/0.log"))+`","v":{"cursor":{"offset":`+offset+`}}}`)
	}
	put(t, filepath.Join(dir, "fb/data/registry/filebeat/log.json"), strings.Join(reg, "\n")+"\n")
	for name, want := range map[string]bool{"done/main/0.log": true, "done/main/1.log": true, "torn/main/0.log": true, "half/main/0.log": false,
		"never/main/0.log": false, "missing/main/0.log": true} {
		if got, err := c.Shipped(at("acme/" + name)); err != nil || got != want {
			t.Errorf("Shipped(%s) = %v, %v", name, got, err)
		}
	}
	r := &Reaper{Collector: c, Log: slog.New(slog.DiscardHandler), Grace: time.Hour,
		Ended: func(_ context.Context, org, instance string) bool { return org == "acme" && instance != "live" }}
	if n, err := r.Pass(t.Context()); err != nil || n != 0 {
		t.Errorf("within the grace: %d, %v", n, err)
	}
	r.Grace = time.Nanosecond
	if n, err := r.Pass(t.Context()); err != nil || n != 2 {
		t.Errorf("removed %d, %v", n, err)
	}
	left, err := filepath.Glob(at("acme/*"))
	if err != nil || len(left) != 3 {
		t.Errorf("left %v, %v", left, err)
	}
}

func TestOptionsRefused(t *testing.T) {
	good := Options{Binary: "filebeat", Dir: "/d", LogRoot: "/l", MeterDir: "/m", Store: "http://h:1", User: "u", Password: "password-1"}
	if _, err := New(good, nil); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*Options){
		"relative":        func(o *Options) { o.LogRoot = "logs" },
		"pattern":         func(o *Options) { o.LogRoot = "/l*" },
		"tokenizer":       func(o *Options) { o.LogRoot = "/%{x}" },
		"variable":        func(o *Options) { o.MeterDir = "/${x}" },
		"long":            func(o *Options) { o.Dir = "/" + strings.Repeat("d", 100) },
		"store":           func(o *Options) { o.Store = "ftp://h" },
		"credentials":     func(o *Options) { o.Store = "http://u:secret-in-url@h" },
		"no password":     func(o *Options) { o.Password = "" },
		"number password": func(o *Options) { o.Password = "012345678" },
		"binary":          func(o *Options) { o.Binary = "" },
	} {
		o := good
		change(&o)
		if _, err := New(o, nil); err == nil || strings.Contains(err.Error(), "secret-in-url") {
			t.Errorf("%s: %v", name, err)
		}
	}
}
