package meter

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"sort"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"cumulet.io/billing"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fakeClock is moved by hand.
type fakeClock struct {
	mu   sync.Mutex
	wall time.Time
	mono billing.Clock
}

func newClock() *fakeClock {
	return &fakeClock{wall: time.Date(2026, 11, 22, 4, 0, 0, 123456789, time.UTC), mono: billing.Clock{Boot: "boot-1", Nanos: 1e9}}
}

func (c *fakeClock) Now() (time.Time, billing.Clock) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.wall, c.mono
}

func (c *fakeClock) add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.wall, c.mono.Nanos = c.wall.Add(d), c.mono.Nanos+d.Nanoseconds()
}

func (c *fakeClock) reboot(down time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.wall, c.mono = c.wall.Add(down), billing.Clock{Boot: c.mono.Boot + "x", Nanos: 5e9}
}

func subject(id string) billing.Subject {
	return billing.Subject{Org: "acme", Instance: id, Name: "web", Region: "local", Node: "node-1", SandboxClass: "runc",
		Incarnation: 1, Size: billing.Size{Class: "c1-m2", MilliCPU: 1000, MemoryMiB: 2048}}
}

// events reads all whole lines of a directory, as a shipper would; torn counts bytes after the last newline.
func events(t *testing.T, dir string) (evs []billing.Event, torn int) {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(dir, "meter-*.ndjson"))
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range paths {
		b, err := os.ReadFile(p)
		if err != nil {
			t.Fatal(err)
		}
		r := bufio.NewReader(bytes.NewReader(b))
		for {
			text, err := r.ReadBytes('\n')
			if err != nil {
				torn += len(text)
				break
			}
			ev, err := billing.DecodeEvent(bytes.TrimSpace(text))
			if err != nil {
				t.Fatalf("%s: %v: %q", p, err, text)
			}
			evs = append(evs, ev)
		}
	}
	sort.SliceStable(evs, func(i, j int) bool {
		a, b := evs[i], evs[j]
		if a.Instance != b.Instance {
			return a.Instance < b.Instance
		}
		if a.Incarnation != b.Incarnation {
			return a.Incarnation < b.Incarnation
		}
		return a.Sequence < b.Sequence
	})
	return evs, torn
}

func open(t *testing.T, dir string, o Options) *Writer {
	t.Helper()
	w, err := Open(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	return w
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func start(t *testing.T, w *Writer, s billing.Subject) *Meter {
	t.Helper()
	m, err := w.Start(context.Background(), s)
	must(t, err)
	return m
}

func TestLife(t *testing.T) {
	dir, clock, ctx := t.TempDir(), newClock(), context.Background()
	w := open(t, dir, Options{Clock: clock})
	m := start(t, w, subject("i-1"))
	start(t, w, subject("i-1"))
	clock.add(1500*time.Millisecond + 700*time.Microsecond)
	must(t, m.MarkRunning(time.Time{}))
	must(t, m.MarkRunning(time.Time{}))
	clock.add(60 * time.Second)
	must(t, w.beat())
	must(t, w.beat())
	must(t, w.Close())
	// The process is down for ten seconds, the instance lives on.
	clock.add(10 * time.Second)
	w = open(t, dir, Options{Clock: clock})
	clock.add(60 * time.Second)
	must(t, w.beat()) // not vouched for before Start
	m = start(t, w, subject("i-1"))
	clock.add(5 * time.Second)
	must(t, m.Stop(ctx, clock.wall.Add(-5*time.Second), "Completed"))
	must(t, m.Stop(ctx, time.Time{}, "Failed"))
	must(t, m.MarkRunning(time.Time{}))
	start(t, w, subject("i-1"))
	again := subject("i-1")
	again.Incarnation = 2
	if _, err := w.Start(ctx, again); !errors.Is(err, ErrEnded) {
		t.Fatalf("start after the end: %v", err)
	}
	must(t, w.Close())
	evs, torn := events(t, dir)
	type row struct {
		kind             billing.EventKind
		seq, start, runs int64
		at               time.Duration
	}
	base := evs[0].Time
	var got []row
	for _, e := range evs {
		got = append(got, row{e.Kind, e.Sequence, e.StartupMillis, e.RunningMillis, e.At.Sub(base)})
	}
	want := []row{
		{billing.EventStarted, 0, 0, 0, 0},
		{billing.EventHeartbeat, 1, 1500, 0, 1500 * time.Millisecond},
		{billing.EventHeartbeat, 2, 1500, 60_000, 61_500 * time.Millisecond},
		{billing.EventStopped, 3, 1500, 130_000, 131_500 * time.Millisecond},
	}
	if torn != 0 || len(got) != len(want) {
		t.Fatalf("torn %d, got %v", torn, got)
	}
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("event %d: got %v, want %v", i, got[i], want[i])
		}
	}
}

// That a container started, and then that it ended, may be learnt long after both: neither is billed as later than it was.
func TestLateNews(t *testing.T) {
	dir, clock, ctx := t.TempDir(), newClock(), context.Background()
	began, _ := clock.Now()
	w := open(t, dir, Options{Clock: clock})
	m := start(t, w, subject("i-1"))
	early := start(t, w, subject("i-2"))
	must(t, early.MarkRunning(began.Add(-time.Minute))) // not before the last event
	clock.add(15 * time.Second)
	must(t, m.MarkRunning(began.Add(3*time.Second)))
	must(t, m.Stop(ctx, began.Add(8*time.Second), "Completed"))
	must(t, early.Stop(ctx, began.Add(9*time.Second), "Completed"))
	must(t, w.Close())
	evs, _ := events(t, dir)
	last := map[string]billing.Event{}
	for _, e := range evs {
		last[e.Instance] = e
	}
	if a, b := last["i-1"], last["i-2"]; a.StartupMillis != 3000 || a.RunningMillis != 5000 || !a.At.Equal(began.Add(8*time.Second)) ||
		b.StartupMillis != 0 || b.RunningMillis != 9000 {
		t.Errorf("%+v", evs)
	}
}

// A heartbeat tells no more than is known, and none is made that would tell nothing new.
func TestEvidence(t *testing.T) {
	dir, clock, ctx := t.TempDir(), newClock(), context.Background()
	var known time.Duration // after the start
	began, _ := clock.Now()
	w := open(t, dir, Options{Clock: clock, Evidence: func() time.Time { return began.Add(known) }})
	m := start(t, w, subject("i-1"))
	must(t, m.MarkRunning(time.Time{}))
	clock.add(100 * time.Second)
	known = 30 * time.Second
	must(t, w.beat()) // not yet an interval
	known = 70 * time.Second
	must(t, w.beat())
	must(t, w.beat())
	must(t, m.Stop(ctx, began.Add(80*time.Second), "Completed"))
	must(t, w.Close())
	evs, _ := events(t, dir)
	last, beat := evs[len(evs)-1], evs[len(evs)-2]
	if len(evs) != 4 || beat.Kind != billing.EventHeartbeat || beat.RunningMillis != 70_000 || last.RunningMillis != 80_000 ||
		!beat.Time.Equal(began.Add(100*time.Second)) || !beat.At.Equal(began.Add(known)) {
		t.Errorf("%+v", evs)
	}
}

func TestReboot(t *testing.T) {
	dir, clock, ctx := t.TempDir(), newClock(), context.Background()
	w := open(t, dir, Options{Clock: clock})
	m := start(t, w, subject("i-1"))
	start(t, w, subject("i-2"))
	must(t, m.MarkRunning(time.Time{}))
	clock.add(60 * time.Second)
	must(t, w.beat())
	clock.add(30 * time.Second) // lost: no evidence
	must(t, w.Close())
	clock.reboot(time.Hour)
	w = open(t, dir, Options{Clock: clock})
	must(t, start(t, w, subject("i-1")).Stop(ctx, time.Time{}, "NodeLost"))
	next := subject("i-2")
	next.Incarnation = 2
	m2 := start(t, w, next)
	clock.add(2 * time.Second)
	must(t, m2.MarkRunning(time.Time{}))
	clock.add(3 * time.Second)
	// A new sandbox while the meter runs: time goes on, as startup.
	next.Incarnation = 3
	start(t, w, next)
	clock.add(4 * time.Second)
	must(t, m2.Stop(ctx, time.Time{}, "Deleted"))
	must(t, w.Close())
	evs, _ := events(t, dir)
	last := map[string]billing.Event{}
	for _, e := range evs {
		last[e.Instance] = e
	}
	if e := last["i-1"]; e.Kind != billing.EventStopped || e.StartupMillis != 0 || e.RunningMillis != 60_000 {
		t.Errorf("i-1 billed past its evidence: %+v", e)
	}
	if e := last["i-2"]; e.Incarnation != 3 || e.StartupMillis != 60_000+2000+4000 || e.RunningMillis != 3000 {
		t.Errorf("i-2 counters do not go on: %+v", e)
	}
}

func TestRefusals(t *testing.T) {
	dir, clock, ctx := t.TempDir(), newClock(), context.Background()
	w := open(t, dir, Options{Clock: clock})
	if _, err := Open(dir, Options{Clock: clock}); !errors.Is(err, ErrLocked) {
		t.Errorf("a second writer: %v", err)
	}
	start(t, w, subject("i-1"))
	for name, change := range map[string]func(*billing.Subject){
		"org":  func(s *billing.Subject) { s.Org = "other" },
		"size": func(s *billing.Subject) { s.Size.MilliCPU = 1 },
		"node": func(s *billing.Subject) { s.Node = "node-2" },
	} {
		s := subject("i-1")
		change(&s)
		if _, err := w.Start(ctx, s); !errors.Is(err, ErrMismatch) {
			t.Errorf("%s changed: %v", name, err)
		}
	}
	for name, change := range map[string]func(*billing.Subject){
		"instance":    func(s *billing.Subject) { s.Instance = "a/b" },
		"org":         func(s *billing.Subject) { s.Org = "" },
		"name":        func(s *billing.Subject) { s.Name = "a\nb" },
		"incarnation": func(s *billing.Subject) { s.Incarnation = 0 },
	} {
		s := subject("i-2")
		change(&s)
		if _, err := w.Start(ctx, s); !errors.Is(err, ErrInvalid) {
			t.Errorf("bad %s: %v", name, err)
		}
	}
	must(t, w.Close())
	if _, err := w.Start(ctx, subject("i-3")); !errors.Is(err, ErrClosed) {
		t.Errorf("start after close: %v", err)
	}
	if evs, _ := events(t, dir); len(evs) != 1 {
		t.Errorf("refused subjects left events: %v", evs)
	}
}

func TestPrune(t *testing.T) {
	dir, clock, ctx := t.TempDir(), newClock(), context.Background()
	w := open(t, dir, Options{Clock: clock, MaxFileBytes: 1})
	m := start(t, w, subject("i-1"))
	clock.add(time.Second)
	must(t, m.MarkRunning(time.Time{}))
	n, err := w.Prune(func(string) bool { return false })
	if err != nil || n != 0 {
		t.Fatalf("pruned %d of nothing shipped: %v", n, err)
	}
	if n, err = w.Prune(func(string) bool { return true }); err != nil || n != 2 {
		t.Fatalf("pruned %d, want 2: %v", n, err)
	}
	must(t, w.Close())
	clock.add(9 * time.Second)
	w = open(t, dir, Options{Clock: clock})
	must(t, start(t, w, subject("i-1")).Stop(ctx, time.Time{}, "Completed"))
	evs, _ := events(t, dir)
	if len(evs) != 1 || evs[0].Sequence != 2 || evs[0].StartupMillis != 1000 || evs[0].RunningMillis != 9000 {
		t.Fatalf("state lost with the files: %+v", evs)
	}
	// The stopped life is known for a while, then forgotten.
	clock.add(DefaultKeepStopped + time.Hour)
	must(t, w.Close())
	w = open(t, dir, Options{Clock: clock})
	must(t, w.Close())
	if len(w.lives) != 0 {
		t.Errorf("lives kept for ever: %v", w.lives)
	}
}

func TestRunBeatsAndConcurrency(t *testing.T) {
	dir := t.TempDir()
	w := open(t, dir, Options{Heartbeat: 12 * time.Millisecond})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- w.Run(ctx) }()
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			m, err := w.Start(ctx, subject("i-"+string(rune('a'+i))))
			if err != nil {
				t.Error(err)
				return
			}
			if err := m.MarkRunning(time.Time{}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	deadline := time.Now().Add(20 * time.Second)
	for {
		evs, _ := events(t, dir)
		if len(evs) >= 80 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d events after 20 s", len(evs))
		}
		time.Sleep(5 * time.Millisecond)
	}
	cancel()
	must(t, <-done)
	must(t, w.Close())
	evs, _ := events(t, dir)
	for i := 1; i < len(evs); i++ {
		if evs[i].Instance == evs[i-1].Instance && evs[i].Sequence != evs[i-1].Sequence+1 {
			t.Fatalf("events %s and %s do not follow", evs[i-1].ID, evs[i].ID)
		}
	}
}
