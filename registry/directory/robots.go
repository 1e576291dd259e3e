package directory

import (
	"context"
	"crypto/subtle"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"time"

	"cumulet.io/internal/problem"
	"cumulet.io/internal/sqldb"
	"cumulet.io/registry"
)

const robotColumns = `r.org, r.name, r.account, r.description, r.scopes, a.disabled, r.expires, r.used, r.created, r.created_by`

func scanRobot(scan func(...any) error) (registry.RobotAccount, error) {
	var r registry.RobotAccount
	var scopes string
	var disabled, expires, used, created int64
	if err := scan(&r.Org, &r.Name, &r.Account, &r.Description, &scopes, &disabled, &expires, &used, &created, &r.CreatedBy); err != nil {
		return r, err
	}
	r.Disabled, r.Expires, r.Used, r.Created = disabled != 0, instant(expires), instant(used), instant(created)
	var err error
	r.Scopes, err = decodeScopes(scopes)
	return r, err
}

// Robot gives an org's robot, or an error of class ErrNotFound.
func (s *Store) Robot(ctx context.Context, org, name string) (*registry.RobotAccount, error) {
	r, err := scanRobot(s.db.QueryRowContext(ctx, s.db.Q(`SELECT `+robotColumns+` FROM registry_robots r JOIN registry_accounts a ON a.name = r.account
		WHERE r.org = ? AND r.name = ?`), org, name).Scan)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, problem.New(problem.ErrNotFound, "the organisation %q has no robot %q", org, name)
	}
	if err != nil {
		return nil, fmt.Errorf("read robot: %w", err)
	}
	return &r, nil
}

// Robots lists an org's robots, in byte order, those after the name after.
func (s *Store) Robots(ctx context.Context, org, after string, limit int) ([]registry.RobotAccount, error) {
	name := s.bytewise("r.name")
	rows, err := s.db.QueryContext(ctx, s.db.Q(`SELECT `+robotColumns+` FROM registry_robots r JOIN registry_accounts a ON a.name = r.account
		WHERE r.org = ? AND `+name+` > ? ORDER BY `+name+` LIMIT ?`), org, after, page(limit))
	return collect(rows, err, "list robots", scanRobot)
}

// validateRobotScopes checks that a robot stays in its org and changes nothing of the org itself.
func validateRobotScopes(org string, scopes []registry.Scope) error {
	if len(scopes) == 0 {
		return problem.Invalid("scopes", "must be at least one", "")
	}
	if err := registry.ValidateScopes("scopes", scopes); err != nil {
		return err
	}
	for i, sc := range scopes {
		field := fmt.Sprintf("scopes[%d]", i)
		if sc.Org() != org {
			return problem.Invalid(field+".name", "must be of the organisation "+org, sc.Name)
		}
		for _, a := range sc.Actions {
			if sc.Type == registry.ScopeOrg && a != "read" && a != "write" {
				return problem.Invalid(field+".actions", "must be of read, write for a robot", a)
			}
		}
	}
	return nil
}

// CreateRobot makes a robot of Org, Name, Description, Scopes and Expires, and gives its secret, which is kept nowhere.
// ErrConflict when the name is taken.
func (s *Store) CreateRobot(ctx context.Context, r registry.RobotAccount) (*registry.RobotAccount, string, error) {
	if err := registry.ValidateName("name", r.Name); err != nil {
		return nil, "", err
	}
	if err := errors.Join(registry.ValidateDescription("description", r.Description), s.validateExpiry("expires", r.Expires)); err != nil {
		return nil, "", err
	}
	if err := validateRobotScopes(r.Org, r.Scopes); err != nil {
		return nil, "", err
	}
	scopes, err := encodeScopes(r.Scopes)
	if err != nil {
		return nil, "", err
	}
	secret := newSecret(robotPrefix)
	account := registry.RobotAccountName(r.Org, r.Name)
	e := &registry.AuditEntry{Org: r.Org, Action: "robot.create", Target: "robot/" + r.Name, Detail: scopeDetail(r.Scopes)}
	err = s.change(ctx, e, func(tx *sql.Tx) error {
		if err := s.lockOrg(ctx, tx, r.Org); err != nil {
			return err
		}
		if err := s.full(ctx, tx, "robots", maxRobots, `SELECT count(*) FROM registry_robots WHERE org = ?`, r.Org); err != nil {
			return err
		}
		err := s.insertAccount(ctx, tx, registry.Account{Name: account, Kind: registry.Robot}, "")
		if errors.Is(err, problem.ErrConflict) {
			return problem.New(problem.ErrConflict, "the organisation %q has a robot %q", r.Org, r.Name)
		}
		if err != nil {
			return err
		}
		_, err = tx.ExecContext(ctx, s.db.Q(`INSERT INTO registry_robots (account, org, name, description, secret, scopes, expires, used, created, created_by)
			VALUES (?, ?, ?, ?, ?, ?, ?, 0, ?, ?)`), account, r.Org, r.Name, r.Description, hashSecret(secret), scopes, stamp(r.Expires),
			s.now().UnixNano(), registry.ActorFrom(ctx).Name)
		return wrap("create robot", err)
	})
	if err != nil {
		return nil, "", err
	}
	made, err := s.Robot(ctx, r.Org, r.Name)
	return made, secret, err
}

func scopeDetail(scopes []registry.Scope) map[string]string {
	var text []string
	for _, sc := range scopes {
		text = append(text, sc.String())
	}
	return map[string]string{"scopes": strings.Join(text, " ")}
}

// RobotPatch changes a robot; nil stays.
type RobotPatch struct {
	Description *string
	Scopes      *[]registry.Scope
	// Disabled keeps it from logging in, and revokes its offline tokens.
	Disabled *bool
	// Expires is its new end; the zero time is never.
	Expires *time.Time
}

// UpdateRobot changes a robot.
func (s *Store) UpdateRobot(ctx context.Context, org, name string, p RobotPatch) (*registry.RobotAccount, error) {
	e := &registry.AuditEntry{Org: org, Action: "robot.update", Target: "robot/" + name, Detail: map[string]string{}}
	err := s.change(ctx, e, func(tx *sql.Tx) error {
		account, err := s.lockRobot(ctx, tx, org, name)
		if err != nil {
			return err
		}
		set := func(column string, value any) error {
			_, err := tx.ExecContext(ctx, s.db.Q(`UPDATE registry_robots SET `+column+` = ? WHERE account = ?`), value, account)
			return wrap("update robot", err)
		}
		if p.Description != nil {
			e.Detail["description"] = *p.Description
			if err := errors.Join(registry.ValidateDescription("description", *p.Description), set("description", *p.Description)); err != nil {
				return err
			}
		}
		if p.Scopes != nil {
			e.Detail["scopes"] = scopeDetail(*p.Scopes)["scopes"]
			if err := validateRobotScopes(org, *p.Scopes); err != nil {
				return err
			}
			text, err := encodeScopes(*p.Scopes)
			if err := errors.Join(err, set("scopes", text)); err != nil {
				return err
			}
		}
		if p.Expires != nil {
			e.Detail["expires"] = p.Expires.UTC().Format(time.RFC3339)
			if err := errors.Join(s.validateExpiry("expires", *p.Expires), set("expires", stamp(*p.Expires))); err != nil {
				return err
			}
		}
		if p.Disabled == nil {
			return nil
		}
		e.Detail["disabled"] = fmt.Sprint(*p.Disabled)
		if _, err := tx.ExecContext(ctx, s.db.Q(`UPDATE registry_accounts SET disabled = ? WHERE name = ?`), number(*p.Disabled), account); err != nil {
			return fmt.Errorf("update robot: %w", err)
		}
		return s.revokeAll(ctx, tx, account)
	})
	if err != nil {
		return nil, err
	}
	return s.Robot(ctx, org, name)
}

// lockRobot makes this transaction the only one that changes the org, and gives the robot's account.
func (s *Store) lockRobot(ctx context.Context, tx *sql.Tx, org, name string) (string, error) {
	if err := s.lockOrg(ctx, tx, org); err != nil {
		return "", err
	}
	var account string
	err := tx.QueryRowContext(ctx, s.db.Q(`SELECT account FROM registry_robots WHERE org = ? AND name = ?`), org, name).Scan(&account)
	if errors.Is(err, sql.ErrNoRows) {
		return "", problem.New(problem.ErrNotFound, "the organisation %q has no robot %q", org, name)
	}
	return account, wrap("read robot", err)
}

// RotateRobot gives a robot a new secret; the old one and the offline tokens end at once.
func (s *Store) RotateRobot(ctx context.Context, org, name string) (*registry.RobotAccount, string, error) {
	secret := newSecret(robotPrefix)
	e := &registry.AuditEntry{Org: org, Action: "robot.rotate", Target: "robot/" + name}
	err := s.change(ctx, e, func(tx *sql.Tx) error {
		account, err := s.lockRobot(ctx, tx, org, name)
		if err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, s.db.Q(`UPDATE registry_robots SET secret = ? WHERE account = ?`), hashSecret(secret), account); err != nil {
			return fmt.Errorf("rotate robot: %w", err)
		}
		return s.revokeAll(ctx, tx, account)
	})
	if err != nil {
		return nil, "", err
	}
	r, err := s.Robot(ctx, org, name)
	return r, secret, err
}

// DeleteRobot removes a robot with its tokens; ErrNotFound when there is none.
func (s *Store) DeleteRobot(ctx context.Context, org, name string) error {
	return s.change(ctx, &registry.AuditEntry{Org: org, Action: "robot.delete", Target: "robot/" + name}, func(tx *sql.Tx) error {
		account, err := s.lockRobot(ctx, tx, org, name)
		if err != nil {
			return err
		}
		_, err = tx.ExecContext(ctx, s.db.Q(`DELETE FROM registry_accounts WHERE name = ?`), account)
		return wrap("delete robot", err)
	})
}

// loginRobot checks a robot's secret. A robot is not locked out: its secret cannot be guessed, and one job with an old
// secret must not stop the others behind the same address.
func (s *Store) loginRobot(ctx context.Context, account, secret string) (*registry.Login, error) {
	if _, _, ok := registry.SplitRobot(account); !ok || !strings.HasPrefix(secret, robotPrefix) {
		return nil, wrongPassword()
	}
	var hash string
	var used int64
	err := s.db.QueryRowContext(ctx, s.db.Q(`SELECT secret, used FROM registry_robots WHERE account = ?`), account).Scan(&hash, &used)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return nil, fmt.Errorf("log in: %w", err)
	}
	if err != nil || subtle.ConstantTimeCompare([]byte(hash), []byte(hashSecret(secret))) != 1 {
		return nil, wrongPassword()
	}
	login, err := s.robotLogin(ctx, account)
	if err != nil {
		return nil, err
	}
	return login, s.used(ctx, `UPDATE registry_robots SET used = ? WHERE account = ?`, used, account)
}

// robotLogin gives what a robot that has proven itself may do, unless it is disabled or has expired.
func (s *Store) robotLogin(ctx context.Context, account string) (*registry.Login, error) {
	org, name, _ := registry.SplitRobot(account)
	r, err := s.Robot(ctx, org, name)
	switch {
	case errors.Is(err, problem.ErrNotFound):
		return nil, wrongPassword()
	case err != nil:
		return nil, err
	case r.Disabled:
		return nil, disabled()
	case s.ended(stamp(r.Expires)):
		return nil, problem.New(problem.ErrUnauthenticated, "the robot %s expired at %s", account, r.Expires.Format(time.RFC3339))
	}
	return &registry.Login{Account: registry.Account{Name: account, Kind: registry.Robot, Created: r.Created}, Scopes: r.Scopes}, nil
}

// uniqueName turns a broken uniqueness into an error of class ErrConflict.
func uniqueName(err error, format string, args ...any) error {
	if sqldb.IsUnique(err) {
		return problem.New(problem.ErrConflict, format, args...)
	}
	return err
}
