package directory

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/google/uuid"

	"cumulet.io/internal/problem"
	"cumulet.io/registry"
)

// maxKeys is how many API keys a person may have.
const maxKeys = 100

const keyColumns = `id, account, name, scopes, expires, used, created`

func scanKey(scan func(...any) error) (registry.APIKey, error) {
	var k registry.APIKey
	var scopes string
	var expires, used, created int64
	if err := scan(&k.ID, &k.Account, &k.Name, &scopes, &expires, &used, &created); err != nil {
		return k, err
	}
	k.Expires, k.Used, k.Created = instant(expires), instant(used), instant(created)
	var err error
	k.Scopes, err = decodeScopes(scopes)
	return k, err
}

// APIKeys lists a person's keys, in byte order of their names, those after the name after.
func (s *Store) APIKeys(ctx context.Context, account, after string, limit int) ([]registry.APIKey, error) {
	name := s.bytewise("name")
	rows, err := s.db.QueryContext(ctx, s.db.Q(`SELECT `+keyColumns+` FROM registry_api_keys WHERE account = ? AND `+name+` > ?
		ORDER BY `+name+` LIMIT ?`), account, after, page(limit))
	return collect(rows, err, "list API keys", scanKey)
}

// CreateAPIKey makes a key of Account, Name, Scopes and Expires, and gives it; it is kept nowhere. ErrConflict when the
// account has a key of that name.
func (s *Store) CreateAPIKey(ctx context.Context, k registry.APIKey) (*registry.APIKey, string, error) {
	if err := registry.ValidateName("name", k.Name); err != nil {
		return nil, "", err
	}
	if err := errors.Join(registry.ValidateScopes("scopes", k.Scopes), s.validateExpiry("expires", k.Expires)); err != nil {
		return nil, "", err
	}
	scopes, err := encodeScopes(k.Scopes)
	if err != nil {
		return nil, "", err
	}
	id, err := uuid.NewV7()
	if err != nil {
		return nil, "", fmt.Errorf("create API key: %w", err)
	}
	k.ID, k.Created, k.Used = id.String(), s.now().UTC(), time.Time{}
	if k.Scopes == nil {
		k.Scopes = []registry.Scope{}
	}
	secret := newSecret(keyPrefix)
	e := &registry.AuditEntry{Action: "apikey.create", Target: "account/" + k.Account, Detail: scopeDetail(k.Scopes)}
	e.Detail["name"], e.Detail["id"] = k.Name, k.ID
	err = s.change(ctx, e, func(tx *sql.Tx) error {
		if _, err := s.lockAccount(ctx, tx, k.Account); err != nil {
			return err
		}
		if err := s.isPerson(ctx, tx, k.Account); err != nil {
			return err
		}
		if err := s.full(ctx, tx, "API keys", maxKeys, `SELECT count(*) FROM registry_api_keys WHERE account = ?`, k.Account); err != nil {
			return err
		}
		_, err := tx.ExecContext(ctx, s.db.Q(`INSERT INTO registry_api_keys (id, account, name, secret, scopes, expires, used, created)
			VALUES (?, ?, ?, ?, ?, ?, 0, ?)`), k.ID, k.Account, k.Name, hashSecret(secret), scopes, stamp(k.Expires), k.Created.UnixNano())
		return wrap("create API key", uniqueName(err, "you have an API key %q", k.Name))
	})
	if err != nil {
		return nil, "", err
	}
	return &k, secret, nil
}

// DeleteAPIKey ends a person's key, by name, and the offline tokens that were got with it; ErrNotFound when there is
// none.
func (s *Store) DeleteAPIKey(ctx context.Context, account, name string) error {
	e := &registry.AuditEntry{Action: "apikey.delete", Target: "account/" + account, Detail: map[string]string{"name": name}}
	return s.change(ctx, e, func(tx *sql.Tx) error {
		var id string
		err := tx.QueryRowContext(ctx, s.db.Q(`SELECT id FROM registry_api_keys WHERE account = ? AND name = ?`), account, name).Scan(&id)
		if errors.Is(err, sql.ErrNoRows) {
			return problem.New(problem.ErrNotFound, "there is no API key %q", name)
		}
		if err != nil {
			return fmt.Errorf("delete API key: %w", err)
		}
		for _, statement := range []string{`DELETE FROM registry_offline_tokens WHERE api_key = ?`, `DELETE FROM registry_api_keys WHERE id = ?`} {
			if _, err := tx.ExecContext(ctx, s.db.Q(statement), id); err != nil {
				return fmt.Errorf("delete API key: %w", err)
			}
		}
		return nil
	})
}

// loginKey checks an API key that is given as a person's password. Like a robot's secret it cannot be guessed, and
// nobody is locked out for it.
func (s *Store) loginKey(ctx context.Context, account, secret string) (*registry.Login, error) {
	k, err := scanKey(s.db.QueryRowContext(ctx, s.db.Q(`SELECT `+keyColumns+` FROM registry_api_keys WHERE secret = ?`), hashSecret(secret)).Scan)
	if errors.Is(err, sql.ErrNoRows) || err == nil && k.Account != account {
		return nil, wrongPassword()
	}
	if err != nil {
		return nil, fmt.Errorf("log in: %w", err)
	}
	login, err := s.keyLogin(ctx, k)
	if err != nil {
		return nil, err
	}
	return login, s.used(ctx, `UPDATE registry_api_keys SET used = ? WHERE id = ?`, stamp(k.Used), k.ID)
}

// keyLogin gives what the holder of a key may do, unless it has expired or its account is disabled.
func (s *Store) keyLogin(ctx context.Context, k registry.APIKey) (*registry.Login, error) {
	if s.ended(stamp(k.Expires)) {
		return nil, problem.New(problem.ErrUnauthenticated, "the API key %q expired at %s", k.Name, k.Expires.Format(time.RFC3339))
	}
	a, err := s.Account(ctx, k.Account)
	if err != nil {
		return nil, err
	}
	if a.Disabled {
		return nil, disabled()
	}
	return &registry.Login{Account: *a, KeyID: k.ID, Limited: len(k.Scopes) > 0, Limits: k.Scopes}, nil
}

func disabled() error {
	return problem.New(problem.ErrUnauthenticated, "the account is disabled")
}

// Login proves who someone is by whatever is given as password: a password, a robot's secret or an API key. Errors are
// those of Authenticate.
func (s *Store) Login(ctx context.Context, name, secret, client string) (*registry.Login, error) {
	if len(secret) > registry.MaxPasswordLength {
		return nil, wrongPassword()
	}
	switch {
	case strings.Contains(name, "+"):
		return s.loginRobot(ctx, name, secret)
	case strings.HasPrefix(secret, keyPrefix):
		return s.loginKey(ctx, name, secret)
	}
	a, err := s.Authenticate(ctx, name, secret, client)
	if err != nil {
		return nil, err
	}
	return &registry.Login{Account: *a}, nil
}
