package hubtoken

import (
	"errors"
	"fmt"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/google/uuid"
)

// Issuer signs hubtokens. Safe for concurrent use.
type Issuer struct {
	keys *Keys
	name string
}

// NewIssuer makes an issuer whose tokens carry iss=name, which verifiers must expect.
func NewIssuer(keys *Keys, name string) *Issuer { return &Issuer{keys: keys, name: name} }

// Sign gives a compact token with c's subject, audience, org and access, valid from now for ttl (at most MaxTTL).
// Issuer, times and id are set here, whatever c holds. Exactly one audience is asked for.
func (i *Issuer) Sign(c Claims, ttl time.Duration) (string, error) {
	if ttl <= 0 || ttl > MaxTTL {
		return "", fmt.Errorf("sign token: a life of %s is not within (0, %s]", ttl, MaxTTL)
	}
	if len(c.Audience) != 1 || c.Audience[0] == "" {
		return "", errors.New("sign token: exactly one audience is needed")
	}
	key, err := i.keys.signing()
	if err != nil {
		return "", fmt.Errorf("sign token: %w", err)
	}
	id, err := uuid.NewV7()
	if err != nil {
		return "", fmt.Errorf("sign token: %w", err)
	}
	now := i.keys.cfg.Now()
	c.Issuer, c.ID = i.name, id.String()
	c.IssuedAt, c.NotBefore, c.ExpiresAt = jwt.NewNumericDate(now), jwt.NewNumericDate(now), jwt.NewNumericDate(now.Add(ttl))
	if c.Access == nil {
		c.Access = []Access{}
	}
	var method jwt.SigningMethod = jwt.SigningMethodEdDSA
	if key.Alg == ES256 {
		method = jwt.SigningMethodES256
	}
	t := jwt.NewWithClaims(method, &c)
	t.Header["kid"] = key.KID
	text, err := t.SignedString(key.private)
	if err != nil {
		return "", fmt.Errorf("sign token: %w", err)
	}
	return text, nil
}
