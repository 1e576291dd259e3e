package store

import (
	"context"
	"errors"
	"fmt"

	"cumulet.io/internal/sqldb"
)

// The statements that writes use; each is prepared once.
const (
	qReadSequence  = `SELECT value FROM cis_meta WHERE name = 'version'`
	qGet           = `SELECT ` + instanceColumns + ` FROM cis_instances WHERE id = ?`
	qWriteSequence = `UPDATE cis_meta SET value = ? WHERE name = 'version'`
	qFindKey       = `SELECT id, spec_hash FROM cis_instances WHERE org = ? AND create_key = ?`
	qInsert        = `INSERT INTO cis_instances
		(id, org, create_key, spec_hash, spec, node, created_at, version, final_at, desired, status) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`
	qUpdateSpec = `UPDATE cis_instances SET spec = ? WHERE id = ?`
	qUpdate     = `UPDATE cis_instances SET version = ?, final_at = CASE WHEN final_at > 0 THEN final_at ELSE ? END, desired = ?, status = ? WHERE id = ?`
	qCountEvent = `INSERT INTO cis_events
		(instance, hash, org, node, version, type, reason, container, message, first_at, last_at, count) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 1)
		ON CONFLICT (instance, hash) DO UPDATE SET count = cis_events.count + 1, last_at = excluded.last_at, version = excluded.version
		RETURNING first_at, count`
	qDropEvents = `DELETE FROM cis_events WHERE instance = ? AND version <= (
		SELECT version FROM cis_events WHERE instance = ? ORDER BY version DESC LIMIT 1 OFFSET ?)`
	qRemoveEvents = `DELETE FROM cis_events WHERE instance = ?`
	qRemove       = `DELETE FROM cis_instances WHERE id = ?`
	qNotePruned   = `UPDATE cis_meta SET value = CASE WHEN value > ? THEN value ELSE ? END WHERE name = 'pruned'`
)

func (s *Store) prepare(ctx context.Context) error {
	for _, q := range []string{qReadSequence, qGet, qWriteSequence, qFindKey, qInsert, qUpdateSpec, qUpdate, qCountEvent, qDropEvents, qRemoveEvents, qRemove, qNotePruned} {
		text := s.db.Q(q)
		if q == qReadSequence && s.db.Dialect == sqldb.Postgres {
			text += ` FOR UPDATE` // the one lock that orders all writers
		}
		st, err := s.db.PrepareContext(ctx, text)
		if err != nil {
			return errors.Join(fmt.Errorf("prepare statement: %w", err), s.Close())
		}
		s.stmts[q] = st
	}
	return nil
}
