// Package weblogin lets people log in with an OpenID provider: the command line begins a login (RFC 8628), the person
// finishes it in any browser, where the provider says who they are (OpenID Connect, authorization code with PKCE), and
// the identity leads to an account.
//
// It makes no tokens: the token service takes the device code of a finished login. Where logins and identities are kept
// is the Directory's.
package weblogin

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"golang.org/x/oauth2"

	"cumulet.io/internal/problem"
	"cumulet.io/registry"
	"cumulet.io/registry/directory"
)

// Directory keeps logins under way and identities; see directory.Store, whose it is. Safe for concurrent use.
type Directory interface {
	NewDeviceLogin(ctx context.Context, link string) (*directory.DeviceLogin, error)
	DeviceLink(ctx context.Context, code string) (link string, err error)
	BeginBrowser(ctx context.Context, code, browser, state string, b directory.BrowserLogin) error
	EndBrowser(ctx context.Context, browser, state string) (*directory.BrowserLogin, error)
	FinishDevice(ctx context.Context, b *directory.BrowserLogin, account string) error
	Identity(ctx context.Context, issuer, subject string) (*registry.Identity, error)
	LinkIdentity(ctx context.Context, i registry.Identity) error
	SignUp(ctx context.Context, i registry.Identity, org string, role registry.Role) error
	Account(ctx context.Context, name string) (*registry.Account, error)
}

// Provider is an OpenID provider and what is done with the people whom it knows.
type Provider struct {
	// Issuer is its URL; /.well-known/openid-configuration below it tells the rest.
	Issuer string
	// ClientID and ClientSecret are this registry's at the provider. The redirect URL to enter there is the registry's
	// URL and /login/callback.
	ClientID, ClientSecret string
	// Scopes are asked for beside openid; nil is profile and email.
	Scopes []string
	// UsernameClaim names new accounts; "" is preferred_username. Of an email address the part before the @ is taken.
	UsernameClaim string
	// SignUp makes an account for who has none. Otherwise an identity has to be linked by its person first.
	SignUp bool
	// EmailDomains, unless empty, are those of which a verified email address is needed to sign up.
	EmailDomains []string
	// SignUpOrg is the org that new accounts become members of, with SignUpRole; "" is none.
	SignUpOrg  string
	SignUpRole registry.Role
}

// Config is for New. Directory, Provider and PublicURL are required.
type Config struct {
	Directory Directory
	Provider  Provider
	// PublicURL is the registry's as browsers reach it, without path.
	PublicURL string
	// Auditor is told of refused logins; nil is nobody.
	Auditor registry.Auditor
	// HTTPClient talks to the provider; nil is a client with a 10 s limit.
	HTTPClient *http.Client
	// Logger is for what goes wrong; nil is slog.Default.
	Logger *slog.Logger
}

// Service serves logins by browser. Safe for concurrent use.
type Service struct {
	cfg Config
	// sameOrigin lets no page of another site make a browser confirm a code.
	sameOrigin *http.CrossOriginProtection

	mu       sync.Mutex
	provider *oidc.Provider
	retry    time.Time
	lastErr  error
}

// discoverAgain is how long after a failed discovery the next is tried.
const discoverAgain = 2 * time.Second

// New makes a service. It does not connect: the provider is asked for its configuration at the first login.
func New(cfg Config) (*Service, error) {
	p := &cfg.Provider
	issuer, err := url.Parse(p.Issuer)
	if err != nil || issuer.Host == "" || issuer.Scheme != "https" && issuer.Scheme != "http" || issuer.User != nil {
		return nil, errors.New("logins by browser: the issuer must be an http or https URL")
	}
	if cfg.Directory == nil || p.ClientID == "" || cfg.PublicURL == "" {
		return nil, errors.New("logins by browser: directory, client id and public URL are needed")
	}
	if p.SignUpOrg != "" {
		if p.SignUpRole = cmp.Or(p.SignUpRole, registry.RoleReader); !p.SignUpRole.Valid() || p.SignUpRole == registry.RoleOwner {
			return nil, fmt.Errorf("logins by browser: new people may become admin, writer or reader, not %q", p.SignUpRole)
		}
	}
	if p.Scopes == nil {
		p.Scopes = []string{"profile", "email"}
	}
	p.UsernameClaim = cmp.Or(p.UsernameClaim, "preferred_username")
	cfg.PublicURL = strings.TrimRight(cfg.PublicURL, "/")
	if cfg.HTTPClient == nil {
		cfg.HTTPClient = &http.Client{Timeout: 10 * time.Second}
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	own := http.NewCrossOriginProtection()
	if err := own.AddTrustedOrigin(cfg.PublicURL); err != nil { // the proxy in front may change the host
		return nil, fmt.Errorf("logins by browser: public URL: %w", err)
	}
	return &Service{cfg: cfg, sameOrigin: own}, nil
}

// Begin starts a login, or with link the linking of an identity to that account.
func (s *Service) Begin(ctx context.Context, link string) (*registry.DeviceAuthorization, error) {
	d, err := s.cfg.Directory.NewDeviceLogin(ctx, link)
	if err != nil {
		return nil, err
	}
	page := s.cfg.PublicURL + "/login"
	return &registry.DeviceAuthorization{DeviceCode: d.Device, UserCode: d.Code, VerificationURI: page,
		VerificationURIComplete: page + "?code=" + d.Code, ExpiresIn: int(directory.DeviceLife / time.Second),
		Interval: int(directory.DeviceInterval / time.Second)}, nil
}

// discover gives the provider, asking it once.
func (s *Service) discover(ctx context.Context) (*oidc.Provider, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.provider != nil {
		return s.provider, nil
	}
	if time.Now().Before(s.retry) {
		return nil, s.lastErr
	}
	// What is made here outlives the request: it fetches the provider's keys.
	p, err := oidc.NewProvider(oidc.ClientContext(context.WithoutCancel(ctx), s.cfg.HTTPClient), s.cfg.Provider.Issuer)
	if err != nil {
		s.cfg.Logger.ErrorContext(ctx, "the OpenID provider cannot be asked", "issuer", s.cfg.Provider.Issuer, "error", err)
		s.lastErr = problem.New(problem.ErrUnavailable, "the OpenID provider cannot be reached now: try again")
		s.retry = time.Now().Add(discoverAgain)
		return nil, s.lastErr
	}
	s.provider = p
	return p, nil
}

func (s *Service) oauth(p *oidc.Provider) *oauth2.Config {
	return &oauth2.Config{ClientID: s.cfg.Provider.ClientID, ClientSecret: s.cfg.Provider.ClientSecret, Endpoint: p.Endpoint(),
		RedirectURL: s.cfg.PublicURL + "/login/callback", Scopes: append([]string{oidc.ScopeOpenID}, s.cfg.Provider.Scopes...)}
}

// claims are what is read of an ID token or of the provider's answer about a person.
type claims struct {
	Email         string `json:"email"`
	EmailVerified truth  `json:"email_verified"`
	username      string
}

// truth is true, also as the text that some providers make of it; anything else is false.
type truth bool

// UnmarshalJSON implements json.Unmarshaler.
func (t *truth) UnmarshalJSON(text []byte) error {
	*t = string(text) == "true" || string(text) == `"true"`
	return nil
}

// identify exchanges the provider's code for a verified identity (OpenID Connect Core 1.0, section 3.1.3.7).
func (s *Service) identify(ctx context.Context, code string, b *directory.BrowserLogin) (*registry.Identity, *claims, error) {
	p, err := s.discover(ctx)
	if err != nil {
		return nil, nil, err
	}
	ctx = oidc.ClientContext(ctx, s.cfg.HTTPClient)
	token, err := s.oauth(p).Exchange(ctx, code, oauth2.VerifierOption(b.Verifier))
	if err != nil {
		return nil, nil, s.refused(ctx, "the provider does not confirm the login", err)
	}
	raw, ok := token.Extra("id_token").(string)
	if !ok {
		return nil, nil, s.refused(ctx, "the provider gave no ID token", nil)
	}
	id, err := p.Verifier(&oidc.Config{ClientID: s.cfg.Provider.ClientID}).Verify(ctx, raw)
	if err != nil {
		return nil, nil, s.refused(ctx, "the provider's ID token is not valid", err)
	}
	if id.Nonce == "" || id.Nonce != b.Nonce {
		return nil, nil, s.refused(ctx, "the provider's ID token is of another login", nil)
	}
	c, err := s.claimsOf(id.Claims)
	if err != nil {
		return nil, nil, s.refused(ctx, "the provider's ID token is not understood", err)
	}
	if c.username == "" || c.Email == "" {
		// Providers may tell these on request alone (section 5.4).
		info, err := p.UserInfo(ctx, oauth2.StaticTokenSource(token))
		if err != nil || info.Subject != id.Subject {
			return nil, nil, s.refused(ctx, "the provider does not tell who it is", err)
		}
		more, err := s.claimsOf(info.Claims)
		if err != nil {
			return nil, nil, s.refused(ctx, "the provider's answer about the person is not understood", err)
		}
		c.username = cmp.Or(c.username, more.username)
		if c.Email == "" {
			c.Email, c.EmailVerified = more.Email, more.EmailVerified
		}
	}
	return &registry.Identity{Issuer: id.Issuer, Subject: id.Subject, Email: c.Email}, c, nil
}

func (s *Service) claimsOf(read func(any) error) (*claims, error) {
	c := &claims{}
	named := map[string]any{}
	if err := errors.Join(read(c), read(&named)); err != nil {
		return nil, err
	}
	c.username, _ = named[s.cfg.Provider.UsernameClaim].(string)
	return c, nil
}

// refused logs the cause and gives what the person may know.
func (s *Service) refused(ctx context.Context, why string, err error) error {
	s.cfg.Logger.WarnContext(ctx, "a login by browser failed", "reason", why, "error", err)
	return problem.New(problem.ErrUnauthenticated, "%s", why)
}

// account leads an identity to an account: the one that it is linked to, or a new one.
func (s *Service) account(ctx context.Context, i *registry.Identity, c *claims) (string, error) {
	known, err := s.cfg.Directory.Identity(ctx, i.Issuer, i.Subject)
	if err == nil {
		a, err := s.cfg.Directory.Account(ctx, known.Account)
		if err == nil && a.Disabled {
			err = problem.New(problem.ErrUnauthenticated, "the account %q is disabled", a.Name)
		}
		return known.Account, err
	}
	if !errors.Is(err, problem.ErrNotFound) {
		return "", err
	}
	if !s.cfg.Provider.SignUp {
		return "", problem.New(problem.ErrUnauthenticated,
			"you have no account here yet: if you have a password, log in with it and link this identity (cis account link), or ask your administrator")
	}
	if domains := s.cfg.Provider.EmailDomains; len(domains) > 0 {
		_, domain, _ := strings.Cut(c.Email, "@")
		if !bool(c.EmailVerified) || !slices.Contains(domains, strings.ToLower(domain)) {
			return "", problem.New(problem.ErrUnauthenticated, "signing up needs a verified email address of %s", strings.Join(domains, ", "))
		}
	}
	i.Account = accountName(c.username)
	if err := registry.ValidateAccount("", i.Account); err != nil {
		return "", problem.New(problem.ErrUnauthenticated, "the provider's %s %q makes no account name: ask your administrator", s.cfg.Provider.UsernameClaim, c.username)
	}
	err = s.cfg.Directory.SignUp(ctx, *i, s.cfg.Provider.SignUpOrg, s.cfg.Provider.SignUpRole)
	if errors.Is(err, problem.ErrConflict) {
		// Never taken over: it may be another person's.
		return "", problem.New(problem.ErrUnauthenticated, "the account name %q is taken: if it is yours, log in with its password and link this identity (cis account link)", i.Account)
	}
	return i.Account, err
}

// accountName makes an account's name of a provider's.
func accountName(name string) string {
	name, _, _ = strings.Cut(strings.ToLower(name), "@")
	name = strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '.' || r == '_' || r == '-' {
			return r
		}
		return '-'
	}, name)
	return strings.Trim(name[:min(len(name), registry.MaxAccountLength)], "._-")
}

// WriteAuthorization answers with a login that has begun.
func WriteAuthorization(w http.ResponseWriter, d *registry.DeviceAuthorization) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	_ = json.NewEncoder(w).Encode(d) //nolint:errcheck // the client has gone
}
