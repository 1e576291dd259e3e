package server

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

// query reads query parameters strictly: unknown, malformed and repeated ones are errors that name the parameter. The
// first error stays.
type query struct {
	values url.Values
	err    error
}

// maxQuery bounds the raw query of a call, and so every parameter.
const maxQuery = 256 << 10

// newQuery parses the query of a request that takes the named parameters; a name that ends in "…" may be repeated.
func newQuery(r *http.Request, names ...string) *query {
	if len(r.URL.RawQuery) > maxQuery {
		return &query{err: problem.New(problem.ErrTooLarge, "the query is longer than %d bytes", maxQuery)}
	}
	values, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return &query{err: problem.New(problem.ErrInvalid, "the query cannot be read: %v", err)}
	}
	q := &query{values: values}
	for _, name := range slices.Sorted(maps.Keys(values)) {
		switch {
		case slices.Contains(names, name+"…"):
		case !slices.Contains(names, name):
			q.fail(problem.Invalid(name, "is not a parameter of this call, which takes "+takes(names), values.Get(name)))
		case len(values[name]) > 1:
			q.fail(problem.Invalid(name, "must be given once", len(values[name])))
		}
	}
	return q
}

func takes(names []string) string {
	if len(names) == 0 {
		return "none"
	}
	return strings.ReplaceAll(strings.Join(names, ", "), "…", "")
}

func (q *query) fail(err error) {
	if q.err == nil {
		q.err = err
	}
}

// text is a parameter of at most limit bytes, "" when it is not given.
func (q *query) text(name string, limit int) string {
	v := q.values.Get(name)
	if len(v) > limit {
		q.fail(problem.Invalid(name, fmt.Sprintf("must be at most %d bytes", limit), v))
	}
	return v
}

// list is a parameter that may be repeated, at most limit times.
func (q *query) list(name string, limit int) []string {
	v := q.values[name]
	if len(v) > limit {
		q.fail(problem.Invalid(name, fmt.Sprintf("must be given at most %d times", limit), len(v)))
	}
	return v
}

func (q *query) flag(name string) bool {
	switch v := q.values.Get(name); {
	case v == "true" || v == "1":
		return true
	case v == "false" || v == "0" || !q.values.Has(name):
		return false
	default:
		q.fail(problem.Invalid(name, "must be true or false", v))
		return false
	}
}

// number is nil when the parameter is not given.
func (q *query) number(name string, low, high int64) *int64 {
	if !q.values.Has(name) {
		return nil
	}
	n, err := strconv.ParseInt(q.values.Get(name), 10, 64)
	if err != nil || n < low || n > high {
		q.fail(problem.Invalid(name, fmt.Sprintf("must be a number from %d to %d", low, high), q.values.Get(name)))
		return nil
	}
	return &n
}

func (q *query) time(name string) time.Time {
	if !q.values.Has(name) {
		return time.Time{}
	}
	t, err := time.Parse(time.RFC3339Nano, q.values.Get(name))
	if err != nil {
		q.fail(problem.Invalid(name, "must be a time as 2026-01-02T15:04:05.123456789Z (RFC 3339)", q.values.Get(name)))
	}
	return t
}

// labels reads repeated name=value.
func (q *query) labels(name string, limit int) map[string]string {
	var out map[string]string
	for _, l := range q.list(name, limit) {
		k, v, ok := strings.Cut(l, "=")
		if !ok || k == "" {
			q.fail(problem.Invalid(name, "must be name=value", l))
			return nil
		}
		if out == nil {
			out = map[string]string{}
		}
		if old, twice := out[k]; twice && old != v {
			q.fail(problem.Invalid(name, "must not ask for two values of one name", l))
		}
		out[k] = v
	}
	return out
}
