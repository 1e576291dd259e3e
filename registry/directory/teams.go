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

// How many of each an org may have.
const (
	maxTeams  = 1000
	maxGrants = 10000
	maxRobots = 1000
)

// full is an error of class ErrExhausted when a count within tx has reached most.
func (s *Store) full(ctx context.Context, tx *sql.Tx, what string, most int, count string, args ...any) error {
	var n int
	if err := tx.QueryRowContext(ctx, s.db.Q(count), args...).Scan(&n); err != nil {
		return fmt.Errorf("count %s: %w", what, err)
	}
	if n >= most {
		return problem.New(problem.ErrExhausted, "there are %d %s, as many as may be", n, what)
	}
	return nil
}

const teamColumns = `t.org, t.name, t.description, t.created,
	(SELECT count(*) FROM registry_team_members m WHERE m.org = t.org AND m.team = t.name)`

func scanTeam(scan func(...any) error) (registry.Team, error) {
	var t registry.Team
	var created int64
	err := scan(&t.Org, &t.Name, &t.Description, &created, &t.Members)
	t.Created = instant(created)
	return t, err
}

// Team gives a team, or an error of class ErrNotFound.
func (s *Store) Team(ctx context.Context, org, name string) (*registry.Team, error) {
	t, err := scanTeam(s.db.QueryRowContext(ctx, s.db.Q(`SELECT `+teamColumns+` FROM registry_teams t WHERE t.org = ? AND t.name = ?`), org, name).Scan)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, noTeam(org, name)
	}
	if err != nil {
		return nil, fmt.Errorf("read team: %w", err)
	}
	return &t, nil
}

func noTeam(org, name string) error {
	return problem.New(problem.ErrNotFound, "the organisation %q has no team %q", org, name)
}

// Teams lists an org's teams, in byte order, those after the name after.
func (s *Store) Teams(ctx context.Context, org, after string, limit int) ([]registry.Team, error) {
	name := s.bytewise("t.name")
	rows, err := s.db.QueryContext(ctx, s.db.Q(`SELECT `+teamColumns+` FROM registry_teams t WHERE t.org = ? AND `+name+` > ?
		ORDER BY `+name+` LIMIT ?`), org, after, page(limit))
	return collect(rows, err, "list teams", scanTeam)
}

// SetTeam makes a team, or changes the description of the one there is.
func (s *Store) SetTeam(ctx context.Context, org, name, description string) (*registry.Team, error) {
	if err := registry.ValidateName("team", name); err != nil {
		return nil, err
	}
	if err := registry.ValidateDescription("description", description); err != nil {
		return nil, err
	}
	e := &registry.AuditEntry{Org: org, Action: "team.create", Target: "team/" + name, Detail: map[string]string{"description": description}}
	err := s.change(ctx, e, func(tx *sql.Tx) error {
		if err := s.lockOrg(ctx, tx, org); err != nil {
			return err
		}
		res, err := tx.ExecContext(ctx, s.db.Q(`UPDATE registry_teams SET description = ? WHERE org = ? AND name = ?`), description, org, name)
		if err != nil {
			return fmt.Errorf("set team: %w", err)
		}
		if n, err := res.RowsAffected(); err != nil || n > 0 {
			e.Action = "team.update"
			return wrap("set team", err)
		}
		if err := s.full(ctx, tx, "teams", maxTeams, `SELECT count(*) FROM registry_teams WHERE org = ?`, org); err != nil {
			return err
		}
		_, err = tx.ExecContext(ctx, s.db.Q(`INSERT INTO registry_teams (org, name, description, created) VALUES (?, ?, ?, ?)`),
			org, name, description, s.now().UnixNano())
		return wrap("set team", err)
	})
	if err != nil {
		return nil, err
	}
	return s.Team(ctx, org, name)
}

// DeleteTeam removes a team with its grants; ErrNotFound when there is none.
func (s *Store) DeleteTeam(ctx context.Context, org, name string) error {
	return s.change(ctx, &registry.AuditEntry{Org: org, Action: "team.delete", Target: "team/" + name}, func(tx *sql.Tx) error {
		if err := s.lockOrg(ctx, tx, org); err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, s.db.Q(`DELETE FROM registry_grants WHERE org = ? AND subject = ?`), org, "team/"+name); err != nil {
			return fmt.Errorf("delete team: %w", err)
		}
		res, err := tx.ExecContext(ctx, s.db.Q(`DELETE FROM registry_teams WHERE org = ? AND name = ?`), org, name)
		if err != nil {
			return fmt.Errorf("delete team: %w", err)
		}
		if n, err := res.RowsAffected(); err != nil || n == 0 {
			return errors.Join(err, noTeam(org, name))
		}
		return nil
	})
}

// SetTeamMember puts a member of the org in a team, or takes them out; idempotent.
func (s *Store) SetTeamMember(ctx context.Context, org, team, account string, in bool) error {
	e := &registry.AuditEntry{Org: org, Action: "team.member.add", Target: "team/" + team, Detail: map[string]string{"account": account}}
	statement := `INSERT INTO registry_team_members (org, team, account) VALUES (?, ?, ?) ON CONFLICT DO NOTHING`
	if !in {
		e.Action = "team.member.remove"
		statement = `DELETE FROM registry_team_members WHERE org = ? AND team = ? AND account = ?`
	}
	return s.change(ctx, e, func(tx *sql.Tx) error {
		if err := s.lockOrg(ctx, tx, org); err != nil {
			return err
		}
		if err := s.hasTeam(ctx, tx, org, team); err != nil {
			return err
		}
		role, err := s.roleOf(ctx, tx, account, org)
		if err != nil {
			return err
		}
		if in && role == registry.RoleNone {
			return problem.New(problem.ErrNotFound, "%q is no member of the organisation %q", account, org)
		}
		res, err := tx.ExecContext(ctx, s.db.Q(statement), org, team, account)
		if err != nil {
			return fmt.Errorf("set team member: %w", err)
		}
		if n, err := res.RowsAffected(); err != nil || n == 0 {
			e.Action = ""
			return wrap("set team member", err)
		}
		return nil
	})
}

func (s *Store) hasTeam(ctx context.Context, tx *sql.Tx, org, team string) error {
	var one int
	err := tx.QueryRowContext(ctx, s.db.Q(`SELECT 1 FROM registry_teams WHERE org = ? AND name = ?`), org, team).Scan(&one)
	if errors.Is(err, sql.ErrNoRows) {
		return noTeam(org, team)
	}
	return wrap("read team", err)
}

func subject(g registry.Grant) string {
	if g.Team != "" {
		return "team/" + g.Team
	}
	return "account/" + g.Account
}

func scanGrant(scan func(...any) error) (registry.Grant, error) {
	var g registry.Grant
	var who string
	var created int64
	err := scan(&g.Org, &who, &g.Repositories, &g.Role, &created, &g.CreatedBy)
	g.Created = time.Unix(0, created).UTC()
	if team, ok := strings.CutPrefix(who, "team/"); ok {
		g.Team = team
	} else {
		g.Account = strings.TrimPrefix(who, "account/")
	}
	return g, err
}

// SetGrant gives a team or a person a role on repositories, or with RoleNone takes it away; idempotent. A person need
// not be a member of the org.
func (s *Store) SetGrant(ctx context.Context, g registry.Grant) error {
	if (g.Team == "") == (g.Account == "") {
		return problem.Invalid("team", "must be given, or account, but not both", g.Team)
	}
	if g.Role != registry.RoleNone && (!g.Role.Valid() || g.Role == registry.RoleOwner) {
		return problem.Invalid("role", "must be reader, writer or admin", g.Role)
	}
	org, err := registry.ValidatePattern("repositories", g.Repositories)
	if err == nil && org != g.Org {
		err = problem.Invalid("repositories", "must be of the organisation "+g.Org, g.Repositories)
	}
	if err != nil {
		return err
	}
	e := &registry.AuditEntry{Org: g.Org, Action: "grant.set", Target: g.Repositories, Detail: map[string]string{"subject": subject(g), "role": string(g.Role)}}
	if g.Role == registry.RoleNone {
		e.Action = "grant.remove"
		delete(e.Detail, "role")
	}
	return s.change(ctx, e, func(tx *sql.Tx) error {
		if err := s.lockOrg(ctx, tx, g.Org); err != nil {
			return err
		}
		var before registry.Role
		err := tx.QueryRowContext(ctx, s.db.Q(`SELECT role FROM registry_grants WHERE org = ? AND subject = ? AND pattern = ?`),
			g.Org, subject(g), g.Repositories).Scan(&before)
		if err != nil && !errors.Is(err, sql.ErrNoRows) {
			return fmt.Errorf("set grant: %w", err)
		}
		if before == g.Role {
			e.Action = ""
			return nil
		}
		if g.Role == registry.RoleNone {
			_, err = tx.ExecContext(ctx, s.db.Q(`DELETE FROM registry_grants WHERE org = ? AND subject = ? AND pattern = ?`), g.Org, subject(g), g.Repositories)
			return wrap("set grant", err)
		}
		return s.putGrant(ctx, tx, g)
	})
}

func (s *Store) putGrant(ctx context.Context, tx *sql.Tx, g registry.Grant) error {
	var err error
	if g.Team != "" {
		err = s.hasTeam(ctx, tx, g.Org, g.Team)
	} else {
		err = s.isPerson(ctx, tx, g.Account)
	}
	if err != nil {
		return err
	}
	if err := s.full(ctx, tx, "grants", maxGrants, `SELECT count(*) FROM registry_grants WHERE org = ?`, g.Org); err != nil {
		return err
	}
	_, err = tx.ExecContext(ctx, s.db.Q(`INSERT INTO registry_grants (org, subject, pattern, role, created, created_by) VALUES (?, ?, ?, ?, ?, ?)
		ON CONFLICT (org, subject, pattern) DO UPDATE SET role = excluded.role`),
		g.Org, subject(g), g.Repositories, g.Role, s.now().UnixNano(), registry.ActorFrom(ctx).Name)
	return wrap("set grant", err)
}

// Grants lists an org's grants by subject and pattern, those after the grant after (its Team or Account, and
// Repositories; zero is the beginning).
func (s *Store) Grants(ctx context.Context, org string, after registry.Grant, limit int) ([]registry.Grant, error) {
	who := ""
	if after.Repositories != "" {
		who = subject(after)
	}
	order := s.bytewise("subject") + `, ` + s.bytewise("pattern")
	rows, err := s.db.QueryContext(ctx, s.db.Q(`SELECT org, subject, pattern, role, created, created_by FROM registry_grants
		WHERE org = ? AND (`+order+`) > (?, ?) ORDER BY `+order+` LIMIT ?`), org, who, after.Repositories, page(limit))
	return collect(rows, err, "list grants", scanGrant)
}

// GrantsOf gives all grants of a person, their own and those of their teams.
func (s *Store) GrantsOf(ctx context.Context, account string) ([]registry.Grant, error) {
	const columns = `g.org, g.subject, g.pattern, g.role, g.created, g.created_by`
	rows, err := s.db.QueryContext(ctx, s.db.Q(`SELECT `+columns+` FROM registry_grants g WHERE g.subject = ?
		UNION ALL SELECT `+columns+` FROM registry_team_members m JOIN registry_grants g ON g.org = m.org AND g.subject = 'team/' || m.team
		WHERE m.account = ?`), "account/"+account, account)
	return collect(rows, err, "list grants", scanGrant)
}
