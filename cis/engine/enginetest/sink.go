package enginetest

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"cumulet.io/billing"
	"cumulet.io/cis"
	"cumulet.io/internal/problem"
)

// Sink is an engine.Sink that keeps everything it is told, lets a test wait for it, and checks what must hold for
// every sequence of reports: phases, restart counts and incarnations never go back, sizes and start times never
// change, nothing follows an end. The zero Sink is ready; safe for concurrent use.
type Sink struct {
	// Fail, when set before use, may refuse a call with an error: the engine must repeat it.
	Fail func(id string) error
	// Unknown, when set before use, tells ids that the sink does not know: reports of them get problem.ErrNotFound.
	Unknown func(id string) bool

	mu         sync.Mutex
	known      map[string]*record
	violations []string
	changed    chan struct{}
}

type record struct {
	history []cis.Status
	events  []cis.Event
}

// Report implements engine.Sink.
func (s *Sink) Report(ctx context.Context, id string, st cis.Status) error {
	if err := s.refuse(ctx, id); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.record(id)
	if len(r.history) > 0 {
		s.compare(id, &r.history[len(r.history)-1], &st)
	}
	if st.Phase == "" {
		s.violate(id, "a status without a phase")
	}
	r.history = append(r.history, st)
	s.wake()
	return nil
}

// Record implements engine.Sink.
func (s *Sink) Record(ctx context.Context, ev cis.Event) error {
	if err := s.refuse(ctx, ev.Instance); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if ev.Reason == "" || ev.Message == "" || ev.Type != cis.Normal && ev.Type != cis.Warning {
		s.violate(ev.Instance, fmt.Sprintf("an event without type, reason or message: %+v", ev))
	}
	r := s.record(ev.Instance)
	r.events = append(r.events, ev)
	s.wake()
	return nil
}

func (s *Sink) refuse(ctx context.Context, id string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if s.Unknown != nil && s.Unknown(id) {
		return problem.New(problem.ErrNotFound, "no instance %s", id)
	}
	if s.Fail != nil {
		return s.Fail(id)
	}
	return nil
}

func (s *Sink) record(id string) *record {
	if s.known == nil {
		s.known = map[string]*record{}
	}
	r := s.known[id]
	if r == nil {
		r = &record{}
		s.known[id] = r
	}
	return r
}

func (s *Sink) wake() {
	if s.changed != nil {
		close(s.changed)
		s.changed = nil
	}
}

func (s *Sink) violate(id, what string) {
	if len(s.violations) < 20 {
		s.violations = append(s.violations, id+": "+what)
	}
}

func rank(p cis.Phase) int {
	return slices.Index([]cis.Phase{cis.Pending, cis.Starting, cis.Running, cis.Stopping}, p)
}

// compare holds a report against the one before it.
func (s *Sink) compare(id string, old, now *cis.Status) {
	switch {
	case old.Phase.Final() && now.Phase != old.Phase:
		s.violate(id, fmt.Sprintf("%s after the end, %s", now.Phase, old.Phase))
	case now.Phase.Final() || now.Incarnation > old.Incarnation && old.Incarnation > 0:
	case rank(now.Phase) < rank(old.Phase):
		s.violate(id, fmt.Sprintf("phase went back from %s to %s", old.Phase, now.Phase))
	}
	if now.Incarnation < old.Incarnation {
		s.violate(id, fmt.Sprintf("incarnation went back from %d to %d", old.Incarnation, now.Incarnation))
	}
	if old.Size != (billing.Size{}) && now.Size != old.Size {
		s.violate(id, fmt.Sprintf("size changed from %v to %v", old.Size, now.Size))
	}
	if !old.StartedAt.IsZero() && !now.StartedAt.Equal(old.StartedAt) {
		s.violate(id, fmt.Sprintf("startedAt changed from %v to %v", old.StartedAt, now.StartedAt))
	}
	if !old.EndedAt.IsZero() && !now.EndedAt.Equal(old.EndedAt) {
		s.violate(id, fmt.Sprintf("endedAt changed from %v to %v", old.EndedAt, now.EndedAt))
	}
	for _, l := range []struct{ old, now []corev1.ContainerStatus }{{old.InitContainers, now.InitContainers}, {old.Containers, now.Containers}} {
		if len(l.old) != len(l.now) && len(l.old) > 0 {
			s.violate(id, fmt.Sprintf("container statuses went from %d to %d", len(l.old), len(l.now)))
			continue
		}
		for i := range l.old {
			if l.now[i].Name != l.old[i].Name {
				s.violate(id, fmt.Sprintf("container %d was %s and is %s", i, l.old[i].Name, l.now[i].Name))
			}
			if l.now[i].RestartCount < l.old[i].RestartCount {
				s.violate(id, fmt.Sprintf("restarts of %s went back from %d to %d", l.old[i].Name, l.old[i].RestartCount, l.now[i].RestartCount))
			}
		}
	}
}

// Check fails the test for everything in the reports so far that a sequence of reports must not have.
func (s *Sink) Check(t testing.TB) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, v := range s.violations {
		t.Error(v)
	}
}

// Status is the last status reported of an instance; zero before the first.
func (s *Sink) Status(id string) cis.Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	if r := s.known[id]; r != nil && len(r.history) > 0 {
		return r.history[len(r.history)-1]
	}
	return cis.Status{}
}

// History is every status reported of an instance, oldest first.
func (s *Sink) History(id string) []cis.Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	if r := s.known[id]; r != nil {
		return slices.Clone(r.history)
	}
	return nil
}

// Events is every event recorded of an instance, oldest first, repeated as the engine repeated them.
func (s *Sink) Events(id string) []cis.Event {
	s.mu.Lock()
	defer s.mu.Unlock()
	if r := s.known[id]; r != nil {
		return slices.Clone(r.events)
	}
	return nil
}

// Forget drops what is known of an instance; what comes of it later is kept again.
func (s *Sink) Forget(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.known, id)
}

// IDs are the instances that the sink heard of, sorted.
func (s *Sink) IDs() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	ids := make([]string, 0, len(s.known))
	for id := range s.known {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return ids
}

// Await waits until the last status of an instance satisfies ok and returns it. It fails the test after timeout, with
// the last status, or at once when the instance has ended and cannot change any more.
func (s *Sink) Await(t testing.TB, id string, ok func(cis.Status) bool, timeout time.Duration) cis.Status {
	t.Helper()
	var last cis.Status
	s.wait(t, timeout, func() (done bool) {
		if r := s.known[id]; r != nil && len(r.history) > 0 {
			last = r.history[len(r.history)-1]
			if ok(last) {
				return true
			}
			if last.Phase.Final() {
				t.Fatalf("%s ended and is not as awaited: %s%s", id, describe(last), describeEvents(r.events))
			}
		}
		return false
	}, func() string {
		return fmt.Sprintf("status of %s: %s%s", id, describe(last), describeEvents(s.Events(id)))
	})
	return last
}

// AwaitEvent waits until an event of an instance satisfies ok and returns it.
func (s *Sink) AwaitEvent(t testing.TB, id string, ok func(cis.Event) bool, timeout time.Duration) cis.Event {
	t.Helper()
	var found cis.Event
	s.wait(t, timeout, func() bool {
		if r := s.known[id]; r != nil {
			if i := slices.IndexFunc(r.events, ok); i >= 0 {
				found = r.events[i]
				return true
			}
		}
		return false
	}, func() string {
		return fmt.Sprintf("event of %s: %s%s", id, describe(s.Status(id)), describeEvents(s.Events(id)))
	})
	return found
}

// wait calls done under the lock after every change until it is true.
func (s *Sink) wait(t testing.TB, timeout time.Duration, done func() bool, what func() string) {
	t.Helper()
	deadline := time.NewTimer(timeout)
	defer deadline.Stop()
	for {
		ok, changed := s.try(done)
		if ok {
			return
		}
		select {
		case <-changed:
		case <-deadline.C:
			t.Fatalf("waited %v for another %s", timeout, what())
		}
	}
}

func (s *Sink) try(done func() bool) (bool, <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock() // also when done ends the test
	if done() {
		return true, nil
	}
	if s.changed == nil {
		s.changed = make(chan struct{})
	}
	return false, s.changed
}

func describe(st cis.Status) string {
	text := fmt.Sprintf("%s %s %q ready=%v incarnation=%d", st.Phase, st.Reason, st.Message, st.Ready, st.Incarnation)
	for _, list := range [][]corev1.ContainerStatus{st.InitContainers, st.Containers} {
		for _, c := range list {
			text += fmt.Sprintf("\n\t%s restarts=%d ready=%v ", c.Name, c.RestartCount, c.Ready)
			switch {
			case c.State.Waiting != nil:
				text += fmt.Sprintf("waiting %s %q", c.State.Waiting.Reason, c.State.Waiting.Message)
			case c.State.Running != nil:
				text += "running"
			case c.State.Terminated != nil:
				text += fmt.Sprintf("terminated %d %s %q", c.State.Terminated.ExitCode, c.State.Terminated.Reason, c.State.Terminated.Message)
			}
		}
	}
	return text
}

func describeEvents(events []cis.Event) string {
	text := ""
	for _, ev := range events[max(0, len(events)-20):] {
		text += fmt.Sprintf("\n\tevent %s %s %s: %s", ev.Type, ev.Reason, ev.Container, ev.Message)
	}
	return text
}
