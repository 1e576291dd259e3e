package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"cumulet.io/cis"
)

// loadQuotas reads what was set; admission asks the copy.
func (s *Store) loadQuotas(ctx context.Context) error {
	rows, err := s.db.QueryContext(ctx, `SELECT org, instances, milli_cpu, memory_mib FROM cis_quotas`)
	if err != nil {
		return fmt.Errorf("read quotas: %w", err)
	}
	defer rows.Close() //nolint:errcheck // Err tells
	for rows.Next() {
		var org string
		var q cis.Quota
		if err := rows.Scan(&org, &q.Instances, &q.MilliCPU, &q.MemoryMiB); err != nil {
			return fmt.Errorf("read quotas: %w", err)
		}
		s.quotas[org] = q
	}
	return dbFault("read quotas", rows.Err())
}

// Quota gives what was set for an org; ok is false when nothing was.
func (s *Store) Quota(org string) (q cis.Quota, ok bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	q, ok = s.quotas[org]
	return q, ok
}

// SetQuota sets an org's quota, or with nil takes it away, and keeps who did it and when.
func (s *Store) SetQuota(ctx context.Context, org, actor string, q *cis.Quota) error {
	// One change at a time, so that the copy has them in the order of the database.
	s.quotaMu.Lock()
	defer s.quotaMu.Unlock()
	err := s.db.InTx(ctx, func(tx *sql.Tx) error {
		var before *cis.Quota
		var b cis.Quota
		err := tx.QueryRowContext(ctx, s.db.Q(`SELECT instances, milli_cpu, memory_mib FROM cis_quotas WHERE org = ?`), org).Scan(&b.Instances, &b.MilliCPU, &b.MemoryMiB)
		if err == nil {
			before = &b
		} else if !errors.Is(err, sql.ErrNoRows) {
			return dbFault("set quota", err)
		}
		switch {
		case q == nil && before == nil, q != nil && before != nil && *q == *before:
			return nil
		case q == nil:
			_, err = tx.ExecContext(ctx, s.db.Q(`DELETE FROM cis_quotas WHERE org = ?`), org)
		default:
			_, err = tx.ExecContext(ctx, s.db.Q(`INSERT INTO cis_quotas (org, instances, milli_cpu, memory_mib) VALUES (?, ?, ?, ?)
				ON CONFLICT (org) DO UPDATE SET instances = excluded.instances, milli_cpu = excluded.milli_cpu, memory_mib = excluded.memory_mib`),
				org, q.Instances, q.MilliCPU, q.MemoryMiB)
		}
		if err != nil {
			return dbFault("set quota", err)
		}
		from, err := quotaText(before)
		if err != nil {
			return err
		}
		to, err := quotaText(q)
		if err != nil {
			return err
		}
		_, err = tx.ExecContext(ctx, s.db.Q(`INSERT INTO cis_quota_changes (org, time, actor, quota_before, quota_after) VALUES (?, ?, ?, ?, ?)`),
			org, s.cfg.Now().UnixNano(), actor, from, to)
		return dbFault("set quota", err)
	})
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if q == nil {
		delete(s.quotas, org)
	} else {
		s.quotas[org] = *q
	}
	return nil
}

func quotaText(q *cis.Quota) (string, error) {
	if q == nil {
		return "", nil
	}
	text, err := json.Marshal(q)
	return string(text), err
}

func quotaOf(text string) (*cis.Quota, error) {
	if text == "" {
		return nil, nil
	}
	q := &cis.Quota{}
	return q, json.Unmarshal([]byte(text), q)
}

// QuotaChanges gives the last changes of an org's quota, newest first.
func (s *Store) QuotaChanges(ctx context.Context, org string) ([]cis.QuotaChange, error) {
	rows, err := s.db.QueryContext(ctx, s.db.Q(`SELECT time, actor, quota_before, quota_after FROM cis_quota_changes WHERE org = ? ORDER BY id DESC LIMIT ?`), org, cis.MaxQuotaChanges)
	if err != nil {
		return nil, dbFault("read quota changes", err)
	}
	defer rows.Close() //nolint:errcheck // Err tells
	list := []cis.QuotaChange{}
	for rows.Next() {
		var at int64
		var c cis.QuotaChange
		var before, after string
		if err := rows.Scan(&at, &c.Actor, &before, &after); err != nil {
			return nil, dbFault("read quota changes", err)
		}
		c.Time = time.Unix(0, at).UTC()
		var berr, aerr error
		c.Before, berr = quotaOf(before)
		c.After, aerr = quotaOf(after)
		if err := errors.Join(berr, aerr); err != nil {
			return nil, fmt.Errorf("read quota changes of %s: %w", org, err)
		}
		list = append(list, c)
	}
	return list, dbFault("read quota changes", rows.Err())
}
