package hubtoken

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"sync"
	"time"

	"golang.org/x/sync/singleflight"

	"cumulet.io/internal/problem"
)

// PasswordConfig is for NewPasswordSource.
type PasswordConfig struct {
	// Realm is the token service's URL, such as https://hub.example/token.
	Realm string
	// Service decides the audience: the registry's host name, or cis, logs, billing.
	Service string
	// Scopes is the access asked for, each "type:name:action,action".
	Scopes []string
	// Username and Password log in; ReadPassword, when set, is asked instead of Password each time, so that a
	// password file may be replaced under a running process.
	Username     string
	Password     string
	ReadPassword func() (string, error)
	// HTTPClient makes the request; nil is a client with a 10 s limit.
	HTTPClient *http.Client
	// Now is the clock; nil is time.Now.
	Now func() time.Time
}

type passwordSource struct {
	cfg    PasswordConfig
	flight singleflight.Group

	mu      sync.Mutex
	token   string
	renew   time.Time // from here on a new one is asked for
	expires time.Time
}

// NewPasswordSource gives a Source that logs in at the token service with user name and password. It asks anew when a
// fifth of the token's life is left, once for all callers; while the service does not answer, the token in hand is
// given out until it expires. An error for bad credentials is of class problem.ErrUnauthenticated.
func NewPasswordSource(cfg PasswordConfig) (Source, error) {
	if u, err := url.Parse(cfg.Realm); err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" || u.User != nil {
		return nil, errors.New("token source: the realm must be an http or https URL without user")
	}
	if cfg.Username == "" || cfg.Service == "" {
		return nil, errors.New("token source: user name and service are needed")
	}
	if cfg.HTTPClient == nil {
		cfg.HTTPClient = &http.Client{Timeout: 10 * time.Second}
	}
	if cfg.ReadPassword == nil {
		password := cfg.Password
		cfg.ReadPassword = func() (string, error) { return password, nil }
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &passwordSource{cfg: cfg}, nil
}

// Token implements Source.
func (s *passwordSource) Token(ctx context.Context) (string, error) {
	token, fresh, alive := s.inHand()
	if fresh {
		return token, nil
	}
	// The call outlives the caller that happens to lead it: others wait for its answer.
	done := s.flight.DoChan("", func() (any, error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 15*time.Second)
		defer cancel()
		if token, fresh, _ := s.inHand(); fresh {
			return token, nil // another call has ended between the look above and this one
		}
		return s.login(ctx)
	})
	select {
	case r := <-done:
		if r.Err != nil {
			if alive && !errors.Is(r.Err, problem.ErrUnauthenticated) {
				return token, nil
			}
			return "", r.Err
		}
		return r.Val.(string), nil //nolint:forcetypeassert // login's own
	case <-ctx.Done():
		return "", fmt.Errorf("get token: %w", ctx.Err())
	}
}

// inHand gives the last token, whether it need not be renewed yet, and whether it is still good.
func (s *passwordSource) inHand() (token string, fresh, alive bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.cfg.Now()
	return s.token, now.Before(s.renew), now.Before(s.expires)
}

// TokenResponse is the token service's answer (Docker token specification, "Token Response Fields").
type TokenResponse struct {
	// Token and AccessToken are the same hubtoken under the names of two generations of clients.
	Token       string `json:"token"`
	AccessToken string `json:"access_token"`
	// ExpiresIn is the token's life in seconds.
	ExpiresIn int `json:"expires_in"`
	// IssuedAt is when its life began, UTC.
	IssuedAt time.Time `json:"issued_at"`
	// RefreshToken gets further tokens for the same user; only when it was asked for.
	RefreshToken string `json:"refresh_token,omitempty"`
	// Scope is what was granted, in answers to OAuth2 requests.
	Scope string `json:"scope,omitempty"`
}

func (s *passwordSource) login(ctx context.Context) (string, error) {
	password, err := s.cfg.ReadPassword()
	if err != nil {
		return "", fmt.Errorf("get token: password: %w", err)
	}
	u, err := url.Parse(s.cfg.Realm)
	if err != nil {
		return "", fmt.Errorf("get token: %w", err)
	}
	q := u.Query()
	q.Set("service", s.cfg.Service)
	for _, scope := range s.cfg.Scopes {
		q.Add("scope", scope)
	}
	u.RawQuery = q.Encode()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return "", fmt.Errorf("get token: %w", err)
	}
	req.SetBasicAuth(s.cfg.Username, password)
	asked := s.cfg.Now()
	resp, err := s.cfg.HTTPClient.Do(req)
	if err != nil {
		return "", fmt.Errorf("get token: %w", err)
	}
	defer resp.Body.Close() //nolint:errcheck // read only
	if resp.StatusCode != http.StatusOK {
		return "", fmt.Errorf("get token: %w", problem.Read(resp))
	}
	var answer TokenResponse
	if json.NewDecoder(io.LimitReader(resp.Body, 1<<20)).Decode(&answer) != nil {
		return "", errors.New("get token: the answer is not a token response")
	}
	if answer.Token == "" {
		answer.Token = answer.AccessToken
	}
	if answer.Token == "" {
		return "", errors.New("get token: the answer holds no token")
	}
	life := time.Duration(answer.ExpiresIn) * time.Second
	if life <= 0 {
		life = time.Minute // what the specification says to assume
	}
	life = min(life, MaxTTL)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.token, s.renew, s.expires = answer.Token, asked.Add(life*4/5), asked.Add(life)
	return s.token, nil
}
