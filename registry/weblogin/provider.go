package weblogin

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/url"
	"regexp"
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

// Provider is an OpenID provider and what is done with the people whom it knows.
type Provider struct {
	// Name is what people call it, as "corp"; it is part of its redirect URL.
	Name string
	// Issuer is its URL; /.well-known/openid-configuration below it tells the rest.
	Issuer string
	// ClientID and ClientSecret are this registry's at the provider. The redirect URL to enter there is the registry's
	// URL and /login/callback/NAME.
	ClientID, ClientSecret string
	// Scopes are asked for beside openid; nil is profile and email.
	Scopes []string
	// UsernameClaim names new accounts; "" is preferred_username. Of an email address the part before the @ is taken.
	UsernameClaim string
	// AccountPrefix begins the names of new accounts, and none of another provider's: by it they tell where they are from.
	AccountPrefix string
	// SignUp makes an account for who has none. Otherwise an identity has to be linked by its person first.
	SignUp bool
	// EmailDomains, unless empty, are those of which a verified email address is needed to sign up.
	EmailDomains []string
	// SignUpOrg is the org that new accounts become members of, with SignUpRole; "" is none.
	SignUpOrg  string
	SignUpRole registry.Role
	// GroupsClaim has a person's groups, a list of names or one; "" asks for none. Groups says what they give.
	GroupsClaim string
	Groups      []Group
}

// Group is what a group of the provider gives here.
type Group struct {
	// Name is the group's, as the claim has it.
	Name string
	directory.GroupRight
}

// namePattern is of a provider's name, which stands in URLs.
var namePattern = regexp.MustCompile(`^[a-z0-9](?:[a-z0-9-]{0,30}[a-z0-9])?$`)

// prefixPattern is of what an account's name may begin with.
var prefixPattern = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,30}$`)

// check fills in defaults and tells what cannot work.
func (p *Provider) check() error {
	issuer, err := url.Parse(p.Issuer)
	if err != nil || issuer.Host == "" || issuer.Scheme != "https" && issuer.Scheme != "http" || issuer.User != nil {
		return errors.New("the issuer must be an http or https URL")
	}
	if !namePattern.MatchString(p.Name) {
		return fmt.Errorf("the name must be 1 to 32 of a-z, 0-9 and -, not %q", p.Name)
	}
	if p.ClientID == "" {
		return errors.New("a client id is needed")
	}
	if p.AccountPrefix != "" && !prefixPattern.MatchString(p.AccountPrefix) {
		return fmt.Errorf("the prefix of accounts must be 1 to 31 of a-z, 0-9 and . _ -, not %q", p.AccountPrefix)
	}
	if p.SignUpOrg != "" {
		if p.SignUpRole = cmp.Or(p.SignUpRole, registry.RoleReader); !p.SignUpRole.Valid() || p.SignUpRole == registry.RoleOwner {
			return fmt.Errorf("new people may become admin, writer or reader, not %q", p.SignUpRole)
		}
	}
	if len(p.Groups) > 0 && p.GroupsClaim == "" {
		return errors.New("groups need the claim that has them")
	}
	for i := range p.Groups {
		g := &p.Groups[i]
		if g.Role = cmp.Or(g.Role, registry.RoleReader); !g.Role.Valid() || g.Role == registry.RoleOwner {
			return fmt.Errorf("the group %q may give admin, writer or reader, not %q", g.Name, g.Role)
		}
		if g.Name == "" || g.Org == "" {
			return errors.New("a group needs its name and an org")
		}
	}
	if p.Scopes == nil {
		p.Scopes = []string{"profile", "email"}
	}
	p.UsernameClaim = cmp.Or(p.UsernameClaim, "preferred_username")
	return nil
}

// Check tells what of the providers cannot work. Each has a name and an issuer of its own, and of those that sign people
// up all but one a prefix, of which none begins another.
func Check(list []Provider) error {
	for _, p := range list {
		p.Groups = slices.Clone(p.Groups)
		if err := p.check(); err != nil {
			return fmt.Errorf("provider %q: %w", p.Name, err)
		}
	}
	plain := ""
	for i, p := range list {
		for _, q := range list[:i] {
			if p.Name == q.Name || p.Issuer == q.Issuer {
				return fmt.Errorf("providers %q and %q must differ in name and issuer", q.Name, p.Name)
			}
			if p.AccountPrefix != "" && q.AccountPrefix != "" && (strings.HasPrefix(p.AccountPrefix, q.AccountPrefix) || strings.HasPrefix(q.AccountPrefix, p.AccountPrefix)) {
				return fmt.Errorf("accounts of %q and %q must begin otherwise: %q and %q", q.Name, p.Name, q.AccountPrefix, p.AccountPrefix)
			}
		}
		if p.SignUp && p.AccountPrefix == "" {
			if plain != "" {
				return fmt.Errorf("accounts of %q or of %q need a prefix, so that their names tell where they are from", plain, p.Name)
			}
			plain = p.Name
		}
	}
	return nil
}

// client is this registry at a provider. Safe for concurrent use.
type client struct {
	Provider
	s *Service

	mu      sync.Mutex
	found   *oidc.Provider
	iss     bool // the provider always tells itself in its answers (RFC 9207)
	retry   time.Time
	lastErr error
}

// discover gives the provider, asking it once.
func (c *client) discover(ctx context.Context) (*oidc.Provider, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.found != nil {
		return c.found, nil
	}
	if time.Now().Before(c.retry) {
		return nil, c.lastErr
	}
	// What is made here outlives the request: it fetches the provider's keys.
	p, err := oidc.NewProvider(oidc.ClientContext(context.WithoutCancel(ctx), c.s.cfg.HTTPClient), c.Issuer)
	var more struct {
		Iss bool `json:"authorization_response_iss_parameter_supported"`
	}
	if err == nil {
		err = p.Claims(&more)
	}
	if err != nil {
		c.s.cfg.Logger.ErrorContext(ctx, "the OpenID provider cannot be asked", "provider", c.Name, "issuer", c.Issuer, "error", err)
		c.lastErr = problem.New(problem.ErrUnavailable, "the OpenID provider cannot be reached now: try again")
		c.retry = time.Now().Add(discoverAgain)
		return nil, c.lastErr
	}
	c.found, c.iss = p, more.Iss
	return p, nil
}

func (c *client) oauth(p *oidc.Provider) *oauth2.Config {
	return &oauth2.Config{ClientID: c.ClientID, ClientSecret: c.ClientSecret, Endpoint: p.Endpoint(),
		RedirectURL: c.s.cfg.PublicURL + callbackPath + c.Name, Scopes: append([]string{oidc.ScopeOpenID}, c.Scopes...)}
}

// claims are what is read of an ID token or of the provider's answer about a person.
type claims struct {
	Email         string `json:"email"`
	EmailVerified truth  `json:"email_verified"`
	username      string
	// groups are what the claim says; nil when it is not there. elsewhere: they are too many for it.
	groups    []string
	elsewhere bool
}

// truth is true, also as the text that some providers make of it; anything else is false.
type truth bool

// UnmarshalJSON implements json.Unmarshaler.
func (t *truth) UnmarshalJSON(text []byte) error {
	*t = string(text) == "true" || string(text) == `"true"`
	return nil
}

// identify exchanges the provider's code for a verified identity (OpenID Connect Core 1.0, section 3.1.3.7). It is the
// issuer's own: neither an ID token nor a code of another provider passes.
func (c *client) identify(ctx context.Context, code string, b *directory.BrowserLogin) (*registry.Identity, *claims, error) {
	p, err := c.discover(ctx)
	if err != nil {
		return nil, nil, err
	}
	ctx = oidc.ClientContext(ctx, c.s.cfg.HTTPClient)
	token, err := c.oauth(p).Exchange(ctx, code, oauth2.VerifierOption(b.Verifier))
	if err != nil {
		return nil, nil, c.refused(ctx, "the provider does not confirm the login", err)
	}
	raw, ok := token.Extra("id_token").(string)
	if !ok {
		return nil, nil, c.refused(ctx, "the provider gave no ID token", nil)
	}
	id, err := p.Verifier(&oidc.Config{ClientID: c.ClientID}).Verify(ctx, raw)
	if err != nil {
		return nil, nil, c.refused(ctx, "the provider's ID token is not valid", err)
	}
	if id.Nonce == "" || id.Nonce != b.Nonce {
		return nil, nil, c.refused(ctx, "the provider's ID token is of another login", nil)
	}
	said, err := c.claimsOf(id.Claims)
	if err != nil {
		return nil, nil, c.refused(ctx, "the provider's ID token is not understood", err)
	}
	if said.username == "" || said.Email == "" || c.GroupsClaim != "" && said.groups == nil && !said.elsewhere {
		// Providers may tell these on request alone (section 5.4).
		info, err := p.UserInfo(ctx, oauth2.StaticTokenSource(token))
		if err != nil || info.Subject != id.Subject {
			return nil, nil, c.refused(ctx, "the provider does not tell who it is", err)
		}
		more, err := c.claimsOf(info.Claims)
		if err != nil {
			return nil, nil, c.refused(ctx, "the provider's answer about the person is not understood", err)
		}
		said.username = cmp.Or(said.username, more.username)
		if said.Email == "" {
			said.Email, said.EmailVerified = more.Email, more.EmailVerified
		}
		if said.groups == nil {
			said.groups, said.elsewhere = more.groups, more.elsewhere
		}
	}
	return &registry.Identity{Provider: c.Name, Issuer: c.Issuer, Subject: id.Subject, Email: said.Email}, said, nil
}

func (c *client) claimsOf(read func(any) error) (*claims, error) {
	said := &claims{}
	named := map[string]any{}
	if err := errors.Join(read(said), read(&named)); err != nil {
		return nil, err
	}
	said.username, _ = named[c.UsernameClaim].(string)
	if c.GroupsClaim == "" {
		return said, nil
	}
	switch groups := named[c.GroupsClaim].(type) {
	case string:
		said.groups = []string{groups}
	case []any:
		said.groups = []string{}
		for _, g := range groups {
			if name, ok := g.(string); ok {
				said.groups = append(said.groups, name)
			}
		}
	case nil:
		// Claims that are kept elsewhere (section 5.6.2), as some providers do with more than 200 groups.
		names, _ := named["_claim_names"].(map[string]any)
		_, said.elsewhere = names[c.GroupsClaim]
	}
	return said, nil
}

// refused logs the cause and gives what the person may know.
func (c *client) refused(ctx context.Context, why string, err error) error {
	c.s.cfg.Logger.WarnContext(ctx, "a login by browser failed", "provider", c.Name, "reason", why, "error", err)
	return problem.New(problem.ErrUnauthenticated, "%s", why)
}

// setGroups gives an identity's account what its groups give. Who has no groups, or whose provider tells of none, has
// what groups gave before no more.
func (c *client) setGroups(ctx context.Context, i registry.Identity, said *claims) error {
	if c.GroupsClaim == "" {
		return nil
	}
	if said.elsewhere {
		c.s.cfg.Logger.WarnContext(ctx, "the provider does not tell a person's groups, which are too many: what they gave stays", "provider", c.Name, "account", i.Account)
		return nil
	}
	var rights []directory.GroupRight
	for _, g := range c.Groups {
		if slices.Contains(said.groups, g.Name) {
			rights = append(rights, g.GroupRight)
		}
	}
	missing, err := c.s.cfg.Directory.SetGroups(ctx, i, rights)
	if len(missing) > 0 {
		c.s.cfg.Logger.WarnContext(ctx, "groups name what is not here", "provider", c.Name, "missing", missing)
	}
	return err
}
