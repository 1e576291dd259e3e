package cri

import (
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"cumulet.io/cis"
	"cumulet.io/cis/engine"
	"cumulet.io/cis/engine/enginetest"
	"cumulet.io/internal/testenv"
)

// The engine passes the conformance suite in every sandbox class that this machine can run.
func TestConformance(t *testing.T) {
	env := testenv.Containerd(t, withoutSystemd)
	for class := range conformingHandlers(env) {
		t.Run(string(class), func(t *testing.T) { conforms(t, env, class, 2, nil) })
	}
}

// And in Kata, with virtual machines by emulation: what is in the sandbox's hands, or all with CUMULET_KATA_ALL=1, which
// takes ten minutes and more.
func TestKataConformance(t *testing.T) {
	kata := testenv.Kata(t)
	skip := map[string]string{}
	if os.Getenv("CUMULET_KATA_ALL") != "1" {
		for _, name := range enginetest.Names() {
			if !slices.Contains(kataCases(), name) {
				skip[name] = ""
			}
		}
		t.Run("Others", func(t *testing.T) {
			t.Skipf("%d cases that are the engine's own doing in every class, while virtual machines by emulation start slowly: CUMULET_KATA_ALL=1 runs them", len(skip))
		})
	}
	conforms(t, testenv.Containerd(t, withoutSystemd, kata.Configure), cis.Kata, 6, skip)
}

func kataCases() []string {
	return []string{"Succeeds", "Fails", "GracefulStop", "RestartAlways", "InitOrder", "Sidecar", "NetworkProbes", "Environment", "EmptyDirIsShared",
		"Files", "SubPath", "RunAsUser", "ReadOnlyRoot", "TerminationMessage", "OOMKilled", "Exec", "ExecTTY", "Logs", "PortForward", "Stats", "UpdateVolume"}
}

func conformingHandlers(env *testenv.ContainerdEnv) map[cis.SandboxClass]string {
	handlers := map[cis.SandboxClass]string{cis.Runc: "runc"}
	if env.Has("runsc") {
		handlers[cis.GVisor] = "runsc"
	}
	if env.Has(testenv.KataHandler) {
		handlers[cis.Kata] = testenv.KataHandler
	}
	return handlers
}

func conforms(t *testing.T, env *testenv.ContainerdEnv, class cis.SandboxClass, slow float64, skip map[string]string) {
	t.Helper()
	cfg := Config{Socket: env.Socket, TaskDir: env.Daemon.TaskDir(), Root: filepath.Join(env.Dir, "engine"), LogRoot: filepath.Join(env.Dir, "pods"),
		Node: "node-" + string(class), HostIP: "127.0.0.1", Handlers: conformingHandlers(env), CgroupRoot: cgroupRoot(env),
		Logger:       slog.New(slog.DiscardHandler),
		CrashBackoff: Backoff{Initial: 500 * time.Millisecond, Max: 2 * time.Second}, PullBackoff: Backoff{Initial: 500 * time.Millisecond, Max: 2 * time.Second}}
	make := func(t *testing.T, sink engine.Sink) engine.Engine {
		c := cfg
		c.Sink = sink
		e, err := New(c)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := e.Close(); err != nil {
				t.Error(err)
			}
		})
		return e
	}
	enginetest.Run(t, enginetest.Factory{
		New:     make,
		Restart: func(t *testing.T, _ engine.Engine, sink engine.Sink) engine.Engine { return make(t, sink) },
		Image:   testenv.BusyboxImage, Sandbox: class, Slow: slow, Skip: skip,
	})
	b := &bench{t: t, cfg: cfg, Engine: make(t, newSink()).(*Engine)}
	b.cfg.Sink = newSink()
	b.noLeaks()
}
