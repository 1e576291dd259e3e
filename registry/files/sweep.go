package files

import (
	"context"
	"fmt"
	"time"

	"github.com/opencontainers/go-digest"
)

// sweepEvery is how often content and uploads that nobody needs are looked for.
const sweepEvery = 5 * time.Minute

// Run releases what is deleted and ends uploads that rest too long, until ctx ends. A fault is logged and tried again.
func (s *Store) Run(ctx context.Context) error {
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	for {
		if err := s.Sweep(ctx); err != nil && ctx.Err() == nil {
			s.cfg.Logger.ErrorContext(ctx, "deleted files keep their space for now", "error", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// Sweep does once what Run does now and then.
func (s *Store) Sweep(ctx context.Context) error {
	if err := s.expireUploads(ctx); err != nil {
		return err
	}
	// What a killed process was storing. From here on no row can claim it.
	if _, err := s.cfg.DB.ExecContext(ctx, s.cfg.DB.Q(`UPDATE registry_file_garbage SET due = 0 WHERE due > 0 AND due < ?`), s.cfg.Now().UnixNano()); err != nil {
		return fmt.Errorf("find content without a row: %w", err)
	}
	return s.release(ctx)
}

// Collect releases what was just deleted; what fails is left to Run.
func (s *Store) Collect(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
	defer cancel()
	if err := s.release(ctx); err != nil {
		s.cfg.Logger.WarnContext(ctx, "deleted files keep their space for now", "error", err)
	}
}

func (s *Store) release(ctx context.Context) error {
	for {
		all, err := s.someGarbage(ctx)
		if err != nil || len(all) == 0 {
			return err
		}
		for _, c := range all {
			if err := s.releaseOne(ctx, c.Owner, c.Digest); err != nil {
				return err
			}
		}
	}
}

func (s *Store) releaseOne(ctx context.Context, owner string, d digest.Digest) error {
	if err := s.cfg.Blobs.Release(ctx, owner, d); err != nil {
		return fmt.Errorf("release %s: %w", owner, err)
	}
	if _, err := s.cfg.DB.ExecContext(ctx, s.cfg.DB.Q(`DELETE FROM registry_file_garbage WHERE owner = ?`), owner); err != nil {
		return fmt.Errorf("release %s: %w", owner, err)
	}
	return nil
}

func (s *Store) someGarbage(ctx context.Context) ([]Content, error) {
	rows, err := s.cfg.DB.QueryContext(ctx, `SELECT owner, digest FROM registry_file_garbage WHERE due = 0 LIMIT 100`)
	if err != nil {
		return nil, fmt.Errorf("find garbage: %w", err)
	}
	defer rows.Close() //nolint:errcheck // Err tells
	var out []Content
	for rows.Next() {
		var owner string
		var d digest.Digest
		if err := rows.Scan(&owner, &d); err != nil {
			return nil, fmt.Errorf("find garbage: %w", err)
		}
		out = append(out, Content{Owner: owner, Digest: d})
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("find garbage: %w", err)
	}
	return out, nil
}
