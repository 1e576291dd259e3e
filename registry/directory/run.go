package directory

import (
	"context"
	"errors"
	"time"
)

// housekeeping is how often counts are written, events handed over and old rows removed.
const housekeeping = time.Minute

// Run does what has to be done now and then, until ctx ends: it writes counts of repeated denials, hands over events
// that the outbox had not taken, removes old audit entries and what is remembered of failed logins, and takes what groups
// gave from those who have not logged in for long. A fault is logged and tried again.
func (s *Store) Run(ctx context.Context) error {
	tick := time.NewTicker(housekeeping)
	defer tick.Stop()
	for {
		if err := s.Housekeep(ctx); err != nil && ctx.Err() == nil {
			s.log.ErrorContext(ctx, "housekeeping of the directory failed", "error", err)
		}
		select {
		case <-ctx.Done():
			// What was counted is kept.
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
			defer cancel()
			if err := s.flushDenials(ctx, true); err != nil {
				s.log.ErrorContext(ctx, "counts of denials are lost", "error", err)
			}
			return nil
		case <-tick.C:
		}
	}
}

// Housekeep does once what Run does now and then.
func (s *Store) Housekeep(ctx context.Context) error {
	return errors.Join(s.flushDenials(ctx, false), s.emitPending(ctx), s.pruneAudit(ctx), s.pruneAttempts(ctx), s.expireGroups(ctx))
}

func (s *Store) flushDenials(ctx context.Context, all bool) error {
	for _, e := range s.denials.flush(all) {
		if err := s.insertAudit(ctx, s.db, e); err != nil {
			return err
		}
	}
	return nil
}
