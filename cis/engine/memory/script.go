package memory

import (
	"fmt"
	"strings"
)

// statement is one simple command of a script.
type statement struct {
	// op joins it to the one before: ";", "&&" or "||".
	op         string
	words      []string // as written, quotes and variables unresolved
	redirects  []redirect
	background bool
}

// redirect is "fd>target", with append for ">>" and target "&1" or "&2" for a copy.
type redirect struct {
	fd     int
	app    bool
	target string
}

// parse reads the part of the shell's language that containers of this engine speak: simple commands with quotes and
// variables, joined by ; newline && || &, with output redirects.
func parse(script string) ([]statement, error) {
	tokens, err := tokenize(script)
	if err != nil {
		return nil, err
	}
	var list []statement
	cur, op := statement{}, ";"
	end := func(next string) {
		if len(cur.words) > 0 {
			cur.op = op
			list = append(list, cur)
		}
		cur, op = statement{}, next
	}
	for n := 0; n < len(tokens); n++ {
		switch t := tokens[n]; t {
		case ";", "\n":
			end(";")
		case "&&", "||":
			end(t)
		case "&":
			cur.background = true
			end(";")
		case ">", ">>", "1>", "1>>", "2>", "2>>":
			if n++; n == len(tokens) {
				return nil, fmt.Errorf("syntax error: %q without a target", t)
			}
			r := redirect{fd: 1, app: strings.HasSuffix(t, ">>"), target: tokens[n]}
			if t[0] == '2' {
				r.fd = 2
			}
			cur.redirects = append(cur.redirects, r)
		case "|", "(", ")", "{", "}":
			return nil, fmt.Errorf("syntax error: %q is not supported by the in-memory engine", t)
		default:
			cur.words = append(cur.words, t)
		}
	}
	end(";")
	return list, nil
}

// tokenize splits a script into words, as written, and operators.
func tokenize(s string) ([]string, error) {
	var tokens []string
	var word []byte
	flush := func() {
		if len(word) > 0 {
			tokens = append(tokens, string(word))
		}
		word = word[:0]
	}
	for i := 0; i < len(s); i++ {
		switch c := s[i]; c {
		case ' ', '\t', '\r':
			flush()
		case '\n', ';', '|', '&', '(', ')':
			if c == '&' && len(word) == 0 && tokensEndIn(tokens, ">") {
				word = append(word, '&')
				continue
			}
			flush()
			op := string(c)
			if i+1 < len(s) && s[i+1] == c && (c == '|' || c == '&') {
				op, i = op+op, i+1
			}
			tokens = append(tokens, op)
		case '>':
			fd := ""
			if len(word) == 1 && (word[0] == '1' || word[0] == '2') {
				fd, word = string(word), word[:0]
			}
			flush()
			op := fd + ">"
			if i+1 < len(s) && s[i+1] == '>' {
				op, i = op+">", i+1
			}
			tokens = append(tokens, op)
		case '\'', '"':
			end := i + 1
			for end < len(s) && s[end] != c {
				if s[end] == '\\' && c == '"' {
					end++
				}
				end++
			}
			if end >= len(s) {
				return nil, fmt.Errorf("syntax error: unterminated quoted string")
			}
			word = append(word, s[i:end+1]...)
			i = end
		case '\\':
			word = append(word, s[i:min(i+2, len(s))]...)
			i++
		default:
			word = append(word, c)
		}
	}
	flush()
	return tokens, nil
}

func tokensEndIn(tokens []string, suffix string) bool {
	return len(tokens) > 0 && strings.HasSuffix(tokens[len(tokens)-1], suffix)
}

// expand resolves the quotes and variables of a word.
func expand(word string, variable func(string) string) string {
	var b strings.Builder
	double := false
	for i := 0; i < len(word); i++ {
		switch c := word[i]; {
		case c == '"':
			double = !double
		case c == '\'' && !double:
			end := strings.IndexByte(word[i+1:], '\'')
			if end < 0 {
				return b.String()
			}
			b.WriteString(word[i+1 : i+1+end])
			i += end + 1
		case c == '\\' && i+1 < len(word):
			i++
			b.WriteByte(word[i])
		case c == '$' && i+1 < len(word):
			name, width := variableName(word[i+1:])
			if width == 0 {
				b.WriteByte('$')
				continue
			}
			b.WriteString(variable(name))
			i += width
		default:
			b.WriteByte(c)
		}
	}
	return b.String()
}

// variableName is the name after a "$" and how much text it takes.
func variableName(s string) (string, int) {
	if s[0] == '?' {
		return "?", 1
	}
	if s[0] == '{' {
		if end := strings.IndexByte(s, '}'); end > 0 {
			return s[1:end], end + 1
		}
		return "", 0
	}
	n := 0
	for n < len(s) && (s[n] == '_' || s[n] >= 'A' && s[n] <= 'Z' || s[n] >= 'a' && s[n] <= 'z' || n > 0 && s[n] >= '0' && s[n] <= '9') {
		n++
	}
	return s[:n], n
}
