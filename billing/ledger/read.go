package ledger

import (
	"context"
	"database/sql"
	"fmt"
	"time"

	"cumulet.io/billing"
)

// Orgs lists the orgs that have usage, or corrections, in a period.
func (l *Ledger) Orgs(ctx context.Context, p Period) ([]string, error) {
	from, to, err := p.Bounds()
	if err != nil {
		return nil, fmt.Errorf("list orgs: %w", err)
	}
	var out []string
	err = each(ctx, l.db, l.db, `SELECT org FROM billing_usage WHERE hour >= ? AND hour < ?
		UNION SELECT org FROM billing_billed WHERE month = ?
		UNION SELECT org FROM billing_late
		UNION SELECT org FROM billing_lives WHERE first_at < ? AND last_at >= ?
		ORDER BY 1`, []any{from.Unix(), to.Unix(), p.Month.String(), to.UnixNano(), from.UnixNano()}, func(r *sql.Rows) error {
		var org string
		err := r.Scan(&org)
		out = append(out, org)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list orgs: %w", err)
	}
	return out, nil
}

// Lives lists the lives of an org that were alive, as their events tell, between two instants; ordered by id.
func (l *Ledger) Lives(ctx context.Context, org string, from, to time.Time) ([]Life, error) {
	var out []Life
	err := each(ctx, l.db, l.db, `SELECT `+lifeColumns+` FROM billing_lives WHERE org = ? AND first_at < ? AND last_at >= ? ORDER BY instance`,
		[]any{org, to.UnixNano(), from.UnixNano()}, func(r *sql.Rows) error {
			v, err := scanLife(r)
			if err == nil {
				out = append(out, v.Life)
			}
			return err
		})
	if err != nil {
		return nil, fmt.Errorf("list lives of %s: %w", org, err)
	}
	return out, nil
}

// Events calls f with every event taken of an instance, by incarnation and sequence.
func (l *Ledger) Events(ctx context.Context, instance string, f func(billing.Event) error) error {
	err := each(ctx, l.db, l.db, `SELECT body FROM billing_events WHERE instance = ? ORDER BY incarnation, sequence`, []any{instance},
		func(r *sql.Rows) error {
			var body string
			if err := r.Scan(&body); err != nil {
				return err
			}
			ev, err := billing.DecodeEvent([]byte(body))
			if err != nil {
				return err
			}
			return f(ev)
		})
	if err != nil {
		return fmt.Errorf("read events of %s: %w", instance, err)
	}
	return nil
}

// Corrected gives all corrections of a closed month's usage, as lines: those in statements closed later and those that
// wait in the open month.
func (l *Ledger) Corrected(ctx context.Context, org string, m Month) ([]Line, error) {
	b := &Bill{Org: org, Period: Period{Month: m}, From: m.Start(), To: m.End(), Currency: l.book.Currency, Lives: map[string]Life{}}
	err := l.assemble(ctx, b, func(ctx context.Context, t *tx, take func(Kind, usageRow) error) error {
		if err := each(ctx, t, l.db, `SELECT instance, org, hour, startup_seconds, running_seconds, estimated FROM billing_billed
			WHERE org = ? AND month > ? AND hour >= ? AND hour < ?`,
			[]any{org, m.String(), m.Start().Unix(), m.End().Unix()}, func(r *sql.Rows) error {
				u, err := scanUsage(r)
				if err != nil {
					return err
				}
				return take(Correction, u)
			}); err != nil {
			return err
		}
		closed, err := closedThrough(ctx, t)
		if err != nil || closed.zero() {
			return err
		}
		pending, err := l.corrections(ctx, t, org, closed.Next())
		if err != nil {
			return err
		}
		for _, c := range pending {
			if c.hour >= m.Start().Unix() && c.hour < m.End().Unix() {
				if err := take(Correction, c); err != nil {
					return err
				}
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("corrections of %s in %s: %w", org, m, err)
	}
	return b.Lines, nil
}

// Quarantined is a line that was not taken.
type Quarantined struct {
	// EventID is what the line says its id is, if that could be read.
	EventID string `json:"eventId,omitempty"`
	Reason  string `json:"reason"`
	// Digest is the SHA-256 of the line.
	Digest   string    `json:"digest"`
	Received time.Time `json:"received"`
	// Line is the line itself, cut to billing.MaxEventBytes.
	Line string `json:"line"`
}

// QuarantinePage is a page of the quarantine. Next is "" on the last one.
type QuarantinePage struct {
	Items []Quarantined `json:"items"`
	Next  string        `json:"next,omitempty"`
}

// Quarantine lists lines that were not taken, oldest first. after is "" or Next of an earlier page; ErrPeriod for any
// other text. limit is 1 to 1000.
func (l *Ledger) Quarantine(ctx context.Context, after string, limit int) (QuarantinePage, error) {
	var page QuarantinePage
	var since int64
	digest := ""
	if after != "" {
		if n, err := fmt.Sscanf(after, "%d-%64s", &since, &digest); err != nil || n != 2 || fmt.Sprintf("%d-%s", since, digest) != after {
			return page, fmt.Errorf("list quarantine: %w: the cursor is not valid", ErrPeriod)
		}
	}
	limit = min(max(limit, 1), 1000)
	page.Items = []Quarantined{}
	err := each(ctx, l.db, l.db, `SELECT event_id, reason, digest, received, body FROM billing_quarantine
		WHERE received > ? OR received = ? AND digest > ? ORDER BY received, digest LIMIT ?`,
		[]any{since, since, digest, limit + 1}, func(r *sql.Rows) error {
			var q Quarantined
			var at int64
			var body []byte
			if err := r.Scan(&q.EventID, &q.Reason, &q.Digest, &at, &body); err != nil {
				return err
			}
			if len(page.Items) == limit {
				last := page.Items[limit-1]
				page.Next = fmt.Sprintf("%d-%s", last.Received.UnixNano(), last.Digest)
				return nil
			}
			q.Received, q.Line = time.Unix(0, at).UTC(), string(body)
			page.Items = append(page.Items, q)
			return nil
		})
	if err != nil {
		return QuarantinePage{}, fmt.Errorf("list quarantine: %w", err)
	}
	return page, nil
}

// Billed sums all that a life is billed: what closed months hold, corrections that wait, and the usage of open hours.
func (l *Ledger) Billed(ctx context.Context, instance string) (Seconds, error) {
	var s Seconds
	err := l.read(ctx, func(t *tx) error {
		s = Seconds{}
		closed, err := closedThrough(ctx, t)
		if err != nil {
			return err
		}
		open := int64(0)
		if !closed.zero() {
			open = closed.End().Unix()
		}
		for _, q := range []struct {
			text string
			args []any
		}{
			{`SELECT startup_seconds, running_seconds FROM billing_usage WHERE instance = ? AND hour >= ?`, []any{instance, open}},
			{`SELECT startup_seconds, running_seconds FROM billing_billed WHERE instance = ?`, []any{instance}},
		} {
			if err := each(ctx, t, l.db, q.text, q.args, func(r *sql.Rows) error {
				var add Seconds
				err := r.Scan(&add.Startup, &add.Running)
				s = Seconds{s.Startup + add.Startup, s.Running + add.Running}
				return err
			}); err != nil {
				return err
			}
		}
		if closed.zero() {
			return nil
		}
		var org string
		if err := t.row(ctx, `SELECT org FROM billing_lives WHERE instance = ?`, instance).Scan(&org); err != nil {
			return err
		}
		pending, err := l.corrections(ctx, t, org, closed.Next())
		for _, c := range pending {
			if c.instance == instance {
				s = Seconds{s.Startup + c.seconds.Startup, s.Running + c.seconds.Running}
			}
		}
		return err
	})
	if err != nil {
		return Seconds{}, fmt.Errorf("billed of %s: %w", instance, err)
	}
	return s, nil
}
