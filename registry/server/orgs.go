package server

import (
	"encoding/base64"
	"net/http"
	"strings"

	"cumulet.io/internal/problem"
	"cumulet.io/registry"
	"cumulet.io/registry/hubtoken"
)

// listOrgs answers with the caller's orgs; with ?all=true, for who manages the platform, with every org.
func (s *Server) listOrgs(_ http.ResponseWriter, r *http.Request) (any, error) {
	ctx := r.Context()
	limit, after, err := pageOf(r)
	if err != nil {
		return nil, err
	}
	items := []registry.OrgInfo{}
	if r.URL.Query().Get("all") == "true" {
		if err := mayPlatform(r); err != nil {
			return nil, err
		}
		orgs, err := s.directory.Orgs(ctx, after, limit)
		if err != nil {
			return nil, err
		}
		for _, o := range orgs {
			items = append(items, registry.OrgInfo{Org: o})
		}
	} else {
		memberships, err := s.directory.Memberships(ctx, hubtoken.FromContext(ctx).Subject)
		if err != nil {
			return nil, err
		}
		for _, m := range memberships {
			if m.Org > after && len(items) < limit {
				items = append(items, registry.OrgInfo{Org: registry.Org{Name: m.Org}, Role: m.Role})
			}
		}
	}
	for i := range items {
		info, err := s.orgInfo(r, items[i].Name)
		if err != nil {
			return nil, err
		}
		items[i] = *info
	}
	return paged(items, limit, func(o registry.OrgInfo) string { return o.Name }), nil
}

func (s *Server) orgInfo(r *http.Request, name string) (*registry.OrgInfo, error) {
	ctx := r.Context()
	o, err := s.directory.Org(ctx, name)
	if err != nil {
		return nil, err
	}
	info := &registry.OrgInfo{Org: *o}
	if info.Quota, err = s.directory.Quota(ctx, name); err != nil {
		return nil, err
	}
	info.Role, err = s.directory.RoleOf(ctx, hubtoken.FromContext(ctx).Subject, name)
	return info, err
}

func (s *Server) createOrg(w http.ResponseWriter, r *http.Request) (any, error) {
	if err := mayPlatform(r); err != nil {
		return nil, err
	}
	var n registry.NewOrg
	if err := readJSON(w, r, &n); err != nil {
		return nil, err
	}
	if n.Owner == "" {
		n.Owner = hubtoken.FromContext(r.Context()).Subject
	}
	if err := s.directory.CreateOrg(r.Context(), n.Name, n.Owner); err != nil {
		return nil, err
	}
	return s.orgInfo(r, n.Name)
}

func (s *Server) getOrg(_ http.ResponseWriter, r *http.Request) (any, error) {
	org := r.PathValue("org")
	if err := mayManage(r, org, hubtoken.ActionRead); err != nil {
		return nil, err
	}
	return s.orgInfo(r, org)
}

func (s *Server) deleteOrg(_ http.ResponseWriter, r *http.Request) (any, error) {
	org := r.PathValue("org")
	if err := mayManage(r, org, hubtoken.ActionOwn); err != nil {
		return nil, err
	}
	return nil, s.directory.DeleteOrg(r.Context(), org)
}

func (s *Server) putQuota(w http.ResponseWriter, r *http.Request) (any, error) {
	if err := mayPlatform(r); err != nil {
		return nil, err
	}
	var q registry.Quota
	if err := readJSON(w, r, &q); err != nil {
		return nil, err
	}
	if err := s.directory.SetQuota(r.Context(), r.PathValue("org"), &q); err != nil {
		return nil, err
	}
	return q, nil
}

func (s *Server) deleteQuota(_ http.ResponseWriter, r *http.Request) (any, error) {
	if err := mayPlatform(r); err != nil {
		return nil, err
	}
	return nil, s.directory.SetQuota(r.Context(), r.PathValue("org"), nil)
}

func (s *Server) listMembers(w http.ResponseWriter, r *http.Request) (any, error) {
	return s.membersOf(w, r, "")
}

func (s *Server) membersOf(_ http.ResponseWriter, r *http.Request, team string) (any, error) {
	org := r.PathValue("org")
	if err := mayManage(r, org, hubtoken.ActionRead); err != nil {
		return nil, err
	}
	limit, after, err := pageOf(r)
	if err != nil {
		return nil, err
	}
	if team != "" {
		if _, err := s.directory.Team(r.Context(), org, team); err != nil {
			return nil, err
		}
	}
	members, err := s.directory.Members(r.Context(), org, team, after, limit)
	return paged(members, limit, func(m registry.Member) string { return m.Account }), err
}

// mayChangeMember checks for who may make account's role in org what it is to be: an admin, but of owners an owner; and
// everyone may leave.
func (s *Server) mayChangeMember(r *http.Request, org, account string, role registry.Role) error {
	ctx := r.Context()
	claims := hubtoken.FromContext(ctx)
	if role == registry.RoleNone && claims.Subject == account && claims.AllowsOrg(org, hubtoken.ActionRead) {
		return nil
	}
	if err := mayManage(r, org, hubtoken.ActionAdmin); err != nil {
		return err
	}
	before, err := s.directory.RoleOf(ctx, account, org)
	if err != nil {
		return err
	}
	if role == registry.RoleOwner || before == registry.RoleOwner {
		return mayManage(r, org, hubtoken.ActionOwn)
	}
	return nil
}

func (s *Server) putMember(w http.ResponseWriter, r *http.Request) (any, error) {
	org, account := r.PathValue("org"), r.PathValue("account")
	if err := mayManage(r, org, hubtoken.ActionAdmin); err != nil {
		return nil, err
	}
	var m registry.MemberRole
	if err := readJSON(w, r, &m); err != nil {
		return nil, err
	}
	if !m.Role.Valid() {
		return nil, problem.Invalid("role", "must be owner, admin, writer or reader", m.Role)
	}
	if err := s.mayChangeMember(r, org, account, m.Role); err != nil {
		return nil, err
	}
	if err := s.directory.SetMember(r.Context(), org, account, m.Role); err != nil {
		return nil, err
	}
	return m, nil
}

func (s *Server) deleteMember(_ http.ResponseWriter, r *http.Request) (any, error) {
	org, account := r.PathValue("org"), r.PathValue("account")
	if err := s.mayChangeMember(r, org, account, registry.RoleNone); err != nil {
		return nil, err
	}
	return nil, s.directory.SetMember(r.Context(), org, account, registry.RoleNone)
}

func (s *Server) listTeams(_ http.ResponseWriter, r *http.Request) (any, error) {
	org := r.PathValue("org")
	if err := mayManage(r, org, hubtoken.ActionRead); err != nil {
		return nil, err
	}
	limit, after, err := pageOf(r)
	if err != nil {
		return nil, err
	}
	teams, err := s.directory.Teams(r.Context(), org, after, limit)
	return paged(teams, limit, func(t registry.Team) string { return t.Name }), err
}

func (s *Server) getTeam(_ http.ResponseWriter, r *http.Request) (any, error) {
	org := r.PathValue("org")
	if err := mayManage(r, org, hubtoken.ActionRead); err != nil {
		return nil, err
	}
	return s.directory.Team(r.Context(), org, r.PathValue("team"))
}

func (s *Server) putTeam(w http.ResponseWriter, r *http.Request) (any, error) {
	org := r.PathValue("org")
	if err := mayManage(r, org, hubtoken.ActionAdmin); err != nil {
		return nil, err
	}
	var c registry.TeamChange
	if err := readJSON(w, r, &c); err != nil {
		return nil, err
	}
	return s.directory.SetTeam(r.Context(), org, r.PathValue("team"), c.Description)
}

func (s *Server) deleteTeam(_ http.ResponseWriter, r *http.Request) (any, error) {
	org := r.PathValue("org")
	if err := mayManage(r, org, hubtoken.ActionAdmin); err != nil {
		return nil, err
	}
	return nil, s.directory.DeleteTeam(r.Context(), org, r.PathValue("team"))
}

func (s *Server) listTeamMembers(w http.ResponseWriter, r *http.Request) (any, error) {
	return s.membersOf(w, r, r.PathValue("team"))
}

func (s *Server) putTeamMember(w http.ResponseWriter, r *http.Request) (any, error) {
	return s.setTeamMember(w, r, true)
}

func (s *Server) deleteTeamMember(w http.ResponseWriter, r *http.Request) (any, error) {
	return s.setTeamMember(w, r, false)
}

func (s *Server) setTeamMember(_ http.ResponseWriter, r *http.Request, in bool) (any, error) {
	org := r.PathValue("org")
	if err := mayManage(r, org, hubtoken.ActionAdmin); err != nil {
		return nil, err
	}
	return nil, s.directory.SetTeamMember(r.Context(), org, r.PathValue("team"), r.PathValue("account"), in)
}

// grantCursor names a grant for the page after it.
func grantCursor(g registry.Grant) string {
	return base64.RawURLEncoding.EncodeToString([]byte(g.Team + " " + g.Account + " " + g.Repositories))
}

func parseGrantCursor(text string) (g registry.Grant, err error) {
	if text == "" {
		return g, nil
	}
	raw, err := base64.RawURLEncoding.DecodeString(text)
	parts := strings.Split(string(raw), " ")
	if err != nil || len(parts) != 3 {
		return g, problem.Invalid("after", "must be next of an earlier page", text)
	}
	return registry.Grant{Team: parts[0], Account: parts[1], Repositories: parts[2]}, nil
}

func (s *Server) listGrants(_ http.ResponseWriter, r *http.Request) (any, error) {
	org := r.PathValue("org")
	if err := mayManage(r, org, hubtoken.ActionRead); err != nil {
		return nil, err
	}
	limit, text, err := pageOf(r)
	if err != nil {
		return nil, err
	}
	after, err := parseGrantCursor(text)
	if err != nil {
		return nil, err
	}
	grants, err := s.directory.Grants(r.Context(), org, after, limit)
	return paged(grants, limit, grantCursor), err
}

func (s *Server) putGrant(w http.ResponseWriter, r *http.Request) (any, error) {
	org := r.PathValue("org")
	if err := mayManage(r, org, hubtoken.ActionAdmin); err != nil {
		return nil, err
	}
	var g struct {
		Team         string        `json:"team"`
		Account      string        `json:"account"`
		Repositories string        `json:"repositories"`
		Role         registry.Role `json:"role"`
	}
	if err := readJSON(w, r, &g); err != nil {
		return nil, err
	}
	if !g.Role.Valid() {
		return nil, problem.Invalid("role", "must be reader, writer or admin", g.Role)
	}
	return nil, s.directory.SetGrant(r.Context(), registry.Grant{Org: org, Team: g.Team, Account: g.Account, Repositories: g.Repositories, Role: g.Role})
}

// deleteGrant answers DELETE …/grants?team=…|account=…&repositories=….
func (s *Server) deleteGrant(_ http.ResponseWriter, r *http.Request) (any, error) {
	org, q := r.PathValue("org"), r.URL.Query()
	if err := mayManage(r, org, hubtoken.ActionAdmin); err != nil {
		return nil, err
	}
	return nil, s.directory.SetGrant(r.Context(), registry.Grant{Org: org, Team: q.Get("team"), Account: q.Get("account"), Repositories: q.Get("repositories")})
}
