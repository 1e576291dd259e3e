package directory

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"maps"
	"slices"

	"cumulet.io/internal/problem"
	"cumulet.io/registry"
)

// GroupRight is what a group of an OpenID provider gives: membership of an org, and of a team there unless Team is "".
type GroupRight struct {
	Org  string
	Team string
	// Role is reader, writer or admin.
	Role registry.Role
}

// wanted is what groups give in an org.
type wanted struct {
	role  registry.Role
	teams []string
}

// SetGroups makes what the groups of an identity give its account the case: memberships and teams that they gave before
// and do not give any more go. A role that somebody has of their own is never lowered, and they have it again when no
// group gives more. What is not there, an org or a team, is told in missing and left out.
func (s *Store) SetGroups(ctx context.Context, i registry.Identity, rights []GroupRight) (missing []string, err error) {
	want := map[string]wanted{}
	for _, r := range rights {
		if !r.Role.Valid() || r.Role == registry.RoleOwner {
			return nil, problem.Invalid("role", "must be reader, writer or admin", r.Role)
		}
		w := want[r.Org]
		if !w.role.AtLeast(r.Role) {
			w.role = r.Role
		}
		if r.Team != "" && !slices.Contains(w.teams, r.Team) {
			w.teams = append(w.teams, r.Team)
		}
		want[r.Org] = w
	}
	return s.setGroups(ctx, i, want, func(*sql.Tx) (bool, error) { return true, nil })
}

// setGroups is SetGroups where due, asked with the account locked, says so.
func (s *Store) setGroups(ctx context.Context, i registry.Identity, want map[string]wanted, due func(*sql.Tx) (bool, error)) (missing []string, err error) {
	g := &groups{s: s, identity: i}
	err = s.changes(ctx, func(tx *sql.Tx) ([]*registry.AuditEntry, error) {
		g.tx, g.entries, missing = tx, nil, nil
		if _, err := s.lockAccount(ctx, tx, i.Account); err != nil {
			return nil, err
		}
		if is, err := due(tx); err != nil || !is {
			return nil, err
		}
		missing, err = g.setAll(ctx, want)
		return g.entries, err
	})
	if err != nil {
		return nil, fmt.Errorf("set groups: %w", err)
	}
	return missing, nil
}

// expireGroups takes what groups gave from accounts that have not logged in with the identity for Config.GroupsFor: only
// a login asks the provider, and keys and tokens go on without one. The next login gives it again.
func (s *Store) expireGroups(ctx context.Context) error {
	if s.groupsFor <= 0 {
		return nil
	}
	const idle = ` FROM registry_identities i WHERE i.used < ? AND i.created < ?
		AND EXISTS (SELECT 1 FROM registry_group_rights g WHERE g.issuer = i.issuer AND g.subject = i.subject AND g.account = i.account)`
	before := s.now().Add(-s.groupsFor).UnixNano()
	rows, err := s.db.QueryContext(ctx, s.db.Q(`SELECT `+identityColumns+idle+` LIMIT 1000`), before, before)
	list, err := collect(rows, err, "list idle identities", scanIdentity)
	if err != nil {
		return err
	}
	var errs []error
	for _, i := range list {
		_, err := s.setGroups(ctx, i, nil, func(tx *sql.Tx) (due bool, err error) {
			var n int
			err = tx.QueryRowContext(ctx, s.db.Q(`SELECT count(*)`+idle+` AND i.issuer = ? AND i.subject = ?`), before, before, i.Issuer, i.Subject).Scan(&n)
			return n > 0, wrap("read identity", err)
		})
		if err != nil && !errors.Is(err, problem.ErrNotFound) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// groups is one change of what groups give an identity's account.
type groups struct {
	s        *Store
	tx       *sql.Tx
	identity registry.Identity
	entries  []*registry.AuditEntry
}

func (g *groups) exec(ctx context.Context, statement string, args ...any) error {
	_, err := g.tx.ExecContext(ctx, g.s.db.Q(statement), args...)
	return err
}

func (g *groups) note(org, action, target string, detail map[string]string) {
	detail["issuer"], detail["subject"] = g.identity.Issuer, g.identity.Subject
	g.entries = append(g.entries, &registry.AuditEntry{Org: org, Action: action, Target: target, Detail: detail})
}

// orgs are those in which this identity's groups gave something.
func (g *groups) orgs(ctx context.Context) ([]string, error) {
	rows, err := g.tx.QueryContext(ctx, g.s.db.Q(`SELECT DISTINCT org FROM registry_group_rights WHERE account = ? AND issuer = ? AND subject = ?`),
		g.identity.Account, g.identity.Issuer, g.identity.Subject)
	return collect(rows, err, "read group rights", func(scan func(...any) error) (org string, err error) { return org, scan(&org) })
}

// setAll makes what the identity's groups give the case in all orgs; the account is locked.
func (g *groups) setAll(ctx context.Context, want map[string]wanted) (missing []string, err error) {
	orgs, err := g.orgs(ctx)
	if err != nil {
		return nil, err
	}
	for org := range want {
		if !slices.Contains(orgs, org) {
			orgs = append(orgs, org)
		}
	}
	slices.Sort(orgs) // locked in one order
	for _, org := range orgs {
		if err := g.s.lockOrg(ctx, g.tx, org); errors.Is(err, problem.ErrNotFound) {
			missing = append(missing, "organisation "+org)
			continue
		} else if err != nil {
			return nil, err
		}
		teams, err := g.set(ctx, org, want[org])
		if err != nil {
			return nil, err
		}
		missing = append(missing, teams...)
	}
	return missing, nil
}

// right is a row of what groups gave.
type right struct {
	own    bool // of this identity
	team   string
	role   registry.Role
	before bool
}

func (g *groups) rights(ctx context.Context, org string) ([]right, error) {
	rows, err := g.tx.QueryContext(ctx, g.s.db.Q(`SELECT issuer, subject, team, role, before FROM registry_group_rights WHERE account = ? AND org = ?`), g.identity.Account, org)
	return collect(rows, err, "read group rights", func(scan func(...any) error) (r right, err error) {
		var issuer, subject string
		var before int
		err = scan(&issuer, &subject, &r.team, &r.role, &before)
		r.own, r.before = issuer == g.identity.Issuer && subject == g.identity.Subject, before != 0
		return r, err
	})
}

// set makes what the identity's groups give in an org the case, and tells which teams there are not.
func (g *groups) set(ctx context.Context, org string, want wanted) (missing []string, err error) {
	all, err := g.rights(ctx, org)
	if err != nil {
		return nil, err
	}
	// What other identities of the account are given counts too.
	role := want.role
	others, before := map[string]bool{}, map[string]bool{}
	for _, r := range all {
		if r.team != "" && r.before {
			before[r.team] = true
		}
		if r.own {
			continue
		}
		others[r.team] = true
		if r.team == "" && !role.AtLeast(r.role) {
			role = r.role
		}
	}
	if err := g.setRole(ctx, org, role); err != nil {
		return nil, err
	}
	if err := g.exec(ctx, `DELETE FROM registry_group_rights WHERE account = ? AND issuer = ? AND subject = ? AND org = ?`,
		g.identity.Account, g.identity.Issuer, g.identity.Subject, org); err != nil {
		return nil, err
	}
	for _, r := range all {
		if r.own && r.team != "" && !slices.Contains(want.teams, r.team) && !others[r.team] && !before[r.team] {
			if err := g.setTeam(ctx, org, r.team, false); err != nil {
				return nil, err
			}
		}
	}
	if !want.role.Valid() {
		return nil, nil
	}
	give := map[string]bool{"": false} // the membership itself
	for _, team := range want.teams {
		if err := g.s.hasTeam(ctx, g.tx, org, team); errors.Is(err, problem.ErrNotFound) {
			missing = append(missing, "team "+team+" of "+org)
			continue
		} else if err != nil {
			return nil, err
		}
		was := slices.ContainsFunc(all, func(r right) bool { return r.team == team })
		if give[team] = before[team]; !was {
			if give[team], err = g.inTeam(ctx, org, team); err != nil {
				return nil, err
			}
		}
		if err := g.setTeam(ctx, org, team, true); err != nil {
			return nil, err
		}
	}
	for _, team := range slices.Sorted(maps.Keys(give)) {
		if err := g.exec(ctx, `INSERT INTO registry_group_rights (account, issuer, subject, org, team, role, before) VALUES (?, ?, ?, ?, ?, ?, ?)`,
			g.identity.Account, g.identity.Issuer, g.identity.Subject, org, team, want.role, number(give[team])); err != nil {
			return nil, err
		}
	}
	return missing, nil
}

// setRole gives the account the role of its groups in an org, RoleNone for none, or the higher one of its own.
func (g *groups) setRole(ctx context.Context, org string, role registry.Role) error {
	account := g.identity.Account
	now, err := g.s.roleOf(ctx, g.tx, account, org)
	if err != nil {
		return err
	}
	var own, given registry.Role
	err = g.tx.QueryRowContext(ctx, g.s.db.Q(`SELECT own, given FROM registry_group_members WHERE account = ? AND org = ?`), account, org).Scan(&own, &given)
	if errors.Is(err, sql.ErrNoRows) || err == nil && given != now {
		own = now // as somebody has set it since
	} else if err != nil {
		return err
	}
	if !role.Valid() || own.AtLeast(role) {
		role = own
	}
	if role != now {
		detail := map[string]string{"role": string(role), "before": string(now)}
		if role == registry.RoleNone {
			delete(detail, "role")
			g.note(org, "member.remove", "account/"+account, detail)
			err = g.s.removeMember(ctx, g.tx, org, account)
		} else {
			g.note(org, "member.set", "account/"+account, detail)
			err = g.s.setMember(ctx, g.tx, org, account, role)
		}
		if err != nil {
			return err
		}
	}
	if role == own {
		return g.exec(ctx, `DELETE FROM registry_group_members WHERE account = ? AND org = ?`, account, org)
	}
	return g.exec(ctx, `INSERT INTO registry_group_members (account, org, own, given) VALUES (?, ?, ?, ?)
		ON CONFLICT (account, org) DO UPDATE SET own = excluded.own, given = excluded.given`, account, org, own, role)
}

func (g *groups) inTeam(ctx context.Context, org, team string) (bool, error) {
	var n int
	err := g.tx.QueryRowContext(ctx, g.s.db.Q(`SELECT count(*) FROM registry_team_members WHERE org = ? AND team = ? AND account = ?`), org, team, g.identity.Account).Scan(&n)
	return n > 0, wrap("read team", err)
}

// setTeam puts the account in a team or takes it out.
func (g *groups) setTeam(ctx context.Context, org, team string, in bool) error {
	action, statement := "team.member.add", `INSERT INTO registry_team_members (org, team, account) VALUES (?, ?, ?) ON CONFLICT DO NOTHING`
	if !in {
		action, statement = "team.member.remove", `DELETE FROM registry_team_members WHERE org = ? AND team = ? AND account = ?`
	}
	res, err := g.tx.ExecContext(ctx, g.s.db.Q(statement), org, team, g.identity.Account)
	if err != nil {
		return fmt.Errorf("set team member: %w", err)
	}
	n, err := res.RowsAffected()
	if err == nil && n > 0 {
		g.note(org, action, "team/"+team, map[string]string{"account": g.identity.Account})
	}
	return wrap("set team member", err)
}
