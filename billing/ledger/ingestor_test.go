package ledger_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sort"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"cumulet.io/billing"
	"cumulet.io/billing/internal/billtest"
	"cumulet.io/billing/ledger"
	"cumulet.io/internal/sqldb"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var base = time.Date(2026, 11, 20, 0, 0, 0, 0, time.UTC)

// store is a log store: lines ordered by time, pages by place.
type store struct {
	mu    sync.Mutex
	lines []stored
	// failAt fails a call after so many; 0 never does. reads counts lines given.
	failAt, calls, reads int
	from                 []time.Time
}

type stored struct {
	at   time.Time
	text []byte
}

var errStore = errors.New("the store is down")

func (s *store) put(t *testing.T, evs ...billing.Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, ev := range evs {
		s.lines = append(s.lines, stored{ev.Time, billtest.Line(t, ev)})
	}
	sort.SliceStable(s.lines, func(i, j int) bool { return s.lines[i].at.Before(s.lines[j].at) })
}

func (s *store) SearchMeter(_ context.Context, from time.Time, after []any, limit int) ([][]byte, []any, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls++
	if s.calls == s.failAt {
		return nil, nil, errStore
	}
	var begin int64
	if len(after) > 0 {
		n, ok := after[0].(int64)
		if !ok {
			return nil, nil, fmt.Errorf("the cursor holds %T", after[0])
		}
		begin = n
	} else {
		s.from = append(s.from, from)
	}
	var out [][]byte
	for i := begin; i < int64(len(s.lines)); i++ {
		if s.lines[i].at.Before(from) {
			continue
		}
		out = append(out, s.lines[i].text)
		s.reads++
		if len(out) == limit {
			return out, []any{i + 1, "x"}, nil
		}
	}
	return out, nil, nil
}

// life gives a started event and n heartbeats, a minute apart.
func life(id string, begin time.Time, n int) []billing.Event {
	var out []billing.Event
	for i := range int64(n + 1) {
		at := begin.Add(time.Duration(i) * time.Minute)
		kind := billing.EventHeartbeat
		if i == 0 {
			kind = billing.EventStarted
		}
		out = append(out, billing.Event{ID: billing.EventID(id, 1, i), Kind: kind, Org: "acme", Instance: id, Name: "web", Incarnation: 1, Sequence: i,
			Time: at, At: at, Region: "eu", Node: "n1", SandboxClass: "kata", Size: billing.Size{Class: "c1-m2", MilliCPU: 1000, MemoryMiB: 2048},
			RunningMillis: i * 60_000, Phase: billing.PhaseRunning, Clock: billing.Clock{Boot: "b"}})
	}
	return out
}

func seconds(t *testing.T, l *ledger.Ledger) map[string]int64 {
	t.Helper()
	lives, err := l.Lives(context.Background(), "acme", time.Unix(0, 0), base.AddDate(1, 0, 0))
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]int64{}
	for _, v := range lives {
		out[v.Instance] = v.Total.Sum()
	}
	return out
}

func TestPass(t *testing.T) {
	billtest.EachDialect(t, func(t *testing.T, newDB func(testing.TB) *sqldb.DB) {
		ctx := context.Background()
		now := base.Add(3 * time.Hour)
		db := newDB(t)
		l := billtest.Ledger(t, db, billtest.Book(t, billtest.TwoVersions), func() time.Time { return now })
		src := &store{}
		src.put(t, life("i-1", base, 170)...)
		opts := ledger.IngestorOptions{Batch: 50, Recent: 10 * time.Minute, OverlapEvery: time.Hour, Overlap: time.Hour,
			DeepEvery: 24 * time.Hour, DeepOverlap: 48 * time.Hour}
		g := ledger.NewIngestor(l, src, opts)

		// The store fails in the middle; the next pass of the same process goes on behind the checkpoint.
		src.failAt = 3
		n, err := g.Pass(ctx)
		if !errors.Is(err, errStore) || n.New != 100 {
			t.Fatalf("a failing pass: %v %+v", err, n)
		}
		if b, err := l.Bill(ctx, "acme", ledger.Period{Month: ledger.MonthOf(base)}); err != nil || !b.AsOf.Equal(base.Add(99*time.Minute)) {
			t.Errorf("as of %v before a pass was complete: %v", b.AsOf, err)
		}
		if n, err = g.Pass(ctx); err != nil || n.New != 71 || seconds(t, l)["i-1"] != 170*60 {
			t.Fatalf("the next pass: %v %+v %v", err, n, seconds(t, l))
		}
		b, err := l.Bill(ctx, "acme", ledger.Period{Month: ledger.MonthOf(base)})
		if err != nil || !b.AsOf.Equal(now) {
			t.Errorf("as of %v: %v", b.AsOf, err)
		}

		// A pass reads again what is recent, and takes what was shipped late there.
		late := life("i-2", base.Add(130*time.Minute), 35)
		src.put(t, late...)
		src.reads = 0
		if n, err = g.Pass(ctx); err != nil || n.New != 6 || n.Known != 11 || src.reads != 17 {
			t.Fatalf("a pass: %v %+v, %d read", err, n, src.reads)
		}
		// What comes later than that is found by the next wide pass; one that the store's failure ended is made again.
		now = now.Add(time.Hour)
		src.reads, src.failAt = 0, src.calls+2
		if n, err = g.Pass(ctx); !errors.Is(err, errStore) {
			t.Fatalf("a failing wide pass: %v %+v", err, n)
		}
		for range 2 { // one goes on with it, one begins anew
			if _, err = g.Pass(ctx); err != nil {
				t.Fatal(err)
			}
		}
		if src.reads != 97+97 || seconds(t, l)["i-2"] != 35*60 {
			t.Fatalf("wide passes: %d read, %v", src.reads, seconds(t, l))
		}
		// Later than the overlap is found by the deep pass.
		src.put(t, life("i-3", base.Add(5*time.Minute), 3)...)
		if n, err = g.Pass(ctx); err != nil || n.New != 0 {
			t.Fatalf("beyond the overlap: %v %+v", err, n)
		}
		now = now.Add(24 * time.Hour)
		if n, err = g.Pass(ctx); err != nil || n.New != 4 || seconds(t, l)["i-3"] != 180 {
			t.Fatalf("the deep pass: %v %+v", err, n)
		}

		// A node whose clock is years ahead does not move the others' events out of sight.
		src.put(t, life("i-4", base.AddDate(5, 0, 0), 1)...)
		if _, err = g.Pass(ctx); err != nil {
			t.Fatal(err)
		}
		src.put(t, life("i-5", now.Add(-30*time.Second), 2)...)
		if n, err = g.Pass(ctx); err != nil || seconds(t, l)["i-5"] != 120 {
			t.Fatalf("after a wrong clock: %v %+v", err, n)
		}
	})
}

// TestRunTakesEachEventOnce runs two ingestors on one database, and ends them.
func TestRunTakesEachEventOnce(t *testing.T) {
	billtest.EachDialect(t, func(t *testing.T, newDB func(testing.TB) *sqldb.DB) {
		ctx, cancel := context.WithCancel(context.Background())
		l := billtest.Ledger(t, newDB(t), billtest.Book(t, billtest.TwoVersions), func() time.Time { return base.Add(3 * time.Hour) })
		var wg sync.WaitGroup
		src := []*store{{failAt: 2}, {failAt: 5}}
		for _, s := range src {
			for i := range 5 {
				s.put(t, life(fmt.Sprintf("i-%d", i), base, 40)...)
			}
			g := ledger.NewIngestor(l, s, ledger.IngestorOptions{Batch: 17, Poll: time.Millisecond, Logger: slog.New(slog.DiscardHandler)})
			wg.Go(func() {
				if err := g.Run(ctx); err != nil {
					t.Error(err)
				}
			})
		}
		deadline := time.Now().Add(30 * time.Second)
		for {
			done := len(seconds(t, l)) == 5
			for _, s := range seconds(t, l) {
				done = done && s == 40*60
			}
			if done {
				break
			}
			if time.Now().After(deadline) {
				t.Errorf("after 30 s: %v", seconds(t, l))
				break
			}
			time.Sleep(2 * time.Millisecond)
		}
		cancel()
		wg.Wait()
		page, err := l.Quarantine(context.Background(), "", 1)
		if err != nil || len(page.Items) != 0 {
			t.Errorf("quarantined: %v %+v", err, page)
		}
	})
}

func TestQuarantinePages(t *testing.T) {
	ctx := context.Background()
	now := base
	l := billtest.Ledger(t, billtest.SQLite(t), billtest.Book(t, billtest.TwoVersions), func() time.Time { now = now.Add(time.Second / 2); return now })
	for i := range 7 {
		if _, err := l.Ingest(ctx, [][]byte{fmt.Appendf(nil, "bad %d", i), fmt.Appendf(nil, "worse %d \x00\xff", i)}); err != nil {
			t.Fatal(err)
		}
	}
	seen := map[string]bool{}
	for after := ""; ; {
		page, err := l.Quarantine(ctx, after, 3)
		if err != nil || len(page.Items) > 3 {
			t.Fatal(err, len(page.Items))
		}
		for _, q := range page.Items {
			if seen[q.Digest] {
				t.Errorf("%s comes twice", q.Line)
			}
			seen[q.Digest] = true
		}
		if after = page.Next; after == "" {
			break
		}
	}
	if len(seen) != 14 {
		t.Errorf("%d lines in all pages", len(seen))
	}
	for _, bad := range []string{"x", "1-", "1-zz zz", "-1-a b"} {
		if _, err := l.Quarantine(ctx, bad, 3); !errors.Is(err, ledger.ErrPeriod) {
			t.Errorf("cursor %q: %v", bad, err)
		}
	}
}
