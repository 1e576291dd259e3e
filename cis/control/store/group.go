package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"
)

// maxBatch bounds the writes that share one commit, batchTimeout the time that one takes on a server database.
const (
	maxBatch     = 256
	batchTimeout = 30 * time.Second
)

// write is one caller's write waiting for a commit.
type write struct {
	// f works in the transaction. It may be run again when the transaction could not be committed, so it changes
	// nothing but through the tx; an error of its own is returned before it writes.
	f    func(*tx) error
	err  error
	done chan struct{} // closed when err is set
	lead chan struct{} // gets one value when this write's caller must run the next batch
}

var errNotRun = errors.New("store: the write was not run")

// dbError is a fault of the database, which spoils the whole batch.
type dbError struct{ error }

func (e *dbError) Unwrap() error { return e.error }

func dbFault(op string, err error) error {
	if err == nil {
		return nil
	}
	return &dbError{fmt.Errorf("%s: %w", op, err)}
}

// do runs f in a transaction that it shares with the writes of other callers (group commit: one sync of the disk for
// all that wait) and returns when that is durable and in the cache, and watchers have been told. One caller at a time
// leads: it runs the batch, then hands over to the first that waits. A caller that has begun to wait is not let go by
// the end of ctx: its write may be in a batch already, and batches are bounded in time.
func (s *Store) do(ctx context.Context, f func(*tx) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	w := &write{f: f, done: make(chan struct{}), lead: make(chan struct{}, 1)}
	s.queueMu.Lock()
	s.queue = append(s.queue, w)
	if !s.led {
		s.led = true
		w.lead <- struct{}{}
	}
	s.queueMu.Unlock()
	for {
		select {
		case <-w.done:
			return w.err
		case <-w.lead:
			s.leadBatch(ctx)
		}
	}
}

// leadBatch runs what waits, up to maxBatch, and hands over.
func (s *Store) leadBatch(ctx context.Context) {
	s.queueMu.Lock()
	n := min(len(s.queue), maxBatch)
	batch := s.queue[:n:n]
	s.queue = s.queue[n:]
	s.queueMu.Unlock()
	for _, w := range batch {
		w.err = errNotRun // stands when a write panics
	}

	defer func() {
		for _, w := range batch {
			close(w.done)
		}
		s.queueMu.Lock()
		defer s.queueMu.Unlock()
		if len(s.queue) == 0 {
			s.queue, s.led = nil, false
			return
		}
		s.queue[0].lead <- struct{}{}
	}()
	err := s.runBatch(ctx, batch)
	if err == nil {
		return
	}
	if len(batch) == 1 {
		batch[0].err = err
		return
	}
	// One bad write must not fail its neighbours.
	for i := range batch {
		if err := s.runBatch(ctx, batch[i:i+1]); err != nil {
			batch[i].err = err
		}
	}
}

// runBatch runs writes in one transaction. It returns the fault that spoiled it; errors of single writes are set on them.
func (s *Store) runBatch(ctx context.Context, batch []*write) error {
	ctx, cancel := s.batchContext(ctx)
	defer cancel()
	t := &tx{s: s, ctx: ctx, changed: map[string]*entry{}}
	err := s.db.InTx(ctx, func(stx *sql.Tx) error {
		t.Tx = stx
		if err := t.begin(); err != nil {
			return err
		}
		for _, w := range batch {
			w.err = w.f(t)
			var fault *dbError
			if errors.As(w.err, &fault) {
				return fault
			}
		}
		return t.end()
	})
	if err != nil {
		return fmt.Errorf("store: %w", err)
	}
	s.publish(t)
	return nil
}

// batchContext is the batch's own: the leader's caller going away must not fail the others. SQLite needs no time
// limit (busy_timeout is one) and does less work without.
func (s *Store) batchContext(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx = context.WithoutCancel(ctx)
	if s.db.Dialect == "sqlite" {
		return ctx, func() {}
	}
	return context.WithTimeout(ctx, batchTimeout)
}
