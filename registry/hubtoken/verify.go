package hubtoken

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/golang-jwt/jwt/v5"
	lru "github.com/hashicorp/golang-lru/v2"
)

// maxTokenBytes bounds a compact token before anything is decoded.
const maxTokenBytes = 64 << 10

// Config is for NewVerifier. Exactly one of JWKSURL and KeySet is set.
type Config struct {
	// JWKSURL is where the token service publishes its keys, such as https://hub.example/.well-known/jwks.json.
	JWKSURL string
	// KeySet holds the keys in the token service's own process.
	KeySet KeySet
	// Issuer must be the token's iss.
	Issuer string
	// HTTPClient fetches the keys; nil is a client with a 5 s limit. Its time limit bounds Verify.
	HTTPClient *http.Client
	// Refetch is the least time between two fetches of the keys; 0 is 2 s.
	Refetch time.Duration
	// MaxAge is the age of fetched keys at which they are fetched anew, so that retired ones go; 0 is 5 min.
	MaxAge time.Duration
	// Now is the clock; nil is time.Now.
	Now func() time.Time
}

// keyFinder finds a key, fetching where it must. The error says that the keys could not be had.
type keyFinder interface {
	find(ctx context.Context, kid string) (key PublicKey, ok bool, err error)
}

type localKeys struct{ set KeySet }

func (l localKeys) find(_ context.Context, kid string) (PublicKey, bool, error) {
	k, ok := l.set.Lookup(kid)
	return k, ok, nil
}

// maxVerified bounds how many verified tokens are remembered, about 1 KiB each.
const maxVerified = 4096

// verifier remembers tokens that were found good, by their hash and audience, until they expire or their key is retired: a
// signature costs more than most of what is asked with it.
type verifier struct {
	keys     keyFinder
	issuer   string
	now      func() time.Time
	verified *lru.Cache[verifiedKey, verifiedToken]
}

type verifiedKey struct {
	hash     [sha256.Size]byte
	audience string
}

type verifiedToken struct {
	claims *Claims
	kid    string
}

// NewVerifier makes a Verifier. It makes no call itself: keys are fetched when the first token comes, kept, fetched
// again for an unknown key id at most every Refetch, and served from memory while the URL does not answer.
func NewVerifier(cfg Config) (Verifier, error) {
	if (cfg.JWKSURL == "") == (cfg.KeySet == nil) {
		return nil, errors.New("token verifier: one of the key URL and the key set is needed")
	}
	if cfg.Issuer == "" {
		return nil, errors.New("token verifier: the issuer is needed")
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	verified, err := lru.New[verifiedKey, verifiedToken](maxVerified)
	if err != nil {
		return nil, fmt.Errorf("token verifier: %w", err)
	}
	v := &verifier{issuer: cfg.Issuer, now: cfg.Now, verified: verified}
	if cfg.KeySet != nil {
		v.keys = localKeys{cfg.KeySet}
		return v, nil
	}
	if cfg.HTTPClient == nil {
		cfg.HTTPClient = &http.Client{Timeout: 5 * time.Second}
	}
	v.keys = &remoteKeys{url: cfg.JWKSURL, client: cfg.HTTPClient, now: cfg.Now, turn: make(chan struct{}, 1),
		refetch: cmp.Or(cfg.Refetch, 2*time.Second), maxAge: cmp.Or(cfg.MaxAge, 5*time.Minute)}
	return v, nil
}

func invalid(reason string) error { return fmt.Errorf("%w: %s", ErrInvalidToken, reason) }

// Verify implements Verifier. The claims are shared: callers do not change them.
func (v *verifier) Verify(ctx context.Context, token, audience string) (*Claims, error) {
	if len(token) > maxTokenBytes {
		return nil, invalid("too long")
	}
	if audience == "" {
		return nil, errors.New("verify token: no audience to expect")
	}
	id := verifiedKey{sha256.Sum256([]byte(token)), audience}
	known, again := v.verified.Get(id)
	if again && !v.now().Before(known.claims.ExpiresAt.Time) {
		v.verified.Remove(id)
		again = false
	}
	kid := known.kid
	if !again {
		var err error
		if kid, err = peekKID(token); err != nil {
			return nil, err
		}
	}
	key, ok, err := v.keys.find(ctx, kid)
	if err != nil {
		return nil, fmt.Errorf("verify token: %w", err)
	}
	if !ok {
		return nil, invalid("of an unknown key")
	}
	if again {
		return known.claims, nil
	}
	var c Claims
	// The method is the key's own: the token's header has no say in it (RFC 8725, section 3.1).
	_, err = jwt.ParseWithClaims(token, &c, func(*jwt.Token) (any, error) { return key.Key, nil },
		jwt.WithValidMethods([]string{string(key.Alg)}), jwt.WithIssuer(v.issuer), jwt.WithAudience(audience),
		jwt.WithExpirationRequired(), jwt.WithIssuedAt(), jwt.WithLeeway(leeway), jwt.WithTimeFunc(v.now),
		jwt.WithStrictDecoding())
	if err != nil {
		return nil, invalid(reason(err))
	}
	v.verified.Add(id, verifiedToken{claims: &c, kid: kid})
	return &c, nil
}

// peekKID reads the protected header, before the signature is checked, for the key id alone.
func peekKID(token string) (string, error) {
	header, rest, ok := cutDot(token)
	if !ok {
		return "", invalid("malformed")
	}
	if _, sig, ok := cutDot(rest); !ok || sig == "" {
		return "", invalid("malformed")
	}
	text, err := unb64(header)
	if err != nil {
		return "", invalid("malformed")
	}
	var h struct {
		Kid  string          `json:"kid"`
		Crit json.RawMessage `json:"crit"`
	}
	if json.Unmarshal(text, &h) != nil {
		return "", invalid("malformed")
	}
	if h.Crit != nil {
		return "", invalid("it has critical headers") // RFC 7515, section 4.1.11: none is understood here
	}
	if h.Kid == "" || len(h.Kid) > 256 {
		return "", invalid("it names no key")
	}
	return h.Kid, nil
}

func cutDot(s string) (before, after string, ok bool) {
	for i := range len(s) {
		if s[i] == '.' {
			return s[:i], s[i+1:], true
		}
	}
	return "", "", false
}

// reason puts the library's error into words that never quote the token.
func reason(err error) string {
	switch {
	case errors.Is(err, jwt.ErrTokenMalformed):
		return "malformed"
	case errors.Is(err, jwt.ErrTokenSignatureInvalid), errors.Is(err, jwt.ErrTokenUnverifiable):
		return "the signature is wrong"
	case errors.Is(err, jwt.ErrTokenExpired):
		return "expired"
	case errors.Is(err, jwt.ErrTokenNotValidYet), errors.Is(err, jwt.ErrTokenUsedBeforeIssued):
		return "not valid yet"
	case errors.Is(err, jwt.ErrTokenInvalidAudience):
		return "for another service"
	case errors.Is(err, jwt.ErrTokenInvalidIssuer):
		return "from another issuer"
	default:
		return "a claim is missing or wrong"
	}
}
