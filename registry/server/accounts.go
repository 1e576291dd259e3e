package server

import (
	"crypto/rand"
	"errors"
	"net/http"

	"cumulet.io/internal/problem"
	"cumulet.io/registry"
	"cumulet.io/registry/directory"
	"cumulet.io/registry/hubtoken"
)

// peopleRoutes puts the management of accounts, orgs and all in them on a mux.
func (s *Server) peopleRoutes(mux *http.ServeMux) {
	for pattern, f := range map[string]func(http.ResponseWriter, *http.Request) (any, error){
		"GET /v1/account":                     s.getMe,
		"PUT /v1/account/password":            s.putMyPassword,
		"GET /v1/account/keys":                s.listKeys,
		"POST /v1/account/keys":               s.createKey,
		"DELETE /v1/account/keys/{key}":       s.deleteKey,
		"GET /v1/account/tokens":              s.listTokens,
		"DELETE /v1/account/tokens/{id}":      s.deleteToken,
		"GET /v1/account/identities":          s.listIdentities,
		"POST /v1/account/identities":         s.linkIdentity,
		"DELETE /v1/account/identities":       s.unlinkIdentity,
		"GET /v1/accounts":                    s.listAccounts,
		"POST /v1/accounts":                   s.createAccount,
		"GET /v1/accounts/{account}":          s.getAccount,
		"PATCH /v1/accounts/{account}":        s.patchAccount,
		"DELETE /v1/accounts/{account}":       s.deleteAccount,
		"PUT /v1/accounts/{account}/password": s.putPassword,

		"GET /v1/orgs":                                         s.listOrgs,
		"POST /v1/orgs":                                        s.createOrg,
		"GET /v1/orgs/{org}":                                   s.getOrg,
		"DELETE /v1/orgs/{org}":                                s.deleteOrg,
		"PUT /v1/orgs/{org}/quota":                             s.putQuota,
		"DELETE /v1/orgs/{org}/quota":                          s.deleteQuota,
		"GET /v1/orgs/{org}/members":                           s.listMembers,
		"PUT /v1/orgs/{org}/members/{account}":                 s.putMember,
		"DELETE /v1/orgs/{org}/members/{account}":              s.deleteMember,
		"GET /v1/orgs/{org}/teams":                             s.listTeams,
		"GET /v1/orgs/{org}/teams/{team}":                      s.getTeam,
		"PUT /v1/orgs/{org}/teams/{team}":                      s.putTeam,
		"DELETE /v1/orgs/{org}/teams/{team}":                   s.deleteTeam,
		"GET /v1/orgs/{org}/teams/{team}/members":              s.listTeamMembers,
		"PUT /v1/orgs/{org}/teams/{team}/members/{account}":    s.putTeamMember,
		"DELETE /v1/orgs/{org}/teams/{team}/members/{account}": s.deleteTeamMember,
		"GET /v1/orgs/{org}/grants":                            s.listGrants,
		"PUT /v1/orgs/{org}/grants":                            s.putGrant,
		"DELETE /v1/orgs/{org}/grants":                         s.deleteGrant,
		"GET /v1/orgs/{org}/robots":                            s.listRobots,
		"POST /v1/orgs/{org}/robots":                           s.createRobot,
		"GET /v1/orgs/{org}/robots/{robot}":                    s.getRobot,
		"PATCH /v1/orgs/{org}/robots/{robot}":                  s.patchRobot,
		"DELETE /v1/orgs/{org}/robots/{robot}":                 s.deleteRobot,
		"POST /v1/orgs/{org}/robots/{robot}/secret":            s.rotateRobot,
		"GET /v1/orgs/{org}/audit":                             s.orgAudit,
		"GET /v1/audit":                                        s.platformAudit,
	} {
		mux.HandleFunc(pattern, s.handle(f))
	}
}

// getMe answers who the caller is.
func (s *Server) getMe(_ http.ResponseWriter, r *http.Request) (any, error) {
	ctx := r.Context()
	name := hubtoken.FromContext(ctx).Subject
	if name == "" || name == registry.TokenUser {
		return nil, problem.New(problem.ErrNotFound, "you are anonymous: log in")
	}
	a, err := s.directory.Account(ctx, name)
	if err != nil {
		return nil, err
	}
	me := registry.Me{Account: *a}
	if me.Orgs, err = s.directory.Memberships(ctx, name); err != nil {
		return nil, err
	}
	if me.Grants, err = s.directory.GrantsOf(ctx, name); err != nil {
		return nil, err
	}
	me.HasPassword, err = s.directory.HasPassword(ctx, name)
	return me, err
}

// putMyPassword changes the caller's password.
func (s *Server) putMyPassword(w http.ResponseWriter, r *http.Request) (any, error) {
	ctx := r.Context()
	name, err := mayAccount(r, hubtoken.ActionWrite)
	if err != nil {
		return nil, err
	}
	var c registry.PasswordChange
	if err := readJSON(w, r, &c); err != nil {
		return nil, err
	}
	has, err := s.directory.HasPassword(ctx, name)
	if err != nil {
		return nil, err
	}
	if has {
		_, err := s.directory.Authenticate(ctx, name, c.Current, registry.ActorFrom(ctx).Address)
		if errors.Is(err, problem.ErrUnauthenticated) {
			return nil, deny(ctx, "", &problem.Error{Class: problem.ErrForbidden, Field: "current", Detail: "the current password is wrong"})
		}
		if err != nil {
			return nil, err
		}
	}
	return nil, s.directory.SetPassword(ctx, name, c.Password)
}

func (s *Server) listKeys(_ http.ResponseWriter, r *http.Request) (any, error) {
	name, err := mayAccount(r, hubtoken.ActionRead)
	if err != nil {
		return nil, err
	}
	limit, after, err := pageOf(r)
	if err != nil {
		return nil, err
	}
	keys, err := s.directory.APIKeys(r.Context(), name, after, limit)
	return paged(keys, limit, func(k registry.APIKey) string { return k.Name }), err
}

func (s *Server) createKey(w http.ResponseWriter, r *http.Request) (any, error) {
	name, err := mayAccount(r, hubtoken.ActionWrite)
	if err != nil {
		return nil, err
	}
	var n registry.NewAPIKey
	if err := readJSON(w, r, &n); err != nil {
		return nil, err
	}
	k, secret, err := s.directory.CreateAPIKey(r.Context(), registry.APIKey{Account: name, Name: n.Name, Scopes: n.Scopes, Expires: n.Expires})
	if err != nil {
		return nil, err
	}
	return registry.APIKeySecret{APIKey: *k, Key: secret}, nil
}

func (s *Server) deleteKey(_ http.ResponseWriter, r *http.Request) (any, error) {
	name, err := mayAccount(r, hubtoken.ActionWrite)
	if err != nil {
		return nil, err
	}
	return nil, s.directory.DeleteAPIKey(r.Context(), name, r.PathValue("key"))
}

func (s *Server) listTokens(_ http.ResponseWriter, r *http.Request) (any, error) {
	name, err := mayAccount(r, hubtoken.ActionRead)
	if err != nil {
		return nil, err
	}
	tokens, err := s.directory.OfflineTokens(r.Context(), name)
	return registry.Page[directory.OfflineToken]{Items: tokens}, err
}

func (s *Server) deleteToken(_ http.ResponseWriter, r *http.Request) (any, error) {
	name, err := mayAccount(r, hubtoken.ActionWrite)
	if err != nil {
		return nil, err
	}
	return nil, s.directory.RevokeOfflineTokenID(r.Context(), name, r.PathValue("id"))
}

func (s *Server) listAccounts(_ http.ResponseWriter, r *http.Request) (any, error) {
	limit, after, err := pageOf(r)
	if err := errors.Join(mayPlatform(r), err); err != nil {
		return nil, err
	}
	accounts, err := s.directory.Accounts(r.Context(), after, limit)
	return paged(accounts, limit, func(a registry.Account) string { return a.Name }), err
}

func (s *Server) createAccount(w http.ResponseWriter, r *http.Request) (any, error) {
	if err := mayPlatform(r); err != nil {
		return nil, err
	}
	var n registry.NewAccount
	if err := readJSON(w, r, &n); err != nil {
		return nil, err
	}
	password, shown := n.Password, ""
	if password == "" {
		password = rand.Text()
		shown = password
	}
	a := registry.Account{Name: n.Name, Kind: registry.Person, Platform: n.Platform}
	if err := s.directory.CreateAccount(r.Context(), a, password); err != nil {
		return nil, err
	}
	made, err := s.directory.Account(r.Context(), n.Name)
	if err != nil {
		return nil, err
	}
	return registry.AccountPassword{Account: *made, Password: shown}, nil
}

func (s *Server) getAccount(_ http.ResponseWriter, r *http.Request) (any, error) {
	if err := mayPlatform(r); err != nil {
		return nil, err
	}
	return s.directory.Account(r.Context(), r.PathValue("account"))
}

func (s *Server) patchAccount(w http.ResponseWriter, r *http.Request) (any, error) {
	if err := mayPlatform(r); err != nil {
		return nil, err
	}
	var c registry.AccountChange
	if err := readJSON(w, r, &c); err != nil {
		return nil, err
	}
	name := r.PathValue("account")
	if err := s.isPersons(r, name); err != nil {
		return nil, err
	}
	return s.directory.UpdateAccount(r.Context(), name, directory.AccountPatch(c))
}

func (s *Server) deleteAccount(_ http.ResponseWriter, r *http.Request) (any, error) {
	if err := mayPlatform(r); err != nil {
		return nil, err
	}
	name := r.PathValue("account")
	if err := s.isPersons(r, name); err != nil {
		return nil, err
	}
	return nil, s.directory.DeleteAccount(r.Context(), name)
}

// putPassword sets another person's password, who has forgotten theirs.
func (s *Server) putPassword(w http.ResponseWriter, r *http.Request) (any, error) {
	if err := mayPlatform(r); err != nil {
		return nil, err
	}
	var c registry.PasswordChange
	if err := readJSON(w, r, &c); err != nil {
		return nil, err
	}
	name := r.PathValue("account")
	if err := s.isPersons(r, name); err != nil {
		return nil, err
	}
	return nil, s.directory.SetPassword(r.Context(), name, c.Password)
}

// isPersons tells by its error whether an account is a person's: the platform's own follow its configuration, and robots
// are their orgs'.
func (s *Server) isPersons(r *http.Request, name string) error {
	a, err := s.directory.Account(r.Context(), name)
	if err == nil && a.Kind != registry.Person {
		err = problem.New(problem.ErrConflict, "the account %q is no person's", name)
	}
	return err
}
