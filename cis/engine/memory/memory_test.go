package memory_test

import (
	"errors"
	"testing"
	"time"

	"go.uber.org/goleak"

	"cumulet.io/cis"
	"cumulet.io/cis/engine"
	"cumulet.io/cis/engine/enginetest"
	"cumulet.io/cis/engine/memory"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const missing = "example.org/missing:v1"

func options() memory.Options {
	return memory.Options{
		Node: "node-1", Region: "home", BackOff: 100 * time.Millisecond,
		Classes: []cis.SandboxClass{cis.GVisor, cis.Runc},
		Pull: func(image string) error {
			if image == missing {
				return errors.New("not found")
			}
			return nil
		},
	}
}

func TestConformance(t *testing.T) {
	enginetest.Run(t, enginetest.Factory{
		New: func(_ *testing.T, sink engine.Sink) engine.Engine { return memory.New(sink, options()) },
		Restart: func(_ *testing.T, old engine.Engine, sink engine.Sink) engine.Engine {
			return old.(*memory.Engine).Restart(sink)
		},
		Image: "busybox", MissingImage: missing,
	})
}
