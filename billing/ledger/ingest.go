package ledger

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"cumulet.io/billing"
)

// Ingested counts what became of a batch.
type Ingested struct {
	// New events were taken, Known ones had been taken (or quarantined) before with the same content.
	New   int `json:"new"`
	Known int `json:"known"`
	// Quarantined ones are not valid or contradict what is known.
	Quarantined int `json:"quarantined"`
}

// Ingest takes event lines, each exactly once, in one transaction. Lines may come in any order, any number of times.
// A line that is no valid event, that has the id of another with different content, or that contradicts its life is
// kept in the quarantine and bills nothing.
func (l *Ledger) Ingest(ctx context.Context, lines [][]byte) (Ingested, error) {
	return l.ingest(ctx, lines, func(context.Context, *tx) error { return nil })
}

// ingest is Ingest with something more done in the same transaction.
func (l *Ledger) ingest(ctx context.Context, lines [][]byte, also func(context.Context, *tx) error) (Ingested, error) {
	var n Ingested
	err := l.write(ctx, func(t *tx) error {
		n = Ingested{}
		b := &batch{t: t, l: l, now: l.now(), again: map[string]bool{}}
		var err error
		if b.closed, err = closedThrough(ctx, t); err != nil {
			return err
		}
		for _, line := range lines {
			if err := b.take(ctx, line, &n); err != nil {
				return err
			}
		}
		for instance := range b.again {
			if err := b.refold(ctx, instance); err != nil {
				return err
			}
		}
		if !b.newest.IsZero() {
			if err := t.exec(ctx, `UPDATE billing_state SET newest_event = ? WHERE id = 1 AND newest_event < ?`,
				b.newest.UnixNano(), b.newest.UnixNano()); err != nil {
				return err
			}
		}
		return also(ctx, t)
	})
	if err != nil {
		return Ingested{}, fmt.Errorf("ingest meter events: %w", err)
	}
	return n, nil
}

// batch is one ingest transaction.
type batch struct {
	t      *tx
	l      *Ledger
	now    time.Time
	closed Month
	newest time.Time
	// again are instances that got an event out of order: their fold is made anew at the end.
	again map[string]bool
}

// lifeRow is a row of billing_lives.
type lifeRow struct {
	Life
	fold
	incarnation, sequence int64
}

func (b *batch) take(ctx context.Context, line []byte, n *Ingested) error {
	ev, err := billing.DecodeEvent(line)
	if err != nil {
		return b.quarantine(ctx, ev.ID, line, err.Error(), n)
	}
	body, err := ev.Encode()
	if err != nil {
		return err
	}
	var had string
	err = b.t.row(ctx, `SELECT body FROM billing_events WHERE event_id = ?`, ev.ID).Scan(&had)
	switch {
	case err == nil && had == string(body):
		n.Known++
		return nil
	case err == nil:
		return b.quarantine(ctx, ev.ID, line, "another event with this id and other content was taken before", n)
	case !errors.Is(err, sql.ErrNoRows):
		return err
	}
	life, err := readLife(ctx, b.t, ev.Instance)
	if err != nil {
		return err
	}
	if reason, err := b.contradiction(ctx, life, &ev); err != nil {
		return err
	} else if reason != "" {
		return b.quarantine(ctx, ev.ID, line, reason, n)
	}
	if err := b.t.exec(ctx, `INSERT INTO billing_events (event_id, instance, incarnation, sequence, body, received)
		VALUES (?, ?, ?, ?, ?, ?)`, ev.ID, ev.Instance, ev.Incarnation, ev.Sequence, string(body), b.now.UnixNano()); err != nil {
		return err
	}
	n.New++
	if ev.Time.After(b.newest) {
		b.newest = ev.Time
	}
	switch {
	case life == nil:
		life = newLife(&ev)
		if err := insertLife(ctx, b.t, life); err != nil {
			return err
		}
	case ev.Incarnation < life.incarnation || ev.Incarnation == life.incarnation && ev.Sequence < life.sequence:
		b.again[ev.Instance] = true
		return nil
	case b.again[ev.Instance]:
		return nil
	}
	if err := b.advance(ctx, life, &ev); err != nil {
		return err
	}
	return updateLife(ctx, b.t, life)
}

// contradiction tells why an event cannot be part of the life, "" when it can.
func (b *batch) contradiction(ctx context.Context, life *lifeRow, ev *billing.Event) (string, error) {
	if life == nil {
		return "", nil
	}
	if life.Org != ev.Org || life.Region != ev.Region || life.Node != ev.Node || life.SandboxClass != ev.SandboxClass || life.Size != ev.Size {
		return "org, region, node, sandbox class or size differ from the instance's other events", nil
	}
	before, err := b.neighbour(ctx, `SELECT body FROM billing_events WHERE instance = ? AND (incarnation < ? OR incarnation = ? AND sequence < ?)
		ORDER BY incarnation DESC, sequence DESC LIMIT 1`, ev)
	if err != nil {
		return "", err
	}
	after, err := b.neighbour(ctx, `SELECT body FROM billing_events WHERE instance = ? AND (incarnation > ? OR incarnation = ? AND sequence > ?)
		ORDER BY incarnation, sequence LIMIT 1`, ev)
	if err != nil {
		return "", err
	}
	switch {
	case before != nil && before.Kind == billing.EventStopped:
		return "it follows the event that stopped the instance", nil
	case after != nil && ev.Kind == billing.EventStopped:
		return "it stops the instance before another of its events", nil
	case before != nil && (before.StartupMillis > ev.StartupMillis || before.RunningMillis > ev.RunningMillis),
		after != nil && (after.StartupMillis < ev.StartupMillis || after.RunningMillis < ev.RunningMillis):
		return "its counters go back", nil
	}
	return "", nil
}

func (b *batch) neighbour(ctx context.Context, query string, ev *billing.Event) (*billing.Event, error) {
	var body string
	err := b.t.row(ctx, query, ev.Instance, ev.Incarnation, ev.Incarnation, ev.Sequence).Scan(&body)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	other, err := billing.DecodeEvent([]byte(body))
	return &other, err
}

// advance takes the next event in order into the life and its usage.
func (b *batch) advance(ctx context.Context, life *lifeRow, ev *billing.Event) error {
	var err error
	life.take(ev, func(hour int64, add Seconds) {
		if err == nil {
			err = b.t.exec(ctx, `INSERT INTO billing_usage (instance, hour, org, startup_seconds, running_seconds) VALUES (?, ?, ?, ?, ?)
				ON CONFLICT (instance, hour) DO UPDATE SET startup_seconds = billing_usage.startup_seconds + excluded.startup_seconds,
				running_seconds = billing_usage.running_seconds + excluded.running_seconds`,
				life.Instance, hour, life.Org, add.Startup, add.Running)
		}
		if err == nil {
			err = b.late(ctx, life, hour)
		}
	})
	return err
}

// late notes that an hour of a closed month changed.
func (b *batch) late(ctx context.Context, life *lifeRow, hour int64) error {
	if b.closed.zero() || hour >= b.closed.End().Unix() {
		return nil
	}
	return b.t.exec(ctx, `INSERT INTO billing_late (instance, hour, org) VALUES (?, ?, ?) ON CONFLICT (instance, hour) DO NOTHING`,
		life.Instance, hour, life.Org)
}

// refold makes a life's usage anew from all its events.
func (b *batch) refold(ctx context.Context, instance string) error {
	had := map[int64]Seconds{}
	if err := each(ctx, b.t, b.l.db, `SELECT hour, startup_seconds, running_seconds FROM billing_usage WHERE instance = ?`, []any{instance},
		func(r *sql.Rows) error {
			var hour int64
			var s Seconds
			err := r.Scan(&hour, &s.Startup, &s.Running)
			had[hour] = s
			return err
		}); err != nil {
		return err
	}
	var life *lifeRow
	now := map[int64]Seconds{}
	if err := each(ctx, b.t, b.l.db, `SELECT body FROM billing_events WHERE instance = ? ORDER BY incarnation, sequence`, []any{instance},
		func(r *sql.Rows) error {
			var body string
			if err := r.Scan(&body); err != nil {
				return err
			}
			ev, err := billing.DecodeEvent([]byte(body))
			if err != nil {
				return err
			}
			if life == nil {
				life = newLife(&ev)
			}
			life.take(&ev, func(hour int64, add Seconds) {
				s := now[hour]
				now[hour] = Seconds{s.Startup + add.Startup, s.Running + add.Running}
			})
			return nil
		}); err != nil {
		return err
	}
	for hour, s := range now {
		if had[hour] == s {
			delete(had, hour)
			continue
		}
		delete(had, hour)
		if err := b.set(ctx, life, hour, s); err != nil {
			return err
		}
	}
	for hour := range had {
		if err := b.set(ctx, life, hour, Seconds{}); err != nil {
			return err
		}
	}
	return updateLife(ctx, b.t, life)
}

func (b *batch) set(ctx context.Context, life *lifeRow, hour int64, s Seconds) error {
	if err := b.t.exec(ctx, `INSERT INTO billing_usage (instance, hour, org, startup_seconds, running_seconds) VALUES (?, ?, ?, ?, ?)
		ON CONFLICT (instance, hour) DO UPDATE SET startup_seconds = excluded.startup_seconds, running_seconds = excluded.running_seconds`,
		life.Instance, hour, life.Org, s.Startup, s.Running); err != nil {
		return err
	}
	return b.late(ctx, life, hour)
}

func (b *batch) quarantine(ctx context.Context, id string, line []byte, reason string, n *Ingested) error {
	sum := sha256.Sum256(line)
	if len(line) > billing.MaxEventBytes {
		line = line[:billing.MaxEventBytes]
	}
	if line == nil {
		line = []byte{}
	}
	if len(id) > 1000 {
		id = id[:1000]
	}
	if !billing.ValidText(id) {
		id = strconv.QuoteToASCII(id)
	}
	if len(reason) > 1000 {
		reason = reason[:1000]
	}
	r, err := b.t.ExecContext(ctx, b.t.db.Q(`INSERT INTO billing_quarantine (digest, event_id, reason, body, received) VALUES (?, ?, ?, ?, ?)
		ON CONFLICT (digest) DO NOTHING`), hex.EncodeToString(sum[:]), id, strings.ToValidUTF8(strings.ReplaceAll(reason, "\x00", ""), "?"), line, b.now.UnixNano())
	if err != nil {
		return err
	}
	added, err := r.RowsAffected()
	if added > 0 {
		n.Quarantined++
	} else {
		n.Known++
	}
	return err
}
