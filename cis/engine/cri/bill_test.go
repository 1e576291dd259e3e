package cri

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"cumulet.io/billing"
	"cumulet.io/billing/meter"
	"cumulet.io/cis"
)

// realMeter writes meter events as the product does.
type realMeter struct{ w *meter.Writer }

// Start implements MeterStarter.
func (m realMeter) Start(ctx context.Context, s billing.Subject) (Meter, error) {
	return m.w.Start(ctx, s)
}

// metered restarts the engine with the product's meter, as a process after a kill does: what of the meter is in files is
// found again. It returns the meter's directory.
func (b *bench) metered(t *testing.T, all ...*cis.Instance) string {
	t.Helper()
	dir := filepath.Join(b.env.Dir, "meter")
	b.stop()
	b.unmeter()
	w, err := meter.Open(dir, meter.Options{Logger: b.cfg.Logger})
	if err != nil {
		t.Fatal(err)
	}
	b.unmeter = func() {
		if err := w.Close(); err != nil {
			t.Error(err)
		}
	}
	b.cfg.Meter = realMeter{w}
	b.up()
	if err := b.Sync(t.Context(), all); err != nil {
		t.Fatal(err)
	}
	return dir
}

// meterEvents are the events of an instance in a meter's directory, oldest first.
func meterEvents(t *testing.T, dir, instance string) []billing.Event {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "meter-*.ndjson"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no meter events in %s: %v", dir, err)
	}
	var found []billing.Event
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		for s := bufio.NewScanner(bytes.NewReader(text)); s.Scan(); {
			ev, err := billing.DecodeEvent(s.Bytes())
			if err != nil {
				t.Fatalf("%s: %v", f, err)
			}
			if ev.Instance == instance {
				found = append(found, ev)
			}
		}
	}
	slices.SortFunc(found, func(a, b billing.Event) int {
		return cmp.Or(cmp.Compare(a.Incarnation, b.Incarnation), cmp.Compare(a.Sequence, b.Sequence))
	})
	return found
}

// exactBill checks that the events of an ended instance bill the life that its status tells: one start, one stop, nothing
// twice, and counters of just the time between.
func exactBill(t *testing.T, evs []billing.Event, st cis.Status) {
	t.Helper()
	if st.StartedAt.IsZero() {
		if len(evs) > 0 {
			t.Errorf("an instance that held nothing has the meter events %+v", evs)
		}
		return
	}
	if len(evs) < 2 || evs[0].Kind != billing.EventStarted || evs[len(evs)-1].Kind != billing.EventStopped {
		t.Errorf("meter events do not go from started to stopped: %+v", evs)
		return
	}
	first, last := evs[0], evs[len(evs)-1]
	ids := map[string]bool{}
	for i, ev := range evs {
		if ids[ev.ID] || i > 0 && (ev.StartupMillis < evs[i-1].StartupMillis || ev.RunningMillis < evs[i-1].RunningMillis) {
			t.Errorf("event %d comes twice or takes something back: %+v", i, evs)
		}
		ids[ev.ID] = true
		if ev.Kind == billing.EventStarted && ev.Sequence != 0 || ev.Kind == billing.EventStopped && i < len(evs)-1 {
			t.Errorf("event %d is a second start or stop: %+v", i, evs)
		}
	}
	within := func(what string, got, want, most time.Duration) {
		if diff := (got - want).Abs(); diff > most {
			t.Errorf("%s: %v, want %v: meter events %+v", what, got, want, evs)
		}
	}
	billed := time.Duration(last.StartupMillis+last.RunningMillis) * time.Millisecond
	// Each event leaves less than a millisecond to the next; the clocks are read one after the other.
	within("counted, and between start and stop", billed, last.At.Sub(first.At), 100*time.Millisecond)
	within("start", time.Duration(first.At.UnixNano()), time.Duration(st.StartedAt.UnixNano()), time.Second)
	within("stop", time.Duration(last.At.UnixNano()), time.Duration(st.EndedAt.UnixNano()), time.Second)
}

// describeBill is what a log of a run shows.
func describeBill(evs []billing.Event) string {
	if len(evs) == 0 {
		return "nothing billed"
	}
	last := evs[len(evs)-1]
	return fmt.Sprintf("%d meter events, %d+%d ms, %s", len(evs), last.StartupMillis, last.RunningMillis, last.Reason)
}
