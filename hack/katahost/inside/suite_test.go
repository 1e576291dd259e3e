package inside

import (
	"slices"
	"testing"
	"time"

	"cumulet.io/cis"
	"cumulet.io/cis/engine"
	"cumulet.io/cis/engine/enginetest"
	"cumulet.io/internal/testenv"
)

// cases are those of the engines' conformance suite that are in the hands of the shim's driver: the others are the same
// with the virtual machines of hack/kata, and those start sooner. A case that runs commands again and again is none of them: here
// a command may take longer than the suite gives a probe, and a machine at rest was seen to stand still for minutes.
func cases() []string { return []string{"Files", "SubPath"} }

// The engine passes cases of the conformance suite.
func TestConformance(t *testing.T) {
	env := newContainerd(t)
	skip := map[string]string{}
	for _, name := range enginetest.Names() {
		if !slices.Contains(cases(), name) {
			skip[name] = ""
		}
	}
	if len(skip)+len(cases()) != len(enginetest.Names()) {
		t.Errorf("a case of %q has another name now", cases())
	}
	enginetest.Run(t, enginetest.Factory{
		New:   func(t *testing.T, sink engine.Sink) engine.Engine { return newEngine(t, env, sink) },
		Image: testenv.BusyboxImage, Sandbox: cis.Kata, Slow: float64(patience / (30 * time.Second)), Skip: skip,
	})
}
