package hubtoken

import (
	"slices"
	"strings"
)

// Bounds on the scopes of one token request. What is beyond them is not granted.
const (
	maxScopes     = 256
	maxScopeBytes = 32 << 10
)

// ParseScopes reads the scope parameters of a token request: each holds one or more "type:name:action,action" with
// spaces between, in any repetition (Docker token scope specification; clients differ in all of this). The answer has
// one entry per type and name in order of first appearance, with each action once. A class in the type, as in
// "repository(plugin)", is dropped; the name may hold colons (a host and port). What is not of this form is passed
// over, since a token request is answered with less access and not with an error.
func ParseScopes(params []string) []Access {
	var out []Access
	bytes := 0
	for _, param := range params {
		if bytes += len(param); bytes > maxScopeBytes {
			break
		}
		for scope := range strings.FieldsSeq(param) {
			a, ok := parseScope(scope)
			if !ok {
				continue
			}
			i := slices.IndexFunc(out, func(o Access) bool { return o.Type == a.Type && o.Name == a.Name })
			if i < 0 {
				if len(out) == maxScopes {
					return out
				}
				out = append(out, Access{Type: a.Type, Name: a.Name})
				i = len(out) - 1
			}
			for _, action := range a.Actions {
				if action != "" && !slices.Contains(out[i].Actions, action) {
					out[i].Actions = append(out[i].Actions, action)
				}
			}
		}
	}
	return out
}

func parseScope(s string) (Access, bool) {
	typ, rest, ok := strings.Cut(s, ":")
	if !ok {
		return Access{}, false
	}
	i := strings.LastIndexByte(rest, ':')
	if i <= 0 {
		return Access{}, false
	}
	if open := strings.IndexByte(typ, '('); open >= 0 {
		if !strings.HasSuffix(typ, ")") {
			return Access{}, false
		}
		typ = typ[:open]
	}
	if typ == "" {
		return Access{}, false
	}
	return Access{Type: typ, Name: rest[:i], Actions: strings.SplitN(rest[i+1:], ",", 16)}, true
}

// String writes the entry as a scope, "type:name:action,action".
func (a Access) String() string {
	return a.Type + ":" + a.Name + ":" + strings.Join(a.Actions, ",")
}
