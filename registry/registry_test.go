package registry

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"cumulet.io/internal/problem"
)

func TestRoles(t *testing.T) {
	for _, tc := range []struct {
		role                 Role
		valid                bool
		org, private, public string
	}{
		{RoleOwner, true, "[read write admin own]", "[pull push delete]", "[pull push delete]"},
		{RoleAdmin, true, "[read write admin]", "[pull push delete]", "[pull push delete]"},
		{RoleWriter, true, "[read write]", "[pull push]", "[pull push]"},
		{RoleReader, true, "[read]", "[pull]", "[pull]"},
		{RoleNone, false, "[]", "[]", "[pull]"},
		{"king", false, "[]", "[]", "[pull]"},
	} {
		if tc.role.Valid() != tc.valid {
			t.Errorf("%q: valid = %v", tc.role, tc.role.Valid())
		}
		for _, got := range [][2]string{{fmt.Sprint(tc.role.OrgActions()), tc.org},
			{fmt.Sprint(tc.role.RepositoryActions(Private)), tc.private}, {fmt.Sprint(tc.role.RepositoryActions(Public)), tc.public}} {
			if got[0] != got[1] {
				t.Errorf("%q: %s, want %s", tc.role, got[0], got[1])
			}
		}
	}
	order := []Role{RoleReader, RoleWriter, RoleAdmin, RoleOwner}
	for i, a := range order {
		for j, b := range order {
			if a.AtLeast(b) != (i >= j) {
				t.Errorf("%s.AtLeast(%s) = %v", a, b, a.AtLeast(b))
			}
		}
		if RoleNone.AtLeast(a) || Role("king").AtLeast(a) {
			t.Errorf("a stranger is at least %s", a)
		}
	}
}

func TestNames(t *testing.T) {
	for _, tc := range []struct{ name, org string }{
		{"acme/web", "acme"},
		{"a/b", "a"},
		{"acme/deep/er/web", "acme"},
		{"acme/a.b_c__d---e/1", "acme"},
		{"a-b/c", "a-b"},
		{"acme/" + strings.Repeat("a", 250), "acme"},
		{"acme/" + strings.Repeat("a", 251), ""},
		{"web", ""}, {"", ""}, {"/", ""}, {"acme/", ""}, {"/web", ""}, {"acme//web", ""}, {"acme/web/", ""},
		{"acme/Web", ""}, {"ACME/web", ""}, {"acme/../beta/x", ""}, {"acme/..", ""}, {"acme/.a", ""}, {"acme/a.", ""}, {"acme/a..b", ""},
		{"acme/a___b", ""}, {"acme/a b", ""}, {"acme/ü", ""}, {"a.b/c", ""}, {"a_b/c", ""}, {"-a/b", ""}, {"a-/b", ""},
		{"acme/web:v1", ""}, {"host:5000/a/b", ""}, {"acme/web\n", ""}, {strings.Repeat("a", 64) + "/b", ""},
	} {
		org, err := SplitRepository("f", tc.name)
		if org != tc.org || (err == nil) != (tc.org != "") || err != nil && !errors.Is(err, problem.ErrInvalid) {
			t.Errorf("SplitRepository(%q) = %q, %v", tc.name, org, err)
		}
	}
	for name, ok := range map[string]bool{"ann": true, "a.b_c-d": true, "1": true, "": false, "Ann": false, ".a": false, "a.": false,
		"a/b": false, "a:b": false, TokenUser: false, strings.Repeat("a", 63): true, strings.Repeat("a", 64): false, "ann\n": false} {
		if got := ValidateAccount("f", name) == nil; got != ok {
			t.Errorf("ValidateAccount(%q) = %v", name, got)
		}
	}
}

func FuzzSplitRepository(f *testing.F) {
	f.Add("acme/web")
	f.Add("acme/../x")
	f.Fuzz(func(t *testing.T, name string) {
		org, err := SplitRepository("f", name)
		if err != nil {
			return
		}
		if len(name) > MaxRepositoryLength || !strings.HasPrefix(name, org+"/") || ValidateOrg("f", org) != nil ||
			strings.Contains(name, "..") || strings.Contains(name, "//") || strings.ToLower(name) != name {
			t.Fatalf("accepted %q of %q", name, org)
		}
	})
}
