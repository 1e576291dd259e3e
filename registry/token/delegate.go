package token

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"cumulet.io/internal/problem"
	"cumulet.io/registry"
	"cumulet.io/registry/hubtoken"
)

// maxDelegated is how many repositories one delegated credential may name: no pod has more images.
const maxDelegated = 64

// PullCredential is a user name and password for a container runtime: it may pull some repositories for a while, and
// nothing else.
type PullCredential struct {
	Username string `json:"username"`
	Password string `json:"password"`
	// ExpiresAt is when no further token is given for it, UTC.
	ExpiresAt time.Time `json:"expiresAt"`
}

// PullCredential makes a credential with which an instance's images are pulled on behalf of org: those of the
// repositories that org may pull, its own and public ones. Others are left out, as if they did not exist; what remains
// is decided again at each exchange, so a repository made private in the meantime is lost.
func (s *Service) PullCredential(ctx context.Context, org string, repositories []string) (*PullCredential, error) {
	if err := registry.ValidateOrg("org", org); err != nil {
		return nil, err
	}
	if len(repositories) > maxDelegated {
		return nil, problem.Invalid("repositories", fmt.Sprintf("must be at most %d", maxDelegated), len(repositories))
	}
	claims := hubtoken.Claims{Org: org, RegisteredClaims: jwt.RegisteredClaims{
		Subject: registry.TokenUser, Audience: jwt.ClaimStrings{hubtoken.AudienceToken}}}
	var asked []hubtoken.Access
	for i, name := range repositories {
		if _, err := registry.SplitRepository(fmt.Sprintf("repositories[%d]", i), name); err != nil {
			return nil, err
		}
		if !slices.ContainsFunc(asked, func(a hubtoken.Access) bool { return a.Name == name }) {
			asked = append(asked, hubtoken.Access{Type: hubtoken.TypeRepository, Name: name, Actions: []string{"pull"}})
		}
	}
	claims.Access = asked
	granted, _, err := s.grant(ctx, principal{delegated: &claims}, hubtoken.AudienceRegistry, asked)
	if err != nil {
		return nil, fmt.Errorf("make pull credential: %w", err)
	}
	claims.Access = granted
	expires := time.Now().Add(s.cfg.DelegateTTL).UTC()
	password, err := s.cfg.Issuer.Sign(claims, s.cfg.DelegateTTL)
	if err != nil {
		return nil, fmt.Errorf("make pull credential: %w", err)
	}
	return &PullCredential{Username: registry.TokenUser, Password: password, ExpiresAt: expires}, nil
}

// Delegate is PullCredential for callers in this process that need no expiry.
func (s *Service) Delegate(ctx context.Context, org string, repositories []string) (username, password string, err error) {
	c, err := s.PullCredential(ctx, org, repositories)
	if err != nil {
		return "", "", err
	}
	return c.Username, c.Password, nil
}
