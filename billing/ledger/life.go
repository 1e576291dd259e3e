package ledger

import (
	"context"
	"database/sql"
	"errors"
	"time"

	"cumulet.io/billing"
)

// Life is an instance's life as its events tell it.
type Life struct {
	Instance     string       `json:"instance"`
	Org          string       `json:"org"`
	Name         string       `json:"name"`
	Region       string       `json:"region"`
	Node         string       `json:"node"`
	SandboxClass string       `json:"sandboxClass"`
	Size         billing.Size `json:"size"`
	// FirstAt is when counting began, as the first known event tells; LastAt is the instant of the last event's counters.
	FirstAt time.Time `json:"firstAt"`
	LastAt  time.Time `json:"lastAt"`
	// Total is what the whole life is billed so far: ceil(total milliseconds/1000) in sum.
	Total Seconds `json:"total"`
	// Stopped tells that the end is known; without it the bill goes to the last event and is estimated.
	Stopped bool   `json:"stopped"`
	Reason  string `json:"reason,omitempty"`
}

func newLife(ev *billing.Event) *lifeRow {
	return &lifeRow{Life: Life{Instance: ev.Instance, Org: ev.Org, Name: ev.Name, Region: ev.Region, Node: ev.Node,
		SandboxClass: ev.SandboxClass, Size: ev.Size, LastAt: ev.At,
		FirstAt: ev.At.Add(-time.Duration(ev.StartupMillis+ev.RunningMillis) * time.Millisecond)}}
}

// take goes on to the next event.
func (r *lifeRow) take(ev *billing.Event, f func(hour int64, add Seconds)) {
	r.add(ev, func(hour int64, add Seconds) {
		r.Total.Startup += add.Startup
		r.Total.Running += add.Running
		f(hour, add)
	})
	r.incarnation, r.sequence = ev.Incarnation, ev.Sequence
	r.LastAt = r.at
	if ev.Kind == billing.EventStopped {
		r.Stopped, r.Reason = true, ev.Reason
	}
}

const lifeColumns = `instance, org, name, region, node, sandbox_class, size_class, milli_cpu, memory_mib, first_at, last_at,
	incarnation, sequence, startup_millis, running_millis, startup_seconds, running_seconds, stopped, reason`

type scanner interface{ Scan(...any) error }

func scanLife(s scanner) (*lifeRow, error) {
	var r lifeRow
	var first, last, stopped int64
	err := s.Scan(&r.Instance, &r.Org, &r.Name, &r.Region, &r.Node, &r.SandboxClass, &r.Size.Class, &r.Size.MilliCPU, &r.Size.MemoryMiB,
		&first, &last, &r.incarnation, &r.sequence, &r.startup, &r.running, &r.Total.Startup, &r.Total.Running, &stopped, &r.Reason)
	if err != nil {
		return nil, err
	}
	r.FirstAt, r.LastAt, r.Stopped = time.Unix(0, first).UTC(), time.Unix(0, last).UTC(), stopped != 0
	r.at, r.begun = r.LastAt, true
	return &r, nil
}

// readLife gives nil when there is none.
func readLife(ctx context.Context, t *tx, instance string) (*lifeRow, error) {
	r, err := scanLife(t.row(ctx, `SELECT `+lifeColumns+` FROM billing_lives WHERE instance = ?`, instance))
	if errors.Is(err, sql.ErrNoRows) {
		return nil, nil
	}
	return r, err
}

func insertLife(ctx context.Context, t *tx, r *lifeRow) error {
	return t.exec(ctx, `INSERT INTO billing_lives (`+lifeColumns+`) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`,
		r.Instance, r.Org, r.Name, r.Region, r.Node, r.SandboxClass, r.Size.Class, r.Size.MilliCPU, r.Size.MemoryMiB,
		r.FirstAt.UnixNano(), r.LastAt.UnixNano(), r.incarnation, r.sequence, r.startup, r.running,
		r.Total.Startup, r.Total.Running, flag(r.Stopped), r.Reason)
}

func updateLife(ctx context.Context, t *tx, r *lifeRow) error {
	return t.exec(ctx, `UPDATE billing_lives SET name = ?, first_at = ?, last_at = ?, incarnation = ?, sequence = ?, startup_millis = ?,
		running_millis = ?, startup_seconds = ?, running_seconds = ?, stopped = ?, reason = ? WHERE instance = ?`,
		r.Name, r.FirstAt.UnixNano(), r.LastAt.UnixNano(), r.incarnation, r.sequence, r.startup, r.running,
		r.Total.Startup, r.Total.Running, flag(r.Stopped), r.Reason, r.Instance)
}

func flag(b bool) int64 {
	if b {
		return 1
	}
	return 0
}
