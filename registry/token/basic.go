package token

import (
	"context"

	"github.com/golang-jwt/jwt/v5"

	"cumulet.io/registry/hubtoken"
)

// Claims decides for a part of the registry that takes user name and password with each request, as for a client that
// knows no tokens: as much of the access asked for as the caller may have. An empty user name is the anonymous. client
// is the caller's address, for slowing guesses. The errors are Login's.
func (s *Service) Claims(ctx context.Context, username, password, client string, asked []hubtoken.Access) (*hubtoken.Claims, error) {
	var p principal
	if username != "" {
		var err error
		if p, err = s.login(ctx, username, password, client); err != nil {
			return nil, err
		}
	}
	granted, org, err := s.grant(ctx, p, hubtoken.AudienceRegistry, asked)
	if err != nil {
		return nil, err
	}
	return &hubtoken.Claims{RegisteredClaims: jwt.RegisteredClaims{Subject: p.name()}, Org: org, Access: granted}, nil
}
