package cri

import (
	"log/slog"
	"path/filepath"
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
	handlers := map[cis.SandboxClass]string{cis.Runc: "runc"}
	if env.Has("runsc") {
		handlers[cis.GVisor] = "runsc"
	}
	for class := range handlers {
		t.Run(string(class), func(t *testing.T) {
			cfg := Config{Socket: env.Socket, TaskDir: env.Daemon.TaskDir(), Root: filepath.Join(env.Dir, "engine"), LogRoot: filepath.Join(env.Dir, "pods"),
				Node: "node-" + string(class), HostIP: "127.0.0.1", Handlers: handlers, CgroupRoot: cgroupRoot(env),
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
				Image:   testenv.BusyboxImage, Sandbox: class, Slow: 2,
			})
			b := &bench{t: t, cfg: cfg, Engine: make(t, newSink()).(*Engine)}
			b.cfg.Sink = newSink()
			b.noLeaks()
		})
	}
}
