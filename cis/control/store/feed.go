package store

import (
	"context"
	"iter"
	"sync"
	"time"

	"cumulet.io/cis"
)

const (
	// feedSize bounds what waits in memory for one watcher; one that is slower reads the tables.
	feedSize = 512
	// readSize is how many changes are read from the tables at once.
	readSize = 200
)

// feed is one watcher's buffer.
type feed struct {
	node string

	mu     sync.Mutex
	items  []change
	lagged bool
	wake   chan struct{} // holds at most one value
}

// publish puts a committed transaction into the cache and tells watchers. Batches are published one at a time, in order.
func (s *Store) publish(t *tx) {
	s.mu.Lock()
	for id, e := range t.changed {
		s.replace(s.live[id], e)
	}
	s.mu.Unlock()
	// pruned before published: a cursor that is checked in between is refused rather than served with a hole.
	if t.pruned > s.pruned.Load() {
		s.pruned.Store(t.pruned)
	}
	s.feedMu.Lock()
	defer s.feedMu.Unlock()
	s.published.Store(t.version)
	for _, c := range t.items {
		for f := range s.feeds[c.org] {
			f.put(c)
		}
	}
}

func (f *feed) put(c change) {
	if f.node != "" && f.node != c.node {
		return
	}
	f.mu.Lock()
	if len(f.items) < feedSize && !f.lagged {
		f.items = append(f.items, c)
	} else {
		f.items, f.lagged = nil, true
	}
	f.mu.Unlock()
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

func (f *feed) take() (items []change, lagged bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	items, lagged = f.items, f.lagged
	f.items, f.lagged = nil, false
	return items, lagged
}

// subscribe begins a feed; what is committed after the returned version comes through it.
func (s *Store) subscribe(org, node string) (*feed, int64) {
	f := &feed{node: node, wake: make(chan struct{}, 1)}
	s.feedMu.Lock()
	defer s.feedMu.Unlock()
	if s.feeds[org] == nil {
		s.feeds[org] = map[*feed]struct{}{}
	}
	s.feeds[org][f] = struct{}{}
	return f, s.published.Load()
}

// settled is a version up to which every feed has been filled.
func (s *Store) settled() int64 {
	s.feedMu.Lock()
	defer s.feedMu.Unlock()
	return s.published.Load()
}

func (s *Store) unsubscribe(org string, f *feed) {
	s.feedMu.Lock()
	defer s.feedMu.Unlock()
	delete(s.feeds[org], f)
	if len(s.feeds[org]) == 0 {
		delete(s.feeds, org)
	}
}

// Watch implements cis.Watcher. Of an instance that changes again before the watcher has read it, only the newest state
// may be seen. Whenever the watcher has caught up with the tables a bookmark is given, so the first item tells where the
// watch has begun; more bookmarks come by tick, which may be nil.
func (s *Store) Watch(ctx context.Context, org, node, cursor string, tick <-chan time.Time) iter.Seq2[cis.WatchItem, error] {
	return func(yield func(cis.WatchItem, error) bool) {
		f, at := s.subscribe(org, node)
		defer s.unsubscribe(org, f)
		if cursor != "" {
			var err error
			if at, err = s.parseCursor(cursor); err != nil {
				yield(cis.WatchItem{}, err)
				return
			}
		}
		behind := true
		for {
			if behind {
				var more bool
				if at, more = s.catchUp(ctx, org, node, at, yield); !more {
					return
				}
				if !yield(cis.WatchItem{Cursor: s.cursor(at)}, nil) {
					return
				}
				behind = false
			}
			select {
			case <-ctx.Done():
				yield(cis.WatchItem{}, ctx.Err())
				return
			case <-tick:
				// Everything up to upTo that is this watcher's is in its feed now, so the cursor can move on to there
				// even when all of it was of others, and does not grow old.
				upTo := s.settled()
				items, lagged := f.take()
				var more bool
				if at, behind, more = s.deliver(items, lagged, at, yield); !more {
					return
				}
				if !behind {
					at = max(at, upTo)
					if !yield(cis.WatchItem{Cursor: s.cursor(at)}, nil) {
						return
					}
				}
			case <-f.wake:
				items, lagged := f.take()
				var more bool
				if at, behind, more = s.deliver(items, lagged, at, yield); !more {
					return
				}
			}
		}
	}
}

// deliver gives the changes behind at. behind tells that some were lost for want of space.
func (s *Store) deliver(items []change, lagged bool, at int64, yield func(cis.WatchItem, error) bool) (now int64, behind, more bool) {
	if lagged {
		return at, true, true
	}
	for i, c := range items {
		if c.version <= at {
			continue
		}
		at = c.version
		c.item.Cursor, c.item.More = s.cursor(at), i < len(items)-1
		if !yield(c.item, nil) {
			return at, false, false
		}
	}
	return at, false, true
}

// catchUp gives what is in the tables behind at. more is false when the watch has ended.
func (s *Store) catchUp(ctx context.Context, org, node string, at int64, yield func(cis.WatchItem, error) bool) (now int64, more bool) {
	for {
		upTo := s.published.Load()
		if at >= upTo {
			return at, true
		}
		changes, cut, err := s.changesAfter(ctx, org, node, at, upTo, readSize)
		if err == nil && at < s.pruned.Load() {
			// Pruned while we read: something behind at may be missing.
			_, err = s.parseCursor(s.cursor(at))
		}
		if err != nil {
			yield(cis.WatchItem{}, err)
			return at, false
		}
		for _, c := range changes {
			at = c.version
			c.item.Cursor, c.item.More = s.cursor(at), true // a bookmark or an error comes behind the last
			if !yield(c.item, nil) {
				return at, false
			}
		}
		if !cut {
			at = upTo
		}
	}
}
