package elastic

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"cumulet.io/logs"
	"cumulet.io/logs/crilog"
)

var (
	_ logs.Store         = (*Store)(nil)
	_ logs.AttemptReader = (*Store)(nil)
)

// document is what logs/collect ships for one CRI record.
type document struct {
	Org       string `json:"org"`
	Instance  string `json:"instance"`
	Container string `json:"container"`
	Attempt   int    `json:"attempt"`
	CRI       struct {
		Time   time.Time   `json:"time"`
		Stream logs.Stream `json:"stream"`
		Tag    string      `json:"tag"`
	} `json:"cri"`
	Log struct {
		Offset int64 `json:"offset"`
	} `json:"log"`
	Message string `json:"message"`
}

// Search implements logs.Store. A document that is no CRI record (a line torn by a crash) is not found.
func (s *Store) Search(ctx context.Context, q logs.Query) (logs.Page, error) {
	const op = "search logs"
	q, err := q.WithDefaults()
	if err != nil {
		return logs.Page{}, err
	}
	at, paged, err := q.Position()
	if err != nil {
		return logs.Page{}, err
	}
	if !paged {
		if err := s.refresh(ctx, op, LogIndices); err != nil {
			return logs.Page{}, err
		}
	}
	body := object{"query": object{"bool": object{"filter": filters(&q)}}, "sort": order(q.Order), "track_total_hits": false}
	if paged {
		body["search_after"] = []any{at.Time.UTC().Format(time.RFC3339Nano), at.Instance, at.Container, at.Attempt, at.Offset}
	}
	// One more than asked for tells whether there is a next page.
	hits, more, err := s.page(ctx, op, body, q.Limit)
	if err != nil {
		return logs.Page{}, err
	}
	page := logs.Page{}
	if page.Records, err = records(op, hits); err != nil {
		return logs.Page{}, err
	}
	if more {
		page.Next = q.CursorAt(page.Records[len(page.Records)-1].Position())
	}
	return page, nil
}

// ReadAttempt implements logs.AttemptReader.
func (s *Store) ReadAttempt(ctx context.Context, q logs.AttemptQuery) (recs []logs.Record, more bool, err error) {
	const op = "read log"
	q, as, err := q.WithDefaults()
	if err != nil {
		return nil, false, err
	}
	dir := logs.OldestFirst
	if q.Backwards {
		dir = logs.NewestFirst
	}
	body := object{"query": object{"bool": object{"filter": filters(&as)}}, "track_total_hits": false,
		"sort": []any{object{"log.offset": object{"order": string(dir), "unmapped_type": "long"}}}}
	if q.After >= 0 {
		body["search_after"] = []any{q.After}
	} else if err := s.refresh(ctx, op, LogIndices); err != nil {
		return nil, false, err
	}
	hits, more, err := s.page(ctx, op, body, q.Limit)
	if err != nil {
		return nil, false, err
	}
	recs, err = records(op, hits)
	return recs, more, err
}

func records(op string, hits []hit) ([]logs.Record, error) {
	recs := make([]logs.Record, 0, len(hits))
	for _, h := range hits {
		r, err := record(h.Source)
		if err != nil {
			return nil, fmt.Errorf("%s: document %s of %s: %w", op, h.ID, h.Index, err)
		}
		recs = append(recs, r)
	}
	return recs, nil
}

// page gets up to want documents, fewer when so many would be too large an answer, and tells whether more follow.
func (s *Store) page(ctx context.Context, op string, body object, want int) (hits []hit, more bool, err error) {
	// One more than wanted tells whether there is a next page; index.max_result_window is 10,000.
	n := min(want+1, logs.MaxLimit)
	for {
		body["size"] = n
		if hits, err = s.search(ctx, op, LogIndices, body); !errors.Is(err, errTooLarge) || n == 1 {
			break
		}
		n = max(n/4, 1)
	}
	switch {
	case err != nil || len(hits) < n:
		return hits, false, err
	case n > want:
		return hits[:want], true, nil
	}
	body["size"], body["search_after"] = 1, hits[n-1].Sort
	next, err := s.search(ctx, op, LogIndices, body)
	return hits, len(next) > 0, err
}

// filters asks for q. Org is always the first.
func filters(q *logs.Query) []any {
	term := func(field string, v any) any { return object{"term": object{field: v}} }
	// Only records have a time.
	when := object{}
	if !q.From.IsZero() {
		when["gte"] = q.From.UTC().Format(time.RFC3339Nano)
	}
	if !q.To.IsZero() {
		when["lt"] = q.To.UTC().Format(time.RFC3339Nano)
	}
	f := []any{term("org", q.Org), object{"exists": object{"field": "cri.tag"}}}
	if len(when) > 0 {
		f = append(f, object{"range": object{"cri.time": when}})
	}
	if q.Instance != "" {
		f = append(f, term("instance", q.Instance))
	}
	if q.Container != "" {
		f = append(f, term("container", q.Container))
	}
	if q.Stream != "" {
		f = append(f, term("cri.stream", q.Stream))
	}
	if q.Attempt != nil {
		f = append(f, term("attempt", *q.Attempt))
	}
	if q.Contains != "" {
		text := strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`).Replace(q.Contains)
		f = append(f, object{"wildcard": object{"message": object{"value": "*" + text + "*"}}})
	}
	return f
}

// order is the total order of logs.Position.
func order(o logs.Order) []any {
	key := func(field, typ string) any {
		return object{field: object{"order": string(o), "unmapped_type": typ}}
	}
	return []any{
		object{"cri.time": object{"order": string(o), "unmapped_type": "date_nanos", "format": "strict_date_optional_time_nanos"}},
		key("instance", "keyword"), key("container", "keyword"), key("attempt", "long"), key("log.offset", "long"),
	}
}

func record(source json.RawMessage) (logs.Record, error) {
	var d document
	if err := json.Unmarshal(source, &d); err != nil {
		return logs.Record{}, err
	}
	partial, err := crilog.PartialTag(d.CRI.Tag)
	if err != nil {
		return logs.Record{}, err
	}
	return logs.Record{Org: d.Org, Instance: d.Instance, Container: d.Container, Attempt: d.Attempt, Stream: d.CRI.Stream,
		Time: d.CRI.Time.UTC(), Offset: d.Log.Offset, Partial: partial, Message: d.Message}, nil
}
