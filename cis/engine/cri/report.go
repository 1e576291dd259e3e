package cri

import (
	"context"
	"errors"
	"log/slog"
	"reflect"
	"slices"
	"sync"
	"time"

	"cumulet.io/cis"
	"cumulet.io/cis/engine"
	"cumulet.io/internal/problem"
)

// reporter brings one instance's statuses and events to the Sink, in order, each repeated until the Sink took it. A
// status that has not been sent gives way to the next one of the same phase, because a status is whole. One that says only how a
// start goes on is held back for a while, in which most instances run, and gives way to any.
type reporter struct {
	id   string
	sink engine.Sink
	log  *slog.Logger
	kick chan struct{}
	// delivered gets one element when a final status has been taken.
	delivered chan struct{}

	mu    sync.Mutex
	queue []report
	last  *cis.Status // the last one queued
}

type report struct {
	status *cis.Status
	event  *cis.Event
	after  time.Time // the moment before which it is not sent, with what is behind it; zero for none
}

// held is how long a status of a start that goes on waits for the next one.
const held = 300 * time.Millisecond

// maxReports bounds the queue while the Sink is away; then events are dropped, the oldest first, and no status.
const maxReports = 500

func newReporter(id string, sink engine.Sink, log *slog.Logger) *reporter {
	return &reporter{id: id, sink: sink, log: log, kick: make(chan struct{}, 1), delivered: make(chan struct{}, 1)}
}

// status queues a status unless it is the same as the one before.
func (r *reporter) status(st cis.Status) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.last != nil && reflect.DeepEqual(*r.last, st) {
		return
	}
	x := report{status: &st}
	if r.last != nil && r.last.Phase == st.Phase && st.Phase == cis.Starting {
		x.after = time.Now().Add(held)
	}
	r.last = &st
	if i := slices.IndexFunc(r.queue, func(q report) bool { return !q.after.IsZero() }); i >= 0 {
		if !x.after.IsZero() {
			x.after = r.queue[i].after // it has waited already
		}
		r.queue = slices.Delete(r.queue, i, i+1)
	}
	if n := len(r.queue); n > 0 && r.queue[n-1].status != nil && r.queue[n-1].status.Phase == st.Phase {
		r.queue[n-1] = report{status: &st}
		return
	}
	r.add(x)
}

func (r *reporter) event(ev cis.Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if n := len(r.queue); n > 0 && r.queue[n-1].event != nil && *r.queue[n-1].event == ev && n > maxReports/2 {
		return
	}
	r.add(report{event: &ev})
}

func (r *reporter) add(x report) {
	if len(r.queue) >= maxReports {
		for i := 1; i < len(r.queue); i++ { // 0 may be on its way
			if r.queue[i].event != nil || i+1 < len(r.queue) && x.status != nil && r.queue[i].status != nil && !r.queue[i].status.Phase.Final() {
				r.queue = append(r.queue[:i], r.queue[i+1:]...)
				break
			}
		}
	}
	r.queue = append(r.queue, x)
	select {
	case r.kick <- struct{}{}:
	default:
	}
}

func (r *reporter) run(ctx context.Context) {
	for {
		x, wait := r.next()
		if x == nil {
			select {
			case <-ctx.Done():
				return
			case <-r.kick:
			case <-wait:
			}
			continue
		}
		if !r.send(ctx, *x) {
			return
		}
		if x.status != nil && x.status.Phase.Final() {
			select {
			case r.delivered <- struct{}{}:
			default:
			}
		}
	}
}

// next takes the first of the queue. When there is none yet, it gives when to ask again, nil for not before a kick.
func (r *reporter) next() (*report, <-chan time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.queue) == 0 {
		return nil, nil
	}
	x := r.queue[0]
	if d := time.Until(x.after); d > 0 {
		return nil, time.After(d)
	}
	r.queue = r.queue[1:]
	return &x, nil
}

func (r *reporter) send(ctx context.Context, x report) bool {
	for delay := 50 * time.Millisecond; ; delay = min(2*delay, 5*time.Second) {
		var err error
		if x.status != nil {
			err = r.sink.Report(ctx, r.id, *x.status)
		} else {
			err = r.sink.Record(ctx, *x.event)
		}
		switch {
		case err == nil:
			return true
		case errors.Is(err, problem.ErrNotFound):
			r.log.Warn("the record of the instance is gone; report dropped")
			return true
		case ctx.Err() != nil:
			return false
		}
		r.log.Warn("report not taken, will be repeated", "error", err)
		sleep(ctx, delay)
	}
}
