package reconcile

import (
	"context"
	"fmt"
	"sort"
	"strings"
	"time"

	"cumulet.io/billing"
)

// inventory reads the platform's instances that matter: those alive in the period and those that the bill names, which
// may have lived earlier. It is read after the bill, so that whatever is billed is in it already.
func (r *run) inventory(ctx context.Context, earliest, from, to time.Time) ([]Instance, error) {
	all, err := r.inv.Instances(ctx, r.bill.Org, earliest, to)
	if err != nil {
		return nil, fmt.Errorf("read the inventory: %w", err)
	}
	var out []Instance
	for _, in := range all {
		_, billed := r.counts[in.ID]
		alive := !in.StartedAt.IsZero() && in.StartedAt.Before(to) && (in.EndedAt.IsZero() || !in.EndedAt.Before(from))
		if billed || alive {
			out = append(out, in)
			r.counts[in.ID] = nil
		}
	}
	sort.Slice(out, func(i, j int) bool { return out[i].ID < out[j].ID })
	return out, nil
}

// checkInventory compares the platform's instances with those that have events, both ways.
func (r *run) checkInventory(known []Instance) (events, inventory *Check) {
	events = &Check{Name: CheckEvents, OK: true}
	inventory = &Check{Name: CheckInventory, OK: true}
	read := r.opts.Now()
	settled := read.Add(-r.opts.Transit)
	byID := map[string]Instance{}
	for _, in := range known {
		byID[in.ID] = in
	}
	for _, id := range r.ids() {
		n := r.counts[id]
		if n.events == 0 {
			continue
		}
		in, ok := byID[id]
		events.Compared++
		switch {
		case !ok:
			events.differ("%s: it has %d events and is not in the inventory", id, n.events)
		case in.Org != n.org:
			events.differ("%s: its events bill %s, the inventory says %s", id, n.org, in.Org)
		case in.StartedAt.IsZero() && !n.first.After(settled):
			events.differ("%s: it is billed %d s and never held resources", id, n.life.Sum())
		}
	}
	heard := settled.Add(-2 * billing.HeartbeatInterval)
	for _, in := range known {
		n := r.counts[in.ID]
		if in.StartedAt.IsZero() || n.events == 0 && in.StartedAt.After(settled) {
			continue // nothing to bill, or its first event may be on its way
		}
		inventory.Compared++
		if n.events == 0 {
			inventory.differ("%s: it started at %s and has no events", in.ID, in.StartedAt.UTC().Format(time.RFC3339Nano))
			continue
		}
		end := in.EndedAt
		if end.IsZero() {
			if n.stopped && n.last.Before(settled) {
				inventory.differ("%s: it lives, and its events end at %s", in.ID, n.last.Format(time.RFC3339Nano))
			}
			end = read
			if !n.stopped && n.last.Before(heard) {
				r.report.Notes = append(r.report.Notes, fmt.Sprintf("%s lives and its last event is of %s: billed to there, estimated",
					in.ID, n.last.Format(time.RFC3339Nano)))
			}
		}
		held := end.Sub(in.StartedAt)
		if billed := time.Duration(n.life.Sum()) * time.Second; billed > held+time.Second+r.opts.Slack && n.last.Before(settled) {
			inventory.differ("%s: it is billed %s and held resources for %s", in.ID, billed, held)
		}
		if !in.EndedAt.IsZero() && in.EndedAt.Before(settled) && !n.stopped {
			r.report.Notes = append(r.report.Notes, fmt.Sprintf("%s ended at %s without a stop event: billed to its last event, estimated",
				in.ID, in.EndedAt.UTC().Format(time.RFC3339Nano)))
		}
	}
	return events, inventory
}

// notes adds the quarantined lines of the org's instances, at most as many as differences.
func (r *run) notes(ctx context.Context) error {
	for after := ""; len(r.report.Notes) < maxDifferences; {
		page, err := r.l.Quarantine(ctx, after, 1000)
		if err != nil {
			return err
		}
		for _, q := range page.Items {
			id, _, _ := strings.Cut(q.EventID, "/")
			if _, ours := r.counts[id]; ours && len(r.report.Notes) < maxDifferences {
				r.report.Notes = append(r.report.Notes, fmt.Sprintf("event %s is quarantined: %s", q.EventID, q.Reason))
			}
		}
		if page.Next == "" {
			return nil
		}
		after = page.Next
	}
	return nil
}
