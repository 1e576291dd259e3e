// Package weblogin lets people log in with OpenID providers: the command line begins a login (RFC 8628), the person
// finishes it in any browser, where the provider says who they are (OpenID Connect, authorization code with PKCE), the
// identity leads to an account, and the groups there give roles and teams.
//
// It makes no tokens: the token service takes the device code of a finished login. Where logins and identities are kept
// is the Directory's.
package weblogin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"time"

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
	SetGroups(ctx context.Context, i registry.Identity, rights []directory.GroupRight) (missing []string, err error)
	Account(ctx context.Context, name string) (*registry.Account, error)
}

// Config is for New. Directory, Providers and PublicURL are required.
type Config struct {
	Directory Directory
	Providers []Provider
	// PublicURL is the registry's as browsers reach it, without path.
	PublicURL string
	// Auditor is told of refused logins; nil is nobody.
	Auditor registry.Auditor
	// HTTPClient talks to the providers; nil is a client with a 10 s limit.
	HTTPClient *http.Client
	// Logger is for what goes wrong; nil is slog.Default.
	Logger *slog.Logger
}

// Service serves logins by browser. Safe for concurrent use.
type Service struct {
	cfg Config
	// sameOrigin lets no page of another site make a browser confirm a code.
	sameOrigin *http.CrossOriginProtection
	// clients are in the order of the configuration.
	clients []*client
}

// callbackPath and its name are where a provider sends browsers back to. Each has a path of its own, so that none can
// give out an answer as another's (RFC 9700, section 4.4.2).
const callbackPath = "/login/callback/"

// discoverAgain is how long after a failed discovery the next is tried.
const discoverAgain = 2 * time.Second

// New makes a service. It does not connect: the provider is asked for its configuration at the first login.
func New(cfg Config) (*Service, error) {
	if cfg.Directory == nil || len(cfg.Providers) == 0 || cfg.PublicURL == "" {
		return nil, errors.New("logins by browser: directory, providers and public URL are needed")
	}
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
	if err := Check(cfg.Providers); err != nil {
		return nil, fmt.Errorf("logins by browser: %w", err)
	}
	s := &Service{cfg: cfg, sameOrigin: own}
	for _, p := range cfg.Providers {
		p.Groups = slices.Clone(p.Groups)
		if err := p.check(); err != nil { // it fills in the defaults
			return nil, err
		}
		s.clients = append(s.clients, &client{Provider: p, s: s})
	}
	return s, nil
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

// ProviderName tells whose an issuer's identities are, "" when it is none of the configuration.
func (s *Service) ProviderName(issuer string) string {
	for _, c := range s.clients {
		if c.Issuer == issuer {
			return c.Name
		}
	}
	return ""
}

// client gives the provider of a name, nil when there is none.
func (s *Service) client(name string) *client {
	for _, c := range s.clients {
		if c.Name == name {
			return c
		}
	}
	return nil
}

// account leads an identity to an account: the one that it is linked to, or a new one.
func (c *client) account(ctx context.Context, i *registry.Identity, said *claims) (string, error) {
	known, err := c.s.cfg.Directory.Identity(ctx, i.Issuer, i.Subject)
	if err == nil {
		a, err := c.s.cfg.Directory.Account(ctx, known.Account)
		if err == nil && a.Disabled {
			err = problem.New(problem.ErrUnauthenticated, "the account %q is disabled", a.Name)
		}
		return known.Account, err
	}
	if !errors.Is(err, problem.ErrNotFound) {
		return "", err
	}
	if !c.SignUp {
		return "", problem.New(problem.ErrUnauthenticated,
			"you have no account here yet: if you have a password, log in with it and link this identity (cis account link), or ask your administrator")
	}
	if domains := c.EmailDomains; len(domains) > 0 {
		_, domain, _ := strings.Cut(said.Email, "@")
		if !bool(said.EmailVerified) || !slices.Contains(domains, strings.ToLower(domain)) {
			return "", problem.New(problem.ErrUnauthenticated, "signing up needs a verified email address of %s", strings.Join(domains, ", "))
		}
	}
	if i.Account, err = c.accountName(said.username); err != nil {
		return "", err
	}
	err = c.s.cfg.Directory.SignUp(ctx, *i, c.SignUpOrg, c.SignUpRole)
	if errors.Is(err, problem.ErrConflict) {
		// Never taken over: it may be another person's.
		return "", problem.New(problem.ErrUnauthenticated, "the account name %q is taken: if it is yours, log in with its password and link this identity (cis account link)", i.Account)
	}
	return i.Account, err
}

// accountName makes a new account's name of what the provider says.
func (c *client) accountName(username string) (string, error) {
	name := accountName(username)
	if name != "" && c.AccountPrefix != "" {
		name = accountName(c.AccountPrefix + name)
	}
	if err := registry.ValidateAccount("", name); err != nil {
		return "", problem.New(problem.ErrUnauthenticated, "the provider's %s %q makes no account name: ask your administrator", c.UsernameClaim, username)
	}
	for _, other := range c.s.clients {
		if other != c && other.AccountPrefix != "" && strings.HasPrefix(name, other.AccountPrefix) {
			return "", problem.New(problem.ErrUnauthenticated, "account names that begin with %q are of the provider %s alone: ask your administrator", other.AccountPrefix, other.Name)
		}
	}
	return name, nil
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
