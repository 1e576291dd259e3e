package directory

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"cumulet.io/internal/problem"
	"cumulet.io/registry"
)

const (
	// maxOffline is how many offline tokens an account may hold: a new one pushes out the least recently used.
	maxOffline = 100
	// offlineIdle is how long an unused offline token lives.
	offlineIdle = 180 * 24 * time.Hour
	// offlineID is how much of a token's hash is its name in lists.
	offlineID = 16
)

// OfflineToken is what is known of one; the token itself is not kept.
type OfflineToken struct {
	// ID names it among the account's.
	ID       string    `json:"id"`
	Audience string    `json:"audience"`
	Client   string    `json:"client"`
	Created  time.Time `json:"created"`
	// Used is when it was last used, to the hour.
	Used time.Time `json:"used"`
}

// NewOfflineToken makes a token, marked with an audience, that stands for a login until it is revoked, its account's
// password or secret changes, the API key behind it ends, or it has not been used for half a year. client is what the
// caller calls itself.
func (s *Store) NewOfflineToken(ctx context.Context, login *registry.Login, audience, client string) (string, error) {
	account := login.Name
	token := newSecret(offlinePrefix)
	now := s.now().UnixNano()
	err := s.db.InTx(ctx, func(tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, s.db.Q(`DELETE FROM registry_offline_tokens WHERE account = ? AND hash NOT IN
			(SELECT hash FROM registry_offline_tokens WHERE account = ? ORDER BY used DESC, hash LIMIT ?)`), account, account, maxOffline-1)
		if err != nil {
			return err
		}
		_, err = tx.ExecContext(ctx, s.db.Q(`INSERT INTO registry_offline_tokens (hash, account, audience, client, created, used, api_key)
			VALUES (?, ?, ?, ?, ?, ?, ?)`), hashSecret(token), account, audience, clientText(client), now, now, login.KeyID)
		return err
	})
	if err != nil {
		return "", fmt.Errorf("make offline token: %w", err)
	}
	return token, nil
}

// UseOfflineToken gives the login behind a token that was made for one of the audiences, and that audience; an error of
// class ErrUnauthenticated when it is not known, too old, for another audience, or its login is not good any more.
func (s *Store) UseOfflineToken(ctx context.Context, token string, audiences ...string) (*registry.Login, string, error) {
	unknown := problem.New(problem.ErrUnauthenticated, "the refresh token is not valid: log in again")
	if !strings.HasPrefix(token, offlinePrefix) || len(token) > 256 {
		return nil, "", unknown
	}
	hash := hashSecret(token)
	var name, audience, key string
	var used int64
	err := s.db.QueryRowContext(ctx, s.db.Q(`SELECT account, audience, used, api_key FROM registry_offline_tokens WHERE hash = ?`), hash).
		Scan(&name, &audience, &used, &key)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, "", unknown
	}
	if err != nil {
		return nil, "", fmt.Errorf("use offline token: %w", err)
	}
	if !slices.Contains(audiences, audience) || s.now().Sub(time.Unix(0, used)) > offlineIdle {
		return nil, "", unknown
	}
	login, err := s.offlineLogin(ctx, name, key)
	if err != nil {
		return nil, "", err
	}
	return login, audience, s.used(ctx, `UPDATE registry_offline_tokens SET used = ? WHERE hash = ?`, used, hash)
}

func (s *Store) offlineLogin(ctx context.Context, account, key string) (*registry.Login, error) {
	if strings.Contains(account, "+") {
		return s.robotLogin(ctx, account)
	}
	if key != "" {
		k, err := scanKey(s.db.QueryRowContext(ctx, s.db.Q(`SELECT `+keyColumns+` FROM registry_api_keys WHERE id = ?`), key).Scan)
		if errors.Is(err, sql.ErrNoRows) {
			return nil, wrongPassword()
		}
		if err != nil {
			return nil, fmt.Errorf("use offline token: %w", err)
		}
		return s.keyLogin(ctx, k)
	}
	a, err := s.Account(ctx, account)
	if err != nil {
		return nil, err
	}
	if a.Disabled {
		return nil, disabled()
	}
	return &registry.Login{Account: *a}, nil
}

// RevokeOfflineToken ends a token; one that is not known is no error (RFC 7009, section 2.2).
func (s *Store) RevokeOfflineToken(ctx context.Context, token string) error {
	_, err := s.db.ExecContext(ctx, s.db.Q(`DELETE FROM registry_offline_tokens WHERE hash = ?`), hashSecret(token))
	return wrap("revoke offline token", err)
}

// RevokeOfflineTokenID ends an account's token by its ID; ErrNotFound when there is none.
func (s *Store) RevokeOfflineTokenID(ctx context.Context, account, id string) error {
	e := &registry.AuditEntry{Action: "token.revoke", Target: "account/" + account, Detail: map[string]string{"id": id}}
	return s.change(ctx, e, func(tx *sql.Tx) error {
		res, err := tx.ExecContext(ctx, s.db.Q(`DELETE FROM registry_offline_tokens WHERE account = ? AND substr(hash, 1, ?) = ?`), account, offlineID, id)
		return oneRow(res, err, "there is no token %q", id)
	})
}

// OfflineTokens lists an account's tokens, newest first: at most as many as an account may hold.
func (s *Store) OfflineTokens(ctx context.Context, account string) ([]OfflineToken, error) {
	rows, err := s.db.QueryContext(ctx, s.db.Q(`SELECT substr(hash, 1, ?), audience, client, created, used FROM registry_offline_tokens
		WHERE account = ? ORDER BY created DESC, hash LIMIT ?`), offlineID, account, maxOffline)
	return collect(rows, err, "list offline tokens", func(scan func(...any) error) (OfflineToken, error) {
		var t OfflineToken
		var created, used int64
		err := scan(&t.ID, &t.Audience, &t.Client, &created, &used)
		t.Created, t.Used = instant(created), instant(used)
		return t, err
	})
}
