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
	// Login checks what is given as password: a password, a robot's secret or an API key. client is the caller's
	// address, for slowing guesses. ErrUnauthenticated for a wrong one, ErrExhausted with RetryAfter for too many.
	Login(ctx context.Context, name, secret, client string) (*registry.Login, error)
	// Memberships gives an account's roles in all its orgs.
	Memberships(ctx context.Context, account string) ([]registry.Membership, error)
	// GrantsOf gives an account's grants and those of its teams.
	GrantsOf(ctx context.Context, account string) ([]registry.Grant, error)
	// Repository gives a repository, or ErrNotFound.
	Repository(ctx context.Context, name string) (*registry.Repository, error)
}

// OfflineTokens keeps tokens that get hubtokens without a password. Safe for concurrent use.
type OfflineTokens interface {
	NewOfflineToken(ctx context.Context, login *registry.Login, audience, client string) (string, error)
	// UseOfflineToken gives the login of a token made for one of the audiences, and which, or ErrUnauthenticated.
	UseOfflineToken(ctx context.Context, token string, audiences ...string) (*registry.Login, string, error)
	RevokeOfflineToken(ctx context.Context, token string) error
}

// DeviceLogins are logins by browser (RFC 8628). Safe for concurrent use.
type DeviceLogins interface {
	// PollDevice gives the login that a device code has been approved for, once; before and otherwise one of
	// registry's ErrLogin… errors.
	PollDevice(ctx context.Context, device string) (*registry.Login, error)
}

// Config is for New. All but the durations, Devices, Auditor and Logger are required.
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
	// Devices takes device codes; nil takes none.
	Devices DeviceLogins
	// Auditor is told of failed logins and denied scopes; nil is nobody.
	Auditor registry.Auditor
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
	login *registry.Login
	// present tells that the person is there: by password, by browser or by the command line's login, and not by what
	// stands in for them in a program's configuration.
	present bool
	// images tells that nothing but repositories may be granted: what docker login leaves on a disk runs no instances
	// and manages nothing.
	images bool
	// delegated are the claims of a credential made by Delegate: the most that may be granted.
	delegated *hubtoken.Claims
}

func (p principal) name() string {
	switch {
	case p.login != nil:
		return p.login.Name
	case p.delegated != nil:
		return p.delegated.Subject
	default:
		return ""
	}
}

func (p principal) person() bool { return p.login != nil && p.login.Kind == registry.Person }

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
	login, err := s.cfg.Directory.Login(ctx, username, password, client)
	if errors.Is(err, problem.ErrUnauthenticated) || errors.Is(err, problem.ErrExhausted) {
		s.loginRefused(ctx, username, client, err)
	}
	if err != nil {
		return principal{}, err
	}
	return principal{login: login, present: login.KeyID == ""}, nil
}

func (s *Service) loginRefused(ctx context.Context, username, client string, err error) {
	if _, _, robot := registry.SplitRobot(username); !robot && registry.ValidateAccount("", username) != nil {
		username = "" // whatever was typed there: it may be a password
	}
	reason := problem.Of(err).Detail
	s.cfg.Logger.InfoContext(ctx, "login refused", "account", username, "client", client, "reason", reason)
	s.audit(ctx, registry.AuditEntry{Actor: username, Address: client, Action: "login", Denied: true, Detail: map[string]string{"reason": reason}})
}

// audit keeps a denial. One that cannot be kept is logged: the answer is a denial all the same.
func (s *Service) audit(ctx context.Context, e registry.AuditEntry) {
	if s.cfg.Auditor == nil {
		return
	}
	if err := s.cfg.Auditor.Audit(ctx, e); err != nil && ctx.Err() == nil {
		s.cfg.Logger.ErrorContext(ctx, "a denial is not in the audit log", "action", e.Action, "error", err)
	}
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
	g := granting{Service: s, principal: p, audience: audience}
	if err := g.load(ctx); err != nil {
		return nil, "", err
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
		g.denied(ctx, a, actions, org)
		if len(actions) > 0 {
			granted = append(granted, hubtoken.Access{Type: a.Type, Name: a.Name, Actions: actions})
			if g.rights.Belongs(org) {
				orgs[org] = true
			}
		}
	}
	if len(orgs) == 0 {
		for org := range g.rights.Roles {
			orgs[org] = true
		}
		for _, scope := range g.rights.Scopes {
			orgs[scope.Org()] = true
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
	rights    registry.Rights
	// hasGrants tells that rights.Grants is read: most decisions need no grant.
	hasGrants bool
}

// load reads what every decision needs.
func (g *granting) load(ctx context.Context) error {
	p := g.principal
	switch {
	case p.delegated != nil:
		g.rights.Roles = map[string]registry.Role{p.delegated.Org: registry.RoleReader}
	case p.login == nil:
	case p.login.Kind == registry.Robot:
		g.rights.Scopes = p.login.Scopes
	case p.login.Kind == registry.Person:
		g.rights.Limited, g.rights.Limits = p.login.Limited, p.login.Limits
		memberships, err := g.cfg.Directory.Memberships(ctx, p.login.Name)
		if err != nil {
			return err
		}
		g.rights.Roles = make(map[string]registry.Role, len(memberships))
		for _, m := range memberships {
			g.rights.Roles[m.Org] = m.Role
		}
	}
	return nil
}

// allowed gives every action that the principal may have on a resource, and the org that it belongs to.
func (g *granting) allowed(ctx context.Context, a hubtoken.Access) (actions []string, org string, err error) {
	p, atRegistry := g.principal, g.audience == hubtoken.AudienceRegistry
	switch {
	case a.Type == hubtoken.TypeRepository && atRegistry:
		return g.repository(ctx, a)
	case a.Type == "registry" && a.Name == "catalog" && atRegistry:
		// It is of all that one may pull: nothing for a key, which may be for less.
		if p.login != nil && !p.login.Limited && (p.person() || p.login.Kind == registry.Robot) {
			return []string{"*"}, "", nil
		}
	case p.images:
	case a.Type == hubtoken.TypeOrg:
		return g.rights.Org(a.Name), a.Name, nil
	case a.Type == hubtoken.TypePlatform && a.Name == "*":
		// A key that a program holds does not administer the platform.
		if p.login != nil && p.login.KeyID == "" {
			return p.login.Platform, "", nil
		}
	case a.Type == hubtoken.TypeAccount && atRegistry:
		if !p.person() || a.Name != p.name() {
			return nil, "", nil
		}
		if p.present {
			return []string{hubtoken.ActionRead, hubtoken.ActionWrite}, "", nil
		}
		return []string{hubtoken.ActionRead}, "", nil
	}
	return nil, "", nil
}

// repository decides on a repository. One that does not exist is like a private one, so that nobody learns which do.
func (g *granting) repository(ctx context.Context, a hubtoken.Access) ([]string, string, error) {
	org, err := registry.SplitRepository("name", a.Name)
	if err != nil {
		return nil, "", nil //nolint:nilerr // a name that cannot be has no access; the registry will say why
	}
	enough := func(actions []string) bool {
		return !slices.ContainsFunc(a.Actions, func(asked string) bool { return !slices.Contains(actions, asked) })
	}
	actions := g.rights.Repository(a.Name, registry.Private)
	if enough(actions) {
		return actions, org, nil
	}
	if !g.hasGrants && g.principal.person() {
		if g.rights.Grants, err = g.cfg.Directory.GrantsOf(ctx, g.principal.name()); err != nil {
			return nil, "", err
		}
		g.hasGrants = true
		actions = g.rights.Repository(a.Name, registry.Private)
	}
	if slices.Contains(actions, "pull") {
		return actions, org, nil // more than that no visibility gives
	}
	repo, err := g.cfg.Directory.Repository(ctx, a.Name)
	if errors.Is(err, problem.ErrNotFound) {
		return actions, org, nil
	}
	if err != nil {
		return nil, "", err
	}
	return g.rights.Repository(a.Name, repo.Visibility), org, nil
}

// denied keeps what was asked for in vain. Of a repository that is each action; of what clients ask for in full and use
// as far as they get it, an org above all, only the case that nothing was granted.
func (g *granting) denied(ctx context.Context, a hubtoken.Access, granted []string, org string) {
	var missing []string
	for _, action := range a.Actions {
		if !slices.Contains(granted, action) && (action != "*" || len(granted) == 0) {
			missing = append(missing, action)
		}
	}
	if len(missing) == 0 || len(granted) > 0 && a.Type != hubtoken.TypeRepository {
		return
	}
	e := registry.AuditEntry{Org: org, Actor: g.principal.name(), Address: registry.ActorFrom(ctx).Address, Action: "token.scope",
		Target: hubtoken.Access{Type: a.Type, Name: a.Name, Actions: missing}.String(), Denied: true,
		Detail: map[string]string{"reason": "no right to it", "service": g.audience}}
	if g.principal.login != nil && g.principal.login.KeyID != "" {
		e.Detail["apiKey"] = g.principal.login.KeyID
	}
	g.audit(ctx, e)
}

func scopeText(granted []hubtoken.Access) string {
	out := make([]string, 0, len(granted))
	for _, a := range granted {
		out = append(out, a.String())
	}
	return strings.Join(out, " ")
}
