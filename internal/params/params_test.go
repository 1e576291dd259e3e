package params

import (
	"errors"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"cumulet.io/internal/problem"
)

func read(raw string) *Query {
	return Read(&http.Request{URL: &url.URL{RawQuery: raw}}, "this call", 200, "flag", "number", "time", "label…", "text")
}

func TestQuery(t *testing.T) {
	q := read("flag=1&number=7&time=2026-01-01T00:00:00.5Z&label=a=b&label=c=&text=x")
	at := time.Date(2026, 1, 1, 0, 0, 0, 5e8, time.UTC)
	if !q.Flag("flag") || *q.Number("number", 7, 7) != 7 || !q.Time("time").Equal(at) || q.Text("text", 1) != "x" || q.Err() != nil {
		t.Errorf("not read as given: %v", q.Err())
	}
	if l := q.Labels("label", 2); len(l) != 2 || l["a"] != "b" || l["c"] != "" {
		t.Errorf("labels %v", l)
	}
	q = read("")
	if q.Flag("flag") || q.Number("number", 1, 2) != nil || !q.Time("time").IsZero() || q.Labels("label", 1) != nil || q.Err() != nil {
		t.Errorf("defaults: %v", q.Err())
	}
	for raw, want := range map[string]string{
		"other=1":                       "other is not a parameter of this call, which takes flag, number, time, label, text",
		"text=1&text=2":                 "text must be given once",
		"flag=yes":                      "flag must be true or false",
		"number=8":                      "number must be a number from 0 to 7",
		"number=x":                      "number must be a number",
		"time=today":                    "time must be a time as",
		"time=2300-01-01T00:00:00Z":     "of 1970 to 2200",
		"label=a":                       "label must be name=value",
		"label=a=1&label=a=2":           "two values of one name",
		"label=a=1&label=b=2&label=c=3": "at most 2 times",
		"text=12345678":                 "text must be at most 5 bytes",
		"text=":                         "text must not be empty",
		"a=%zz":                         "cannot be read",
		strings.Repeat("x", 201):        "longer than 200 bytes",
	} {
		q := read(raw)
		q.RefuseEmpty()
		q.Flag("flag")
		q.Number("number", 0, 7)
		q.Time("time")
		q.Labels("label", 2)
		q.Text("text", 5)
		if q.Err() == nil || !strings.Contains(strings.NewReplacer(`"`, "", ": ", " ").Replace(q.Err().Error()), want) {
			t.Errorf("%s: %v, want %s", raw, q.Err(), want)
		}
	}
}

// FuzzQuery: reading never panics, and its error is a problem of the caller's.
func FuzzQuery(f *testing.F) {
	f.Add("flag=true&number=7&time=2026-01-01T00:00:00Z&label=a=b&text=x")
	f.Add("flag=&number=-1&time=&label==&text=%00")
	f.Fuzz(func(t *testing.T, raw string) {
		q := read(raw)
		q.Flag("flag")
		n := q.Number("number", 0, 10)
		q.Time("time")
		q.Labels("label", 3)
		q.Text("text", 5)
		if q.Err() != nil && !errors.Is(q.Err(), problem.ErrInvalid) && !errors.Is(q.Err(), problem.ErrTooLarge) {
			t.Errorf("%q: %v", raw, q.Err())
		}
		if q.Err() == nil && n != nil && (*n < 0 || *n > 10) {
			t.Errorf("%q: let through %d", raw, *n)
		}
	})
}
