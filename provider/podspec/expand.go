package podspec

import "strings"

// expand replaces $(NAME) in s by what lookup gives; $$ is a $, and a reference that lookup does not know stays as it
// is (core/v1, Container.env.value). With later set the result is still a template: a $ of a replaced value is doubled, and
// lookup may answer a reference to keep.
func expand(s string, later bool, lookup func(name string) (value string, ok bool)) string {
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
			if later {
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

// references lists the names that s refers to.
func references(s string) []string {
	var names []string
	expand(s, false, func(name string) (string, bool) {
		names = append(names, name)
		return "", true
	})
	return names
}

// escape makes a value stand for itself in a template.
func escape(s string) string { return strings.ReplaceAll(s, "$", "$$") }
