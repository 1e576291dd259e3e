package ledger

import (
	"context"
	"database/sql"
	"fmt"
	"time"
)

// usageRow is billed seconds of an instance in an hour, in a statement.
type usageRow struct {
	instance string
	org      string
	hour     int64
	seconds  Seconds
	// estimated is the life's mark at the closing of the month; of an open month it is the life's now.
	estimated bool
}

// Close closes a month for all orgs: its statement, corrections of earlier months included, never changes again.
// Months are closed in order, after their end. Closing a closed month changes nothing.
func (l *Ledger) Close(ctx context.Context, m Month) error {
	err := l.write(ctx, func(t *tx) error {
		closed, err := closedThrough(ctx, t)
		if err != nil {
			return err
		}
		switch {
		case !closed.zero() && !m.Start().After(closed.Start()):
			return nil
		case !closed.zero() && m != closed.Next():
			return fmt.Errorf("%w: %s must be closed first", ErrClose, closed.Next())
		case l.now().Before(m.End()):
			return fmt.Errorf("%w: %s has not ended", ErrClose, m)
		}
		if closed.zero() {
			var earlier int64
			if err := t.row(ctx, `SELECT count(*) FROM billing_usage WHERE hour < ? AND startup_seconds + running_seconds > 0`,
				m.Start().Unix()).Scan(&earlier); err != nil {
				return err
			}
			if earlier > 0 {
				return fmt.Errorf("%w: there is usage before %s; close its month first", ErrClose, m)
			}
		}
		if _, err := l.book.At(m.Start()); err != nil {
			var n int64
			if err2 := t.row(ctx, `SELECT count(*) FROM billing_usage WHERE hour < ? AND startup_seconds + running_seconds > 0`,
				m.End().Unix()).Scan(&n); err2 != nil || n > 0 {
				return fmt.Errorf("%w: %w", ErrClose, firstError(err2, err))
			}
		}
		return l.freeze(ctx, t, m, closed)
	})
	if err != nil {
		return fmt.Errorf("close %s: %w", m, err)
	}
	return nil
}

func firstError(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

func (l *Ledger) freeze(ctx context.Context, t *tx, m, closed Month) error {
	if !closed.zero() {
		corrections, err := l.corrections(ctx, t, "", closed.Next())
		if err != nil {
			return err
		}
		for _, c := range corrections {
			if err := t.exec(ctx, `INSERT INTO billing_billed (month, instance, hour, org, startup_seconds, running_seconds, estimated)
				VALUES (?, ?, ?, ?, ?, ?, ?)`, m.String(), c.instance, c.hour, c.org, c.seconds.Startup, c.seconds.Running, flag(c.estimated)); err != nil {
				return err
			}
		}
	}
	for _, q := range []struct {
		text string
		args []any
	}{
		{`INSERT INTO billing_billed (month, instance, hour, org, startup_seconds, running_seconds, estimated)
			SELECT ?, u.instance, u.hour, u.org, u.startup_seconds, u.running_seconds,
				CASE WHEN v.stopped = 0 AND v.last_at < ? THEN 1 ELSE 0 END
			FROM billing_usage u JOIN billing_lives v ON v.instance = u.instance
			WHERE u.hour >= ? AND u.hour < ? AND u.startup_seconds + u.running_seconds > 0`,
			[]any{m.String(), m.End().UnixNano(), m.Start().Unix(), m.End().Unix()}},
		{`DELETE FROM billing_late`, nil},
		{`INSERT INTO billing_closed (month, closed_at) VALUES (?, ?)`, []any{m.String(), l.now().UnixNano()}},
		{`UPDATE billing_state SET closed_through = ? WHERE id = 1`, []any{m.String()}},
	} {
		if err := t.exec(ctx, q.text, q.args...); err != nil {
			return err
		}
	}
	return nil
}

// corrections gives what late events changed in months closed before, as differences to what was billed; of one org,
// or of all for "". open is the month that they belong to.
func (l *Ledger) corrections(ctx context.Context, q querier, org string, open Month) ([]usageRow, error) {
	query := `SELECT t.instance, t.org, t.hour,
			COALESCE(u.startup_seconds, 0) - COALESCE(b.startup, 0), COALESCE(u.running_seconds, 0) - COALESCE(b.running, 0),
			CASE WHEN v.stopped = 0 AND v.last_at < (t.hour + 3600) * 1000000000 THEN 1 ELSE 0 END
		FROM billing_late t
		JOIN billing_lives v ON v.instance = t.instance
		LEFT JOIN billing_usage u ON u.instance = t.instance AND u.hour = t.hour
		LEFT JOIN (SELECT x.instance, x.hour, CAST(SUM(x.startup_seconds) AS BIGINT) AS startup, CAST(SUM(x.running_seconds) AS BIGINT) AS running
			FROM billing_billed x JOIN billing_late y ON y.instance = x.instance AND y.hour = x.hour
			GROUP BY x.instance, x.hour) b ON b.instance = t.instance AND b.hour = t.hour
		WHERE t.hour < ?`
	args := []any{open.Start().Unix()}
	if org != "" {
		query += ` AND t.org = ?`
		args = append(args, org)
	}
	var out []usageRow
	err := each(ctx, q, l.db, query+` ORDER BY t.instance, t.hour`, args, func(r *sql.Rows) error {
		u, err := scanUsage(r)
		if err == nil && u.seconds != (Seconds{}) {
			out = append(out, u)
		}
		return err
	})
	return out, err
}

func scanUsage(r *sql.Rows) (usageRow, error) {
	var u usageRow
	var estimated int64
	err := r.Scan(&u.instance, &u.org, &u.hour, &u.seconds.Startup, &u.seconds.Running, &estimated)
	u.estimated = estimated != 0
	return u, err
}

// ClosedThrough gives the last closed month and when it was closed; false when none is.
func (l *Ledger) ClosedThrough(ctx context.Context) (Month, time.Time, bool, error) {
	var s string
	var at int64
	err := l.db.QueryRowContext(ctx, l.db.Q(`SELECT s.closed_through, COALESCE(c.closed_at, 0) FROM billing_state s
		LEFT JOIN billing_closed c ON c.month = s.closed_through WHERE s.id = 1`)).Scan(&s, &at)
	if err != nil || s == "" {
		return Month{}, time.Time{}, false, err
	}
	m, err := ParseMonth(s)
	return m, time.Unix(0, at).UTC(), err == nil, err
}
