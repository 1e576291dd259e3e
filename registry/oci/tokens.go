package oci

import (
	"context"
	"crypto/sha256"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"

	"cumulet.io/registry/hubtoken"
)

// maxTokens bounds how many verified tokens are remembered, about 1 KiB each.
const maxTokens = 4096

// verified remembers tokens that were found good, by their hash and audience, until they expire. A signature costs more
// than a whole manifest.
type verified struct {
	hubtoken.Verifier
	tokens *lru.Cache[verifiedKey, *hubtoken.Claims]
	now    func() time.Time
}

type verifiedKey struct {
	hash     [sha256.Size]byte
	audience string
}

func newVerified(v hubtoken.Verifier) (*verified, error) {
	tokens, err := lru.New[verifiedKey, *hubtoken.Claims](maxTokens)
	return &verified{Verifier: v, tokens: tokens, now: time.Now}, err
}

// Verify implements hubtoken.Verifier. The claims are shared: callers do not change them.
func (v *verified) Verify(ctx context.Context, token, audience string) (*hubtoken.Claims, error) {
	key := verifiedKey{sha256.Sum256([]byte(token)), audience}
	if c, ok := v.tokens.Get(key); ok {
		if v.now().Before(c.ExpiresAt.Time) {
			return c, nil
		}
		v.tokens.Remove(key)
	}
	c, err := v.Verifier.Verify(ctx, token, audience)
	if err != nil {
		return nil, err
	}
	v.tokens.Add(key, c)
	return c, nil
}
