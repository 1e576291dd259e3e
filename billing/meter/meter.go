package meter

import (
	"context"
	"fmt"
	"time"

	"cumulet.io/billing"
)

// Meter counts one instance's time. Safe for concurrent use. It is a handle: all meters of an instance are the same.
type Meter struct {
	w        *Writer
	instance string
}

// Start starts the meter of an instance, or goes on with it; when it returns nil the event is durable. Call it when the
// instance's resources are held, and again for every live instance after a restart of the process.
//
// A life that is known goes on with its counters. After a restart in the same boot all time since the last event
// counts: an end in between is told by Stop, called directly after Start with the time of the end. After a reboot the
// time since the last event does not count. A higher incarnation begins in startup again; the time since the last
// event counts for it only if this process metered the incarnation before. A life that was stopped stays so: Start
// returns its meter, whose calls change nothing, or ErrEnded for a higher incarnation.
func (w *Writer) Start(ctx context.Context, s billing.Subject) (*Meter, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("start meter of %s: %w", s.Instance, err)
	}
	n, err := w.start(s)
	if err == nil {
		err = w.flush(n)
	}
	if err != nil {
		return nil, fmt.Errorf("start meter of %s: %w", s.Instance, err)
	}
	return &Meter{w: w, instance: s.Instance}, nil
}

// start returns the line that must be durable before Start may return.
func (w *Writer) start(s billing.Subject) (uint64, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return 0, ErrClosed
	}
	wall, mono := w.opts.Clock.Now()
	ev := billing.Event{Kind: billing.EventStarted, Org: s.Org, Instance: s.Instance, Name: s.Name, Incarnation: s.Incarnation,
		Time: wall, At: wall, Region: s.Region, Node: s.Node, SandboxClass: s.SandboxClass, Size: s.Size,
		Phase: billing.PhaseStartup, Clock: mono}
	ev.ID = billing.EventID(s.Instance, s.Incarnation, 0)
	if err := ev.Validate(); err != nil {
		return 0, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	l := w.lives[s.Instance]
	if l == nil {
		l = &life{attached: true}
		if err := w.append(l, ev); err != nil {
			return 0, err
		}
		w.lives[s.Instance] = l
		return w.written, nil
	}
	last := &l.last
	switch {
	case last.Org != s.Org || last.Region != s.Region || last.Node != s.Node || last.SandboxClass != s.SandboxClass || last.Size != s.Size:
		return 0, ErrMismatch
	case s.Incarnation < last.Incarnation:
		return 0, fmt.Errorf("%w: incarnation %d came before %d", ErrMismatch, s.Incarnation, last.Incarnation)
	case last.Kind == billing.EventStopped && s.Incarnation > last.Incarnation:
		return 0, ErrEnded
	case last.Kind == billing.EventStopped:
	case s.Incarnation > last.Incarnation:
		if l.attached {
			next := grow(*last, wall, mono)
			ev.StartupMillis, ev.RunningMillis, ev.At, ev.Clock = next.StartupMillis, next.RunningMillis, next.At, next.Clock
		} else {
			ev.StartupMillis, ev.RunningMillis = last.StartupMillis, last.RunningMillis
		}
		if err := w.append(l, ev); err != nil {
			return 0, err
		}
	case last.Clock.Boot != mono.Boot:
		// The clock begins anew; what was not counted in the old boot is not billed.
		ev = *last
		ev.Kind, ev.Sequence = billing.EventHeartbeat, nextSequence(*last, mono)
		ev.Time, ev.At, ev.Clock = wall, wall, mono
		if err := w.append(l, ev); err != nil {
			return 0, err
		}
	}
	l.attached = true
	return w.written, nil
}

// MarkRunning says that the first container proper has started at a wall clock instant: running time is counted from
// then, but never from before the last event nor after now; a zero time means now. Durable when it returns nil;
// idempotent in an incarnation, and without effect after Stop.
func (m *Meter) MarkRunning(at time.Time) error {
	n, err := m.step(func(last billing.Event, wall time.Time, mono billing.Clock) (billing.Event, bool) {
		if last.Phase == billing.PhaseRunning {
			return last, false
		}
		then, clock := past(at, wall, mono)
		ev := grow(last, then, clock)
		ev.Kind, ev.Time, ev.Phase = billing.EventHeartbeat, wall, billing.PhaseRunning
		return ev, true
	})
	if err == nil {
		err = m.w.flush(n)
	}
	if err != nil {
		return fmt.Errorf("meter of %s: mark running: %w", m.instance, err)
	}
	return nil
}

// Stop ends the life at a wall clock instant, for a reason (one CamelCase word). Durable when it returns nil. The
// counters stand at the end given, but never before the last event nor after now; a zero time means now. A second Stop
// changes nothing.
func (m *Meter) Stop(ctx context.Context, at time.Time, reason string) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("stop meter of %s: %w", m.instance, err)
	}
	n, err := m.step(func(last billing.Event, wall time.Time, mono billing.Clock) (billing.Event, bool) {
		then, clock := past(at, wall, mono)
		ev := grow(last, then, clock)
		ev.Kind, ev.Time, ev.Reason = billing.EventStopped, wall, reason
		return ev, true
	})
	if err == nil {
		err = m.w.flush(n)
	}
	if err != nil {
		return fmt.Errorf("stop meter of %s: %w", m.instance, err)
	}
	return nil
}

// past gives both clocks at an instant that is not after now, which is also what a zero time means.
func past(at, wall time.Time, mono billing.Clock) (time.Time, billing.Clock) {
	if !at.IsZero() && at.Before(wall) {
		gone := wall.Sub(at)
		mono.Nanos -= gone.Nanoseconds()
		wall = wall.Add(-gone)
	}
	return wall, mono
}

// step appends the event that f makes from the last one; f returns false for none.
func (m *Meter) step(f func(last billing.Event, wall time.Time, mono billing.Clock) (billing.Event, bool)) (uint64, error) {
	w := m.w
	w.mu.Lock()
	defer w.mu.Unlock()
	l := w.lives[m.instance]
	if l == nil || l.last.Kind == billing.EventStopped {
		return w.written, nil
	}
	wall, mono := w.opts.Clock.Now()
	ev, ok := f(l.last, wall, mono)
	if !ok {
		return w.written, nil
	}
	ev.Sequence = nextSequence(l.last, mono)
	if err := w.append(l, ev); err != nil {
		return 0, err
	}
	return w.written, nil
}

// Run appends heartbeats until ctx ends, and then returns nil. A heartbeat that cannot be written is tried again; no
// time is lost, because counters are cumulative.
func (w *Writer) Run(ctx context.Context) error {
	tick := time.NewTicker(max(w.opts.Heartbeat/12, time.Millisecond))
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			if err := w.beat(); err != nil {
				w.opts.Logger.Error("heartbeats not written; tried again", "error", err.Error())
			}
		}
	}
}

// beat appends a heartbeat for every live meter whose last event is an interval old, with one sync for all.
func (w *Writer) beat() error {
	n, err := w.beats()
	if err != nil {
		return err
	}
	return w.flush(n)
}

func (w *Writer) beats() (uint64, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return 0, ErrClosed
	}
	if w.broken {
		return w.written, nil
	}
	now, mono := w.opts.Clock.Now()
	wall := now
	if w.opts.Evidence != nil {
		if behind := now.Sub(w.opts.Evidence()); behind > 0 {
			wall = now.Add(-behind)
			mono.Nanos -= behind.Nanoseconds()
		}
	}
	for _, l := range w.lives {
		if !l.attached || l.last.Kind == billing.EventStopped || l.last.Clock.Boot == mono.Boot &&
			time.Duration(mono.Nanos-l.last.Clock.Nanos) < w.opts.Heartbeat {
			continue
		}
		ev := grow(l.last, wall, mono)
		ev.Kind, ev.Sequence, ev.Time = billing.EventHeartbeat, nextSequence(l.last, mono), now
		if err := w.append(l, ev); err != nil {
			return 0, err
		}
		if w.broken {
			break
		}
	}
	return w.written, nil
}

// grow gives the event after last with its counters at an instant: whole milliseconds more, the rest of one stays for
// the next event. Of another boot, or before last, nothing is counted.
func grow(last billing.Event, wall time.Time, mono billing.Clock) billing.Event {
	ev := last
	ev.Time, ev.Reason = wall, ""
	if last.Clock.Boot != mono.Boot || mono.Nanos < last.Clock.Nanos {
		return ev
	}
	gone := mono.Nanos - last.Clock.Nanos
	millis := gone / int64(time.Millisecond)
	if last.Phase == billing.PhaseRunning {
		ev.RunningMillis += millis
	} else {
		ev.StartupMillis += millis
	}
	ev.Clock.Nanos += millis * int64(time.Millisecond)
	ev.At = wall.Add(-time.Duration(gone - millis*int64(time.Millisecond)))
	return ev
}

// nextSequence follows last. After a reboot one number is left out: an event that the shipper read may have been lost
// with the power before it was durable here, and its id must not be given to other content.
func nextSequence(last billing.Event, mono billing.Clock) int64 {
	if last.Clock.Boot != mono.Boot {
		return last.Sequence + 2
	}
	return last.Sequence + 1
}
