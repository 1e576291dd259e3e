package cri

import (
	"net"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"cumulet.io/cis"
)

// A shim that hangs does not take the metrics of the others with it.
func TestKataMetricsOfAHungShim(t *testing.T) {
	t.Chdir(t.TempDir()) // for the sockets' paths are short then
	listen := func(sandbox string) net.Listener {
		t.Helper()
		if err := os.Mkdir(sandbox, 0o700); err != nil {
			t.Fatal(err)
		}
		l, err := net.Listen("unix", filepath.Join(sandbox, "monitor.sock"))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		return l
	}
	e := &Engine{actors: map[string]*actor{}}
	for id, class := range map[string]cis.SandboxClass{"i-1": cis.Kata, "i-2": cis.Kata, "i-3": cis.Runc} {
		a := &actor{}
		a.view.Store(&view{org: "acme", class: class, sandboxID: "sandbox-of-" + id})
		e.actors[id] = a
	}
	listen("sandbox-of-i-1") // nobody accepts there
	healthy := &http.Server{ReadHeaderTimeout: time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write([]byte("# TYPE kata_shim_fds gauge\nkata_shim_fds 9\n# TYPE go_threads gauge\ngo_threads 3\n")) // who asked sees it
	})}
	served := make(chan error, 1)
	l := listen("sandbox-of-i-2")
	go func() { served <- healthy.Serve(l) }()
	t.Cleanup(func() {
		if err := healthy.Close(); err != nil {
			t.Error(err)
		}
		<-served
	})
	families, err := KataMetrics{e, "%s/monitor.sock"}.Gather()
	if err != nil || len(families) != 1 || families[0].GetName() != "kata_shim_fds" || len(families[0].Metric) != 1 {
		t.Fatalf("%v, %v", families, err)
	}
	m := families[0].Metric[0]
	if m.GetGauge().GetValue() != 9 || len(m.Label) != 2 || m.Label[0].GetValue() != "i-2" || m.Label[1].GetValue() != "acme" {
		t.Errorf("%v", m)
	}
}
