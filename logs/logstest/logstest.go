// Package logstest is the conformance suite of logs.Store, and the documents that Filebeat sends, for tests that have
// no Filebeat. It is not for production.
package logstest

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"cumulet.io/internal/problem"
	"cumulet.io/logs"
)

// Seed puts records into the store under test and returns when they are acknowledged.
type Seed func(t *testing.T, recs ...logs.Record)

// Run runs the suite. open gives an empty store with the way to fill it.
func Run(t *testing.T, open func(t *testing.T) (logs.Store, Seed)) {
	for _, c := range []struct {
		name string
		f    func(t *testing.T, s logs.Store, seed Seed)
	}{
		{"Empty", empty}, {"Whole", whole}, {"Order", order}, {"Filters", filters}, {"Tenancy", tenancy}, {"Contains", contains},
		{"Invalid", invalid}, {"Cursor", cursor}, {"Growing", growing}, {"Twice", twice}, {"Large", large}, {"Days", days},
		{"Attempt", attempt},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, seed := open(t)
			c.f(t, s, seed)
		})
	}
}

var base = time.Date(2026, 1, 2, 23, 59, 59, 999_999_000, time.UTC)

// Record makes the n-th record of a container: times grow by a nanosecond every second record, so that neighbours tie.
func Record(org, instance, container string, attempt, n int) logs.Record {
	r := logs.Record{Org: org, Instance: instance, Container: container, Attempt: attempt, Stream: logs.Stdout,
		Time: base.Add(time.Duration(n / 2)), Offset: int64(n) * 120, Message: fmt.Sprintf("%s %s %d line %d", instance, container, attempt, n)}
	if n%3 == 1 {
		r.Stream = logs.Stderr
	}
	return r
}

func many(org string, n int) []logs.Record {
	var out []logs.Record
	for i := range n {
		for _, in := range []string{"i-b", "i-a"} {
			out = append(out, Record(org, in, "main", 0, i), Record(org, in, "side", 1, i))
		}
	}
	return out
}

// All reads every page of q.
func All(t *testing.T, s logs.Store, q logs.Query) []logs.Record {
	t.Helper()
	var out []logs.Record
	for {
		p, err := s.Search(t.Context(), q)
		if err != nil {
			t.Fatal(err)
		}
		if q.Limit > 0 && len(p.Records) > q.Limit {
			t.Fatalf("%d records on a page of %d", len(p.Records), q.Limit)
		}
		if p.Next != "" && len(p.Records) == 0 {
			t.Fatal("an empty page with a next one")
		}
		out = append(out, p.Records...)
		if q.After = p.Next; p.Next == "" {
			return out
		}
	}
}

func sorted(recs []logs.Record, o logs.Order) []logs.Record {
	out := slices.Clone(recs)
	slices.SortFunc(out, func(a, b logs.Record) int {
		if o == logs.NewestFirst {
			a, b = b, a
		}
		return a.Position().Compare(b.Position())
	})
	return out
}

func equal(t *testing.T, got, want []logs.Record) {
	t.Helper()
	for i := range min(len(got), len(want)) {
		g, w := got[i], want[i]
		if !g.Time.Equal(w.Time) || g.Time.Location() != time.UTC {
			t.Fatalf("record %d: time %v, want %v", i, g.Time, w.Time)
		}
		if g.Time = w.Time; g != w {
			t.Fatalf("record %d: got %.300q, want %.300q", i, fmt.Sprint(g), fmt.Sprint(w))
		}
	}
	if len(got) != len(want) {
		t.Fatalf("%d records, want %d", len(got), len(want))
	}
}

func empty(t *testing.T, s logs.Store, _ Seed) {
	if got := All(t, s, logs.Query{Org: "acme"}); len(got) != 0 {
		t.Errorf("got %v", got)
	}
}

// whole holds that every byte of a line comes back, as far as it is UTF-8.
func whole(t *testing.T, s logs.Store, seed Seed) {
	var want []logs.Record
	for i, text := range []string{"", " ", "plain", " leading and trailing ", "tab\tquote\"back\\slash", "\x00\x01\x1f\x7f", "carriage\r",
		"é 漢 😀 \u2028 \ufffd", `{"json":"inside","org":"other"}`, "<script>&amp;", strings.Repeat("x", 16<<10), "2026-01-02T00:00:00Z stdout F nested"} {
		r := Record("acme", "i-a", "main", 3, i)
		r.Message, r.Partial, r.Time = text, i%2 == 1, base.Add(time.Duration(i)*100*time.Nanosecond)
		want = append(want, r)
	}
	seed(t, want...)
	equal(t, All(t, s, logs.Query{Org: "acme"}), want)
}

func order(t *testing.T, s logs.Store, seed Seed) {
	recs := many("acme", 40)
	seed(t, recs...)
	for _, o := range []logs.Order{logs.OldestFirst, logs.NewestFirst} {
		want := sorted(recs, o)
		for _, limit := range []int{1, 7, 40, 159, 160, 161, 0, logs.MaxLimit} {
			t.Run(fmt.Sprint(o, limit), func(t *testing.T) {
				equal(t, All(t, s, logs.Query{Org: "acme", Order: o, Limit: limit}), want)
			})
		}
	}
}

func filters(t *testing.T, s logs.Store, seed Seed) {
	recs := many("acme", 30)
	seed(t, recs...)
	zero, one, two := 0, 1, 2
	at := func(n int) time.Time { return base.Add(time.Duration(n)) }
	for name, c := range map[string]struct {
		q    logs.Query
		keep func(r logs.Record) bool
	}{
		"instance":  {logs.Query{Instance: "i-a"}, func(r logs.Record) bool { return r.Instance == "i-a" }},
		"container": {logs.Query{Container: "side"}, func(r logs.Record) bool { return r.Container == "side" }},
		"attempt 0": {logs.Query{Attempt: &zero}, func(r logs.Record) bool { return r.Attempt == 0 }},
		"attempt 1": {logs.Query{Attempt: &one}, func(r logs.Record) bool { return r.Attempt == 1 }},
		"attempt 2": {logs.Query{Attempt: &two}, func(logs.Record) bool { return false }},
		"stream":    {logs.Query{Stream: logs.Stderr}, func(r logs.Record) bool { return r.Stream == logs.Stderr }},
		"from":      {logs.Query{From: at(5)}, func(r logs.Record) bool { return !r.Time.Before(at(5)) }},
		"to":        {logs.Query{To: at(5)}, func(r logs.Record) bool { return r.Time.Before(at(5)) }},
		"from to":   {logs.Query{From: at(5), To: at(6)}, func(r logs.Record) bool { return r.Time.Equal(at(5)) }},
		"contains":  {logs.Query{Contains: "line 1"}, func(r logs.Record) bool { return strings.Contains(r.Message, "line 1") }},
		"all": {logs.Query{Instance: "i-b", Container: "main", Attempt: &zero, Stream: logs.Stdout, From: at(1), To: at(9), Contains: "line"},
			func(r logs.Record) bool {
				return r.Instance == "i-b" && r.Attempt == 0 && r.Stream == logs.Stdout && !r.Time.Before(at(1)) && r.Time.Before(at(9))
			}},
	} {
		t.Run(name, func(t *testing.T) {
			var want []logs.Record
			for _, r := range sorted(recs, logs.OldestFirst) {
				if c.keep(r) {
					want = append(want, r)
				}
			}
			c.q.Org, c.q.Limit = "acme", 11
			equal(t, All(t, s, c.q), want)
		})
	}
}

// tenancy holds that equal names of two orgs stay apart and that text cannot reach over.
func tenancy(t *testing.T, s logs.Store, seed Seed) {
	a, b := many("acme", 5), many("umbrella", 5)
	seed(t, append(slices.Clone(a), b...)...)
	equal(t, All(t, s, logs.Query{Org: "acme"}), sorted(a, logs.OldestFirst))
	mine := slices.DeleteFunc(slices.Clone(b), func(r logs.Record) bool { return r.Instance != "i-a" || r.Container != "main" })
	equal(t, All(t, s, logs.Query{Org: "umbrella", Instance: "i-a", Container: "main"}), sorted(mine, logs.OldestFirst))
	for _, org := range []string{"*", "acme,umbrella", `acme" OR "1`, "acme*", "ACME"} {
		if got := All(t, s, logs.Query{Org: org}); len(got) != 0 {
			t.Errorf("org %q sees %d records", org, len(got))
		}
	}
	p, err := s.Search(t.Context(), logs.Query{Org: "acme", Limit: 1})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Search(t.Context(), logs.Query{Org: "umbrella", Limit: 1, After: p.Next}); !errors.Is(err, logs.ErrBadCursor) {
		t.Errorf("another org's cursor: %v", err)
	}
}

func contains(t *testing.T, s logs.Store, seed Seed) {
	texts := []string{"100% sure", "100 sure", "a*b", "aXb", "a?b", "a[b]c", `back\slash`, `back\\slash`, "Case", "case", "under_score", "underXscore",
		"é accent", "stdout F", "quote\"d", "end*"}
	var recs []logs.Record
	for i, text := range texts {
		r := Record("acme", "i-a", "main", 0, i)
		r.Message, r.Time = text, base.Add(time.Duration(i))
		recs = append(recs, r)
	}
	seed(t, recs...)
	for _, q := range []string{"%", "a*b", "a?b", "[b]", "*", "?", `\`, `\\`, "Case", "case", "_", "é", "stdout F", `"`, "nothing", "*'", "d*", "sure"} {
		var want []logs.Record
		for _, r := range recs {
			if strings.Contains(r.Message, q) {
				want = append(want, r)
			}
		}
		t.Run(q, func(t *testing.T) { equal(t, All(t, s, logs.Query{Org: "acme", Contains: q}), want) })
	}
}

func invalid(t *testing.T, s logs.Store, _ Seed) {
	negative := -1
	for field, q := range map[string]logs.Query{
		"org": {}, "limit": {Org: "a", Limit: logs.MaxLimit + 1}, "order": {Org: "a", Order: "up"}, "stream": {Org: "a", Stream: "both"},
		"attempt": {Org: "a", Attempt: &negative}, "to": {Org: "a", From: base, To: base.Add(-1)}, "contains": {Org: "a", Contains: strings.Repeat("x", 1001)},
	} {
		_, err := s.Search(t.Context(), q)
		var p *problem.Error
		if !errors.Is(err, problem.ErrInvalid) || !errors.As(err, &p) || p.Field != field {
			t.Errorf("%s: %v", field, err)
		}
	}
}

func cursor(t *testing.T, s logs.Store, seed Seed) {
	seed(t, many("acme", 5)...)
	q := logs.Query{Org: "acme", Limit: 3}
	p, err := s.Search(t.Context(), q)
	if err != nil || p.Next == "" {
		t.Fatal(p, err)
	}
	for _, c := range []logs.Cursor{"x", "AAAA", "e30", "bnVsbA", p.Next + "A", p.Next[1:], logs.Cursor(strings.Repeat("A", 5000))} {
		q.After = c
		if _, err := s.Search(t.Context(), q); !errors.Is(err, logs.ErrBadCursor) {
			t.Errorf("cursor %.20q: %v", c, err)
		}
	}
	for name, q := range map[string]logs.Query{"order": {Org: "acme", Order: logs.NewestFirst}, "filter": {Org: "acme", Contains: "x"}} {
		q.After = p.Next
		if _, err := s.Search(t.Context(), q); !errors.Is(err, logs.ErrBadCursor) {
			t.Errorf("cursor of a query of another %s: %v", name, err)
		}
	}
	// The page size may change on the way.
	q = logs.Query{Org: "acme", Limit: 4, After: p.Next}
	if again, err := s.Search(t.Context(), q); err != nil || len(again.Records) != 4 {
		t.Errorf("%v %v", again, err)
	}
}

// growing holds that a cursor stays good while records come, and that a search sees what was acknowledged before it.
func growing(t *testing.T, s logs.Store, seed Seed) {
	q := logs.Query{Org: "acme", Instance: "i-a", Container: "main", Limit: 10}
	seed(t, Record("acme", "i-a", "main", 0, 0))
	var wg sync.WaitGroup
	acked := make(chan int)
	wg.Go(func() {
		defer close(acked)
		for n := 1; n < 200; n += 10 {
			var recs []logs.Record
			for i := n; i < min(n+10, 200); i++ {
				recs = append(recs, Record("acme", "i-a", "main", 0, i))
			}
			seed(t, recs...)
			acked <- n + len(recs)
		}
	})
	for n := range acked {
		if got := All(t, s, q); len(got) < n {
			t.Errorf("%d records, of %d that were acknowledged", len(got), n)
		}
	}
	wg.Wait()
	got := All(t, s, q)
	for i := range got {
		if got[i].Offset != int64(i)*120 {
			t.Fatalf("record %d has offset %d", i, got[i].Offset)
		}
	}
}

// twice holds that a line that is shipped again is there once.
func twice(t *testing.T, s logs.Store, seed Seed) {
	recs := many("acme", 10)
	seed(t, recs...)
	seed(t, append(slices.Clone(recs[5:]), recs[:20]...)...)
	equal(t, All(t, s, logs.Query{Org: "acme"}), sorted(recs, logs.OldestFirst))
}

// large holds that a page of many long lines comes, in as many pages as it needs.
func large(t *testing.T, s logs.Store, seed Seed) {
	if testing.Short() {
		t.Skip("64 MiB of lines: not with -short")
	}
	text := strings.Repeat("0123456789abcdef", 1<<10)
	const n = 4096
	for i := 0; i < n; i += 512 {
		var recs []logs.Record
		for k := i; k < i+512; k++ {
			r := Record("acme", "i-a", "main", 0, k)
			r.Message, r.Partial = text, true
			recs = append(recs, r)
		}
		seed(t, recs...)
	}
	seen := int64(0)
	for _, r := range All(t, s, logs.Query{Org: "acme", Limit: logs.MaxLimit}) {
		if r.Offset != seen*120 || r.Message != text {
			t.Fatalf("record %d has offset %d and %d bytes", seen, r.Offset, len(r.Message))
		}
		seen++
	}
	if seen != n {
		t.Errorf("%d records, want %d", seen, n)
	}
}

// days holds that the order goes over the ends of days.
func days(t *testing.T, s logs.Store, seed Seed) {
	var recs []logs.Record
	for i := range 60 {
		r := Record("acme", fmt.Sprintf("i-%d", i%7), "main", 0, i)
		r.Time = base.Add(time.Duration(i) * 7 * time.Hour)
		recs = append(recs, r)
	}
	seed(t, recs...)
	for _, o := range []logs.Order{logs.OldestFirst, logs.NewestFirst} {
		equal(t, All(t, s, logs.Query{Org: "acme", Limit: 13, Order: o}), sorted(recs, o))
	}
	from, to := base.Add(30*time.Hour), base.Add(90*time.Hour)
	var want []logs.Record
	for _, r := range recs {
		if !r.Time.Before(from) && r.Time.Before(to) {
			want = append(want, r)
		}
	}
	equal(t, All(t, s, logs.Query{Org: "acme", Limit: 3, From: from, To: to}), want)
}

// attempt holds that one attempt is read in the order of its file, whatever the times, in both directions.
func attempt(t *testing.T, s logs.Store, seed Seed) {
	ar, ok := s.(logs.AttemptReader)
	if !ok {
		t.Skip("the store has no AttemptReader")
	}
	var want []logs.Record
	for i := range 50 {
		r := Record("acme", "i-a", "main", 2, i)
		r.Time = base.Add(time.Duration((i*7)%50) * time.Second) // over midnight and back
		want = append(want, r)
	}
	seed(t, append(many("acme", 20), want...)...)
	for _, backwards := range []bool{false, true} {
		for _, limit := range []int{1, 7, 50, 0} {
			var got []logs.Record
			q := logs.AttemptQuery{Org: "acme", Instance: "i-a", Container: "main", Attempt: 2, After: -1, Backwards: backwards, Limit: limit}
			for more := true; more; {
				var recs []logs.Record
				var err error
				if recs, more, err = ar.ReadAttempt(t.Context(), q); err != nil || more && len(recs) == 0 {
					t.Fatal(more, err)
				}
				if len(recs) > 0 {
					q.After = recs[len(recs)-1].Offset
				}
				got = append(got, recs...)
			}
			if backwards {
				slices.Reverse(got)
			}
			equal(t, got, want)
		}
	}
	if _, _, err := ar.ReadAttempt(t.Context(), logs.AttemptQuery{Org: "acme", Instance: "i-a"}); !errors.Is(err, problem.ErrInvalid) {
		t.Errorf("no container: %v", err)
	}
	recs, _, err := ar.ReadAttempt(t.Context(), logs.AttemptQuery{Org: "umbrella", Instance: "i-a", Container: "main", Attempt: 2, After: -1})
	if err != nil || len(recs) != 0 {
		t.Errorf("another org sees %d records, %v", len(recs), err)
	}
}
