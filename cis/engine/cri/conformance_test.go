package cri

import (
	"context"
	"log/slog"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
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
		t.Run(string(class), func(t *testing.T) { conforms(t, env, class, enginetest.Factory{Slow: 2}) })
	}
}

// And in Kata, with virtual machines by emulation: what is in the sandbox's hands, or all with CUMULET_KATA_ALL=1 (make
// test-kata), which takes minutes.
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
			t.Skipf("%d cases that are the engine's own doing in every class, while virtual machines by emulation start slowly: make test-kata runs them", len(skip))
		})
	}
	conforms(t, testenv.Containerd(t, withoutSystemd, kata.Configure), cis.Kata, enginetest.Factory{Slow: 8, AtOnce: kataAtOnce, Skip: skip})
}

// kataAtOnce is how many virtual machines are worth running at a time on two processors: the one boots while others wait.
const kataAtOnce = 4

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

// conforms runs the suite. Each case has an engine of its own as if on a node of its own.
func conforms(t *testing.T, env *testenv.ContainerdEnv, class cis.SandboxClass, f enginetest.Factory) {
	t.Helper()
	var roots sync.Map
	config := func(t *testing.T) Config {
		name := path.Base(t.Name())
		cfg := Config{Socket: env.Socket, TaskDir: env.Daemon.TaskDir(), Root: filepath.Join(env.Dir, "engine", name), LogRoot: filepath.Join(env.Dir, "pods", name),
			Node: "node-" + strings.ToLower(name), HostIP: "127.0.0.1", Handlers: conformingHandlers(env), CgroupRoot: cgroupRoot(env),
			Logger:       slog.New(slog.DiscardHandler),
			CrashBackoff: Backoff{Initial: 500 * time.Millisecond, Max: 2 * time.Second}, PullBackoff: Backoff{Initial: 500 * time.Millisecond, Max: 2 * time.Second}}
		roots.Store(cfg.Root, cfg)
		return cfg
	}
	make := func(t *testing.T, sink engine.Sink) engine.Engine {
		c := config(t)
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
	f.New, f.Restart = make, func(t *testing.T, _ engine.Engine, sink engine.Sink) engine.Engine { return make(t, sink) }
	f.Image, f.Sandbox = testenv.BusyboxImage, class
	enginetest.Run(t, f)
	roots.Range(func(_, cfg any) bool {
		b := &bench{t: t, cfg: cfg.(Config)}
		b.cfg.Sink = newSink()
		e, err := New(b.cfg)
		if err != nil {
			t.Fatal(err)
		}
		b.Engine = e
		// The case's engine was stopped as soon as the end was reported: what it had still to remove is the next one's.
		if err := e.Sync(context.Background(), nil); err != nil {
			t.Error(err)
		}
		b.noLeaks()
		if err := e.Close(); err != nil {
			t.Error(err)
		}
		return true
	})
}
