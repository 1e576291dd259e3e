package directory

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"time"

	"cumulet.io/internal/problem"
	"cumulet.io/registry"
)

// MaxPage is the most entries that a listing gives at once.
const MaxPage = 1000

const repositoryColumns = `name, org, visibility, created, pushed, created_by`

func scanRepository(scan func(...any) error) (registry.Repository, error) {
	var r registry.Repository
	var created, pushed int64
	if err := scan(&r.Name, &r.Org, &r.Visibility, &created, &pushed, &r.CreatedBy); err != nil {
		return r, err
	}
	r.Created, r.Pushed = time.Unix(0, created).UTC(), time.Unix(0, pushed).UTC()
	return r, nil
}

// Repository gives a repository, or an error of class ErrNotFound.
func (s *Store) Repository(ctx context.Context, name string) (*registry.Repository, error) {
	r, err := scanRepository(s.db.QueryRowContext(ctx, s.db.Q(`SELECT `+repositoryColumns+` FROM registry_repositories WHERE name = ?`), name).Scan)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, problem.New(problem.ErrNotFound, "there is no repository %q", name)
	}
	if err != nil {
		return nil, fmt.Errorf("read repository: %w", err)
	}
	return &r, nil
}

// Pushed records a push by an account: the first one makes the repository, private. ErrNotFound when its org does not
// exist. Safe to repeat, and to call from several processes at once.
func (s *Store) Pushed(ctx context.Context, name, account string) error {
	org, err := registry.SplitRepository("repository", name)
	if err != nil {
		return err
	}
	now := s.now().UnixNano()
	res, err := s.db.ExecContext(ctx, s.db.Q(`INSERT INTO registry_repositories (name, org, visibility, created, pushed, created_by)
		SELECT ?, name, ?, CAST(? AS BIGINT), CAST(? AS BIGINT), ? FROM registry_orgs WHERE name = ?
		ON CONFLICT (name) DO UPDATE SET pushed = excluded.pushed WHERE excluded.pushed > registry_repositories.pushed`),
		name, registry.Private, now, now, account, org)
	if err != nil {
		return fmt.Errorf("record push: %w", err)
	}
	if n, err := res.RowsAffected(); err != nil || n > 0 {
		return err
	}
	_, err = s.Repository(ctx, name) // a clock that stood still is no fault, an org that is gone is
	return err
}

// MayPush is an error of class ErrExhausted for a repository that is not there, of an org that has as many as its quota
// allows. Of two that are made at the same moment one may be too many.
func (s *Store) MayPush(ctx context.Context, name string) error {
	org, err := registry.SplitRepository("repository", name)
	if err != nil {
		return err
	}
	q, err := s.Quota(ctx, org)
	if err != nil || q.Repositories <= 0 {
		return err
	}
	var n int64
	if err := s.db.QueryRowContext(ctx, s.db.Q(`SELECT count(*) FROM registry_repositories WHERE org = ? AND NOT EXISTS
		(SELECT 1 FROM registry_repositories WHERE name = ?)`), org, name).Scan(&n); err != nil {
		return fmt.Errorf("count repositories: %w", err)
	}
	if n < q.Repositories {
		return nil
	}
	return problem.New(problem.ErrExhausted, "the organisation %q may have %d repositories and has them: delete one or ask for more", org, q.Repositories)
}

// SetVisibility makes a repository public or private, and gives it as it is then.
func (s *Store) SetVisibility(ctx context.Context, name string, v registry.Visibility) (*registry.Repository, error) {
	if !v.Valid() {
		return nil, problem.Invalid("visibility", "must be private or public", v)
	}
	before, err := s.Repository(ctx, name)
	if err != nil {
		return nil, err
	}
	e := &registry.AuditEntry{Org: before.Org, Action: "repository.visibility", Target: name,
		Detail: map[string]string{"before": string(before.Visibility), "after": string(v)}}
	err = s.change(ctx, e, func(tx *sql.Tx) error {
		if before.Visibility == v {
			e.Action = ""
		}
		res, err := tx.ExecContext(ctx, s.db.Q(`UPDATE registry_repositories SET visibility = ? WHERE name = ?`), v, name)
		return oneRow(res, err, "there is no repository %q", name)
	})
	if err != nil {
		return nil, err
	}
	return s.Repository(ctx, name)
}

// Repositories lists the repositories of the given orgs, and the public ones of any with public, in byte order of
// their names, those after the name after, at most limit (1 to MaxPage).
func (s *Store) Repositories(ctx context.Context, orgs []string, public bool, after string, limit int) ([]registry.Repository, error) {
	var where []string
	var args []any
	if len(orgs) > 0 {
		where = append(where, `org IN (?`+strings.Repeat(`, ?`, len(orgs)-1)+`)`)
		for _, org := range orgs {
			args = append(args, org)
		}
	}
	if public {
		where = append(where, `visibility = ?`)
		args = append(args, registry.Public)
	}
	if len(where) == 0 {
		return nil, nil
	}
	args = append(args, after, page(limit))
	rows, err := s.db.QueryContext(ctx, s.db.Q(`SELECT `+repositoryColumns+` FROM registry_repositories
		WHERE (`+strings.Join(where, ` OR `)+`) AND `+s.bytewise("name")+` > ? ORDER BY `+s.bytewise("name")+` LIMIT ?`), args...)
	return collect(rows, err, "list repositories", scanRepository)
}

// DeleteRepository forgets a repository; what is in it is the caller's to delete before. ErrNotFound when there is none.
func (s *Store) DeleteRepository(ctx context.Context, name string) error {
	org, err := registry.SplitRepository("repository", name)
	if err != nil {
		return err
	}
	return s.change(ctx, &registry.AuditEntry{Org: org, Action: "repository.delete", Target: name}, func(tx *sql.Tx) error {
		res, err := tx.ExecContext(ctx, s.db.Q(`DELETE FROM registry_repositories WHERE name = ?`), name)
		return oneRow(res, err, "there is no repository %q", name)
	})
}
