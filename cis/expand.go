package cis

import "strings"

// Expand replaces $(NAME) in s by what lookup gives; $$ is a $, and a reference that lookup does not know stays as it
// is, as does a $ before anything else (core/v1, Container.env.value, command and args). Values are not expanded again.
func Expand(s string, lookup func(name string) (value string, ok bool)) string {
	return expand(s, false, lookup)
}

// ExpandTemplate is Expand of which the result is still a template: $$ stays, a reference that lookup does not know too,
// and lookup answers with a template: EscapeTemplate of a value, or the reference itself to put it off.
func ExpandTemplate(s string, lookup func(name string) (template string, ok bool)) string {
	return expand(s, true, lookup)
}

// EscapeTemplate makes a value stand for itself in a template.
func EscapeTemplate(s string) string { return strings.ReplaceAll(s, "$", "$$") }

// ExpandAll expands each element of a command line by the variables that are known.
func ExpandAll(list []string, known map[string]string) []string {
	if list == nil {
		return nil
	}
	out := make([]string, len(list))
	for i, s := range list {
		out[i] = Expand(s, Known(known))
	}
	return out
}

// Known looks names up in a map.
func Known(m map[string]string) func(string) (string, bool) {
	return func(name string) (string, bool) { v, ok := m[name]; return v, ok }
}

// References lists the names that s refers to, in its order.
func References(s string) []string {
	var names []string
	expand(s, false, func(name string) (string, bool) {
		names = append(names, name)
		return "", true
	})
	return names
}

func expand(s string, template bool, lookup func(name string) (value string, ok bool)) string {
	if !strings.Contains(s, "$") {
		return s
	}
	var out strings.Builder
	for {
		i := strings.IndexByte(s, '$')
		if i < 0 || i+1 == len(s) {
			out.WriteString(s)
			return out.String()
		}
		out.WriteString(s[:i])
		s = s[i+1:]
		end := strings.IndexByte(s, ')')
		switch {
		case s[0] == '$':
			out.WriteString("$")
			if template {
				out.WriteString("$")
			}
			s = s[1:]
		case s[0] == '(' && end > 0:
			name := s[1:end]
			if v, ok := lookup(name); ok {
				out.WriteString(v)
			} else {
				out.WriteString("$(" + name + ")")
			}
			s = s[end+1:]
		default:
			out.WriteString("$")
		}
	}
}
