package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"cumulet.io/internal/problem"
	"cumulet.io/logs"
	"cumulet.io/logs/crilog"
)

// records streams every record of the query, a line of JSON each; with a limit, so many at most. When following, it
// goes on with what comes.
func (s *server) records(ctx context.Context, out *stream, q *query) error {
	enc := json.NewEncoder(out)
	enc.SetEscapeHTML(false)
	if q.follow {
		return s.follow(ctx, out, enc, q)
	}
	query := q.Query
	for {
		p, err := s.search(ctx, query)
		if err != nil {
			return err
		}
		for i := range p.Records {
			if err := enc.Encode(&p.Records[i]); err != nil {
				return fmt.Errorf("log stream: %w", err)
			}
		}
		if query.After = p.Next; p.Next == "" || q.limited {
			return nil
		}
		if err := out.flush(); err != nil {
			return err
		}
	}
}

// Lines of several files arrive in about the order of their times: what arrives overlap later than its neighbours is
// still found. maxSeen bounds what is remembered of it.
const (
	overlap = 30 * time.Second
	maxSeen = 200_000
)

// follow streams records of the query as they arrive, each once, in order within one look.
func (s *server) follow(ctx context.Context, out *stream, enc *json.Encoder, q *query) error {
	seen := map[logs.Position]struct{}{}
	from := q.From
	var newest time.Time
	for {
		query := q.Query
		query.From, query.Limit = from, logs.DefaultLimit
		for more := true; more; {
			p, err := s.search(ctx, query)
			if err != nil {
				return err
			}
			for i := range p.Records {
				r := &p.Records[i]
				if _, ok := seen[r.Position()]; ok {
					continue
				}
				seen[r.Position()] = struct{}{}
				if r.Time.After(newest) {
					newest = r.Time
				}
				if err := enc.Encode(r); err != nil {
					return fmt.Errorf("log stream: %w", err)
				}
			}
			query.After, more = p.Next, p.Next != ""
			if len(seen) > maxSeen {
				from = forget(seen, newest, overlap/10)
			}
		}
		if err := out.flush(); err != nil {
			return err
		}
		if !newest.IsZero() {
			if f := forget(seen, newest, overlap); f.After(from) {
				from = f
			}
		}
		if err := sleep(ctx, s.Poll); err != nil {
			return err
		}
	}
}

// forget drops what is older than keep before newest and tells where that is.
func forget(seen map[logs.Position]struct{}, newest time.Time, keep time.Duration) time.Time {
	from := newest.Add(-keep)
	for p := range seen {
		if p.Time.Before(from) {
			delete(seen, p)
		}
	}
	return from
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

// text streams one attempt's text with the bytes of the node's file.
func (s *server) text(ctx context.Context, out *stream, q *query) error {
	attempt, err := s.attempt(ctx, q)
	if err != nil {
		return err
	}
	if attempt < 0 && !q.follow {
		return problem.New(problem.ErrNotFound, "there are no lines of this container attempt")
	}
	printer := crilog.NewPrinter(out, time.Time{}, q.limitBytes, q.timestamps)
	after := int64(-1)
	if q.tail != nil && attempt >= 0 {
		if after, err = s.tail(ctx, q, attempt, printer); err != nil || !q.follow {
			return finish(err)
		}
	}
	for {
		if attempt < 0 { // nothing yet: it may come
			if attempt, err = s.attempt(ctx, q); err != nil {
				return err
			}
		}
		for more := attempt >= 0; more; {
			var recs []logs.Record
			if recs, more, err = s.read(ctx, q, attempt, after, false, 0); err != nil {
				return err
			}
			if after, err = printAll(printer, recs, after); err != nil {
				return finish(err)
			}
		}
		if !q.follow {
			return nil
		}
		if err := out.flush(); err != nil {
			return err
		}
		if err := sleep(ctx, s.Poll); err != nil {
			return err
		}
	}
}

func finish(err error) error {
	if errors.Is(err, crilog.ErrLimit) {
		return nil
	}
	return err
}

// printAll prints records and gives the offset of the last.
func printAll(p *crilog.Printer, recs []logs.Record, after int64) (int64, error) {
	for i := range recs {
		r := &recs[i]
		if err := p.Print(crilog.Entry{Time: r.Time, Stream: r.Stream, Partial: r.Partial, Text: []byte(r.Message)}); err != nil {
			return after, err
		}
		after = r.Offset
	}
	return after, nil
}

// attempt gives the number of the attempt that is asked for; below 0 when there is none.
func (s *server) attempt(ctx context.Context, q *query) (int, error) {
	if q.Attempt != nil {
		return *q.Attempt, nil
	}
	p, err := s.search(ctx, logs.Query{Org: q.Org, Instance: q.Instance, Container: q.Container, Order: logs.NewestFirst, Limit: 1})
	if err != nil || len(p.Records) == 0 {
		return -1, err
	}
	return p.Records[0].Attempt + 1 - q.latest, nil
}

func (s *server) read(ctx context.Context, q *query, attempt int, after int64, backwards bool, limit int) ([]logs.Record, bool, error) {
	ctx, cancel := context.WithTimeout(ctx, s.PageTime)
	defer cancel()
	return s.Store.ReadAttempt(ctx, logs.AttemptQuery{Org: q.Org, Instance: q.Instance, Container: q.Container, Attempt: attempt,
		Stream: q.Stream, From: q.From, To: q.To, Contains: q.Contains, After: after, Backwards: backwards, Limit: limit})
}

// tail prints the last records, which it finds from the end, and gives the offset of the last. It goes back over the
// offsets alone when they are many, so that memory stays bounded.
func (s *server) tail(ctx context.Context, q *query, attempt int, p *crilog.Printer) (int64, error) {
	left, from := *q.tail, int64(-1)
	var last int64 = -1
	var page []logs.Record
	pages := 0
	for more := true; more && left > 0; pages++ {
		var err error
		if page, more, err = s.read(ctx, q, attempt, from, true, int(min(left, logs.DefaultLimit))); err != nil {
			return 0, err
		}
		if len(page) == 0 {
			break
		}
		if last < 0 {
			last = page[0].Offset
		}
		left -= int64(len(page))
		from = page[len(page)-1].Offset
	}
	if from < 0 { // nothing to show; what comes later begins at the end of what is there
		recs, _, err := s.read(ctx, q, attempt, -1, true, 1)
		if err != nil || len(recs) == 0 {
			return -1, err
		}
		return recs[0].Offset, nil
	}
	if pages == 1 {
		slices.Reverse(page)
		return printAll(p, page, -1)
	}
	after := from - 1
	for more := true; more && after < last; {
		recs, m, err := s.read(ctx, q, attempt, after, false, 0)
		if err != nil {
			return after, err
		}
		if after, err = printAll(p, recs, after); err != nil {
			return after, err
		}
		more = m
	}
	return after, nil
}
