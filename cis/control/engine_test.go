package control_test

import (
	"context"
	"io"
	"sync"
	"testing"
	"time"

	"cumulet.io/cis"
	"cumulet.io/cis/engine"
	"cumulet.io/internal/problem"
)

// scripted is an engine whose faults and answers a test chooses. It runs what it is told to run at once, and ends what
// it is told to end.
type scripted struct {
	sink engine.Sink

	mu       sync.Mutex
	synced   chan int // the number of instances at each Sync
	ensured  map[string]int
	ensure   func(*cis.Instance) error // nil: no fault
	classes  []cis.SandboxClass
	why      map[cis.SandboxClass]string
	capacity engine.Capacity
	logs     func(ctx context.Context, id string, req cis.LogRequest, w io.Writer) error
	volumes  map[string]cis.FilesVolume
	updating func(cis.FilesVolume) // before a volume is updated; nil: nothing
	idle     bool                  // reports nothing by itself
}

func newScripted() *scripted {
	return &scripted{ensured: map[string]int{}, volumes: map[string]cis.FilesVolume{}, synced: make(chan int, 16), classes: []cis.SandboxClass{cis.GVisor, cis.Runc},
		why: map[cis.SandboxClass]string{cis.Kata: "the CPU has no virtualisation (vmx or svm): enable it in the firmware"}}
}

func (e *scripted) make(s engine.Sink) (engine.Engine, error) { e.sink = s; return e, nil }

func (e *scripted) Run(ctx context.Context) error { <-ctx.Done(); return nil }

func (e *scripted) Sync(ctx context.Context, all []*cis.Instance) error {
	e.synced <- len(all)
	for _, in := range all {
		if err := e.Ensure(ctx, in); err != nil {
			return err
		}
	}
	return nil
}

func (e *scripted) Ensure(ctx context.Context, in *cis.Instance) error {
	e.mu.Lock()
	e.ensured[in.ID]++
	fault, idle := e.ensure, e.idle
	e.mu.Unlock()
	if fault != nil {
		if err := fault(in); err != nil {
			return err
		}
	}
	if idle {
		return nil
	}
	st := cis.Status{Phase: cis.Running, Incarnation: 1}
	if in.Desired.Stop {
		st.Phase = cis.Succeeded
	}
	return e.sink.Report(ctx, in.ID, st)
}

func (e *scripted) Classes(context.Context) ([]cis.SandboxClass, map[cis.SandboxClass]string) {
	return e.classes, e.why
}

func (e *scripted) Capacity(context.Context) (engine.Capacity, error) { return e.capacity, nil }

func (e *scripted) Logs(ctx context.Context, id string, req cis.LogRequest, w io.Writer) error {
	if e.logs == nil {
		return problem.New(problem.ErrNotFound, "no files")
	}
	return e.logs(ctx, id, req, w)
}

func (e *scripted) UpdateVolume(_ context.Context, id, volume string, files cis.FilesVolume) error {
	if e.updating != nil {
		e.updating(files)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.volumes[id+"/"+volume] = files
	return nil
}

func (e *scripted) count(id string) int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.ensured[id]
}

// firstSync is how many instances the engine was told of at the beginning.
func (e *scripted) firstSync(t *testing.T) int {
	t.Helper()
	select {
	case n := <-e.synced:
		return n
	case <-time.After(10 * time.Second):
		t.Fatal("the engine was not told")
		return 0
	}
}
