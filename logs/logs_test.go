package logs_test

import (
	"testing"
	"time"

	"cumulet.io/logs"
)

// FuzzCursor holds that a cursor is refused or means one place, and that a place comes back.
func FuzzCursor(f *testing.F) {
	q := logs.Query{Org: "acme"}
	f.Add(string(q.CursorAt(logs.Position{Time: time.Unix(1, 2), Instance: "i", Container: "c", Attempt: 1, Offset: 7})), "i", int64(1), int64(2))
	f.Add("", "", int64(0), int64(0))
	f.Fuzz(func(t *testing.T, cursor, instance string, ns, offset int64) {
		q := q
		q.After = logs.Cursor(cursor)
		if p, ok, err := q.Position(); err == nil && ok {
			q.After = q.CursorAt(p)
			if again, ok, err := q.Position(); err != nil || !ok || again.Compare(p) != 0 {
				t.Fatalf("%+v, again %+v, %v", p, again, err)
			}
		}
		if offset < 0 {
			return
		}
		want := logs.Position{Time: time.Unix(0, ns).UTC(), Instance: "i", Offset: offset}
		q.After = q.CursorAt(want)
		if got, ok, err := q.Position(); err != nil || !ok || got.Compare(want) != 0 {
			t.Fatalf("%+v came back as %+v, %v", want, got, err)
		}
	})
}
