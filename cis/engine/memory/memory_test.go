package memory_test

import (
	"context"
	"errors"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	corev1 "k8s.io/api/core/v1"

	"cumulet.io/cis"
	"cumulet.io/cis/engine"
	"cumulet.io/cis/engine/enginetest"
	"cumulet.io/cis/engine/memory"
	"cumulet.io/internal/problem"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const missing = "example.org/missing:v1"

func newEngine(t *testing.T, sink engine.Sink) *memory.Engine {
	e, err := memory.New(memory.Config{
		Sink: sink, Node: "node-1", Region: "home", BackOff: 100 * time.Millisecond,
		Classes: []cis.SandboxClass{cis.GVisor, cis.Runc},
		Pull: func(image string) error {
			if image == missing {
				return errors.New("not found")
			}
			return nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func TestConformance(t *testing.T) {
	enginetest.Run(t, enginetest.Factory{
		New: func(t *testing.T, sink engine.Sink) engine.Engine { return newEngine(t, sink) },
		Restart: func(_ *testing.T, old engine.Engine, sink engine.Sink) engine.Engine {
			return old.(*memory.Engine).Restart(sink)
		},
		Image: "busybox", MissingImage: missing, Around: synctest.Test,
	})
}

// begin runs an engine until the end of the test.
func begin(t testing.TB, c memory.Config, all ...*cis.Instance) (*memory.Engine, *enginetest.Sink) {
	t.Helper()
	sink := &enginetest.Sink{}
	c.Sink = sink
	e, err := memory.New(c)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- e.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		sink.Check(t)
	})
	if err := e.Sync(ctx, all); err != nil {
		t.Fatal(err)
	}
	return e, sink
}

func instance(command ...string) *cis.Instance {
	spec := cis.Spec{Name: "x", Containers: []cis.Container{{Name: "main", Image: "busybox", Command: command}}}
	return &cis.Instance{ID: cis.NewID(time.Now()), Org: "acme", Spec: spec.Defaulted()}
}

func ensure(t testing.TB, e *memory.Engine, in *cis.Instance) {
	t.Helper()
	if err := e.Ensure(t.Context(), in); err != nil {
		t.Fatal(err)
	}
}

func TestNewNeedsSink(t *testing.T) {
	if _, err := memory.New(memory.Config{}); err == nil {
		t.Error("made without a sink")
	}
}

// The pauses before restarts are Kubernetes': none, 10 s, 20 s, … 5 min.
func TestBackOffTimes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e, sink := begin(t, memory.Config{})
		in := instance("fail")
		start := time.Now()
		ensure(t, e, in)
		for n, want := range []float64{0, 0, 10, 30, 70, 150, 310, 610, 910} {
			sink.Await(t, in.ID, func(st cis.Status) bool { return st.Containers[0].RestartCount >= int32(n) }, time.Hour)
			if got := time.Since(start).Seconds(); got != want {
				t.Errorf("restart %d after %v s, want %v s", n, got, want)
			}
		}
	})
}

func TestStartDelay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e, sink := begin(t, memory.Config{StartDelay: 3 * time.Second})
		in, start := instance(), time.Now()
		ensure(t, e, in)
		synctest.Wait()
		if st := sink.Status(in.ID); st.Phase != cis.Starting || !st.StartedAt.Equal(start) {
			t.Errorf("before: %+v", st)
		}
		sink.Await(t, in.ID, func(st cis.Status) bool { return st.Ready }, time.Minute)
		if got := time.Since(start); got != 3*time.Second {
			t.Errorf("ready after %v", got)
		}
	})
}

// A simple instance costs its user few reports: up, ready, stopping, ended.
func TestReportsAreFew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e, sink := begin(t, memory.Config{})
		in := instance()
		ensure(t, e, in)
		time.Sleep(time.Hour)
		if n := len(sink.History(in.ID)); n > 2 || !sink.Status(in.ID).Ready {
			t.Errorf("%d reports until ready and idle for an hour: %+v", n, sink.Status(in.ID))
		}
		stopped := *in
		stopped.Desired.Stop = true
		ensure(t, e, &stopped)
		time.Sleep(time.Hour)
		if n := len(sink.History(in.ID)); n > 4 || sink.Status(in.ID).Phase != cis.Succeeded {
			t.Errorf("%d reports: %+v", n, sink.Status(in.ID))
		}
	})
}

// What ran in a sandbox that is lost starts again in a new one, and its counts go on.
func TestLostSandbox(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		in := instance()
		begun := time.Now().Add(-time.Hour)
		in.Status = cis.Status{Phase: cis.Running, Incarnation: 2, StartedAt: begun,
			Containers: []corev1.ContainerStatus{{Name: "main", RestartCount: 4, ContainerID: "memory://lost"}}}
		_, sink := begin(t, memory.Config{}, in)
		st := sink.Await(t, in.ID, func(st cis.Status) bool { return st.Ready }, time.Minute)
		if st.Incarnation != 3 || !st.StartedAt.Equal(begun) || st.Containers[0].RestartCount != 5 {
			t.Errorf("%+v", st)
		}
	})
}

func TestEndedAreForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e, sink := begin(t, memory.Config{KeepEnded: 2})
		var all []*cis.Instance
		for range 5 {
			in := instance("echo", "hello")
			in.Spec.RestartPolicy = corev1.RestartPolicyNever
			all = append(all, in)
			ensure(t, e, in)
			sink.Await(t, in.ID, func(st cis.Status) bool { return st.Phase == cis.Succeeded }, time.Minute)
			synctest.Wait()
		}
		for n, in := range all {
			var out strings.Builder
			err := e.Logs(t.Context(), in.ID, cis.LogRequest{Container: "main"}, &out)
			if kept := n >= 3; kept && (err != nil || out.String() != "hello\n") || !kept && !errors.Is(err, problem.ErrNotFound) {
				t.Errorf("%d: %q, %v", n, out.String(), err)
			}
			reports := len(sink.History(in.ID))
			ensure(t, e, in)
			synctest.Wait()
			if now := len(sink.History(in.ID)); now != reports {
				t.Errorf("%d ran again", n)
			}
		}
	})
}

// An idle instance costs no goroutine and little memory.
func TestIdleIsCheap(t *testing.T) {
	const many = 2000
	e, sink := begin(t, memory.Config{})
	measure := func() (goroutines int, bytes uint64) {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return runtime.NumGoroutine(), m.HeapAlloc
	}
	goroutines, before := measure()
	var last *cis.Instance
	for range many {
		last = instance("sleep", "3600")
		ensure(t, e, last)
	}
	for _, id := range sink.IDs() {
		sink.Await(t, id, func(st cis.Status) bool { return st.Ready }, time.Minute)
	}
	sink.Await(t, last.ID, func(st cis.Status) bool { return st.Ready }, time.Minute)
	g, after := measure()
	t.Logf("%d bytes each, with what the sink keeps", (after-before)/many)
	if g > goroutines+10 {
		t.Errorf("%d goroutines for %d instances", g-goroutines, many)
	}
	if each := (after - before) / many; each > 24<<10 {
		t.Errorf("%d bytes each", each)
	}
}
