package index

import (
	"context"
	"database/sql"
	"fmt"
	"time"

	"github.com/opencontainers/go-digest"
)

// Pull counts pulls of one manifest.
type Pull struct {
	Repository string
	Digest     digest.Digest
	Last       time.Time
	Count      int64
}

// Pulled adds pulls. What is no longer there is passed over.
func (s *Store) Pulled(ctx context.Context, pulls []Pull) error {
	if len(pulls) == 0 {
		return nil
	}
	err := s.db.InTx(ctx, func(tx *sql.Tx) error {
		for _, p := range pulls {
			if _, err := tx.ExecContext(ctx, s.db.Q(`UPDATE index_manifests SET pulls = pulls + ?, pulled = CASE WHEN pulled < ? THEN ? ELSE pulled END
				WHERE repository = ? AND digest = ?`), p.Count, p.Last.UnixNano(), p.Last.UnixNano(), p.Repository, p.Digest); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("count pulls: %w", err)
	}
	return nil
}
