// Package session keeps who the command line is logged in as, and turns that into tokens for each service.
//
// It stores a revocable refresh token, never a password, in a file that only its owner can read.
package session

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"cumulet.io/internal/problem"
	"cumulet.io/registry/hubtoken"
)

// Endpoints are the base URLs of a platform's services, as its discovery document tells them.
type Endpoints struct {
	Registry string `json:"registry"`
	Control  string `json:"control"`
	Logs     string `json:"logs"`
	Billing  string `json:"billing"`
}

// Session is a login.
type Session struct {
	Endpoints Endpoints `json:"endpoints"`
	User      string    `json:"user"`
	Org       string    `json:"org"`
	// RefreshToken gets hubtokens until it is revoked.
	RefreshToken string `json:"refreshToken"`

	mu     sync.Mutex
	tokens map[string]token
}

type token struct {
	value   string
	expires time.Time
}

// DefaultPath is where a session is kept: $CIS_CONFIG, or cumulet/session.json in the user's configuration directory.
func DefaultPath() (string, error) {
	if p := os.Getenv("CIS_CONFIG"); p != "" {
		return p, nil
	}
	dir, err := os.UserConfigDir()
	if err != nil {
		return "", fmt.Errorf("find the configuration directory: %w; set CIS_CONFIG", err)
	}
	return filepath.Join(dir, "cumulet", "session.json"), nil
}

// Load reads the session at path.
func Load(path string) (*Session, error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, errors.New("not logged in; run: cis login URL")
	}
	if err != nil {
		return nil, fmt.Errorf("read session: %w", err)
	}
	s := &Session{}
	if err := json.Unmarshal(data, s); err != nil {
		return nil, fmt.Errorf("read session %s: %w; log in again", path, err)
	}
	return s, nil
}

// Save writes the session to path, readable by its owner alone, atomically.
func (s *Session) Save(path string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fmt.Errorf("save session: %w", err)
	}
	data, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return fmt.Errorf("save session: %w", err)
	}
	tmp := fmt.Sprintf("%s.%d", path, os.Getpid())
	if err := os.WriteFile(tmp, data, 0o600); err != nil {
		return fmt.Errorf("save session: %w", err)
	}
	if err := os.Rename(tmp, path); err != nil {
		return fmt.Errorf("save session: %w", err)
	}
	return nil
}

// Discover asks the control service at server where the other services are.
func Discover(ctx context.Context, server string) (Endpoints, error) {
	var e Endpoints
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, strings.TrimRight(server, "/")+"/v1/discovery", nil)
	if err != nil {
		return e, fmt.Errorf("discover %s: %w", server, err)
	}
	if err := do(req, &e); err != nil {
		return e, fmt.Errorf("discover %s: %w", server, err)
	}
	return e, nil
}

// Login exchanges user and password for a session.
func Login(ctx context.Context, e Endpoints, user, password, org string) (*Session, error) {
	s := &Session{Endpoints: e, User: user, Org: org}
	form := url.Values{"grant_type": {"password"}, "access_type": {"offline"}, "username": {user}, "password": {password}}
	if _, err := s.grant(ctx, hubtoken.AudienceCIS, "", form); err != nil {
		return nil, fmt.Errorf("log in as %s: %w", user, err)
	}
	if s.RefreshToken == "" {
		return nil, errors.New("log in: the token service gave no refresh token")
	}
	return s, nil
}

// Source gives tokens for one service, of the session's org; scopes, each "type:name:action,action", are asked for
// besides.
func (s *Session) Source(audience string, scopes ...string) hubtoken.Source {
	return source{s, audience, strings.Join(scopes, " ")}
}

type source struct {
	s        *Session
	audience string
	scopes   string
}

// Token implements hubtoken.Source.
func (c source) Token(ctx context.Context) (string, error) {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	if t, ok := c.s.tokens[c.audience+" "+c.scopes]; ok && time.Until(t.expires) > 15*time.Second {
		return t.value, nil
	}
	t, err := c.s.grant(ctx, c.audience, c.scopes, url.Values{"grant_type": {"refresh_token"}, "refresh_token": {c.s.RefreshToken}})
	if err != nil {
		if errors.Is(err, problem.ErrInvalid) || errors.Is(err, problem.ErrUnauthenticated) {
			return "", fmt.Errorf("the login is no longer valid (%w); run: cis login", err)
		}
		return "", err
	}
	return t, nil
}

// grant asks the token service (Docker token specification, OAuth2) and keeps what it gives.
func (s *Session) grant(ctx context.Context, audience, scopes string, form url.Values) (string, error) {
	form.Set("service", audience)
	form.Set("client_id", "cis")
	form.Set("scope", strings.TrimSpace("org:"+s.Org+":read,write,admin "+scopes))
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, s.Endpoints.Registry+"/token", strings.NewReader(form.Encode()))
	if err != nil {
		return "", fmt.Errorf("ask for a token: %w", err)
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	var out struct {
		AccessToken  string `json:"access_token"`
		Token        string `json:"token"`
		ExpiresIn    int    `json:"expires_in"`
		RefreshToken string `json:"refresh_token"`
	}
	if err := do(req, &out); err != nil {
		return "", err
	}
	if out.AccessToken == "" {
		out.AccessToken = out.Token
	}
	if out.RefreshToken != "" {
		s.RefreshToken = out.RefreshToken
	}
	if s.tokens == nil {
		s.tokens = map[string]token{}
	}
	s.tokens[audience+" "+scopes] = token{out.AccessToken, time.Now().Add(time.Duration(out.ExpiresIn) * time.Second)}
	return out.AccessToken, nil
}

func do(req *http.Request, out any) error {
	client := &http.Client{Timeout: 20 * time.Second}
	resp, err := client.Do(req)
	if err != nil {
		return fmt.Errorf("%s: %w", req.URL.Host, errors.Unwrap(err))
	}
	defer func() { _ = resp.Body.Close() }() //nolint:errcheck // read to its end or given up
	if resp.StatusCode >= http.StatusBadRequest {
		return refusal(resp)
	}
	if out == nil {
		return nil
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, 1<<20)).Decode(out); err != nil {
		return fmt.Errorf("%s: the answer is not understood: %w", req.URL.Host, err)
	}
	return nil
}
