// Package ledger keeps what is billed: meter events exactly once, the seconds that they make, and closed months.
//
// Events are the truth. Their fold, billed seconds by instance and hour, is kept beside them and made again when an
// event comes late. Money is not stored: lines are priced when they are read, from price versions that never change.
// The package neither ships events nor formats statements.
package ledger

import (
	"context"
	"database/sql"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"cumulet.io/billing/price"
	"cumulet.io/internal/sqldb"
)

//go:embed migrations/*.sql
var migrations embed.FS

// Errors of the package; test with errors.Is.
var (
	// ErrBook: the price book contradicts the versions that were in force before.
	ErrBook = errors.New("the price book contradicts earlier versions")
	// ErrClose: the month cannot be closed.
	ErrClose = errors.New("the month cannot be closed")
	// ErrPeriod: the period is not one of whole hours.
	ErrPeriod = errors.New("the period is not valid")
)

// Ledger is the billing database. Safe for concurrent use, also by several processes on one PostgreSQL.
type Ledger struct {
	db   *sqldb.DB
	book *price.Book
	now  func() time.Time
}

// Options configures a Ledger.
type Options struct {
	// Now is the wall clock; nil means time.Now.
	Now func() time.Time
}

// Open makes the tables and takes the price book into force: versions that were in force before must be in it
// unchanged, new ones may only follow them and must not reach into a closed month (ErrBook).
func Open(ctx context.Context, db *sqldb.DB, book *price.Book, opts Options) (*Ledger, error) {
	if err := db.Migrate(ctx, "billing", migrations, "migrations"); err != nil {
		return nil, fmt.Errorf("open ledger: %w", err)
	}
	l := &Ledger{db: db, book: book, now: opts.Now}
	if l.now == nil {
		l.now = time.Now
	}
	if err := l.adopt(ctx); err != nil {
		return nil, fmt.Errorf("open ledger: %w", err)
	}
	return l, nil
}

// Book is the price book in force.
func (l *Ledger) Book() *price.Book { return l.book }

// write runs f in a transaction that no other writer of the ledger runs beside.
func (l *Ledger) write(ctx context.Context, f func(*tx) error) error {
	return l.db.InTx(ctx, func(t *sql.Tx) error {
		x := &tx{Tx: t, db: l.db}
		if err := x.exec(ctx, `UPDATE billing_state SET version = version + 1 WHERE id = 1`); err != nil {
			return err
		}
		return f(x)
	})
}

// tx is a transaction that rebinds.
type tx struct {
	*sql.Tx
	db *sqldb.DB
}

func (t *tx) exec(ctx context.Context, query string, args ...any) error {
	_, err := t.ExecContext(ctx, t.db.Q(query), args...)
	return err
}

func (t *tx) row(ctx context.Context, query string, args ...any) *sql.Row {
	return t.QueryRowContext(ctx, t.db.Q(query), args...)
}

// querier is a database or a transaction.
type querier interface {
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
}

// each runs a query and calls f for every row; f scans.
func each(ctx context.Context, q querier, db *sqldb.DB, query string, args []any, f func(*sql.Rows) error) error {
	rows, err := q.QueryContext(ctx, db.Q(query), args...)
	if err != nil {
		return err
	}
	for rows.Next() {
		if err := f(rows); err != nil {
			return errors.Join(err, rows.Close())
		}
	}
	return errors.Join(rows.Err(), rows.Close())
}

func (l *Ledger) adopt(ctx context.Context) error {
	return l.write(ctx, func(t *tx) error {
		closed, err := closedThrough(ctx, t)
		if err != nil {
			return err
		}
		known := map[string]string{}
		var latest int64
		if err := each(ctx, t, l.db, `SELECT id, digest, effective_from FROM billing_price_versions`, nil, func(r *sql.Rows) error {
			var id, digest string
			var from int64
			if err := r.Scan(&id, &digest, &from); err != nil {
				return err
			}
			known[id] = digest
			latest = max(latest, from)
			return nil
		}); err != nil {
			return err
		}
		old := len(known)
		for i := range l.book.Versions {
			v := &l.book.Versions[i]
			digest, err := v.Digest(l.book.Currency)
			if err != nil {
				return err
			}
			if had, ok := known[v.ID]; ok {
				if had != digest {
					return fmt.Errorf("%w: version %s was in force with other content", ErrBook, v.ID)
				}
				delete(known, v.ID)
				continue
			}
			if old > 0 && v.EffectiveFrom.Unix() <= latest {
				return fmt.Errorf("%w: new version %s must be effective after the known ones", ErrBook, v.ID)
			}
			if !closed.zero() && v.EffectiveFrom.Before(closed.End()) {
				return fmt.Errorf("%w: version %s would change the closed month %s", ErrBook, v.ID, closed)
			}
			body, err := json.Marshal(v)
			if err != nil {
				return err
			}
			if err := t.exec(ctx, `INSERT INTO billing_price_versions (id, effective_from, digest, body) VALUES (?, ?, ?, ?)`,
				v.ID, v.EffectiveFrom.Unix(), digest, string(body)); err != nil {
				return err
			}
		}
		for id := range known {
			return fmt.Errorf("%w: version %s is missing; versions are only appended", ErrBook, id)
		}
		return nil
	})
}

// Month is a calendar month, UTC. The zero value is none.
type Month struct {
	year  int
	month time.Month
}

// MonthOf is the month that t is in.
func MonthOf(t time.Time) Month { t = t.UTC(); return Month{t.Year(), t.Month()} }

// ParseMonth reads "2026-11".
func ParseMonth(s string) (Month, error) {
	t, err := time.Parse("2006-01", s)
	if err != nil || t.Year() < 2020 || t.Year() > 2199 {
		return Month{}, fmt.Errorf("%w: a month is written 2026-11", ErrPeriod)
	}
	return MonthOf(t), nil
}

func (m Month) zero() bool { return m == Month{} }

// Start is the month's first instant, End the next month's.
func (m Month) Start() time.Time { return time.Date(m.year, m.month, 1, 0, 0, 0, 0, time.UTC) }

// End is the first instant after the month.
func (m Month) End() time.Time { return m.Start().AddDate(0, 1, 0) }

// Next is the month after.
func (m Month) Next() Month { return MonthOf(m.End()) }

// String is "2026-11".
func (m Month) String() string {
	if m.zero() {
		return ""
	}
	return m.Start().Format("2006-01")
}

func closedThrough(ctx context.Context, t *tx) (Month, error) {
	var s string
	if err := t.row(ctx, `SELECT closed_through FROM billing_state WHERE id = 1`).Scan(&s); err != nil || s == "" {
		return Month{}, err
	}
	return ParseMonth(s)
}
