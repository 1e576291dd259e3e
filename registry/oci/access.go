package oci

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"

	"github.com/distribution/distribution/v3"
	"github.com/distribution/distribution/v3/registry/api/errcode"
	"github.com/distribution/distribution/v3/registry/auth"
	repositorymiddleware "github.com/distribution/distribution/v3/registry/middleware/repository"
	"github.com/distribution/distribution/v3/registry/storage/driver/factory"

	"cumulet.io/registry/hubtoken"
)

const (
	// extension is the name under which access control and repository middleware are known to the core.
	extension = "hubtoken"
	// optionRegistry is their option that holds the *Registry they serve: the core's tables are global, ours is not.
	optionRegistry = "registry"
)

// extendOnce enters access control and repository middleware in the core's tables, which take each name once in the
// life of a process.
var extendOnce = sync.OnceValue(func() error { //nolint:gochecknoglobals // guards the core's own globals
	registryOf := func(options map[string]any) (*Registry, error) {
		r, ok := options[optionRegistry].(*Registry)
		if !ok {
			return nil, errors.New("the option registry is missing")
		}
		return r, nil
	}
	factory.Register(shared, sharedDriver{})
	return errors.Join(
		auth.Register(extension, func(options map[string]any) (auth.AccessController, error) {
			r, err := registryOf(options)
			return accessController{r}, err
		}),
		repositorymiddleware.Register(extension, func(_ context.Context, repo distribution.Repository, options map[string]any) (distribution.Repository, error) {
			r, err := registryOf(options)
			return &countedRepository{Repository: repo, registry: r}, err
		}))
})

type stateKey struct{}

// authState is what was found of a request's token.
type authState int

const (
	tokenMissing authState = iota
	tokenBad
	tokenGood
)

// authenticate puts the token's claims and state into the request's context. The error says that no verdict can be had.
func (r *Registry) authenticate(req *http.Request) (*http.Request, error) {
	ctx := req.Context()
	token := hubtoken.Bearer(req)
	if token == "" {
		return req.WithContext(context.WithValue(ctx, stateKey{}, tokenMissing)), nil
	}
	claims, err := r.cfg.Verifier.Verify(ctx, token, hubtoken.AudienceRegistry)
	switch {
	case err == nil:
		return req.WithContext(context.WithValue(hubtoken.WithClaims(ctx, claims), stateKey{}, tokenGood)), nil
	case errors.Is(err, hubtoken.ErrInvalidToken):
		return req.WithContext(context.WithValue(ctx, stateKey{}, tokenBad)), nil
	default:
		return req, err
	}
}

// accessController is the core's question whether a request may go on.
type accessController struct{ registry *Registry }

// Authorized implements auth.AccessController. Its only error is a challenge: the core answers any other with 400.
func (a accessController) Authorized(req *http.Request, access ...auth.Access) (*auth.Grant, error) {
	claims := hubtoken.FromContext(req.Context())
	if err := a.registry.check(req.Context(), claims, access); err != nil {
		a.registry.auditDenied(req, access)
		return nil, err
	}
	return &auth.Grant{User: auth.UserInfo{Name: claims.Subject}}, nil
}

func (r *Registry) check(ctx context.Context, claims *hubtoken.Claims, access []auth.Access) error {
	state, _ := ctx.Value(stateKey{}).(authState)
	switch state {
	case tokenGood:
		for _, a := range access {
			if !claims.Allows(a.Type, a.Name, a.Action) {
				return &challenge{r, "insufficient_scope", access}
			}
		}
		return nil
	case tokenBad:
		return &challenge{r, "invalid_token", access}
	default:
		return &challenge{r, "", access}
	}
}

// allow checks that the token has all of these actions on a repository; a request without is answered.
func (r *Registry) allow(w http.ResponseWriter, req *http.Request, repository string, actions ...string) bool {
	claims := hubtoken.FromContext(req.Context())
	if state, ok := req.Context().Value(stateKey{}).(authState); ok && state == tokenGood {
		allowed := true
		for _, a := range actions {
			allowed = allowed && claims.Allows(hubtoken.TypeRepository, repository, a)
		}
		if allowed {
			return true
		}
	}
	access := make([]auth.Access, len(actions))
	for i, a := range actions {
		access[i] = auth.Access{Resource: auth.Resource{Type: hubtoken.TypeRepository, Name: repository}, Action: a}
	}
	if err := r.check(req.Context(), claims, access); err != nil {
		if c, ok := err.(auth.Challenge); ok { //nolint:errorlint // check makes nothing else
			c.SetHeaders(req, w)
		}
	}
	r.auditDenied(req, access)
	r.fail(w, req, errcode.ErrorCodeUnauthorized.WithDetail(access))
	return false
}

// challenge tells a client which token to get where (Docker token specification, "How to authenticate"; RFC 6750,
// section 3). It is the same for a repository that does not exist and one that the client may not see.
type challenge struct {
	registry *Registry
	code     string
	access   []auth.Access
}

// Error implements error.
func (c *challenge) Error() string {
	if c.code == "" {
		return "a token is needed"
	}
	return c.code
}

// SetHeaders implements auth.Challenge.
func (c *challenge) SetHeaders(_ *http.Request, w http.ResponseWriter) {
	header := fmt.Sprintf(`Bearer realm="%s",service="%s"`, c.registry.cfg.Realm, c.registry.cfg.Service)
	var scopes []hubtoken.Access
	for _, a := range c.access {
		i := slices.IndexFunc(scopes, func(s hubtoken.Access) bool { return s.Type == a.Type && s.Name == a.Name })
		if i < 0 {
			scopes = append(scopes, hubtoken.Access{Type: a.Type, Name: a.Name})
			i = len(scopes) - 1
		}
		if !slices.Contains(scopes[i].Actions, a.Action) {
			scopes[i].Actions = append(scopes[i].Actions, a.Action)
		}
	}
	var text []string
	for _, s := range scopes {
		// The name of a mount's source comes from the query: what cannot be in a quoted string is no name.
		if !strings.ContainsFunc(s.Name, func(r rune) bool { return r <= ' ' || r > '~' || r == '"' || r == '\\' }) {
			text = append(text, s.String())
		}
	}
	if len(text) > 0 {
		header += fmt.Sprintf(`,scope="%s"`, strings.Join(text, " "))
	}
	if c.code != "" {
		header += fmt.Sprintf(`,error="%s"`, c.code)
	}
	w.Header().Set("WWW-Authenticate", header)
}
