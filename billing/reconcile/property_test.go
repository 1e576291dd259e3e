package reconcile_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"math/rand"
	"os"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/goleak"

	"cumulet.io/billing"
	"cumulet.io/billing/internal/billtest"
	"cumulet.io/billing/ledger"
	"cumulet.io/billing/meter"
	"cumulet.io/billing/reconcile"
	"cumulet.io/internal/sqldb"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type inventory map[string]reconcile.Instance

func (v inventory) Instances(_ context.Context, org string, from, to time.Time) ([]reconcile.Instance, error) {
	var out []reconcile.Instance
	for _, in := range v {
		if in.Org == org && in.StartedAt.Before(to) && (in.EndedAt.IsZero() || !in.EndedAt.Before(from)) {
			out = append(out, in)
		}
	}
	return out, nil
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// world runs random lives on one node: phases, kills of the process, reboots, steps of the wall clock, new sandboxes.
type world struct {
	t     *testing.T
	r     *rand.Rand
	clock *billtest.Clock
	dir   string
	w     *meter.Writer
	lives map[string]*alive
	inv   inventory
	next  int
}

type alive struct {
	subject billing.Subject
	m       *meter.Meter
}

func (x *world) open() {
	x.t.Helper()
	w, err := meter.Open(x.dir, meter.Options{Clock: x.clock, Logger: quiet(), MaxFileBytes: 4000})
	must(x.t, err)
	x.w = w
}

func (x *world) adopt() {
	x.t.Helper()
	for _, a := range x.lives {
		m, err := x.w.Start(context.Background(), a.subject)
		must(x.t, err)
		a.m = m
	}
}

func (x *world) stop(id string, at time.Time) {
	x.t.Helper()
	must(x.t, x.lives[id].m.Stop(context.Background(), at, "Deleted"))
	in := x.inv[id]
	in.EndedAt = x.clock.Wall()
	x.inv[id] = in
	delete(x.lives, id)
}

func (x *world) any() (string, *alive) {
	for id, a := range x.lives {
		return id, a
	}
	return "", nil
}

func (x *world) step() {
	ctx := context.Background()
	r := x.r
	switch r.Intn(4) {
	case 0:
		x.clock.Add(time.Duration(r.Int63n(int64(3 * time.Second))))
	case 1, 2:
		x.clock.Add(time.Duration(r.Int63n(int64(2 * time.Hour))))
	default:
		x.clock.Add(time.Duration(r.Int63n(int64(40 * time.Hour))))
	}
	switch k := r.Intn(20); {
	case k < 4:
		x.next++
		id := fmt.Sprintf("i-%03d", x.next)
		s := billing.Subject{Org: []string{"acme", "zeta"}[r.Intn(2)], Instance: id, Name: "web", Region: []string{"eu", "us"}[r.Intn(2)], Node: "n1",
			SandboxClass: []string{"kata", "runc"}[r.Intn(2)], Incarnation: 1,
			Size: billing.Size{Class: "c", MilliCPU: 250 * (1 + r.Int63n(8)), MemoryMiB: 1 + r.Int63n(5000)}}
		m, err := x.w.Start(ctx, s)
		must(x.t, err)
		x.lives[id] = &alive{s, m}
		x.inv[id] = reconcile.Instance{ID: id, Org: s.Org, StartedAt: x.clock.Wall()}
	case k < 10:
		if _, a := x.any(); a != nil {
			must(x.t, a.m.MarkRunning(time.Time{}))
		}
	case k < 13:
		if id, _ := x.any(); id != "" {
			x.stop(id, time.Time{})
		}
	case k < 14:
		if _, a := x.any(); a != nil {
			a.subject.Incarnation++
			m, err := x.w.Start(ctx, a.subject)
			must(x.t, err)
			a.m = m
		}
	case k < 16: // the process dies and comes back; an instance may have ended meanwhile
		must(x.t, x.w.Close())
		x.clock.Add(time.Duration(r.Int63n(int64(10 * time.Minute))))
		x.open()
		x.adopt()
		if id, _ := x.any(); id != "" && r.Intn(2) == 0 {
			x.stop(id, x.clock.Wall().Add(-time.Duration(r.Int63n(int64(20*time.Minute)))))
		}
	case k < 17:
		must(x.t, x.w.Close())
		x.clock.Reboot(time.Duration(r.Int63n(int64(3 * time.Hour))))
		x.open()
		x.adopt()
	case k < 18 && r.Intn(3) == 0:
		x.clock.Step(time.Duration(r.Int63n(int64(3*time.Second))) - time.Second)
	case k < 18:
		ctx, cancel := context.WithCancel(ctx)
		cancel()
		must(x.t, x.w.Run(ctx))
	}
}

func lines(t *testing.T, dir string) [][]byte {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(dir, "meter-*.ndjson"))
	must(t, err)
	var out [][]byte
	for _, p := range paths {
		b, err := os.ReadFile(p)
		must(t, err)
		for _, line := range bytes.SplitAfter(b, []byte("\n")) {
			if len(line) > 0 {
				out = append(out, bytes.TrimSuffix(line, []byte("\n")))
			}
		}
	}
	return out
}

// TestAlwaysExact: whatever happens on the node, in whatever order and how often events arrive, and whenever months
// are closed, the bill adds up; and any two orders give the same bill.
func TestAlwaysExact(t *testing.T) {
	seed := time.Now().UnixNano()
	if s := os.Getenv("SEED"); s != "" {
		_, err := fmt.Sscan(s, &seed)
		must(t, err)
	}
	t.Logf("seed %d (set SEED to repeat)", seed)
	billtest.EachDialect(t, func(t *testing.T, newDB func(testing.TB) *sqldb.DB) {
		for i := range 2 {
			t.Run(fmt.Sprint(i), func(t *testing.T) {
				exactOnce(t, rand.New(rand.NewSource(seed+int64(i))), func() *sqldb.DB { return newDB(t) })
			})
		}
	})
}

func exactOnce(t *testing.T, r *rand.Rand, newDB func() *sqldb.DB) {
	ctx := context.Background()
	x := &world{t: t, r: r, clock: billtest.NewClock(time.Date(2026, 11, 1, 0, 0, 0, 5, time.UTC)), dir: t.TempDir(), lives: map[string]*alive{}, inv: inventory{}}
	x.open()
	for range 120 {
		x.step()
	}
	must(t, x.w.Close())
	all := lines(t, x.dir)
	if len(all) < 20 {
		t.Fatalf("only %d events", len(all))
	}
	book := billtest.Book(t, billtest.TwoVersions)
	now := x.clock.Wall
	straight := billtest.Ledger(t, newDB(), book, now)
	n, err := straight.Ingest(ctx, all)
	must(t, err)
	if n.New != len(all) || n.Quarantined != 0 {
		page, _ := straight.Quarantine(ctx, "", 3)
		t.Fatalf("%d lines gave %+v: %+v", len(all), n, page)
	}
	check(t, straight, x.inv, now())

	// The same events in random order, with repeats, in batches, months closed as soon as they may.
	shuffled := append([][]byte(nil), all...)
	r.Shuffle(len(shuffled), func(i, j int) { shuffled[i], shuffled[j] = shuffled[j], shuffled[i] })
	odd := billtest.Ledger(t, newDB(), book, now)
	month := ledger.MonthOf(time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC))
	for len(shuffled) > 0 {
		k := min(1+r.Intn(40), len(shuffled))
		batch := append([][]byte(nil), shuffled[:k]...)
		shuffled = shuffled[k:]
		for range r.Intn(5) {
			batch = append(batch, all[r.Intn(len(all))])
		}
		_, err := odd.Ingest(ctx, batch)
		must(t, err)
		if r.Intn(6) == 0 && month.End().Before(now()) {
			must(t, odd.Close(ctx, month))
			month = month.Next()
		}
	}
	_, err = odd.Ingest(ctx, all)
	must(t, err)
	check(t, odd, x.inv, now())
	for _, org := range []string{"acme", "zeta"} {
		a, err := straight.Lives(ctx, org, time.Unix(0, 0), now().AddDate(1, 0, 0))
		must(t, err)
		b, err := odd.Lives(ctx, org, time.Unix(0, 0), now().AddDate(1, 0, 0))
		must(t, err)
		if fmt.Sprint(a) != fmt.Sprint(b) {
			t.Errorf("lives of %s depend on the order of events:\n%v\n%v", org, a, b)
		}
	}
}

// check reconciles every month and a ragged range for both orgs.
func check(t *testing.T, l *ledger.Ledger, inv inventory, now time.Time) {
	t.Helper()
	ctx := context.Background()
	periods := []ledger.Period{
		{From: time.Date(2026, 11, 3, 7, 0, 0, 0, time.UTC), To: time.Date(2026, 11, 17, 22, 0, 0, 0, time.UTC)},
		{From: time.Date(2026, 11, 15, 12, 0, 0, 0, time.UTC), To: time.Date(2026, 11, 15, 14, 0, 0, 0, time.UTC)},
	}
	for m := ledger.MonthOf(time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)); m.Start().Before(now); m = m.Next() {
		periods = append(periods, ledger.Period{Month: m})
	}
	for _, org := range []string{"acme", "zeta"} {
		for _, p := range periods {
			rep, err := reconcile.Run(ctx, l, inv, org, p, reconcile.Options{Now: func() time.Time { return now.Add(time.Hour) }, Slack: time.Minute})
			must(t, err)
			if err := rep.Err(); err != nil || !rep.OK {
				t.Errorf("%v", err)
				for _, c := range rep.Checks {
					if !c.OK {
						t.Logf("%s: %v", c.Name, c.Differences)
					}
				}
			}
		}
	}
}
