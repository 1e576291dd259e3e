package directory

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"database/sql"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"cumulet.io/internal/problem"
	"cumulet.io/registry"
)

const (
	// offlinePrefix marks an offline token, so that a leaked one can be found by scanners.
	offlinePrefix = "cumulet_rt_"
	// maxOffline is how many offline tokens an account may hold: a new one pushes out the least recently used.
	maxOffline = 100
	// offlineIdle is how long an unused offline token lives.
	offlineIdle = 180 * 24 * time.Hour
	// offlineTouch is how exactly the last use is kept, so that most uses write nothing.
	offlineTouch = time.Hour
)

// OfflineToken is what is known of one; the token itself is not kept.
type OfflineToken struct {
	Account  string
	Audience string
	Client   string
	Created  time.Time
}

func hashOffline(token string) string {
	sum := sha256.Sum256([]byte(token))
	return hex.EncodeToString(sum[:])
}

// NewOfflineToken makes a token, marked with an audience, that stands for the account's password until it is revoked, its password changes or it has not been used for half a year. client is what the caller calls itself.
func (s *Store) NewOfflineToken(ctx context.Context, account, audience, client string) (string, error) {
	client = strings.ToValidUTF8(client, "?")
	if len(client) > 100 {
		client = strings.ToValidUTF8(client[:100], "")
	}
	token := offlinePrefix + rand.Text() + rand.Text()
	now := s.now().UnixNano()
	err := s.db.InTx(ctx, func(tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, s.db.Q(`DELETE FROM registry_offline_tokens WHERE account = ? AND hash NOT IN
			(SELECT hash FROM registry_offline_tokens WHERE account = ? ORDER BY used DESC, hash LIMIT ?)`), account, account, maxOffline-1)
		if err != nil {
			return err
		}
		_, err = tx.ExecContext(ctx, s.db.Q(`INSERT INTO registry_offline_tokens (hash, account, audience, client, created, used)
			VALUES (?, ?, ?, ?, ?, ?)`), hashOffline(token), account, audience, strings.ReplaceAll(client, "\x00", "?"), now, now)
		return err
	})
	if err != nil {
		return "", fmt.Errorf("make offline token: %w", err)
	}
	return token, nil
}

// UseOfflineToken gives the account behind a token that was made for one of the audiences; an error of class
// ErrUnauthenticated when it is not known, too old, or for another audience.
func (s *Store) UseOfflineToken(ctx context.Context, token string, audiences ...string) (*registry.Account, error) {
	unknown := problem.New(problem.ErrUnauthenticated, "the refresh token is not valid: log in again")
	if !strings.HasPrefix(token, offlinePrefix) || len(token) > 256 {
		return nil, unknown
	}
	hash := hashOffline(token)
	var name, aud string
	var used int64
	err := s.db.QueryRowContext(ctx, s.db.Q(`SELECT account, audience, used FROM registry_offline_tokens WHERE hash = ?`), hash).
		Scan(&name, &aud, &used)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, unknown
	}
	if err != nil {
		return nil, fmt.Errorf("use offline token: %w", err)
	}
	now := s.now()
	idle := now.Sub(time.Unix(0, used))
	if !slices.Contains(audiences, aud) || idle > offlineIdle {
		return nil, unknown
	}
	if idle > offlineTouch {
		if _, err := s.db.ExecContext(ctx, s.db.Q(`UPDATE registry_offline_tokens SET used = ? WHERE hash = ?`), now.UnixNano(), hash); err != nil {
			return nil, fmt.Errorf("use offline token: %w", err)
		}
	}
	return s.Account(ctx, name)
}

// RevokeOfflineToken ends a token; one that is not known is no error (RFC 7009, section 2.2).
func (s *Store) RevokeOfflineToken(ctx context.Context, token string) error {
	if _, err := s.db.ExecContext(ctx, s.db.Q(`DELETE FROM registry_offline_tokens WHERE hash = ?`), hashOffline(token)); err != nil {
		return fmt.Errorf("revoke offline token: %w", err)
	}
	return nil
}

// OfflineTokens lists an account's tokens, newest first.
func (s *Store) OfflineTokens(ctx context.Context, account string) ([]OfflineToken, error) {
	rows, err := s.db.QueryContext(ctx, s.db.Q(`SELECT account, audience, client, created FROM registry_offline_tokens
		WHERE account = ? ORDER BY created DESC, hash LIMIT ?`), account, maxOffline)
	if err != nil {
		return nil, fmt.Errorf("list offline tokens: %w", err)
	}
	defer rows.Close() //nolint:errcheck // Err tells
	var out []OfflineToken
	for rows.Next() {
		var t OfflineToken
		var created int64
		if err := rows.Scan(&t.Account, &t.Audience, &t.Client, &created); err != nil {
			return nil, fmt.Errorf("list offline tokens: %w", err)
		}
		t.Created = time.Unix(0, created).UTC()
		out = append(out, t)
	}
	return out, rows.Err()
}
