// Package billtest helps the tests of billing: ledgers on real databases, a clock moved by hand, a price book.
//
// It is for tests only.
package billtest

import (
	"context"
	"encoding/json"
	"sync"
	"testing"
	"time"

	"cumulet.io/billing"
	"cumulet.io/billing/ledger"
	"cumulet.io/billing/price"
	"cumulet.io/internal/sqldb"
	"cumulet.io/internal/sqldb/sqldbtest"
)

// Clock is moved by hand. Its wall clock may step, its monotonic clock does not.
type Clock struct {
	mu   sync.Mutex
	wall time.Time
	mono billing.Clock
}

// NewClock begins at an instant, in a first boot.
func NewClock(at time.Time) *Clock {
	return &Clock{wall: at, mono: billing.Clock{Boot: "b", Nanos: int64(time.Minute)}}
}

// Now implements meter.Clock.
func (c *Clock) Now() (time.Time, billing.Clock) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.wall, c.mono
}

// Wall is the wall clock's time.
func (c *Clock) Wall() time.Time { wall, _ := c.Now(); return wall }

// Add moves both clocks.
func (c *Clock) Add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.wall, c.mono.Nanos = c.wall.Add(d), c.mono.Nanos+d.Nanoseconds()
}

// Step moves the wall clock alone.
func (c *Clock) Step(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.wall = c.wall.Add(d)
}

// Reboot begins a new boot after a time down.
func (c *Clock) Reboot(down time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.wall, c.mono = c.wall.Add(down), billing.Clock{Boot: c.mono.Boot + "x", Nanos: int64(time.Minute)}
}

// SQLite opens a database in a directory of the test.
func SQLite(t testing.TB) *sqldb.DB {
	t.Helper()
	return sqldbtest.Open(t, sqldbtest.SQLite(t))
}

// Book parses a price book.
func Book(t testing.TB, text string) *price.Book {
	t.Helper()
	b, err := price.Parse([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// Ledger opens a ledger.
func Ledger(t testing.TB, db *sqldb.DB, book *price.Book, now func() time.Time) *ledger.Ledger {
	t.Helper()
	l, err := ledger.Open(context.Background(), db, book, ledger.Options{Now: now})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// Line encodes an event.
func Line(t testing.TB, ev billing.Event) []byte {
	t.Helper()
	b, err := json.Marshal(ev)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TwoVersions is a book whose prices change in the middle of a day, with prices by class and region and startup priced.
const TwoVersions = `
name: two
currency: USD
versions:
  - id: v1
    effectiveFrom: 2026-01-01T00:00:00Z
    prices:
      - sandboxClass: "*"
        region: "*"
        startup: {vCPUSecond: "0", gibSecond: "0.0000001"}
        running: {vCPUSecond: "0.000011244", gibSecond: "0.000001235"}
      - sandboxClass: runc
        region: "*"
        startup: {vCPUSecond: "0.000001", gibSecond: "0"}
        running: {vCPUSecond: "0.000008", gibSecond: "0.0000009"}
  - id: v2
    effectiveFrom: 2026-11-15T13:00:00Z
    prices:
      - sandboxClass: "*"
        region: "*"
        startup: {vCPUSecond: "0.000002", gibSecond: "0.0000002"}
        running: {vCPUSecond: "0.000012", gibSecond: "0.0000013"}
      - sandboxClass: runc
        region: eu
        startup: {vCPUSecond: "0.000001", gibSecond: "0"}
        running: {vCPUSecond: "0.000009", gibSecond: "0.000000333"}
`

// EachDialect runs f on SQLite, and on PostgreSQL where its server is installed; newDB makes an empty database.
func EachDialect(t *testing.T, f func(t *testing.T, newDB func(t testing.TB) *sqldb.DB)) {
	sqldbtest.Each(t, func(t *testing.T, empty func(testing.TB) string) {
		f(t, func(t testing.TB) *sqldb.DB { return sqldbtest.Open(t, empty(t)) })
	})
}
