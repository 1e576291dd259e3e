package directory

import (
	"context"
	"database/sql"
	"errors"
	"slices"

	"cumulet.io/registry"
)

// Catalog lists the repositories that an account may pull by a right of its own, in byte order, those after the name
// after, at most limit (1 to MaxPage): of its orgs, by its grants and those of its teams, by a robot's scopes; all of
// them for an administrator of the platform. What other orgs have made public is theirs to tell of, and not listed.
func (s *Store) Catalog(ctx context.Context, account, after string, limit int) ([]string, error) {
	a, _, err := s.account(ctx, account)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, noAccount(account)
	}
	if err != nil {
		return nil, err
	}
	name := s.bytewise("r.name")
	list := func(after, where string, args ...any) ([]string, error) {
		args = append(append([]any{after}, args...), page(limit))
		rows, err := s.db.QueryContext(ctx, s.db.Q(`SELECT r.name FROM registry_repositories r WHERE `+name+` > ? AND `+where+` ORDER BY `+name+` LIMIT ?`), args...)
		return collect(rows, err, "list repositories", func(scan func(...any) error) (text string, err error) { return text, scan(&text) })
	}
	switch {
	case a.Kind == registry.Robot:
		org, robot, _ := registry.SplitRobot(account)
		r, err := s.Robot(ctx, org, robot)
		if err != nil {
			return nil, err
		}
		rights := registry.Rights{Scopes: r.Scopes}
		out := []string{}
		for {
			names, err := list(after, `r.org = ?`, org)
			if err != nil {
				return nil, err
			}
			for _, n := range names {
				if slices.Contains(rights.Repository(n, registry.Private), "pull") {
					out = append(out, n)
				}
			}
			if len(names) < page(limit) || len(out) >= page(limit) {
				return out[:min(len(out), page(limit))], nil
			}
			after = names[len(names)-1]
		}
	case a.Kind != registry.Person:
		return []string{}, nil
	case slices.Contains(a.Platform, "admin"):
		return list(after, `1 = 1`)
	}
	// A grant is for a name, or for all with a prefix; see registry.MatchRepository. The first line is for the index.
	const mine = `(g.subject = ? OR g.subject IN (SELECT 'team/' || t.team FROM registry_team_members t WHERE t.org = g.org AND t.account = ?))`
	own := "account/" + account
	return list(after, `r.org IN (SELECT org FROM registry_members WHERE account = ? UNION SELECT g.org FROM registry_grants g WHERE `+mine+`)
		AND (r.org IN (SELECT org FROM registry_members WHERE account = ?)
			OR EXISTS (SELECT 1 FROM registry_grants g WHERE g.org = r.org AND `+mine+` AND (g.pattern = r.name
				OR substr(g.pattern, length(g.pattern)) = '*' AND substr(r.name, 1, length(g.pattern) - 1) = substr(g.pattern, 1, length(g.pattern) - 1))))`,
		account, own, account, account, own, account)
}
