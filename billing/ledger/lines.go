package ledger

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"sort"
	"time"

	"cumulet.io/billing"
	"cumulet.io/billing/money"
	"cumulet.io/billing/price"
	"cumulet.io/internal/sqldb"
)

// ErrTooMuch tells that the bill has more lines than are made at once; ask for a shorter period.
var ErrTooMuch = errors.New("the bill has too many lines for one answer")

// maxSlices bounds a bill: instances times days.
const maxSlices = 500_000

// Kind is what a line is for.
type Kind string

// The kinds of lines.
const (
	// Usage happened in the statement's period.
	Usage Kind = "usage"
	// Correction is the difference that late events made to an earlier, closed month.
	Correction Kind = "correction"
)

// Period is a statement's: a month with its corrections, or any whole hours with the usage that began in them.
type Period struct {
	// Month is used when From and To are zero.
	Month    Month
	From, To time.Time
}

// Bounds gives the first instant of the period and the first after it; ErrPeriod unless they are whole hours in order.
func (p Period) Bounds() (from, to time.Time, err error) {
	if p.From.IsZero() && p.To.IsZero() {
		if p.Month.zero() {
			return from, to, fmt.Errorf("%w: it is empty", ErrPeriod)
		}
		return p.Month.Start(), p.Month.End(), nil
	}
	from, to = p.From.UTC(), p.To.UTC()
	if !from.Equal(from.Truncate(time.Hour)) || !to.Equal(to.Truncate(time.Hour)) || !from.Before(to) ||
		from.Year() < 2020 || to.Year() > 2199 {
		return from, to, fmt.Errorf("%w: from and to must be full hours UTC, from before to", ErrPeriod)
	}
	return from, to, nil
}

// String is "2026-11" or both bounds.
func (p Period) String() string {
	if p.From.IsZero() && p.To.IsZero() {
		return p.Month.String()
	}
	return p.From.UTC().Format(time.RFC3339) + "/" + p.To.UTC().Format(time.RFC3339)
}

// Line is one priced line, not rounded: what an instance used of one dimension, in one phase, on one day, at one price.
type Line struct {
	Kind     Kind   `json:"kind"`
	Instance string `json:"instance"`
	// Start and End are the day of the usage, cut to the period and to the price version.
	Start        time.Time       `json:"start"`
	End          time.Time       `json:"end"`
	Phase        billing.Phase   `json:"phase"`
	Dimension    price.Dimension `json:"dimension"`
	PriceVersion string          `json:"priceVersion"`
	// Seconds is billed seconds, negative in a correction that takes back. Every second stands in one line for each
	// dimension.
	Seconds  int64          `json:"seconds"`
	Quantity money.Quantity `json:"quantity"`
	Rate     money.Rate     `json:"rate"`
	Amount   money.Amount   `json:"amount"`
	// Estimated: the instance's end is not known and its last event is before the period's end.
	Estimated bool `json:"estimated,omitempty"`
}

// Bill is what is billed to an org in a period, all of one moment.
type Bill struct {
	Org      string
	Period   Period
	From, To time.Time
	Currency money.Currency
	// Lines are ordered by instance, start, kind, phase and dimension.
	Lines []Line
	// Lives are the instances of the lines, by id.
	Lives map[string]Life
	// AsOf: all events are in that had reached the log store by then, but for those that come further behind the newest
	// than the ingestor's passes begin, which its next wide or deep pass finds; zero before anything was read.
	AsOf time.Time
	// Closed tells that the period is a closed month: the bill will not change.
	Closed bool
}

// Bill makes the lines of an org's period. A month that is closed gives what was closed; the first open month has the
// corrections; a range of hours gives the usage as it is known now, without corrections.
func (l *Ledger) Bill(ctx context.Context, org string, p Period) (*Bill, error) {
	b := &Bill{Org: org, Period: p, Currency: l.book.Currency, Lives: map[string]Life{}}
	var err error
	if b.From, b.To, err = p.Bounds(); err != nil {
		return nil, fmt.Errorf("bill of %s: %w", org, err)
	}
	err = l.assemble(ctx, b, func(ctx context.Context, t *tx, take func(Kind, usageRow) error) error {
		if err := l.asOf(ctx, t, b); err != nil {
			return err
		}
		return l.usage(ctx, t, b, take)
	})
	if err != nil {
		return nil, fmt.Errorf("bill of %s for %s: %w", org, p, err)
	}
	return b, nil
}

// assemble prices the rows that f takes, all of one moment, into the bill's lines.
func (l *Ledger) assemble(ctx context.Context, b *Bill, f func(context.Context, *tx, func(Kind, usageRow) error) error) error {
	slices := map[slice]*Seconds{}
	estimated := map[string]bool{}
	take := func(kind Kind, u usageRow) error {
		v, err := l.book.At(time.Unix(u.hour, 0))
		if err != nil {
			return err
		}
		k := slice{u.instance, u.hour - u.hour%86400, kind, v.ID}
		if slices[k] == nil {
			if len(slices) >= maxSlices {
				return ErrTooMuch
			}
			slices[k] = &Seconds{}
		}
		slices[k].Startup += u.seconds.Startup
		slices[k].Running += u.seconds.Running
		estimated[u.instance] = estimated[u.instance] || u.estimated
		return nil
	}
	if err := l.read(ctx, func(t *tx) error {
		if err := f(ctx, t, take); err != nil {
			return err
		}
		return each(ctx, t, l.db, `SELECT `+lifeColumns+` FROM billing_lives WHERE org = ? AND (first_at < ? AND last_at >= ?
				OR instance IN (SELECT instance FROM billing_billed WHERE org = ? AND hour >= ? AND hour < ?)
				OR instance IN (SELECT instance FROM billing_billed WHERE org = ? AND month = ?)
				OR instance IN (SELECT instance FROM billing_late WHERE org = ?))`,
			[]any{b.Org, b.To.UnixNano(), b.From.UnixNano(), b.Org, b.From.Unix(), b.To.Unix(), b.Org, b.Period.Month.String(), b.Org},
			func(r *sql.Rows) error {
				v, err := scanLife(r)
				if err != nil {
					return err
				}
				if _, ok := estimated[v.Instance]; ok {
					b.Lives[v.Instance] = v.Life
				}
				return nil
			})
	}); err != nil {
		return err
	}
	for k, s := range slices {
		if err := l.price(b, k, *s, estimated[k.instance]); err != nil {
			return err
		}
	}
	sort.Slice(b.Lines, func(i, j int) bool { return b.Lines[i].before(&b.Lines[j]) })
	return nil
}

func (a *Line) before(b *Line) bool {
	switch {
	case a.Instance != b.Instance:
		return a.Instance < b.Instance
	case !a.Start.Equal(b.Start):
		return a.Start.Before(b.Start)
	case a.Kind != b.Kind:
		return a.Kind > b.Kind
	case a.Phase != b.Phase:
		return a.Phase > b.Phase
	}
	return a.Dimension > b.Dimension
}

// slice is what one pair of lines is made of.
type slice struct {
	instance string
	day      int64
	kind     Kind
	version  string
}

// read runs f in a transaction that sees one moment.
func (l *Ledger) read(ctx context.Context, f func(*tx) error) error {
	if l.db.Dialect != sqldb.Postgres {
		return l.db.InTx(ctx, func(t *sql.Tx) error { return f(&tx{Tx: t, db: l.db}) })
	}
	t, err := l.db.BeginTx(ctx, &sql.TxOptions{Isolation: sql.LevelRepeatableRead, ReadOnly: true})
	if err != nil {
		return fmt.Errorf("begin: %w", err)
	}
	err = f(&tx{Tx: t, db: l.db})
	return errors.Join(err, t.Rollback())
}

func (l *Ledger) asOf(ctx context.Context, t *tx, b *Bill) error {
	closed, err := closedThrough(ctx, t)
	if err != nil {
		return err
	}
	b.Closed = b.Period.From.IsZero() && b.Period.To.IsZero() && !closed.zero() && b.To.Compare(closed.End()) <= 0
	var complete, newest int64
	if err := t.row(ctx, `SELECT complete_through, newest_event FROM billing_state WHERE id = 1`).Scan(&complete, &newest); err != nil {
		return err
	}
	if complete == 0 {
		complete = newest
	}
	if complete != 0 {
		b.AsOf = time.Unix(0, complete).UTC()
	}
	return nil
}

func (l *Ledger) usage(ctx context.Context, t *tx, b *Bill, take func(Kind, usageRow) error) error {
	if b.Closed {
		return each(ctx, t, l.db, `SELECT instance, org, hour, startup_seconds, running_seconds, estimated FROM billing_billed
			WHERE org = ? AND month = ?`, []any{b.Org, b.Period.Month.String()}, func(r *sql.Rows) error {
			u, err := scanUsage(r)
			if err != nil {
				return err
			}
			kind := Usage
			if u.hour < b.From.Unix() {
				kind = Correction
			}
			return take(kind, u)
		})
	}
	if err := each(ctx, t, l.db, `SELECT u.instance, u.org, u.hour, u.startup_seconds, u.running_seconds,
			CASE WHEN v.stopped = 0 AND v.last_at < ? THEN 1 ELSE 0 END
		FROM billing_usage u JOIN billing_lives v ON v.instance = u.instance
		WHERE u.org = ? AND u.hour >= ? AND u.hour < ? AND u.startup_seconds + u.running_seconds > 0`,
		[]any{b.To.UnixNano(), b.Org, b.From.Unix(), b.To.Unix()}, func(r *sql.Rows) error {
			u, err := scanUsage(r)
			if err != nil {
				return err
			}
			return take(Usage, u)
		}); err != nil {
		return err
	}
	closed, err := closedThrough(ctx, t)
	if err != nil || closed.zero() || !b.Period.From.IsZero() || b.Period.Month != closed.Next() {
		return err
	}
	corrections, err := l.corrections(ctx, t, b.Org, b.Period.Month)
	if err != nil {
		return err
	}
	for _, c := range corrections {
		if err := take(Correction, c); err != nil {
			return err
		}
	}
	return nil
}

// price adds the lines of a slice: for each phase with seconds one line a dimension.
func (l *Ledger) price(b *Bill, k slice, s Seconds, estimated bool) error {
	life, ok := b.Lives[k.instance]
	if !ok {
		return fmt.Errorf("instance %s has usage and no life", k.instance)
	}
	i := len(l.book.Versions) - 1
	for i >= 0 && l.book.Versions[i].ID != k.version {
		i--
	}
	if i < 0 {
		return fmt.Errorf("%w: version %s", price.ErrNoPrice, k.version)
	}
	v := &l.book.Versions[i]
	start, end := time.Unix(k.day, 0).UTC(), time.Unix(k.day+86400, 0).UTC()
	start = latest(start, v.EffectiveFrom)
	if i+1 < len(l.book.Versions) {
		end = earliest(end, l.book.Versions[i+1].EffectiveFrom)
	}
	if k.kind == Usage {
		start, end = latest(start, b.From), earliest(end, b.To)
	}
	for _, part := range []struct {
		phase   billing.Phase
		seconds int64
	}{{billing.PhaseStartup, s.Startup}, {billing.PhaseRunning, s.Running}} {
		if part.seconds == 0 {
			continue
		}
		rates, err := v.Rates(life.SandboxClass, life.Region, part.phase)
		if err != nil {
			return err
		}
		line := Line{Kind: k.kind, Instance: k.instance, Start: start, End: end, Phase: part.phase, PriceVersion: v.ID,
			Seconds: part.seconds, Estimated: estimated}
		line.Dimension, line.Rate, line.Quantity = price.VCPUSecond, rates.VCPUSecond, money.VCPUSeconds(part.seconds, life.Size.MilliCPU)
		line.Amount = line.Rate.Times(line.Quantity)
		b.Lines = append(b.Lines, line)
		line.Dimension, line.Rate, line.Quantity = price.GiBSecond, rates.GiBSecond, money.GiBSeconds(part.seconds, life.Size.MemoryMiB)
		line.Amount = line.Rate.Times(line.Quantity)
		b.Lines = append(b.Lines, line)
	}
	return nil
}

func latest(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b.UTC()
}

func earliest(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b.UTC()
}
