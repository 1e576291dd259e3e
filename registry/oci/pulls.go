package oci

import (
	"cmp"
	"context"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"cumulet.io/registry"
	"cumulet.io/registry/index"
)

const (
	// maxPulls bounds the different pulls between two flushes. Those beyond it are not counted.
	maxPulls = 8192
	// flushEvery is how long a pull may wait to be counted, and so what a crash may lose of them.
	flushEvery = 5 * time.Second
)

// pulls gathers what was pulled, so that a pull writes nothing: equal ones become one row and one event every few
// seconds. A pull changes no state that anyone relies on; a crash loses the last seconds of them.
type pulls struct {
	mu      sync.Mutex
	pending map[pullKey]pullCount
}

type pullKey struct {
	repository   string
	digest       digest.Digest
	tag, account string
	mediaType    string
	size         int64
}

type pullCount struct {
	last  time.Time
	count int64
}

func newPulls() *pulls { return &pulls{pending: map[pullKey]pullCount{}} }

func (p *pulls) add(repository string, e index.Entry, tag, account string) {
	key := pullKey{repository, e.Digest, tag, account, e.MediaType, e.Size}
	now := time.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	c, ok := p.pending[key]
	if !ok && len(p.pending) >= maxPulls {
		return
	}
	p.pending[key] = pullCount{now, c.count + 1}
}

func (p *pulls) take() map[pullKey]pullCount {
	p.mu.Lock()
	defer p.mu.Unlock()
	out := p.pending
	p.pending = map[pullKey]pullCount{}
	return out
}

// flushPulls writes down and announces what was pulled since the last time.
func (r *Registry) flushPulls(ctx context.Context) error {
	taken := r.pulls.take()
	if len(taken) == 0 {
		return nil
	}
	type manifest struct {
		repository string
		digest     digest.Digest
	}
	counts := map[manifest]pullCount{}
	for k, c := range taken {
		m := manifest{k.repository, k.digest}
		sum := counts[m]
		if c.last.After(sum.last) {
			sum.last = c.last
		}
		sum.count += c.count
		counts[m] = sum
	}
	rows := make([]index.Pull, 0, len(counts))
	for m, c := range counts {
		rows = append(rows, index.Pull{Repository: m.repository, Digest: m.digest, Last: c.last, Count: c.count})
	}
	// In one order, so that two nodes do not wait for each other's rows.
	slices.SortFunc(rows, func(a, b index.Pull) int {
		return cmp.Or(cmp.Compare(a.Repository, b.Repository), cmp.Compare(a.Digest, b.Digest))
	})
	if err := r.cfg.Index.Pulled(ctx, rows); err != nil {
		return err
	}
	for k, c := range taken {
		err := r.announce(ctx, registry.Event{Type: registry.EventPull, Repository: k.repository, Digest: k.digest.String(), MediaType: k.mediaType,
			Size: k.size, Tag: k.tag, Actor: k.account, Data: map[string]string{"count": strconv.FormatInt(c.count, 10)}})
		if err != nil {
			return err
		}
	}
	return nil
}

// Run writes down pulls every few seconds and, every hour, forgets uploads that came to nothing and applies the
// repositories' rules, until ctx ends. A fault is logged and tried again.
func (r *Registry) Run(ctx context.Context) error {
	flush, hour := time.NewTicker(flushEvery), time.NewTicker(time.Hour)
	defer flush.Stop()
	defer hour.Stop()
	for {
		var err error
		select {
		case <-ctx.Done():
			return nil // Close writes down the rest
		case <-flush.C:
			err = r.flushPulls(ctx)
		case <-hour.C:
			if err = r.cfg.Index.ExpirePending(ctx); err == nil {
				err = r.retainAll(ctx)
			}
		}
		if err != nil && ctx.Err() == nil {
			r.cfg.Logger.ErrorContext(ctx, "background work failed", "error", err)
		}
	}
}
