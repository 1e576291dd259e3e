package logs

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"cumulet.io/internal/problem"
)

// Bounds of Query.Limit.
const (
	DefaultLimit = 1000
	MaxLimit     = 10_000
)

// Position is a record's place in the order of answers.
type Position struct {
	Time      time.Time
	Instance  string
	Container string
	Attempt   int
	Offset    int64
}

// Position gives the place of r.
func (r *Record) Position() Position {
	return Position{r.Time, r.Instance, r.Container, r.Attempt, r.Offset}
}

// Compare orders two places, oldest first. No two records of an org are at the same place.
func (p Position) Compare(o Position) int {
	return cmp.Or(p.Time.Compare(o.Time), strings.Compare(p.Instance, o.Instance), strings.Compare(p.Container, o.Container),
		cmp.Compare(p.Attempt, o.Attempt), cmp.Compare(p.Offset, o.Offset))
}

// WithDefaults checks q and fills in Order and Limit. Its errors are problem.ErrInvalid and name the field.
func (q Query) WithDefaults() (Query, error) {
	if q.Order == "" {
		q.Order = OldestFirst
	}
	if q.Limit == 0 {
		q.Limit = DefaultLimit
	}
	switch {
	case q.Org == "":
		return q, problem.Invalid("org", "is required", "")
	case q.Order != OldestFirst && q.Order != NewestFirst:
		return q, problem.Invalid("order", "must be asc or desc", q.Order)
	case q.Limit < 1 || q.Limit > MaxLimit:
		return q, problem.Invalid("limit", fmt.Sprintf("must be 1 to %d", MaxLimit), q.Limit)
	case q.Stream != "" && q.Stream != Stdout && q.Stream != Stderr:
		return q, problem.Invalid("stream", "must be stdout or stderr", q.Stream)
	case q.Attempt != nil && *q.Attempt < 0:
		return q, problem.Invalid("attempt", "must not be negative", *q.Attempt)
	case len(q.Contains) > 1000:
		return q, problem.Invalid("contains", "must not be longer than 1000 bytes", q.Contains)
	case !q.From.IsZero() && !q.To.IsZero() && q.To.Before(q.From):
		return q, problem.Invalid("to", "must not be before from", q.To.Format(time.RFC3339Nano))
	}
	return q, nil
}

// wire is a cursor's content. Query ties it to the query that it continues.
type wire struct {
	Query     string `json:"q"`
	Time      int64  `json:"t"`
	Instance  string `json:"i"`
	Container string `json:"c"`
	Attempt   int    `json:"a"`
	Offset    int64  `json:"o"`
}

// key is a short hash of everything that selects and orders records.
func (q Query) key() string {
	attempt := -1
	if q.Attempt != nil {
		attempt = *q.Attempt
	}
	var from, to int64
	if !q.From.IsZero() {
		from = q.From.UnixNano()
	}
	if !q.To.IsZero() {
		to = q.To.UnixNano()
	}
	sum := sha256.Sum256(fmt.Appendf(nil, "%q %q %q %q %d %d %d %q %q", q.Org, q.Instance, q.Container, q.Stream, attempt, from, to, q.Contains, q.Order))
	return hex.EncodeToString(sum[:6])
}

// CursorAt gives the cursor that continues q behind p.
func (q Query) CursorAt(p Position) Cursor {
	b, _ := json.Marshal(wire{q.key(), p.Time.UnixNano(), p.Instance, p.Container, p.Attempt, p.Offset}) //nolint:errcheck // strings and numbers
	return Cursor(base64.RawURLEncoding.EncodeToString(b))
}

// maxCursor bounds a cursor's text.
const maxCursor = 2048

// Position reads q.After. ok is false when it is empty; the error is ErrBadCursor for a cursor of another query, or one
// that was not made here.
func (q Query) Position() (p Position, ok bool, err error) {
	if q.After == "" {
		return p, false, nil
	}
	if len(q.After) > maxCursor {
		return p, false, ErrBadCursor
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(string(q.After))
	if err != nil {
		return p, false, ErrBadCursor
	}
	var w wire
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&w); err != nil || d.More() || w.Query != q.key() || w.Attempt < 0 || w.Offset < 0 {
		return p, false, ErrBadCursor
	}
	return Position{time.Unix(0, w.Time).UTC(), w.Instance, w.Container, w.Attempt, w.Offset}, true, nil
}
