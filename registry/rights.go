package registry

import "slices"

// Rights is all that decides what someone may do. The zero value is a stranger's.
//
// Repository and Org are the one place where it is decided; what they give is what a hubtoken may carry.
type Rights struct {
	// Roles are a person's, by org.
	Roles map[string]Role
	// Grants are a person's own and those of their teams.
	Grants []Grant
	// Scopes are a robot's: all that it may do.
	Scopes []Scope
	// Limited tells that no more than Limits is allowed, whatever the rest says: those of an API key.
	Limited bool
	Limits  []Scope
}

// Repository gives the actions on a repository of a valid name, in the order pull, push, delete. Pulling a public one
// is everybody's.
func (r *Rights) Repository(name string, v Visibility) []string {
	org := Scope{Name: name}.Org()
	may := map[string]bool{}
	add := func(actions []string) {
		for _, a := range actions {
			may[a] = true
		}
	}
	add(r.Roles[org].RepositoryActions(Private))
	for _, g := range r.Grants {
		if MatchRepository(g.Repositories, name) {
			add(g.Role.RepositoryActions(Private))
		}
	}
	add(scoped(r.Scopes, ScopeRepository, name))
	if r.Limited {
		limit := scoped(r.Limits, ScopeRepository, name)
		for a := range may {
			may[a] = slices.Contains(limit, a)
		}
	}
	add(RoleNone.RepositoryActions(v))
	return ordered(may, RoleAdmin.RepositoryActions(Private))
}

// Org gives the actions on an org: read, write, admin, own, in this order.
func (r *Rights) Org(name string) []string {
	may := map[string]bool{}
	for _, a := range append(r.Roles[name].OrgActions(), scoped(r.Scopes, ScopeOrg, name)...) {
		may[a] = !r.Limited || slices.Contains(scoped(r.Limits, ScopeOrg, name), a)
	}
	return ordered(may, RoleOwner.OrgActions())
}

// Belongs tells whether it is an org's own: a member or a robot, not one who has a grant alone.
func (r *Rights) Belongs(org string) bool {
	return r.Roles[org].Valid() || slices.ContainsFunc(r.Scopes, func(s Scope) bool { return s.Org() == org })
}

// scoped gives the actions of all scopes that are for a resource.
func scoped(scopes []Scope, typ, name string) []string {
	var out []string
	for _, s := range scopes {
		if s.Type == typ && (s.Name == name || typ == ScopeRepository && MatchRepository(s.Name, name)) {
			out = append(out, s.Actions...)
		}
	}
	return out
}

func ordered(may map[string]bool, order []string) []string {
	var out []string
	for _, a := range order {
		if may[a] {
			out = append(out, a)
		}
	}
	return out
}
