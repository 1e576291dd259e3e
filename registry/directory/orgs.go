package directory

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"cumulet.io/internal/problem"
	"cumulet.io/internal/sqldb"
	"cumulet.io/registry"
)

func scanOrg(scan func(...any) error) (registry.Org, error) {
	var o registry.Org
	var created int64
	err := scan(&o.Name, &created)
	o.Created = instant(created)
	return o, err
}

// Org gives an org, or an error of class ErrNotFound.
func (s *Store) Org(ctx context.Context, name string) (*registry.Org, error) {
	o, err := scanOrg(s.db.QueryRowContext(ctx, s.db.Q(`SELECT name, created FROM registry_orgs WHERE name = ?`), name).Scan)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, noOrg(name)
	}
	if err != nil {
		return nil, fmt.Errorf("read organisation: %w", err)
	}
	return &o, nil
}

// Orgs lists all orgs, in byte order, those after the name after.
func (s *Store) Orgs(ctx context.Context, after string, limit int) ([]registry.Org, error) {
	rows, err := s.db.QueryContext(ctx, s.db.Q(`SELECT name, created FROM registry_orgs WHERE `+s.bytewise("name")+` > ?
		ORDER BY `+s.bytewise("name")+` LIMIT ?`), after, page(limit))
	return collect(rows, err, "list organisations", scanOrg)
}

// CreateOrg makes an org with its first owner; ErrConflict when the name is taken.
func (s *Store) CreateOrg(ctx context.Context, org, owner string) error {
	if err := registry.ValidateOrg("org", org); err != nil {
		return err
	}
	e := &registry.AuditEntry{Org: org, Action: "org.create", Target: "org/" + org, Detail: map[string]string{"owner": owner}}
	return s.change(ctx, e, func(tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, s.db.Q(`INSERT INTO registry_orgs (name, created) VALUES (?, ?)`), org, s.now().UnixNano())
		if sqldb.IsUnique(err) {
			return problem.New(problem.ErrConflict, "the organisation %q exists", org)
		}
		if err != nil {
			return fmt.Errorf("create organisation: %w", err)
		}
		return s.setMember(ctx, tx, org, owner, registry.RoleOwner)
	})
}

// DeleteOrg removes an org with its teams, robots, grants and memberships; ErrConflict while it has repositories.
func (s *Store) DeleteOrg(ctx context.Context, org string) error {
	return s.change(ctx, &registry.AuditEntry{Org: org, Action: "org.delete", Target: "org/" + org}, func(tx *sql.Tx) error {
		if err := s.lockOrg(ctx, tx, org); err != nil {
			return err
		}
		var n int
		if err := tx.QueryRowContext(ctx, s.db.Q(`SELECT count(*) FROM registry_repositories WHERE org = ?`), org).Scan(&n); err != nil {
			return fmt.Errorf("delete organisation: %w", err)
		}
		if n > 0 {
			return problem.New(problem.ErrConflict, "the organisation %q has %d repositories: delete them first", org, n)
		}
		for _, statement := range []string{
			`DELETE FROM registry_accounts WHERE name IN (SELECT account FROM registry_robots WHERE org = ?)`,
			`DELETE FROM registry_orgs WHERE name = ?`} {
			if _, err := tx.ExecContext(ctx, s.db.Q(statement), org); err != nil {
				return fmt.Errorf("delete organisation: %w", err)
			}
		}
		return nil
	})
}

// SetMember gives a person a role in an org, or with RoleNone takes it away, with their teams and grants there;
// idempotent. An org keeps an owner. Who is in no org any more has their offline tokens revoked.
func (s *Store) SetMember(ctx context.Context, org, account string, role registry.Role) error {
	if role != registry.RoleNone && !role.Valid() {
		return problem.Invalid("role", "must be owner, admin, writer or reader", role)
	}
	e := &registry.AuditEntry{Org: org, Action: "member.set", Target: "account/" + account, Detail: map[string]string{"role": string(role)}}
	if role == registry.RoleNone {
		e.Action, e.Detail = "member.remove", map[string]string{}
	}
	return s.change(ctx, e, func(tx *sql.Tx) error {
		// The org is locked, so that two owners cannot leave at the same time.
		if err := s.lockOrg(ctx, tx, org); err != nil {
			return err
		}
		before, err := s.roleOf(ctx, tx, account, org)
		if err != nil {
			return err
		}
		if before == role {
			e.Action = ""
			return nil
		}
		e.Detail["before"] = string(before)
		if role == registry.RoleNone {
			err = s.removeMember(ctx, tx, org, account)
		} else {
			err = s.setMember(ctx, tx, org, account, role)
		}
		if err != nil || before != registry.RoleOwner {
			return err
		}
		var one int
		err = tx.QueryRowContext(ctx, s.db.Q(`SELECT 1 FROM registry_members WHERE org = ? AND role = ? LIMIT 1`), org, registry.RoleOwner).Scan(&one)
		if errors.Is(err, sql.ErrNoRows) {
			return problem.New(problem.ErrConflict, "the organisation %q would have no owner", org)
		}
		return wrap("set member", err)
	})
}

func (s *Store) removeMember(ctx context.Context, tx *sql.Tx, org, account string) error {
	for _, statement := range []string{`DELETE FROM registry_members WHERE account = ? AND org = ?`,
		`DELETE FROM registry_grants WHERE subject = 'account/' || ? AND org = ?`} {
		if _, err := tx.ExecContext(ctx, s.db.Q(statement), account, org); err != nil {
			return fmt.Errorf("remove member: %w", err)
		}
	}
	var left int
	if err := tx.QueryRowContext(ctx, s.db.Q(`SELECT count(*) FROM registry_members WHERE account = ?`), account).Scan(&left); err != nil || left > 0 {
		return wrap("remove member", err)
	}
	return s.revokeAll(ctx, tx, account)
}

func (s *Store) setMember(ctx context.Context, tx *sql.Tx, org, account string, role registry.Role) error {
	if err := s.isPerson(ctx, tx, account); err != nil {
		return err
	}
	_, err := tx.ExecContext(ctx, s.db.Q(`INSERT INTO registry_members (account, org, role) VALUES (?, ?, ?)
		ON CONFLICT (account, org) DO UPDATE SET role = excluded.role`), account, org, role)
	return wrap("set member", err)
}

// isPerson tells by its error whether an account is a person's.
func (s *Store) isPerson(ctx context.Context, tx *sql.Tx, account string) error {
	var kind registry.Kind
	err := tx.QueryRowContext(ctx, s.db.Q(`SELECT kind FROM registry_accounts WHERE name = ?`), account).Scan(&kind)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return noAccount(account)
	case err != nil:
		return fmt.Errorf("read account: %w", err)
	case kind != registry.Person:
		return problem.Invalid("account", "must be a person: no other is in an organisation, a team or a grant", account)
	}
	return nil
}

// RoleOf gives an account's role in an org, RoleNone for a stranger and for an org that does not exist.
func (s *Store) RoleOf(ctx context.Context, account, org string) (registry.Role, error) {
	return s.roleOf(ctx, s.db, account, org)
}

func (s *Store) roleOf(ctx context.Context, db sqldb.Querier, account, org string) (registry.Role, error) {
	var role registry.Role
	err := db.QueryRowContext(ctx, s.db.Q(`SELECT role FROM registry_members WHERE account = ? AND org = ?`), account, org).Scan(&role)
	if errors.Is(err, sql.ErrNoRows) {
		return registry.RoleNone, nil
	}
	return role, wrap("read role", err)
}

// Memberships gives all orgs of an account, by name.
func (s *Store) Memberships(ctx context.Context, account string) ([]registry.Membership, error) {
	rows, err := s.db.QueryContext(ctx, s.db.Q(`SELECT org, role FROM registry_members WHERE account = ? ORDER BY `+s.bytewise("org")), account)
	return collect(rows, err, "list memberships", func(scan func(...any) error) (m registry.Membership, err error) {
		return m, scan(&m.Org, &m.Role)
	})
}

// Members lists an org's members with their teams, in byte order of the accounts, those after the name after; of one
// team alone unless team is "".
func (s *Store) Members(ctx context.Context, org, team, after string, limit int) ([]registry.Member, error) {
	account := s.bytewise("m.account")
	rows, err := s.db.QueryContext(ctx, s.db.Q(`SELECT m.account, m.role FROM registry_members m WHERE m.org = ? AND `+account+` > ?
		AND (? = '' OR EXISTS (SELECT 1 FROM registry_team_members t WHERE t.org = m.org AND t.account = m.account AND t.team = ?))
		ORDER BY `+account+` LIMIT ?`), org, after, team, team, page(limit))
	members, err := collect(rows, err, "list members", func(scan func(...any) error) (m registry.Member, err error) {
		m.Teams = []string{}
		return m, scan(&m.Account, &m.Role)
	})
	if err != nil || len(members) == 0 {
		return members, err
	}
	rows, err = s.db.QueryContext(ctx, s.db.Q(`SELECT m.account, m.team FROM registry_team_members m WHERE m.org = ? AND `+account+` >= ? AND `+account+` <= ?
		ORDER BY `+account+`, `+s.bytewise("m.team")), org, members[0].Account, members[len(members)-1].Account)
	pairs, err := collect(rows, err, "list teams of members", func(scan func(...any) error) (p [2]string, err error) {
		return p, scan(&p[0], &p[1])
	})
	if err != nil {
		return nil, err
	}
	index := map[string]int{}
	for i, m := range members {
		index[m.Account] = i
	}
	for _, p := range pairs {
		if i, ok := index[p[0]]; ok {
			members[i].Teams = append(members[i].Teams, p[1])
		}
	}
	return members, nil
}
