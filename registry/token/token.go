// Package token is the token service: it turns a password, an offline token or nothing into a hubtoken with as much of
// the access asked for as the caller may have (Docker token specification).
//
// Who exists and what role they have comes from a Directory; signing is in registry/hubtoken. It checks no request to
// any other service: those verify hubtokens alone.
package token

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"cumulet.io/internal/problem"
	"cumulet.io/registry"
	"cumulet.io/registry/hubtoken"
)

// Directory tells who someone is. Errors are of problem's classes. Safe for concurrent use.
type Directory interface {
	// Authenticate checks a password; client is the caller's address, for slowing guesses. ErrUnauthenticated for a
	// wrong one, ErrExhausted with RetryAfter for too many.
	Authenticate(ctx context.Context, name, password, client string) (*registry.Account, error)
	// Memberships gives an account's roles in all its orgs.
	Memberships(ctx context.Context, account string) ([]registry.Membership, error)
	// Repository gives a repository, or ErrNotFound.
	Repository(ctx context.Context, name string) (*registry.Repository, error)
}

// OfflineTokens keeps tokens that get hubtokens without a password. Safe for concurrent use.
type OfflineTokens interface {
	NewOfflineToken(ctx context.Context, account, audience, client string) (string, error)
	// UseOfflineToken gives the account of a token made for one of the audiences, or ErrUnauthenticated.
	UseOfflineToken(ctx context.Context, token string, audiences ...string) (*registry.Account, error)
	RevokeOfflineToken(ctx context.Context, token string) error
}

// Config is for New. All but the durations and Logger are required.
type Config struct {
	Directory Directory
	Offline   OfflineTokens
	Issuer    *hubtoken.Issuer
	// Verifier checks delegated credentials, which are tokens of Issuer.
	Verifier hubtoken.Verifier
	// Hosts are the registry's names as clients know them, "host" or "host:port": a token request whose service is one
	// of them is for hubtoken.AudienceRegistry.
	Hosts []string
	// TTL is the life of a hubtoken; 0 is 5 min.
	TTL time.Duration
	// DelegateTTL is the life of a delegated credential; 0 is 30 min.
	DelegateTTL time.Duration
	// Logger is told of failed logins; nil is slog.Default.
	Logger *slog.Logger
}

// Service decides who gets which token. Safe for concurrent use.
type Service struct {
	cfg Config
}

// New makes a service.
func New(cfg Config) (*Service, error) {
	if cfg.Directory == nil || cfg.Offline == nil || cfg.Issuer == nil || cfg.Verifier == nil || len(cfg.Hosts) == 0 {
		return nil, errors.New("token service: directory, offline tokens, issuer, verifier and hosts are needed")
	}
	cfg.TTL = cmp.Or(cfg.TTL, 5*time.Minute)
	cfg.DelegateTTL = cmp.Or(cfg.DelegateTTL, 30*time.Minute)
	if cfg.TTL < time.Minute || cfg.TTL > hubtoken.MaxTTL || cfg.DelegateTTL < 0 || cfg.DelegateTTL > hubtoken.MaxTTL {
		return nil, fmt.Errorf("token service: lives must be within 1m (specification) and %s", hubtoken.MaxTTL)
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	return &Service{cfg: cfg}, nil
}

// principal is who asks. The zero value is the anonymous.
type principal struct {
	account *registry.Account
	// delegated are the claims of a credential made by Delegate: the most that may be granted.
	delegated *hubtoken.Claims
}

func (p principal) name() string {
	switch {
	case p.account != nil:
		return p.account.Name
	case p.delegated != nil:
		return p.delegated.Subject
	default:
		return ""
	}
}

// audience gives the audience that a service parameter names. Clients that send none mean the registry.
func (s *Service) audience(service string) (string, error) {
	switch service {
	case hubtoken.AudienceCIS, hubtoken.AudienceLogs, hubtoken.AudienceBilling:
		return service, nil
	case "", hubtoken.AudienceRegistry:
		return hubtoken.AudienceRegistry, nil
	}
	if slices.Contains(s.cfg.Hosts, service) {
		return hubtoken.AudienceRegistry, nil
	}
	return "", problem.Invalid("service", "must be "+s.cfg.Hosts[0]+", cis, logs or billing", service)
}

// login checks a user name and password, of an account or of a delegated credential.
func (s *Service) login(ctx context.Context, username, password, client string) (principal, error) {
	if username == registry.TokenUser {
		claims, err := s.cfg.Verifier.Verify(ctx, password, hubtoken.AudienceToken)
		if errors.Is(err, hubtoken.ErrInvalidToken) {
			return principal{}, problem.New(problem.ErrUnauthenticated, "the token given as password is not valid")
		}
		return principal{delegated: claims}, err
	}
	account, err := s.cfg.Directory.Authenticate(ctx, username, password, client)
	if errors.Is(err, problem.ErrUnauthenticated) || errors.Is(err, problem.ErrExhausted) {
		name := username
		if registry.ValidateAccount("", name) != nil {
			name = "" // whatever was typed there: it may be a password
		}
		s.cfg.Logger.InfoContext(ctx, "login refused", "account", name, "client", client, "reason", err)
	}
	return principal{account: account}, err
}

// issue signs a token with what p may have of the access asked for.
func (s *Service) issue(ctx context.Context, p principal, audience string, asked []hubtoken.Access) (*hubtoken.TokenResponse, []hubtoken.Access, error) {
	granted, org, err := s.grant(ctx, p, audience, asked)
	if err != nil {
		return nil, nil, err
	}
	claims := hubtoken.Claims{
		RegisteredClaims: jwt.RegisteredClaims{Subject: p.name(), Audience: jwt.ClaimStrings{audience}},
		Org:              org,
		Access:           granted,
	}
	issued := time.Now().UTC()
	token, err := s.cfg.Issuer.Sign(claims, s.cfg.TTL)
	if err != nil {
		return nil, nil, err
	}
	return &hubtoken.TokenResponse{Token: token, AccessToken: token, ExpiresIn: int(s.cfg.TTL / time.Second), IssuedAt: issued}, granted, nil
}

// grant reduces what is asked for to what p may have, and tells the tenant that p belongs to: the one that the granted
// access shares, else p's only org, else none.
func (s *Service) grant(ctx context.Context, p principal, audience string, asked []hubtoken.Access) ([]hubtoken.Access, string, error) {
	g := granting{Service: s, principal: p, audience: audience, roles: map[string]registry.Role{}}
	if p.delegated != nil {
		g.roles[p.delegated.Org] = registry.RoleReader
	}
	if p.account != nil && p.account.Kind == registry.Person {
		memberships, err := s.cfg.Directory.Memberships(ctx, p.account.Name)
		if err != nil {
			return nil, "", err
		}
		for _, m := range memberships {
			g.roles[m.Org] = m.Role
		}
	}
	granted := []hubtoken.Access{}
	orgs := map[string]bool{}
	for _, a := range asked {
		allowed, org, err := g.allowed(ctx, a)
		if err != nil {
			return nil, "", err
		}
		actions := reduce(a.Actions, allowed)
		if p.delegated != nil {
			actions = slices.DeleteFunc(actions, func(action string) bool { return !p.delegated.Allows(a.Type, a.Name, action) })
		}
		if len(actions) > 0 {
			granted = append(granted, hubtoken.Access{Type: a.Type, Name: a.Name, Actions: actions})
			if g.roles[org] != registry.RoleNone {
				orgs[org] = true
			}
		}
	}
	if len(orgs) == 0 {
		for org := range g.roles {
			orgs[org] = true
		}
	}
	if len(orgs) == 1 {
		for org := range orgs {
			return granted, org, nil
		}
	}
	return granted, "", nil
}

// reduce keeps the actions that are allowed; "*" asks for all of them.
func reduce(asked, allowed []string) []string {
	if slices.Contains(asked, "*") && !slices.Contains(allowed, "*") {
		return slices.Clone(allowed)
	}
	var out []string
	for _, action := range asked {
		if slices.Contains(allowed, action) {
			out = append(out, action)
		}
	}
	return out
}

// granting is the state of one decision.
type granting struct {
	*Service
	principal principal
	audience  string
	roles     map[string]registry.Role
}

// allowed gives every action that the principal may have on a resource, and the org that it belongs to.
func (g *granting) allowed(ctx context.Context, a hubtoken.Access) (actions []string, org string, err error) {
	switch {
	case a.Type == hubtoken.TypeRepository && g.audience == hubtoken.AudienceRegistry:
		return g.repository(ctx, a.Name)
	case a.Type == "registry" && a.Name == "catalog" && g.audience == hubtoken.AudienceRegistry:
		if g.principal.account != nil && g.principal.account.Kind == registry.Person {
			return []string{"*"}, "", nil
		}
	case a.Type == hubtoken.TypeOrg:
		return g.roles[a.Name].OrgActions(), a.Name, nil
	case a.Type == hubtoken.TypePlatform && a.Name == "*":
		if g.principal.account != nil && g.principal.account.Kind == registry.Service {
			return g.principal.account.Platform, "", nil
		}
	}
	return nil, "", nil
}

// repository decides on a repository. One that does not exist is like a private one, so that nobody learns which do.
func (g *granting) repository(ctx context.Context, name string) ([]string, string, error) {
	org, err := registry.SplitRepository("name", name)
	if err != nil {
		return nil, "", nil //nolint:nilerr // a name that cannot be has no access; the registry will say why
	}
	if role := g.roles[org]; role != registry.RoleNone {
		return role.RepositoryActions(registry.Private), org, nil
	}
	repo, err := g.cfg.Directory.Repository(ctx, name)
	if errors.Is(err, problem.ErrNotFound) {
		return nil, org, nil
	}
	if err != nil {
		return nil, "", err
	}
	return registry.RoleNone.RepositoryActions(repo.Visibility), org, nil
}

func scopeText(granted []hubtoken.Access) string {
	out := make([]string, 0, len(granted))
	for _, a := range granted {
		out = append(out, a.String())
	}
	return strings.Join(out, " ")
}
