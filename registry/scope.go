package registry

import (
	"fmt"
	"slices"
	"strings"

	"cumulet.io/internal/problem"
)

// The types of a Scope.
const (
	ScopeRepository = "repository"
	ScopeOrg        = "org"
)

// MaxScopes is how many scopes a robot or an API key may have.
const MaxScopes = 50

// Scope is what a robot may do, or the most that an API key may do.
type Scope struct {
	// Type is repository or org.
	Type string `json:"type"`
	// Name is of a repository its full name, or a prefix and "*"; of an org its name.
	Name string `json:"name"`
	// Actions are pull, push, delete of a repository; read, write, admin, own of an org.
	Actions []string `json:"actions"`
}

// String writes the scope as "type:name:action,action".
func (s Scope) String() string { return s.Type + ":" + s.Name + ":" + strings.Join(s.Actions, ",") }

// ParseScope reads "type:name:action,action", and checks it.
func ParseScope(field, text string) (Scope, error) {
	parts := strings.Split(text, ":")
	if len(parts) != 3 {
		return Scope{}, problem.Invalid(field, "must be repository:ORG/NAME:ACTION,… or org:ORG:ACTION,…", text)
	}
	s := Scope{Type: parts[0], Name: parts[1], Actions: strings.Split(parts[2], ",")}
	return s, s.Validate(field)
}

// Org is the org that the scope is about.
func (s Scope) Org() string {
	org, _, _ := strings.Cut(s.Name, "/")
	return org
}

// Validate checks type, name and actions.
func (s Scope) Validate(field string) error {
	var known []string
	var err error
	switch s.Type {
	case ScopeRepository:
		known = RoleAdmin.RepositoryActions(Private)
		_, err = ValidatePattern(field+".name", s.Name)
	case ScopeOrg:
		known = RoleOwner.OrgActions()
		err = ValidateOrg(field+".name", s.Name)
	default:
		err = problem.Invalid(field+".type", "must be repository or org", s.Type)
	}
	if err != nil {
		return err
	}
	if len(s.Actions) == 0 || len(s.Actions) > len(known) {
		return problem.Invalid(field+".actions", "must be some of "+strings.Join(known, ", "), strings.Join(s.Actions, ","))
	}
	for _, a := range s.Actions {
		if !slices.Contains(known, a) {
			return problem.Invalid(field+".actions", "must be of "+strings.Join(known, ", "), a)
		}
	}
	return nil
}

// ValidateScopes checks a list of them.
func ValidateScopes(field string, scopes []Scope) error {
	if len(scopes) > MaxScopes {
		return problem.Invalid(field, fmt.Sprintf("must be at most %d", MaxScopes), len(scopes))
	}
	for i, s := range scopes {
		if err := s.Validate(fmt.Sprintf("%s[%d]", field, i)); err != nil {
			return err
		}
	}
	return nil
}

// ValidatePattern checks a pattern of repositories: a full name, or its beginning, at least "org/", and one "*" at the
// end that stands for any rest, as "acme/*" or "acme/web-*". It gives the org.
func ValidatePattern(field, pattern string) (org string, err error) {
	prefix, wild := strings.CutSuffix(pattern, "*")
	if !wild {
		return SplitRepository(field, pattern)
	}
	// A prefix is good when some rest makes it a name.
	for _, rest := range []string{"", "a"} {
		if org, err := SplitRepository(field, prefix+rest); err == nil {
			return org, nil
		}
	}
	return "", problem.Invalid(field, "must be ORG/NAME or ORG/PREFIX*", pattern)
}

// MatchRepository tells whether a valid pattern is for the repository name.
func MatchRepository(pattern, name string) bool {
	if prefix, wild := strings.CutSuffix(pattern, "*"); wild {
		return strings.HasPrefix(name, prefix)
	}
	return pattern == name
}
