package gos

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"

	"cumulet.io/registry/gos/tracker"
)

// Sizes of one step of the sweeper, and of the replica's.
const (
	sweepBatch = 200
	syncBatch  = 100
	// goneAge is for how long removals are remembered for replicas.
	goneAge = 30 * 24 * time.Hour
	// sweepLead is how long a dead sweeper of all regions keeps others waiting.
	sweepLead = 10 * time.Minute
)

// Run keeps the replica fresh, renews the leases of what is being read, and collects garbage, until ctx ends. A fault is
// logged and tried again.
func (r *Region) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	every := func(interval time.Duration, what string, f func(context.Context) error) {
		group.Go(func() error {
			tick := time.NewTicker(interval)
			defer tick.Stop()
			for failed := false; ; {
				err := f(ctx)
				if ctx.Err() != nil {
					return nil
				}
				if err != nil && !failed {
					r.log.ErrorContext(ctx, "storage upkeep failed", "task", what, "error", err)
				}
				failed = err != nil
				select {
				case <-ctx.Done():
					return nil
				case <-tick.C:
				}
			}
		})
	}
	if r.cfg.Replica != nil {
		every(r.cfg.SyncInterval, "replica", r.Sync)
	}
	every(r.cfg.Tracker.Lease()/8, "leases", r.renewActive)
	every(r.cfg.SweepInterval, "garbage", func(ctx context.Context) error {
		_, err := r.Sweep(ctx)
		return err
	})
	return group.Wait()
}

// Sync brings the replica up to what the tracker has now.
func (r *Region) Sync(ctx context.Context) error {
	replica := r.cfg.Replica
	position, err := replica.Position(ctx)
	if err != nil {
		return err
	}
	for {
		changes, next, anew, err := r.cfg.Tracker.Changes(ctx, position, syncBatch)
		if err != nil {
			return err
		}
		if anew {
			if err := replica.Reset(ctx); err != nil {
				return err
			}
			position = tracker.Position{}
			continue
		}
		if next.Seq == position.Seq {
			return nil
		}
		if err := replica.Apply(ctx, changes, next); err != nil {
			return err
		}
		position = next
	}
}

// renewActive renews the leases of blobs that are being read at this moment.
func (r *Region) renewActive(ctx context.Context) error {
	r.mu.Lock()
	active := make([]digest.Digest, 0, len(r.active))
	for d := range r.active {
		active = append(active, d)
	}
	for o, at := range r.suspects {
		if time.Since(at) > suspectTime {
			delete(r.suspects, o)
		}
	}
	r.mu.Unlock()
	var errs []error
	for _, d := range active {
		if _, err := r.cfg.Tracker.Touch(ctx, d); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// Swept is what one sweep did.
type Swept struct {
	// Links of layers that no manifest needed, Uploads that were given up, blobs Marked and Dropped: of all regions.
	Links, Uploads, Marked, Dropped int
	// Objects deleted from this region's store.
	Objects int
}

// Sweep collects garbage once: of all regions, unless another node is doing it, and then this region's objects. Nothing
// stops meanwhile: what is asked for, pushed or mounted while it runs stays.
func (r *Region) Sweep(ctx context.Context) (Swept, error) {
	var s Swept
	const lead = "sweep"
	leads, err := r.cfg.Tracker.Lead(ctx, lead, r.node, sweepLead)
	if err != nil {
		return s, err
	}
	if leads {
		err = r.sweepAll(ctx, &s)
		err = errors.Join(err, r.cfg.Tracker.Resign(context.WithoutCancel(ctx), lead, r.node))
	}
	n, objErr := r.sweepObjects(ctx)
	s.Objects = n
	if s != (Swept{}) {
		r.log.InfoContext(ctx, "garbage collected", "links", s.Links, "uploads", s.Uploads, "marked", s.Marked, "dropped", s.Dropped, "objects", s.Objects)
	}
	return s, errors.Join(err, objErr)
}

func (r *Region) sweepAll(ctx context.Context, s *Swept) error {
	t := r.cfg.Tracker
	if err := r.sweepLinks(ctx, s); err != nil {
		return err
	}
	for {
		n, err := t.PurgeUploads(ctx, t.Now().Add(-r.cfg.UploadAge), sweepBatch)
		if err != nil {
			return err
		}
		if s.Uploads += n; n == 0 {
			break
		}
	}
	// What was marked before a URL was over, or anyone may have been told that it is there, waits for the next sweep.
	for {
		n, err := t.Drop(ctx, t.Now().Add(-r.cfg.PresignTTL-r.cfg.PresignTTL/4), sweepBatch)
		if err != nil {
			return err
		}
		if s.Dropped += n; n == 0 {
			break
		}
	}
	n, err := t.Mark(ctx)
	if err != nil {
		return err
	}
	s.Marked = n
	return t.Forget(ctx, t.Now().Add(-goneAge))
}

// sweepLinks removes links of layers that no manifest of their repository needs.
func (r *Region) sweepLinks(ctx context.Context, s *Swept) error {
	if r.cfg.References == nil {
		return nil
	}
	for {
		links, err := r.cfg.Tracker.StaleLinks(ctx, sweepBatch)
		if err != nil {
			return err
		}
		for _, l := range links {
			live, err := r.cfg.References.Live(ctx, l.Repository, l.Digest)
			if err != nil {
				return fmt.Errorf("references of %s: %w", l.Repository, err)
			}
			if live {
				if err := r.cfg.Tracker.KeepLink(ctx, l); err != nil {
					return err
				}
				continue
			}
			removed, err := r.cfg.Tracker.Unlink(ctx, l)
			if err != nil {
				return err
			}
			if removed {
				s.Links++
			}
		}
		if len(links) < sweepBatch {
			return nil
		}
	}
}

// sweepObjects deletes this region's objects that are due.
func (r *Region) sweepObjects(ctx context.Context) (int, error) {
	n := 0
	for {
		due, err := r.cfg.Tracker.Doom(ctx, r.cfg.Name, sweepBatch)
		if err != nil {
			return n, err
		}
		for _, o := range due {
			if err := r.store.Delete(ctx, o.Key); err != nil {
				return n, err
			}
			if err := r.cfg.Tracker.Swept(ctx, o); err != nil {
				return n, err
			}
			n++
		}
		if len(due) < sweepBatch {
			return n, nil
		}
	}
}
