package logs

import (
	"context"
	"time"

	"cumulet.io/internal/problem"
)

// AttemptQuery selects records of one container attempt. Zero fields but the first three do not restrict.
type AttemptQuery struct {
	// Org, Instance and Container are required; Attempt is what it says.
	Org, Instance, Container string
	Attempt                  int
	// Stream, From, To and Contains are as in Query.
	Stream   Stream
	From, To time.Time
	Contains string
	// After gives records behind this offset, or before it when Backwards; -1 begins at the end that the direction asks for.
	After int64
	// Backwards reads the last record first.
	Backwards bool
	// Limit is as in Query.
	Limit int
}

// AttemptReader is a store that can read one container attempt in the order of its file, which is not quite that of
// the times: the two streams of a container are stamped apart, and clocks are set back. With it, what the store gives
// has the same bytes as the node's file.
type AttemptReader interface {
	// ReadAttempt gives a page of records; more tells whether others follow in the direction asked for.
	ReadAttempt(ctx context.Context, q AttemptQuery) (recs []Record, more bool, err error)
}

// WithDefaults checks q and gives it as a Query beside itself, with Limit filled in.
func (q AttemptQuery) WithDefaults() (AttemptQuery, Query, error) {
	as, err := Query{Org: q.Org, Instance: q.Instance, Container: q.Container, Attempt: &q.Attempt, Stream: q.Stream,
		From: q.From, To: q.To, Contains: q.Contains, Limit: q.Limit}.WithDefaults()
	switch {
	case err != nil:
	case q.Instance == "":
		err = problem.Invalid("instance", "is required", "")
	case q.Container == "":
		err = problem.Invalid("container", "is required", "")
	}
	q.Limit = as.Limit
	return q, as, err
}
