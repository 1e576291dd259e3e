package cri

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	corev1 "k8s.io/api/core/v1"

	"cumulet.io/billing"
	"cumulet.io/cis"
	"cumulet.io/cis/engine/cri/containerd"
	"cumulet.io/cis/engine/cri/fence"
	"cumulet.io/internal/mounts"
	"cumulet.io/internal/problem"
	"cumulet.io/internal/testenv"
)

// memSink keeps reports, and can be made to refuse them.
type memSink struct {
	mu       sync.Mutex
	cond     *sync.Cond
	statuses map[string][]cis.Status
	events   map[string][]cis.Event
	down     bool
	slow     time.Duration // multiplies what is waited for; 0 is 1
}

func newSink() *memSink {
	s := &memSink{statuses: map[string][]cis.Status{}, events: map[string][]cis.Event{}}
	s.cond = sync.NewCond(&s.mu)
	return s
}

func (s *memSink) Report(_ context.Context, id string, st cis.Status) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.down {
		return problem.New(problem.ErrUnavailable, "down")
	}
	s.statuses[id] = append(s.statuses[id], st)
	s.cond.Broadcast()
	return nil
}

func (s *memSink) Record(_ context.Context, ev cis.Event) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.down {
		return problem.New(problem.ErrUnavailable, "down")
	}
	s.events[ev.Instance] = append(s.events[ev.Instance], ev)
	s.cond.Broadcast()
	return nil
}

func (s *memSink) setDown(b bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.down = b
}

func (s *memSink) last(id string) cis.Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n := len(s.statuses[id]); n > 0 {
		return s.statuses[id][n-1]
	}
	return cis.Status{}
}

func (s *memSink) all(id string) []cis.Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]cis.Status(nil), s.statuses[id]...)
}

// wait waits until the last status of the instance satisfies ok.
func (s *memSink) wait(t *testing.T, id, what string, ok func(cis.Status) bool) cis.Status {
	t.Helper()
	deadline := time.Now().Add(max(1, s.slow) * 90 * time.Second)
	stop := time.AfterFunc(time.Until(deadline), s.cond.Broadcast)
	defer stop.Stop()
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		if n := len(s.statuses[id]); n > 0 && ok(s.statuses[id][n-1]) {
			return s.statuses[id][n-1]
		}
		if time.Now().After(deadline) {
			n := len(s.statuses[id])
			if n == 0 {
				t.Fatalf("%s: no status of %s; events %+v", what, id, s.events[id])
			}
			t.Fatalf("%s: last status of %s is %+v\nevents %+v", what, id, s.statuses[id][n-1], s.events[id])
		}
		s.cond.Wait()
	}
}

func (s *memSink) waitPhase(t *testing.T, id string, p cis.Phase) cis.Status {
	t.Helper()
	return s.wait(t, id, "wait for "+string(p), func(st cis.Status) bool {
		if st.Phase.Final() && st.Phase != p {
			t.Errorf("instance %s ended as %s (%s: %s), want %s", id, st.Phase, st.Reason, st.Message, p)
			return true
		}
		return st.Phase == p
	})
}

func (s *memSink) hasEvent(id, reason string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range s.events[id] {
		if e.Reason == reason {
			return true
		}
	}
	return false
}

func (s *memSink) eventsOf(id string) []cis.Event {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.events[id])
}

// memMeter counts what meters were told.
type memMeter struct {
	mu      sync.Mutex
	started map[string]int
	running map[string]int
	markAt  map[string]time.Time
	stopped map[string]string
	stopAt  map[string]time.Time
}

func (m *memMeter) Start(_ context.Context, s billing.Subject) (Meter, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.started[s.Instance]++
	return oneMeter{m, s.Instance}, nil
}

type oneMeter struct {
	m  *memMeter
	id string
}

func (o oneMeter) MarkRunning(at time.Time) error {
	o.m.mu.Lock()
	defer o.m.mu.Unlock()
	o.m.running[o.id]++
	o.m.markAt[o.id] = at
	return nil
}

func (o oneMeter) Stop(_ context.Context, at time.Time, reason string) error {
	o.m.mu.Lock()
	defer o.m.mu.Unlock()
	o.m.stopped[o.id], o.m.stopAt[o.id] = reason, at
	return nil
}

// withoutSystemd has containerd leave cgroups to the engine, as the product has it.
func withoutSystemd(c *containerd.Config) {
	h, err := containerd.DetectHost()
	if err == nil {
		h.Systemd = false
		c.Host = &h
	}
}

func cgroupRoot(env *testenv.ContainerdEnv) string {
	return "/" + strings.Trim(strings.TrimSuffix(env.CgroupParent, ".slice"), "/")
}

// bench is an engine on a real containerd.
type bench struct {
	t     *testing.T
	env   *testenv.ContainerdEnv
	sink  *memSink
	meter *memMeter
	cfg   Config
	kata  *testenv.KataEnv // nil without class kata
	*Engine
	stop    func()
	unmeter func() // closes the product's meter, where it is used
}

func newBench(t *testing.T) *bench { return newBenchWith(t, "", withoutSystemd) }

// newKataBench has class kata as well, with virtual machines by emulation.
func newKataBench(t *testing.T) *bench {
	t.Helper()
	kata := testenv.Kata(t)
	b := newBenchWith(t, filepath.Join(kata.StateDir, "{id:16}", "console.log"), withoutSystemd, kata.Configure)
	b.kata = kata
	return b
}

func newBenchWith(t *testing.T, console string, options ...func(*containerd.Config)) *bench {
	t.Helper()
	env := testenv.Containerd(t, options...)
	b := &bench{t: t, env: env, unmeter: func() {}, sink: newSink(), meter: &memMeter{started: map[string]int{}, running: map[string]int{}, markAt: map[string]time.Time{},
		stopped: map[string]string{}, stopAt: map[string]time.Time{}}}
	b.cfg = Config{Socket: env.Socket, TaskDir: env.Daemon.TaskDir(), Root: filepath.Join(env.Dir, "engine"), LogRoot: filepath.Join(env.Dir, "pods"), Node: "node-1", Region: "r1",
		HostIP: "127.0.0.1", Handlers: map[cis.SandboxClass]string{cis.Runc: "runc"},
		Unavailable: map[cis.SandboxClass]string{cis.Kata: "the host has no KVM"}, Sink: b.sink, Meter: b.meter, CgroupRoot: cgroupRoot(env),
		Logger:       slog.New(slog.NewTextHandler(testWriter{t}, nil)),
		CrashBackoff: Backoff{Initial: 200 * time.Millisecond, Max: time.Second}, PullBackoff: Backoff{Initial: 200 * time.Millisecond, Max: time.Second}}
	f, err := fence.Open(fence.Config{Bridge: env.Bridge})
	if err != nil {
		t.Fatal(err)
	}
	b.cfg.Fence = f
	b.cfg.Runsc.Binary, b.cfg.Runsc.Root = env.Daemon.Runsc()
	if env.Has("runsc") {
		b.cfg.Handlers[cis.GVisor] = "runsc"
	}
	if env.Has(testenv.KataHandler) {
		b.cfg.Handlers[cis.Kata] = testenv.KataHandler
		b.sink.slow = 4
		b.cfg.Console = console
	}
	t.Cleanup(func() { goleak.VerifyNone(t, goleak.IgnoreCurrent()) })
	b.up()
	t.Cleanup(func() {
		b.deleteAll()
		b.stop()
		b.unmeter()
		b.noLeaks()
	})
	if err := b.Sync(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	return b
}

type testWriter struct{ t *testing.T }

func (w testWriter) Write(p []byte) (int, error) {
	if w.t.Context().Err() == nil {
		w.t.Log(strings.TrimSpace(string(p)))
	}
	return len(p), nil
}

// up starts an engine process, as it were; stop ends it as a crash does, without a word to anyone.
func (b *bench) up() {
	e, err := New(b.cfg)
	if err != nil {
		b.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- e.Run(ctx) }()
	b.Engine = e
	b.stop = sync.OnceFunc(func() {
		cancel()
		if err := errors.Join(<-done, e.Close()); err != nil {
			b.t.Error(err)
		}
	})
}

// restart is a restart of the engine's process; control hands it what is not final.
func (b *bench) restart(all ...*cis.Instance) {
	b.t.Helper()
	b.stop()
	b.up()
	if err := b.Sync(b.t.Context(), all); err != nil {
		b.t.Fatal(err)
	}
}

var idCounter atomic.Int64

func instance(class cis.SandboxClass, containers ...cis.Container) *cis.Instance {
	zero := int64(1)
	return &cis.Instance{ID: fmt.Sprintf("i-%020d", idCounter.Add(1)), Org: "acme", Spec: cis.Spec{Name: "demo", Sandbox: class,
		Containers: containers, GraceSeconds: &zero}}
}

func shell(name, script string) cis.Container {
	return cis.Container{Name: name, Image: testenv.BusyboxImage, Command: []string{"sh", "-c", script}}
}

func (b *bench) ensure(in *cis.Instance) *cis.Instance {
	b.t.Helper()
	if err := b.Ensure(b.t.Context(), in); err != nil {
		b.t.Fatal(err)
	}
	return in
}

func (b *bench) delete(in *cis.Instance) *cis.Instance {
	b.t.Helper()
	d := *in
	d.Desired = cis.Desired{Stop: true, StopAt: time.Now()}
	return b.ensure(&d)
}

// deleteAll ends what a test left running.
func (b *bench) deleteAll() {
	b.mu.Lock()
	var live []*cis.Instance
	for _, a := range b.actors {
		live = append(live, &cis.Instance{ID: a.id, Org: a.org, Spec: *a.spec})
	}
	b.mu.Unlock()
	zero := int64(0)
	for _, in := range live {
		in.Desired = cis.Desired{Stop: true, GraceSeconds: &zero}
		if err := b.Ensure(context.Background(), in); err != nil {
			b.t.Error(err)
		}
	}
	testenv.Eventually(b.t, 60*time.Second, func() error {
		b.mu.Lock()
		defer b.mu.Unlock()
		if n := len(b.actors); n > 0 {
			return fmt.Errorf("%d instances left", n)
		}
		return nil
	})
}

// noLeaks checks that ended instances left nothing but logs.
func (b *bench) noLeaks() {
	points, err := mounts.In(b.cfg.Root)
	points = slices.DeleteFunc(points, func(p string) bool { return p == filepath.Join(b.cfg.Root, "instances") }) // see propagate
	if err != nil || len(points) > 0 {
		b.t.Errorf("mounts left: %v %v", points, err)
	}
	dirs, err := os.ReadDir(filepath.Join(b.cfg.Root, "instances"))
	if err != nil || len(dirs) > 0 {
		b.t.Errorf("instance directories left: %v %v", dirs, err)
	}
	for _, g := range b.cgroupsLeft() {
		b.t.Errorf("left: %s", g)
	}
	e, err := New(b.cfg)
	if err != nil {
		b.t.Fatal(err)
	}
	defer e.Close()
	list, err := e.listSandboxes(context.Background(), "")
	if err != nil || len(list) > 0 {
		b.t.Errorf("sandboxes left: %v %v", list, err)
	}
}

func (b *bench) logText(id, container string) string {
	b.t.Helper()
	var out bytes.Buffer
	if err := b.Logs(b.t.Context(), id, cis.LogRequest{Container: container}, &out); err != nil {
		b.t.Fatal(err)
	}
	return out.String()
}

// run executes a command and gives its output.
func (b *bench) run(id, container string, cmd ...string) (string, error) {
	var out, errs bytes.Buffer
	ctx, cancel := context.WithTimeout(b.t.Context(), 30*time.Second)
	defer cancel()
	err := b.Exec(ctx, id, cis.ExecRequest{Container: container, Command: cmd, Stdout: &out, Stderr: &errs})
	return out.String() + errs.String(), err
}

func ended(c corev1.ContainerStatus) *corev1.ContainerStateTerminated { return c.State.Terminated }

var _ io.Writer = testWriter{}
