package directory

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"cumulet.io/internal/problem"
	"cumulet.io/registry"
)

// maxIdentities is how many identities an account may have.
const maxIdentities = 20

const identityColumns = `issuer, subject, account, email, created, used`

func scanIdentity(scan func(...any) error) (registry.Identity, error) {
	var i registry.Identity
	var created, used int64
	err := scan(&i.Issuer, &i.Subject, &i.Account, &i.Email, &created, &used)
	i.Created, i.Used = instant(created), instant(used)
	return i, err
}

// Identity gives who a provider's subject is here, or an error of class ErrNotFound, and keeps the time.
func (s *Store) Identity(ctx context.Context, issuer, subject string) (*registry.Identity, error) {
	i, err := scanIdentity(s.db.QueryRowContext(ctx, s.db.Q(`SELECT `+identityColumns+` FROM registry_identities WHERE issuer = ? AND subject = ?`),
		issuer, subject).Scan)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, problem.New(problem.ErrNotFound, "this identity is linked to no account")
	}
	if err != nil {
		return nil, fmt.Errorf("read identity: %w", err)
	}
	_, err = s.db.ExecContext(ctx, s.db.Q(`UPDATE registry_identities SET used = ? WHERE issuer = ? AND subject = ?`), s.now().UnixNano(), issuer, subject)
	return &i, wrap("read identity", err)
}

// Identities lists an account's, oldest first.
func (s *Store) Identities(ctx context.Context, account string) ([]registry.Identity, error) {
	rows, err := s.db.QueryContext(ctx, s.db.Q(`SELECT `+identityColumns+` FROM registry_identities WHERE account = ?
		ORDER BY created, issuer, subject LIMIT ?`), account, maxIdentities)
	return collect(rows, err, "list identities", scanIdentity)
}

// LinkIdentity links a provider's subject to a person's account; idempotent. ErrConflict when it is linked to another.
func (s *Store) LinkIdentity(ctx context.Context, i registry.Identity) error {
	e := identityEntry("identity.link", i)
	return s.change(ctx, e, func(tx *sql.Tx) error {
		if _, err := s.lockAccount(ctx, tx, i.Account); err != nil {
			return err
		}
		if err := s.isPerson(ctx, tx, i.Account); err != nil {
			return err
		}
		var owner string
		err := tx.QueryRowContext(ctx, s.db.Q(`SELECT account FROM registry_identities WHERE issuer = ? AND subject = ?`), i.Issuer, i.Subject).Scan(&owner)
		switch {
		case errors.Is(err, sql.ErrNoRows):
			if err := s.full(ctx, tx, "identities", maxIdentities, `SELECT count(*) FROM registry_identities WHERE account = ?`, i.Account); err != nil {
				return err
			}
			return s.insertIdentity(ctx, tx, i)
		case err != nil:
			return fmt.Errorf("link identity: %w", err)
		case owner != i.Account:
			return problem.New(problem.ErrConflict, "this identity is linked to another account")
		}
		e.Action = ""
		return nil
	})
}

func identityEntry(action string, i registry.Identity) *registry.AuditEntry {
	e := &registry.AuditEntry{Action: action, Target: "account/" + i.Account, Detail: map[string]string{"issuer": i.Issuer, "subject": i.Subject, "email": i.Email}}
	if i.Provider != "" {
		e.Detail["provider"] = i.Provider
	}
	return e
}

func (s *Store) insertIdentity(ctx context.Context, tx *sql.Tx, i registry.Identity) error {
	_, err := tx.ExecContext(ctx, s.db.Q(`INSERT INTO registry_identities (issuer, subject, account, email, created, used) VALUES (?, ?, ?, ?, ?, 0)`),
		i.Issuer, i.Subject, i.Account, i.Email, s.now().UnixNano())
	return wrap("link identity", uniqueName(err, "this identity is linked already"))
}

// SignUp makes an account without password for a provider's subject, a member of org unless that is "". ErrConflict
// when the name is taken: it may be another person's.
func (s *Store) SignUp(ctx context.Context, i registry.Identity, org string, role registry.Role) error {
	a := registry.Account{Name: i.Account, Kind: registry.Person}
	if err := validateAccount(a); err != nil {
		return err
	}
	e := identityEntry("account.signup", i)
	if org != "" {
		e.Detail["org"], e.Detail["role"] = org, string(role)
	}
	return s.change(ctx, e, func(tx *sql.Tx) error {
		if err := s.insertAccount(ctx, tx, a, ""); err != nil {
			return err
		}
		if err := s.insertIdentity(ctx, tx, i); err != nil || org == "" {
			return err
		}
		if err := s.lockOrg(ctx, tx, org); err != nil {
			return err
		}
		return s.setMember(ctx, tx, org, i.Account, role)
	})
}

// UnlinkIdentity takes an identity from an account with what its groups gave; ErrConflict when the account would have
// no way to log in.
func (s *Store) UnlinkIdentity(ctx context.Context, account, issuer, subject string) error {
	i := registry.Identity{Account: account, Issuer: issuer, Subject: subject}
	return s.changes(ctx, func(tx *sql.Tx) ([]*registry.AuditEntry, error) {
		if err := s.unlink(ctx, tx, i); err != nil {
			return nil, err
		}
		g := &groups{s: s, tx: tx, identity: i, entries: []*registry.AuditEntry{identityEntry("identity.unlink", i)}}
		_, err := g.setAll(ctx, nil)
		return g.entries, err
	})
}

func (s *Store) unlink(ctx context.Context, tx *sql.Tx, i registry.Identity) error {
	if _, err := s.lockAccount(ctx, tx, i.Account); err != nil {
		return err
	}
	res, err := tx.ExecContext(ctx, s.db.Q(`DELETE FROM registry_identities WHERE account = ? AND issuer = ? AND subject = ?`), i.Account, i.Issuer, i.Subject)
	if err := oneRow(res, err, "there is no such identity: %q", i.Subject); err != nil {
		return err
	}
	var hash string
	var left int
	if err := tx.QueryRowContext(ctx, s.db.Q(`SELECT password, (SELECT count(*) FROM registry_identities WHERE account = name)
		FROM registry_accounts WHERE name = ?`), i.Account).Scan(&hash, &left); err != nil {
		return fmt.Errorf("unlink identity: %w", err)
	}
	if hash == "" && left == 0 {
		return problem.New(problem.ErrConflict, "the account would have no way to log in: set a password first")
	}
	return s.revokeAll(ctx, tx, i.Account)
}
