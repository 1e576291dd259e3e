package agent

import (
	"context"
	"slices"
	"sync"
	"time"
)

// oomQueue has the containers in which the kernel has killed for want of memory
// and of which the shim has not heard.
type oomQueue struct {
	mu      sync.Mutex
	waiting []string
	changed chan struct{} // closed, and replaced, at each change
}

func newOOMQueue() *oomQueue { return &oomQueue{changed: make(chan struct{})} }

func (q *oomQueue) change(f func()) {
	q.mu.Lock()
	defer q.mu.Unlock()
	f()
	close(q.changed)
	q.changed = make(chan struct{})
}

func (q *oomQueue) add(id string) {
	q.change(func() {
		if !slices.Contains(q.waiting, id) {
			q.waiting = append(q.waiting, id)
		}
	})
}

// next waits for the first one and takes it.
func (q *oomQueue) next(ctx context.Context) (string, error) {
	for {
		q.mu.Lock()
		changed := q.changed
		var id string
		if len(q.waiting) > 0 {
			id = q.waiting[0]
		}
		q.mu.Unlock()
		if id != "" {
			q.change(func() { q.waiting = slices.DeleteFunc(q.waiting, func(s string) bool { return s == id }) })
			return id, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return "", ctx.Err()
		}
	}
}

// oomDelivery bounds how long a container's end waits for the shim to hear why;
// settle is a moment for it to hand that on.
const (
	oomDelivery = 2 * time.Second
	oomSettle   = 100 * time.Millisecond
)

// delivered waits until the shim has heard of the container, for a while.
func (q *oomQueue) delivered(ctx context.Context, id string) {
	limit := time.After(oomDelivery)
	waited := false
	for {
		q.mu.Lock()
		changed, there := q.changed, slices.Contains(q.waiting, id)
		q.mu.Unlock()
		if !there {
			break
		}
		waited = true
		select {
		case <-changed:
		case <-limit:
			return
		case <-ctx.Done():
			return
		}
	}
	if waited {
		select {
		case <-time.After(oomSettle):
		case <-ctx.Done():
		}
	}
}
