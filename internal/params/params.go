// Package params reads the query parameters of an HTTP call strictly: unknown, repeated and malformed ones are errors
// that name the parameter.
package params

import (
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"cumulet.io/internal/problem"
)

// Query is the query of one call. The first error stays, and what is read after it means nothing.
type Query struct {
	values url.Values
	err    error
}

// Read parses the query of a request that takes the named parameters, at most maxBytes long; a name that ends in "…" may
// be repeated. call is what the error about an unknown name calls the call: "this call".
func Read(r *http.Request, call string, maxBytes int, names ...string) *Query {
	if len(r.URL.RawQuery) > maxBytes {
		return &Query{err: problem.New(problem.ErrTooLarge, "the query is longer than %d bytes", maxBytes)}
	}
	values, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return &Query{err: problem.New(problem.ErrInvalid, "the query cannot be read: %v", err)}
	}
	q := &Query{values: values}
	for _, name := range q.names() {
		switch {
		case slices.Contains(names, name+"…"):
		case !slices.Contains(names, name):
			q.Fail(name, "is not a parameter of "+call+", which takes "+takes(names), values.Get(name))
		case len(values[name]) > 1:
			q.Fail(name, "must be given once", len(values[name]))
		}
	}
	return q
}

func (q *Query) names() []string { return slices.Sorted(maps.Keys(q.values)) }

func takes(names []string) string {
	if len(names) == 0 {
		return "none"
	}
	return strings.ReplaceAll(strings.Join(names, ", "), "…", "")
}

// RefuseEmpty makes a parameter that is given without a value an error.
func (q *Query) RefuseEmpty() {
	for _, name := range q.names() {
		if slices.Contains(q.values[name], "") {
			q.Fail(name, "must not be empty", "")
		}
	}
}

// Err is the first error, a problem for the caller.
func (q *Query) Err() error { return q.err }

// Fail says that a parameter breaks a rule.
func (q *Query) Fail(name, rule string, value any) {
	if q.err == nil {
		q.err = problem.Invalid(name, rule, value)
	}
}

// Get is a parameter as it came, "" when it is not given.
func (q *Query) Get(name string) string { return q.values.Get(name) }

// Text is a parameter of at most limit bytes, "" when it is not given.
func (q *Query) Text(name string, limit int) string {
	v := q.values.Get(name)
	if len(v) > limit {
		q.Fail(name, fmt.Sprintf("must be at most %d bytes", limit), v)
	}
	return v
}

// List is a parameter that may be repeated, at most limit times.
func (q *Query) List(name string, limit int) []string {
	v := q.values[name]
	if len(v) > limit {
		q.Fail(name, fmt.Sprintf("must be given at most %d times", limit), len(v))
	}
	return v
}

// Flag is true or false (or 1 or 0), false when it is not given.
func (q *Query) Flag(name string) bool {
	switch v := q.values.Get(name); {
	case v == "true" || v == "1":
		return true
	case v == "false" || v == "0" || !q.values.Has(name):
		return false
	default:
		q.Fail(name, "must be true or false", v)
		return false
	}
}

// Number is within low and high, nil when it is not given.
func (q *Query) Number(name string, low, high int64) *int64 {
	if !q.values.Has(name) {
		return nil
	}
	n, err := strconv.ParseInt(q.values.Get(name), 10, 64)
	if err != nil || n < low || n > high {
		q.Fail(name, fmt.Sprintf("must be a number from %d to %d", low, high), q.values.Get(name))
		return nil
	}
	return &n
}

// Time is RFC 3339 with up to nanoseconds, of the years 1970 to 2200; zero when it is not given.
func (q *Query) Time(name string) time.Time {
	if !q.values.Has(name) {
		return time.Time{}
	}
	t, err := time.Parse(time.RFC3339Nano, q.values.Get(name))
	if err != nil || t.Year() < 1970 || t.Year() > 2200 {
		q.Fail(name, "must be a time as 2026-01-02T15:04:05.123456789Z (RFC 3339), of 1970 to 2200", q.values.Get(name))
		return time.Time{}
	}
	return t
}

// Labels reads name=value, repeated at most limit times.
func (q *Query) Labels(name string, limit int) map[string]string {
	var out map[string]string
	for _, l := range q.List(name, limit) {
		k, v, ok := strings.Cut(l, "=")
		if !ok || k == "" {
			q.Fail(name, "must be name=value", l)
			return nil
		}
		if out == nil {
			out = map[string]string{}
		}
		if old, twice := out[k]; twice && old != v {
			q.Fail(name, "must not ask for two values of one name", l)
		}
		out[k] = v
	}
	return out
}
