package registry

import (
	"fmt"
	"strings"
	"testing"
)

func TestRights(t *testing.T) {
	scope := func(texts ...string) (out []Scope) {
		for _, text := range texts {
			s, err := ParseScope("f", text)
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, s)
		}
		return out
	}
	role := func(r Role) map[string]Role { return map[string]Role{"acme": r} }
	grant := func(pattern string, r Role) Grant { return Grant{Org: "acme", Repositories: pattern, Role: r} }
	for name, tc := range map[string]struct {
		rights                    Rights
		web, public, other, onOrg string
	}{
		"stranger":             {Rights{}, "", "pull", "", ""},
		"reader":               {Rights{Roles: role(RoleReader)}, "pull", "pull", "", "read"},
		"writer":               {Rights{Roles: role(RoleWriter)}, "pull push", "pull push", "", "read write"},
		"admin":                {Rights{Roles: role(RoleAdmin)}, "pull push delete", "pull push delete", "", "read write admin"},
		"owner":                {Rights{Roles: role(RoleOwner)}, "pull push delete", "pull push delete", "", "read write admin own"},
		"no such role":         {Rights{Roles: role("king")}, "", "pull", "", ""},
		"reader with grant":    {Rights{Roles: role(RoleReader), Grants: []Grant{grant("acme/web", RoleWriter)}}, "pull push", "pull", "", "read"},
		"grants add up":        {Rights{Grants: []Grant{grant("acme/w*", RoleReader), grant("acme/*", RoleWriter)}}, "pull push", "pull push", "", ""},
		"grant elsewhere":      {Rights{Grants: []Grant{grant("acme/web2", RoleAdmin)}}, "", "pull", "", ""},
		"robot":                {Rights{Scopes: scope("repository:acme/*:push", "org:acme:write")}, "push", "pull push", "", "write"},
		"robot of one":         {Rights{Scopes: scope("repository:acme/web:pull", "repository:acme/web:delete")}, "pull delete", "pull", "", ""},
		"limited to nothing":   {Rights{Roles: role(RoleOwner), Limited: true}, "", "pull", "", ""},
		"limited":              {Rights{Roles: role(RoleOwner), Limited: true, Limits: scope("repository:acme/web:pull,push", "org:acme:read")}, "pull push", "pull", "", "read"},
		"limited beyond right": {Rights{Roles: role(RoleReader), Limited: true, Limits: scope("repository:acme/*:delete,pull", "org:acme:own")}, "pull", "pull", "", ""},
		"limits of a grant":    {Rights{Grants: []Grant{grant("acme/web", RoleAdmin)}, Limited: true, Limits: scope("repository:acme/w*:push")}, "push", "pull", "", ""},
	} {
		for what, got := range map[string][2]string{
			"private":     {strings.Join(tc.rights.Repository("acme/web", Private), " "), tc.web},
			"public":      {strings.Join(tc.rights.Repository("acme/open", Public), " "), tc.public},
			"another org": {strings.Join(tc.rights.Repository("beta/web", Private), " "), tc.other},
			"org":         {strings.Join(tc.rights.Org("acme"), " "), tc.onOrg},
		} {
			if got[0] != got[1] {
				t.Errorf("%s: %s: %q, want %q", name, what, got[0], got[1])
			}
		}
		if tc.rights.Org("beta") != nil || tc.rights.Belongs("beta") {
			t.Errorf("%s: has rights in another org", name)
		}
	}
}

func TestPatterns(t *testing.T) {
	for pattern, org := range map[string]string{
		"acme/web": "acme", "acme/*": "acme", "acme/w*": "acme", "acme/web-*": "acme", "acme/web/*": "acme", "acme/a.*": "acme", "acme/a__*": "acme",
		"*": "", "acme*": "", "acme": "", "*/web": "", "acme/*/web": "", "acme/**": "", "acme/W*": "", "acme/../*": "", "acme//*": "", "": "", "acme/ *": "",
	} {
		got, err := ValidatePattern("f", pattern)
		if got != org || (err == nil) != (org != "") {
			t.Errorf("ValidatePattern(%q) = %q, %v", pattern, got, err)
		}
	}
	for _, tc := range []struct {
		pattern, name string
		want          bool
	}{
		{"acme/web", "acme/web", true}, {"acme/web", "acme/web2", false}, {"acme/web", "acme/web/x", false}, {"acme/web*", "acme/web", true},
		{"acme/web*", "acme/web/x/y", true}, {"acme/web/*", "acme/web", false}, {"acme/*", "acmex/web", false}, {"acme/*", "acme/a/b", true},
	} {
		if got := MatchRepository(tc.pattern, tc.name); got != tc.want {
			t.Errorf("MatchRepository(%q, %q) = %v", tc.pattern, tc.name, got)
		}
	}
}

func FuzzParseScope(f *testing.F) {
	for _, text := range []string{"repository:acme/*:pull,push", "org:acme:read", "repository:acme/web:delete", "a:b:c", "::"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		s, err := ParseScope("f", text)
		if err != nil {
			return
		}
		if s.String() != text || ValidateOrg("f", s.Org()) != nil {
			t.Fatalf("%q is read as %+v", text, s)
		}
		r := Rights{Scopes: []Scope{s}}
		for _, name := range []string{"acme/web", "beta/web"} {
			if got := r.Repository(name, Private); len(got) > 0 && (s.Type != ScopeRepository || !strings.HasPrefix(name, s.Org()+"/")) {
				t.Fatalf("%q gives %v on %s", text, got, name)
			}
		}
		if got := fmt.Sprint(r.Org("acme")); got != "[]" && (s.Type != ScopeOrg || s.Name != "acme") {
			t.Fatalf("%q gives %v on acme", text, got)
		}
	})
}
