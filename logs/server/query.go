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
	"cumulet.io/logs"
)

// query is a request that was read whole.
type query struct {
	logs.Query
	follow     bool
	limited    bool // a limit was given: so many records of a stream and no more
	latest     int  // 1: the latest attempt, 2: the one before
	tail       *int64
	limitBytes int64
	timestamps bool
}

// params are the parameters that every form of answer takes; textParams those of text alone.
func params() []string {
	return []string{"instance", "container", "attempt", "stream", "from", "to", "contains"}
}

func textParams() []string { return []string{"tail", "limitBytes", "timestamps", "follow"} }
func jsonParams() []string { return []string{"order", "limit", "cursor"} }

// reader reads parameters; the first error stays.
type reader struct {
	v   url.Values
	err error
}

func (p *reader) fail(name, rule string, value any) {
	if p.err == nil {
		p.err = problem.Invalid(name, rule, value)
	}
}

// parse reads the parameters strictly: unknown, repeated and malformed ones are errors that name them.
func parse(r *http.Request, typ string) (*query, error) {
	v, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil || len(r.URL.RawQuery) > 16<<10 {
		return nil, problem.New(problem.ErrInvalid, "the query of the URL cannot be read")
	}
	allowed := params()
	switch typ {
	case typeJSON:
		allowed = append(allowed, jsonParams()...)
	case typeNDJSON:
		allowed = append(allowed, append(jsonParams(), "follow")...)
	case typeText:
		allowed = append(allowed, textParams()...)
	}
	p := &reader{v: v}
	for _, name := range slices.Sorted(maps.Keys(v)) {
		switch {
		case !slices.Contains(allowed, name):
			p.fail(name, fmt.Sprintf("is not a parameter of %s answers, which take %s", typ, strings.Join(allowed, ", ")), v.Get(name))
		case len(v[name]) > 1:
			p.fail(name, "must be given once", strings.Join(v[name], ", "))
		case v.Get(name) == "":
			p.fail(name, "must not be empty", "")
		}
	}
	q := &query{Query: logs.Query{Org: r.PathValue("org"), Instance: v.Get("instance"), Container: v.Get("container"),
		Stream: logs.Stream(v.Get("stream")), From: p.time("from"), To: p.time("to"), Contains: v.Get("contains"),
		Order: logs.Order(v.Get("order")), After: logs.Cursor(v.Get("cursor"))},
		follow: p.flag("follow"), timestamps: p.flag("timestamps")}
	p.attempt(q, typ)
	if n := p.number("limit", 1, logs.MaxLimit); n != nil {
		q.Limit, q.limited = int(*n), true
	}
	q.tail = p.number("tail", 0, 1<<40)
	if n := p.number("limitBytes", 1, 1<<50); n != nil {
		q.limitBytes = *n
	}
	if typ == typeText {
		if q.Instance == "" {
			p.fail("instance", "is required for text", "")
		}
		if q.Container == "" {
			p.fail("container", "is required for text", "")
		}
	}
	if q.follow && (q.Order == logs.NewestFirst || !q.To.IsZero()) {
		p.fail("follow", "goes with neither order=desc nor to", "true")
	}
	if q.follow && typ == typeNDJSON && (q.limited || q.After != "") {
		p.fail("follow", "goes with neither limit nor cursor", "true")
	}
	if p.err != nil {
		return nil, p.err
	}
	q.Query, err = q.WithDefaults()
	return q, err
}

// attempt reads a number, or latest or previous for text, whose default is latest.
func (p *reader) attempt(q *query, typ string) {
	switch v := p.v.Get("attempt"); {
	case typ == typeText && (v == "" || v == "latest"):
		q.latest = 1
	case typ == typeText && v == "previous":
		q.latest = 2
	default:
		if n := p.number("attempt", 0, 1<<30); n != nil {
			a := int(*n)
			q.Attempt = &a
		}
	}
}

func (p *reader) number(name string, low, high int64) *int64 {
	if !p.v.Has(name) {
		return nil
	}
	n, err := strconv.ParseInt(p.v.Get(name), 10, 64)
	if err != nil || n < low || n > high {
		p.fail(name, fmt.Sprintf("must be a number from %d to %d", low, high), p.v.Get(name))
		return nil
	}
	return &n
}

func (p *reader) time(name string) time.Time {
	if !p.v.Has(name) {
		return time.Time{}
	}
	t, err := time.Parse(time.RFC3339Nano, p.v.Get(name))
	if err != nil || t.Year() < 1970 || t.Year() > 2200 {
		p.fail(name, "must be a time as 2026-01-02T15:04:05.123456789Z (RFC 3339), of 1970 to 2200", p.v.Get(name))
		return time.Time{}
	}
	return t
}

func (p *reader) flag(name string) bool {
	switch v := p.v.Get(name); v {
	case "true":
		return true
	case "", "false":
		return false
	default:
		p.fail(name, "must be true or false", v)
		return false
	}
}
