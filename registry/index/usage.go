package index

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/opencontainers/go-digest"
)

// PendingFor is how long a blob counts that was uploaded and that no manifest needs. Online garbage collection must
// leave it alone for as long.
const PendingFor = 24 * time.Hour

// lockUsage gives what an org uses and keeps other writers of the org out until the transaction ends.
func (s *Store) lockUsage(ctx context.Context, tx *sql.Tx, org string) (used int64, err error) {
	err = tx.QueryRowContext(ctx, s.db.Q(`INSERT INTO index_usage (org, bytes) VALUES (?, 0)
		ON CONFLICT (org) DO UPDATE SET bytes = index_usage.bytes RETURNING bytes`), org).Scan(&used)
	return used, err
}

func (s *Store) addUsage(ctx context.Context, tx *sql.Tx, org string, n int64) error {
	_, err := tx.ExecContext(ctx, s.db.Q(`UPDATE index_usage SET bytes = bytes + ? WHERE org = ?`), n, org)
	return err
}

// stored are the blobs that a manifest takes room for: its own content and what it needs but other manifests, which
// count themselves, and what is elsewhere.
func (m *Manifest) stored() []Blob {
	out := []Blob{{Digest: m.Content, Size: m.Size}}
	for _, b := range m.Blobs {
		if b.Kind == KindConfig || b.Kind == KindLayer {
			out = append(out, b)
		}
	}
	return out
}

// addBlobs enters a new manifest's blobs and gives by how many bytes the org has grown.
func (s *Store) addBlobs(ctx context.Context, tx *sql.Tx, org string, m *Manifest) (added int64, err error) {
	seen := map[digest.Digest]bool{}
	for _, b := range m.Blobs {
		if seen[b.Digest] {
			continue
		}
		seen[b.Digest] = true
		if _, err := tx.ExecContext(ctx, s.db.Q(`INSERT INTO index_manifest_blobs (repository, manifest, blob, kind, size) VALUES (?, ?, ?, ?, ?)`),
			m.Repository, m.Digest, b.Digest, b.Kind, b.Size); err != nil {
			return 0, err
		}
	}
	clear(seen)
	for _, b := range m.stored() {
		if seen[b.Digest] {
			continue
		}
		seen[b.Digest] = true
		isNew, err := s.countBlob(ctx, tx, org, b, 1)
		if err != nil {
			return 0, err
		}
		if isNew {
			added += b.Size
		}
	}
	return added, nil
}

// countBlob adds n needs of a blob in an org and tells whether the org did not have it.
func (s *Store) countBlob(ctx context.Context, tx *sql.Tx, org string, b Blob, n int) (isNew bool, err error) {
	res, err := tx.ExecContext(ctx, s.db.Q(`UPDATE index_org_blobs SET refs = refs + ? WHERE org = ? AND blob = ?`), n, org, b.Digest)
	if err != nil {
		return false, err
	}
	if rows, err := res.RowsAffected(); err != nil || rows > 0 {
		return false, err
	}
	_, err = tx.ExecContext(ctx, s.db.Q(`INSERT INTO index_org_blobs (org, blob, size, refs, since) VALUES (?, ?, ?, ?, ?)`),
		org, b.Digest, b.Size, n, s.now().UnixNano())
	return true, err
}

// dropBlobs takes a manifest's needs away and gives by how many bytes the org has shrunk. m.Blobs is read anew.
func (s *Store) dropBlobs(ctx context.Context, tx *sql.Tx, org string, m *Manifest) (freed int64, err error) {
	rows, err := tx.QueryContext(ctx, s.db.Q(`SELECT blob, kind, size FROM index_manifest_blobs WHERE repository = ? AND manifest = ?`), m.Repository, m.Digest)
	if m.Blobs, err = collect(rows, err, scanBlob); err != nil {
		return 0, err
	}
	for _, b := range m.stored() {
		var refs, size int64
		err := tx.QueryRowContext(ctx, s.db.Q(`UPDATE index_org_blobs SET refs = refs - 1 WHERE org = ? AND blob = ? RETURNING refs, size`), org, b.Digest).Scan(&refs, &size)
		if errors.Is(err, sql.ErrNoRows) {
			continue
		}
		if err != nil {
			return 0, err
		}
		if refs > 0 {
			continue
		}
		if _, err := tx.ExecContext(ctx, s.db.Q(`DELETE FROM index_org_blobs WHERE org = ? AND blob = ?`), org, b.Digest); err != nil {
			return 0, err
		}
		freed += size
	}
	return freed, nil
}

func scanBlob(scan func(...any) error) (Blob, error) {
	var b Blob
	return b, scan(&b.Digest, &b.Kind, &b.Size)
}

// Uploaded counts a blob that came into an org and that no manifest needs yet. ErrExhausted when the org would use more
// than maxBytes (0 is no bound): then it is not counted.
func (s *Store) Uploaded(ctx context.Context, org string, dgst digest.Digest, size, maxBytes int64) error {
	err := s.db.InTx(ctx, func(tx *sql.Tx) error {
		used, err := s.lockUsage(ctx, tx, org)
		if err != nil {
			return err
		}
		isNew, err := s.countBlob(ctx, tx, org, Blob{Digest: dgst, Size: size}, 0)
		if err != nil || !isNew {
			return err
		}
		if maxBytes > 0 && used+size > maxBytes {
			return overQuota(org, used+size, maxBytes)
		}
		return s.addUsage(ctx, tx, org, size)
	})
	if err != nil {
		return fmt.Errorf("count upload: %w", err)
	}
	return nil
}

// HasBlob tells whether a blob counts in an org already.
func (s *Store) HasBlob(ctx context.Context, org string, dgst digest.Digest) (bool, error) {
	return s.exists(ctx, `SELECT 1 FROM index_org_blobs WHERE org = ? AND blob = ?`, org, dgst)
}

// ExpirePending forgets what was uploaded PendingFor ago and is still needed by no manifest.
func (s *Store) ExpirePending(ctx context.Context) error {
	before := s.now().Add(-PendingFor).UnixNano()
	rows, err := s.db.QueryContext(ctx, s.db.Q(`SELECT DISTINCT org FROM index_org_blobs WHERE refs = 0 AND since < ?`), before)
	orgs, err := collect(rows, err, scanOne[string])
	if err != nil {
		return fmt.Errorf("expire uploads: %w", err)
	}
	for _, org := range orgs {
		err := s.db.InTx(ctx, func(tx *sql.Tx) error {
			if _, err := s.lockUsage(ctx, tx, org); err != nil {
				return err
			}
			var freed int64
			if err := tx.QueryRowContext(ctx, s.db.Q(`SELECT CAST(COALESCE(SUM(size), 0) AS BIGINT) FROM index_org_blobs WHERE org = ? AND refs = 0 AND since < ?`), org, before).Scan(&freed); err != nil {
				return err
			}
			if _, err := tx.ExecContext(ctx, s.db.Q(`DELETE FROM index_org_blobs WHERE org = ? AND refs = 0 AND since < ?`), org, before); err != nil {
				return err
			}
			return s.addUsage(ctx, tx, org, -freed)
		})
		if err != nil {
			return fmt.Errorf("expire uploads: %w", err)
		}
	}
	return nil
}

// Used gives the bytes that an org's images take, each blob once.
func (s *Store) Used(ctx context.Context, org string) (int64, error) {
	var used int64
	err := s.db.QueryRowContext(ctx, s.db.Q(`SELECT bytes FROM index_usage WHERE org = ?`), org).Scan(&used)
	if errors.Is(err, sql.ErrNoRows) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("read usage: %w", err)
	}
	return used, nil
}
