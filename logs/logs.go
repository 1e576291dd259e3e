// Package logs is the contract of the log pipeline: records, queries, cursors and the store that keeps them.
//
// It holds types and no I/O. logs/elastic is the store over the Elasticsearch API, logs/embedded an Elasticsearch-API
// front for one machine, logs/collect runs Filebeat, logs/server is the query API, logs/crilog reads a node's files.
package logs

import (
	"context"
	"errors"
	"time"
)

// Stream is where a container wrote a line.
type Stream string

// The streams.
const (
	Stdout Stream = "stdout"
	Stderr Stream = "stderr"
)

// Record is one line of a container's output, as it stands in the node's CRI log file.
type Record struct {
	// Org owns the instance. It comes from the file's path, which the platform chooses, never from the line.
	Org string `json:"org"`
	// Instance, Container and Attempt (restarts, from 0) name the writer.
	Instance  string `json:"instance"`
	Container string `json:"container"`
	Attempt   int    `json:"attempt"`
	// Stream is stdout or stderr.
	Stream Stream `json:"stream"`
	// Time is when the runtime read the line, UTC, nanoseconds.
	Time time.Time `json:"time"`
	// Offset is the line's byte offset in its file: the order of the lines of one container attempt.
	Offset int64 `json:"offset"`
	// Partial marks a piece of a longer line, whose rest follows; a reader joins pieces without a newline.
	Partial bool `json:"partial,omitempty"`
	// Message is the line without its newline, bytes as written.
	Message string `json:"message"`
}

// Order of a query's answer.
type Order string

// The orders: by time, instance, container, attempt, offset; total and stable.
const (
	OldestFirst Order = "asc"
	NewestFirst Order = "desc"
)

// Query selects records of one org. Zero fields do not restrict.
type Query struct {
	// Org is required: tenancy is part of every query.
	Org string
	// Instance, Container, Stream and Attempt restrict to equal values; Attempt is used when not nil.
	Instance  string
	Container string
	Stream    Stream
	Attempt   *int
	// From (inclusive) and To (exclusive) bound the time.
	From, To time.Time
	// Contains asks for lines with this text, case-sensitive.
	Contains string
	// Order is OldestFirst when empty.
	Order Order
	// Limit is the page size, 1 to 10,000; 0 means 1,000.
	Limit int
	// After continues behind the last record of an earlier page of the same query.
	After Cursor
}

// Cursor is an opaque, stable place in a query's answer; "" is the beginning.
type Cursor string

// Page is one page of records. Next is "" when nothing follows at the time of the answer.
type Page struct {
	Records []Record `json:"records"`
	Next    Cursor   `json:"next,omitempty"`
}

// ErrBadCursor is returned for a cursor that no store gave out.
var ErrBadCursor = errors.New("the cursor is not valid")

// Store keeps records and answers queries. Safe for concurrent use. What Search returns is complete for everything
// that was acknowledged to the collector before the call.
type Store interface {
	Search(ctx context.Context, q Query) (Page, error)
}
