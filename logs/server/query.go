package server

import (
	"net/http"

	"cumulet.io/internal/params"
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

// allParams are the parameters that every form of answer takes; textParams those of text alone.
func allParams() []string {
	return []string{"instance", "container", "attempt", "stream", "from", "to", "contains"}
}

func textParams() []string { return []string{"tail", "limitBytes", "timestamps", "follow"} }
func jsonParams() []string { return []string{"order", "limit", "cursor"} }

// maxQuery bounds the raw query.
const maxQuery = 16 << 10

// parse reads the parameters strictly: unknown, repeated and malformed ones are errors that name them.
func parse(r *http.Request, typ string) (*query, error) {
	allowed := allParams()
	switch typ {
	case typeJSON:
		allowed = append(allowed, jsonParams()...)
	case typeNDJSON:
		allowed = append(allowed, append(jsonParams(), "follow")...)
	case typeText:
		allowed = append(allowed, textParams()...)
	}
	p := params.Read(r, "an answer in "+typ, maxQuery, allowed...)
	p.RefuseEmpty()
	q := &query{Query: logs.Query{Org: r.PathValue("org"), Instance: p.Get("instance"), Container: p.Get("container"),
		Stream: logs.Stream(p.Get("stream")), From: p.Time("from"), To: p.Time("to"), Contains: p.Get("contains"),
		Order: logs.Order(p.Get("order")), After: logs.Cursor(p.Get("cursor"))},
		follow: p.Flag("follow"), timestamps: p.Flag("timestamps")}
	q.readAttempt(p, typ)
	if n := p.Number("limit", 1, logs.MaxLimit); n != nil {
		q.Limit, q.limited = int(*n), true
	}
	q.tail = p.Number("tail", 0, 1<<40)
	if n := p.Number("limitBytes", 1, 1<<50); n != nil {
		q.limitBytes = *n
	}
	if typ == typeText {
		if q.Instance == "" {
			p.Fail("instance", "is required for text", "")
		}
		if q.Container == "" {
			p.Fail("container", "is required for text", "")
		}
	}
	if q.follow && (q.Order == logs.NewestFirst || !q.To.IsZero()) {
		p.Fail("follow", "goes with neither order=desc nor to", "true")
	}
	if q.follow && typ == typeNDJSON && (q.limited || q.After != "") {
		p.Fail("follow", "goes with neither limit nor cursor", "true")
	}
	if p.Err() != nil {
		return nil, p.Err()
	}
	var err error
	q.Query, err = q.WithDefaults()
	return q, err
}

// readAttempt reads a number, or latest or previous for text, whose default is latest.
func (q *query) readAttempt(p *params.Query, typ string) {
	switch v := p.Get("attempt"); {
	case typ == typeText && (v == "" || v == "latest"):
		q.latest = 1
	case typ == typeText && v == "previous":
		q.latest = 2
	default:
		if n := p.Number("attempt", 0, 1<<30); n != nil {
			a := int(*n)
			q.Attempt = &a
		}
	}
}
