package directory

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"cumulet.io/internal/problem"
	"cumulet.io/registry"
)

// The prefixes of made-up secrets, so that a leaked one can be found by scanners and tells what it is.
const (
	offlinePrefix = "cumulet_rt_"
	robotPrefix   = "cumulet_rb_"
	keyPrefix     = "cumulet_ak_"
	devicePrefix  = "cumulet_dc_"
)

// touch is how exactly the last use of a secret is kept, so that most uses write nothing.
const touch = time.Hour

// newSecret makes one of 260 bits that cannot be guessed; a plain hash is enough to keep it.
func newSecret(prefix string) string { return prefix + rand.Text() + rand.Text() }

// hashSecret is what is kept of a made-up secret.
func hashSecret(secret string) string {
	sum := sha256.Sum256([]byte(secret))
	return hex.EncodeToString(sum[:])
}

// used keeps the time of a use when the one that is kept is old.
func (s *Store) used(ctx context.Context, statement string, last int64, key string) error {
	now := s.now()
	if now.Sub(time.Unix(0, last)) <= touch {
		return nil
	}
	if _, err := s.db.ExecContext(ctx, s.db.Q(statement), now.UnixNano(), key); err != nil {
		return fmt.Errorf("keep last use: %w", err)
	}
	return nil
}

func encodeScopes(scopes []registry.Scope) (string, error) {
	if scopes == nil {
		scopes = []registry.Scope{}
	}
	text, err := json.Marshal(scopes)
	return string(text), wrap("keep scopes", err)
}

func decodeScopes(text string) ([]registry.Scope, error) {
	scopes := []registry.Scope{}
	err := json.Unmarshal([]byte(text), &scopes)
	return scopes, wrap("read scopes", err)
}

// validateExpiry checks an end: never, or in the future.
func (s *Store) validateExpiry(field string, at time.Time) error {
	if !at.IsZero() && !at.After(s.now()) {
		return problem.Invalid(field, "must be in the future", at.UTC().Format(time.RFC3339))
	}
	if at.Year() > 2200 { // beyond what is kept
		return problem.Invalid(field, "must be before 2200", at.Year())
	}
	return nil
}

// ended tells whether an end in nanoseconds, 0 for never, has come.
func (s *Store) ended(expires int64) bool { return expires != 0 && s.now().UnixNano() >= expires }

// clientText is what a client calls itself, cut to what is kept.
func clientText(client string) string {
	client = strings.ReplaceAll(strings.ToValidUTF8(client, "?"), "\x00", "?")
	if len(client) > 100 {
		client = strings.ToValidUTF8(client[:100], "")
	}
	return client
}
