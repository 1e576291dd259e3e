package meter

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand"
	"os"
	"path/filepath"
	"testing"
	"time"

	"cumulet.io/billing"
)

var errInjected = errors.New("injected fault")

// faulty is a file system that fails at chosen operations: a write in the middle of its bytes, any other before or
// after it was done. When dead it does nothing any more, as a process that was killed.
type faulty struct {
	osFiles
	r    *rand.Rand
	left int // operations until the fault
	span int // how many operations fail then; -1: all, the process is dead
	hits int
}

// fails tells whether this operation fails, and whether it is done all the same.
func (f *faulty) fails() (fail, done bool) {
	f.left--
	if f.left > 0 || f.span == 0 {
		return false, true
	}
	first := f.hits == 0
	f.hits++
	if f.span > 0 {
		f.span--
		return true, f.r.Intn(2) == 0
	}
	return true, first && f.r.Intn(2) == 0
}

func (f *faulty) do(op func() error) error {
	fail, done := f.fails()
	var err error
	if done {
		err = op()
	}
	if fail {
		return errInjected
	}
	return err
}

type faultyFile struct {
	file
	f *faulty
}

func (f *faulty) Create(path string) (file, error) {
	var inner file
	err := f.do(func() (err error) { inner, err = f.osFiles.Create(path); return err })
	if err != nil {
		if inner != nil {
			_ = inner.Close()
		}
		return nil, err
	}
	return &faultyFile{inner, f}, nil
}

func (f *faulty) Rename(a, b string) error {
	return f.do(func() error { return f.osFiles.Rename(a, b) })
}
func (f *faulty) Remove(p string) error  { return f.do(func() error { return f.osFiles.Remove(p) }) }
func (f *faulty) SyncDir(p string) error { return f.do(func() error { return nil }) }
func (f *faulty) Truncate(p string, n int64) error {
	return f.do(func() error { return f.osFiles.Truncate(p, n) })
}

func (w *faultyFile) Write(p []byte) (int, error) {
	fail, done := w.f.fails()
	if !fail {
		return w.file.Write(p)
	}
	n := 0
	if done {
		n = w.f.r.Intn(len(p) + 1)
		if _, err := w.file.Write(p[:n]); err != nil {
			return 0, err
		}
	}
	return n, errInjected
}

func (w *faultyFile) Sync() error { return w.f.do(func() error { return nil }) } // a kill keeps what was written

func (w *faultyFile) Close() error {
	if w.f.span < 0 && w.f.hits > 0 {
		return errors.Join(w.file.Close(), errInjected)
	}
	return w.file.Close()
}

// kill leaves a writer as kill -9 does: nothing more is written, the lock is free.
func kill(t *testing.T, w *Writer) {
	t.Helper()
	must(t, w.lock.Close())
	if w.current != nil {
		_ = w.current.Close()
	}
}

// script drives some lives; what it was told is durable must be.
type script struct {
	t     *testing.T
	clock *fakeClock
	dir   string
	r     *rand.Rand
	// durable holds "instance/kind" that returned nil.
	durable, stopping map[string]bool
}

// run does random calls until one fails (true) or it is done.
func (s *script) run(w *Writer, steps int) (failed bool) {
	ctx := context.Background()
	for range steps {
		s.clock.add(time.Duration(s.r.Intn(40_000_000_000)))
		id := fmt.Sprintf("i-%d", s.r.Intn(4))
		switch k := s.r.Intn(12); {
		case k < 2:
			if err := w.beat(); err != nil {
				return true
			}
		case k < 3:
			if _, err := w.Prune(func(string) bool { return false }); err != nil {
				return true
			}
		default:
			m, err := w.Start(ctx, subject(id))
			if err != nil {
				return true
			}
			s.durable[id+"/started"] = true
			if k < 7 {
				if err := m.MarkRunning(time.Time{}); err != nil {
					return true
				}
				if !s.stopping[id] {
					s.durable[id+"/running"] = true
				}
			}
			if k == 11 {
				s.stopping[id] = true // from now on MarkRunning may have no effect
				if err := m.Stop(ctx, time.Time{}, "Completed"); err != nil {
					return true
				}
				s.durable[id+"/stopped"] = true
			}
		}
	}
	return false
}

// verify checks the directory as a shipper and a ledger see it. twice allows identical lines.
func (s *script) verify(twice bool) {
	t := s.t
	t.Helper()
	evs, torn := events(t, s.dir)
	if torn != 0 {
		t.Errorf("%d bytes are torn", torn)
	}
	seen := map[string][]byte{}
	last := map[string]billing.Event{}
	got := map[string]bool{}
	for _, ev := range evs {
		text, err := ev.Encode()
		must(t, err)
		if old, ok := seen[ev.ID]; ok {
			if !twice || !bytes.Equal(old, text) {
				t.Errorf("event %s stands twice:\n%s\n%s", ev.ID, old, text)
			}
			continue
		}
		seen[ev.ID] = text
		prev, ok := last[ev.Instance]
		switch {
		case !ok && ev.Sequence != 0, ok && ev.Sequence != prev.Sequence+1:
			t.Errorf("event %s does not follow %s", ev.ID, prev.ID)
		case ok && prev.Kind == billing.EventStopped:
			t.Errorf("event %s follows the end", ev.ID)
		case ok:
			grown := ev.StartupMillis + ev.RunningMillis - prev.StartupMillis - prev.RunningMillis
			if want := ev.At.Sub(prev.At).Milliseconds(); grown != want {
				t.Errorf("event %s: %d ms counted in %d ms", ev.ID, grown, want)
			}
		}
		last[ev.Instance] = ev
		got[ev.Instance+"/"+string(ev.Kind)] = true
		if ev.Phase == billing.PhaseRunning {
			got[ev.Instance+"/running"] = true
		}
	}
	for k := range s.durable {
		if !got[k] {
			t.Errorf("%s was acknowledged and is gone", k)
		}
	}
}

// TestKillAtEveryWrite kills the process at each of its file operations in turn, opens again (killed there, too, now
// and then) and goes on.
func TestKillAtEveryWrite(t *testing.T) {
	seed := time.Now().UnixNano()
	t.Logf("seed %d", seed)
	reached := 0
	for point := 1; point < 400; point += 4 {
		r := rand.New(rand.NewSource(seed + int64(point)))
		s := &script{t: t, clock: newClock(), dir: t.TempDir(), r: r, durable: map[string]bool{}, stopping: map[string]bool{}}
		opts := Options{Clock: s.clock, Logger: slog.New(slog.DiscardHandler), MaxFileBytes: 1500}
		for round := range 3 {
			f := &faulty{r: r, left: point, span: -1}
			if round > 0 {
				f.left = 1 + r.Intn(30)
			}
			o := opts
			o.files = f
			w, err := Open(s.dir, o)
			if err != nil {
				if !errors.Is(err, errInjected) {
					t.Fatalf("point %d: %v", point, err)
				}
				continue
			}
			if s.run(w, 60) && f.hits == 0 {
				t.Fatalf("point %d: a call failed without a fault", point)
			}
			if f.hits > 0 {
				reached++
			}
			kill(t, w)
			s.clock.add(time.Duration(r.Intn(100_000_000_000)))
		}
		opts.files = &faulty{left: 1 << 40}
		w := open(t, s.dir, opts)
		s.verify(false)
		if s.run(w, 20) {
			t.Fatalf("point %d: a call failed after the repair", point)
		}
		must(t, w.Close())
		s.verify(false)
		if t.Failed() {
			t.Fatalf("at point %d", point)
		}
	}
	if reached < 50 {
		t.Errorf("only %d kills happened", reached)
	}
}

// TestFaultsOfTheDisk lets some operations fail in a process that lives on: nothing acknowledged is lost, nothing is
// torn, and what was told as failed is mended by the next call that succeeds.
func TestFaultsOfTheDisk(t *testing.T) {
	seed := time.Now().UnixNano()
	t.Logf("seed %d", seed)
	for point := 1; point < 300; point += 4 {
		r := rand.New(rand.NewSource(seed + int64(point)))
		s := &script{t: t, clock: newClock(), dir: t.TempDir(), r: r, durable: map[string]bool{}, stopping: map[string]bool{}}
		f := &faulty{r: r, left: point + 8, span: 1 + r.Intn(6)}
		w, err := Open(s.dir, Options{Clock: s.clock, Logger: slog.New(slog.DiscardHandler), MaxFileBytes: 1500, files: f})
		must(t, err)
		for range 40 {
			s.run(w, 3)
		}
		if f.span != 0 {
			continue
		}
		must(t, w.beat())
		must(t, w.Close())
		w = open(t, s.dir, Options{Clock: s.clock, Logger: slog.New(slog.DiscardHandler), files: &faulty{left: 1 << 40}})
		s.verify(true)
		must(t, w.Close())
		if t.Failed() {
			t.Fatalf("at point %d", point)
		}
	}
}

// TestAnyPrefix: of a file cut at any byte, what is whole is a consistent beginning, and a writer opened on it goes on.
func TestAnyPrefix(t *testing.T) {
	dir, clock, ctx := t.TempDir(), newClock(), context.Background()
	w := open(t, dir, Options{Clock: clock})
	for i := range 3 {
		m := start(t, w, subject(fmt.Sprintf("i-%d", i)))
		clock.add(time.Second)
		must(t, m.MarkRunning(time.Time{}))
		clock.add(time.Minute)
		must(t, w.beat())
		if i == 1 {
			must(t, m.Stop(ctx, time.Time{}, "Failed"))
		}
	}
	must(t, w.Close())
	paths, err := filepath.Glob(filepath.Join(dir, "meter-*.ndjson"))
	must(t, err)
	whole, err := os.ReadFile(paths[0])
	must(t, err)
	for cut := 0; cut <= len(whole); cut += 7 {
		s := &script{t: t, clock: clock, dir: t.TempDir(), durable: map[string]bool{}, stopping: map[string]bool{}}
		must(t, os.WriteFile(filepath.Join(s.dir, filepath.Base(paths[0])), whole[:cut], 0o600))
		w := open(t, s.dir, Options{Clock: clock, Logger: slog.New(slog.DiscardHandler), files: &faulty{left: 1 << 40}})
		s.verify(false)
		start(t, w, subject("i-0"))
		must(t, w.Close())
		s.verify(false)
		if t.Failed() {
			t.Fatalf("cut at %d", cut)
		}
	}
}
