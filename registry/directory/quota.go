package directory

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strconv"

	"cumulet.io/internal/problem"
	"cumulet.io/registry"
)

// Quota implements registry.Quotas: the org's own bounds, or the default's; ErrNotFound for an org that is not there.
func (s *Store) Quota(ctx context.Context, org string) (registry.Quota, error) {
	var bytes, repositories sql.NullInt64
	err := s.db.QueryRowContext(ctx, s.db.Q(`SELECT q.bytes, q.repositories FROM registry_orgs o LEFT JOIN registry_quotas q ON q.org = o.name
		WHERE o.name = ?`), org).Scan(&bytes, &repositories)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return registry.Quota{}, noOrg(org)
	case err != nil:
		return registry.Quota{}, fmt.Errorf("read quota: %w", err)
	case !bytes.Valid:
		return s.quota, nil
	}
	return registry.Quota{Bytes: bytes.Int64, Repositories: repositories.Int64}, nil
}

// SetQuota gives an org bounds of its own; nil takes them away, so that the default holds.
func (s *Store) SetQuota(ctx context.Context, org string, q *registry.Quota) error {
	e := &registry.AuditEntry{Org: org, Action: "quota.set", Target: "org/" + org, Detail: map[string]string{}}
	if q != nil {
		if q.Bytes < 0 || q.Repositories < 0 {
			return problem.Invalid("quota", "must be 0 (no bound) or more", fmt.Sprint(q.Bytes, " bytes, ", q.Repositories, " repositories"))
		}
		e.Detail["bytes"], e.Detail["repositories"] = strconv.FormatInt(q.Bytes, 10), strconv.FormatInt(q.Repositories, 10)
	} else {
		e.Action = "quota.reset"
	}
	return s.change(ctx, e, func(tx *sql.Tx) error {
		if err := s.lockOrg(ctx, tx, org); err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, s.db.Q(`DELETE FROM registry_quotas WHERE org = ?`), org); err != nil || q == nil {
			return wrap("set quota", err)
		}
		_, err := tx.ExecContext(ctx, s.db.Q(`INSERT INTO registry_quotas (org, bytes, repositories) VALUES (?, ?, ?)`), org, q.Bytes, q.Repositories)
		return wrap("set quota", err)
	})
}

func noOrg(org string) error {
	return problem.New(problem.ErrNotFound, "there is no organisation %q", org)
}

// wrap names the operation of an error, if there is one.
func wrap(operation string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", operation, err)
}

// lockOrg makes this transaction the only one that changes the org; ErrNotFound when it is not there.
func (s *Store) lockOrg(ctx context.Context, tx *sql.Tx, org string) error {
	res, err := tx.ExecContext(ctx, s.db.Q(`UPDATE registry_orgs SET created = created WHERE name = ?`), org)
	return oneRow(res, err, "there is no organisation %q", org)
}
