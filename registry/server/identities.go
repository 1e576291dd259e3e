package server

import (
	"net/http"

	"cumulet.io/internal/problem"
	"cumulet.io/registry"
	"cumulet.io/registry/hubtoken"
)

// noProvider is the answer where no OpenID provider is configured.
func noProvider() error {
	return problem.New(problem.ErrUnsupported, "this registry has no OpenID provider (registry.oidc): log in with a password")
}

func (s *Server) listIdentities(_ http.ResponseWriter, r *http.Request) (any, error) {
	name, err := mayAccount(r, hubtoken.ActionRead)
	if err != nil {
		return nil, err
	}
	identities, err := s.directory.Identities(r.Context(), name)
	for i := range identities {
		if s.logins != nil {
			identities[i].Provider = s.logins.ProviderName(identities[i].Issuer)
		}
	}
	return registry.Page[registry.Identity]{Items: identities}, err
}

// linkIdentity begins the linking of an identity to the caller's account; it is finished in a browser.
func (s *Server) linkIdentity(_ http.ResponseWriter, r *http.Request) (any, error) {
	name, err := mayAccount(r, hubtoken.ActionWrite)
	if err != nil {
		return nil, err
	}
	if s.logins == nil {
		return nil, noProvider()
	}
	return s.logins.Begin(r.Context(), name)
}

// unlinkIdentity answers DELETE …/identities?issuer=…&subject=….
func (s *Server) unlinkIdentity(_ http.ResponseWriter, r *http.Request) (any, error) {
	name, err := mayAccount(r, hubtoken.ActionWrite)
	if err != nil {
		return nil, err
	}
	q := r.URL.Query()
	return nil, s.directory.UnlinkIdentity(r.Context(), name, q.Get("issuer"), q.Get("subject"))
}
