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
			if err := s.cfg.Blobs.Release(ctx, c.owner, c.digest); err != nil {
				return fmt.Errorf("release %s: %w", c.digest, err)
			}
			if _, err := s.cfg.DB.ExecContext(ctx, s.cfg.DB.Q(`DELETE FROM registry_file_garbage WHERE owner = ?`), c.owner); err != nil {
				return fmt.Errorf("release %s: %w", c.digest, err)
			}
		}
	}
}

func (s *Store) someGarbage(ctx context.Context) ([]content, error) {
	rows, err := s.cfg.DB.QueryContext(ctx, `SELECT owner, digest FROM registry_file_garbage LIMIT 100`)
	if err != nil {
		return nil, fmt.Errorf("find garbage: %w", err)
	}
	defer rows.Close() //nolint:errcheck // Err tells
	var out []content
	for rows.Next() {
		var owner string
		var d digest.Digest
		if err := rows.Scan(&owner, &d); err != nil {
			return nil, fmt.Errorf("find garbage: %w", err)
		}
		out = append(out, content{owner: owner, digest: d})
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("find garbage: %w", err)
	}
	return out, nil
}

// drop releases content that became no file.
func (s *Store) drop(ctx context.Context, c content) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
	defer cancel()
	if err := s.cfg.Blobs.Release(ctx, c.owner, c.digest); err != nil {
		s.cfg.Logger.WarnContext(ctx, "content of a failed upload stays", "owner", c.owner, "digest", c.digest, "error", err)
	}
}
