// Package memory is a logs.Store that keeps everything in memory, for tests and as the plainest statement of what a
// store answers. It is not for production: nothing bounds it and nothing survives.
package memory

import (
	"cmp"
	"context"
	"slices"
	"strings"
	"sync"

	"cumulet.io/logs"
)

// Store is an empty store. Safe for concurrent use.
type Store struct {
	mu   sync.RWMutex
	recs []logs.Record
}

var (
	_ logs.Store         = (*Store)(nil)
	_ logs.AttemptReader = (*Store)(nil)
)

// Add adds records; one that has the place of a record that is there already changes nothing.
func (s *Store) Add(recs ...logs.Record) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range recs {
		same := func(o logs.Record) bool { return o.Org == r.Org && o.Position().Compare(r.Position()) == 0 }
		if !slices.ContainsFunc(s.recs, same) {
			s.recs = append(s.recs, r)
		}
	}
}

// Search implements logs.Store.
func (s *Store) Search(ctx context.Context, q logs.Query) (logs.Page, error) {
	q, err := q.WithDefaults()
	if err != nil {
		return logs.Page{}, err
	}
	after, paged, err := q.Position()
	if err != nil {
		return logs.Page{}, err
	}
	sign := 1
	if q.Order == logs.NewestFirst {
		sign = -1
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	page := logs.Page{Records: []logs.Record{}}
	for _, r := range s.recs {
		if matches(&q, &r) && (!paged || sign*r.Position().Compare(after) > 0) {
			page.Records = append(page.Records, r)
		}
	}
	slices.SortFunc(page.Records, func(a, b logs.Record) int { return sign * a.Position().Compare(b.Position()) })
	if len(page.Records) > q.Limit {
		page.Records = page.Records[:q.Limit]
		page.Next = q.CursorAt(page.Records[q.Limit-1].Position())
	}
	return page, ctx.Err()
}

// ReadAttempt implements logs.AttemptReader.
func (s *Store) ReadAttempt(ctx context.Context, q logs.AttemptQuery) (recs []logs.Record, more bool, err error) {
	q, as, err := q.WithDefaults()
	if err != nil {
		return nil, false, err
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	for _, r := range s.recs {
		if matches(&as, &r) && (q.After < 0 || !q.Backwards && r.Offset > q.After || q.Backwards && r.Offset < q.After) {
			recs = append(recs, r)
		}
	}
	slices.SortFunc(recs, func(a, b logs.Record) int {
		if q.Backwards {
			a, b = b, a
		}
		return cmp.Compare(a.Offset, b.Offset)
	})
	if len(recs) > q.Limit {
		recs, more = recs[:q.Limit], true
	}
	return recs, more, ctx.Err()
}

func matches(q *logs.Query, r *logs.Record) bool {
	return r.Org == q.Org &&
		(q.Instance == "" || r.Instance == q.Instance) &&
		(q.Container == "" || r.Container == q.Container) &&
		(q.Stream == "" || r.Stream == q.Stream) &&
		(q.Attempt == nil || r.Attempt == *q.Attempt) &&
		(q.From.IsZero() || !r.Time.Before(q.From)) &&
		(q.To.IsZero() || r.Time.Before(q.To)) &&
		strings.Contains(r.Message, q.Contains)
}
