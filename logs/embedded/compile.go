package embedded

import (
	"fmt"
	"strings"
)

// table is how one kind of document is stored: what a field is there. A field is a constant (of the source), a column
// expression, or absent.
type table struct {
	name string
	src  *stored // nil for the table others
}

// value is a field of a table: constant, SQL expression, or neither (no document of it has the field).
type value struct {
	isConst bool
	konst   any
	expr    string
	null    bool // the expression may be NULL
}

func (t table) field(f string) (value, error) {
	if t.src == nil {
		switch f {
		case "@timestamp":
			return value{expr: "t"}, nil
		case "cri.time":
			return value{expr: "ct", null: true}, nil
		case "_id":
			return value{expr: "id"}, nil
		}
		// The rule of field names has no quotes.
		return value{expr: `json_extract(doc, '$."` + strings.ReplaceAll(f, ".", `"."`) + `"')`, null: true}, nil
	}
	konst := func(v any) (value, error) { return value{isConst: true, konst: v}, nil }
	switch f {
	case "org":
		return konst(t.src.org)
	case "instance":
		return konst(t.src.instance)
	case "container":
		return konst(t.src.container)
	case "attempt":
		return konst(t.src.attempt)
	case "log.file.path":
		return konst(t.src.path)
	case "@timestamp":
		return value{expr: "(t - t % 1000000)"}, nil
	case "cri.time":
		return value{expr: "t"}, nil
	case "cri.stream":
		return value{expr: fmt.Sprintf("(CASE fl & %d WHEN 0 THEN 'stdout' ELSE 'stderr' END)", flagStderr)}, nil
	case "cri.tag":
		return value{expr: fmt.Sprintf("(CASE fl & %d WHEN 0 THEN 'F' ELSE 'P' END)", flagPartial)}, nil
	case "log.offset":
		return value{expr: "off"}, nil
	case "message":
		return value{expr: "msg"}, nil
	case "_id":
		return value{}, unsupported("the field [_id] of log lines in a query")
	}
	return value{}, nil
}

// reduce decides what the source alone decides.
func (t table) reduce(n node) (node, error) {
	switch n := n.(type) {
	case andNode:
		out := andNode{}
		for _, c := range n {
			r, err := t.reduce(c)
			if err != nil {
				return nil, err
			}
			switch r.(type) {
			case allNode:
			case noneNode:
				return noneNode{}, nil
			default:
				out = append(out, r)
			}
		}
		if len(out) == 0 {
			return allNode{}, nil
		}
		return out, nil
	case orNode:
		out := orNode{}
		for _, c := range n {
			r, err := t.reduce(c)
			if err != nil {
				return nil, err
			}
			switch r.(type) {
			case noneNode:
			case allNode:
				return allNode{}, nil
			default:
				out = append(out, r)
			}
		}
		if len(out) == 0 {
			return noneNode{}, nil
		}
		return out, nil
	case notNode:
		r, err := t.reduce(n.n)
		if err != nil {
			return nil, err
		}
		switch r.(type) {
		case noneNode:
			return allNode{}, nil
		case allNode:
			return noneNode{}, nil
		}
		return notNode{r}, nil
	case *pred:
		v, err := t.field(n.field)
		switch {
		case err != nil:
			return nil, err
		case v.expr != "":
			return n, nil
		case v.isConst && n.holds(v.konst):
			return allNode{}, nil
		}
		return noneNode{}, nil
	}
	return n, nil
}

// holds asks a pred of a constant.
func (p *pred) holds(v any) bool {
	text := fmt.Sprint(v)
	switch p.op {
	case opTerms:
		for _, x := range p.terms {
			if fmt.Sprint(x) == text {
				return true
			}
		}
		return false
	case opRange:
		for k, b := range p.bound {
			if _, number := v.(int64); number {
				if s, ok := b.(string); ok {
					b = number64(s)
				}
			}
			if c := compare(v, b); k == "gt" && c <= 0 || k == "gte" && c < 0 || k == "lt" && c >= 0 || k == "lte" && c > 0 {
				return false
			}
		}
		return true
	case opPrefix:
		return strings.HasPrefix(text, p.text)
	case opContains:
		return strings.Contains(text, p.text)
	case opWildcard:
		return matchPattern(p.text, text)
	}
	return true // opExists
}

// sqlOf gives the condition for a reduced node and appends its arguments.
func (t table) sqlOf(n node, args *[]any) (string, error) {
	join := func(ns []node, sep, none string) (string, error) {
		var parts []string
		for _, c := range ns {
			s, err := t.sqlOf(c, args)
			if err != nil {
				return "", err
			}
			parts = append(parts, s)
		}
		if len(parts) == 0 {
			return none, nil
		}
		return "(" + strings.Join(parts, sep) + ")", nil
	}
	switch n := n.(type) {
	case andNode:
		return join(n, " AND ", "1")
	case orNode:
		return join(n, " OR ", "0")
	case notNode:
		s, err := t.sqlOf(n.n, args)
		return "NOT coalesce(" + s + ", 0)", err
	case noneNode:
		return "0", nil
	case *pred:
		v, err := t.field(n.field)
		if err != nil {
			return "", err
		}
		return n.sql(v.expr, args)
	}
	return "1", nil
}

func (p *pred) sql(expr string, args *[]any) (string, error) {
	switch p.op {
	case opTerms:
		// A number and its text are the same term, as in a mapped field.
		var plain, text []string
		for _, x := range p.terms {
			if isDate(p.field) {
				return "", unsupported("[term] on the date [%s]: use range", p.field)
			}
			switch x := x.(type) {
			case string:
				text = append(text, "?")
				*args = append(*args, x)
			case bool:
				plain = append(plain, map[bool]string{true: "1", false: "0"}[x])
			case int64:
				plain = append(plain, fmt.Sprint(x))
			case float64:
				plain = append(plain, fmt.Sprintf("%e", x))
			}
		}
		var or []string
		if len(text) > 0 {
			if p.field == "message" || p.field == "cri.stream" || p.field == "cri.tag" || p.field == "_id" {
				or = append(or, expr+" IN ("+strings.Join(text, ",")+")")
			} else {
				or = append(or, "CAST("+expr+" AS TEXT) IN ("+strings.Join(text, ",")+")")
			}
		}
		if len(plain) > 0 {
			or = append(or, expr+" IN ("+strings.Join(plain, ",")+")")
		}
		if len(or) == 0 {
			return "0", nil
		}
		return "(" + strings.Join(or, " OR ") + ")", nil
	case opRange:
		and := []string{"1"}
		for _, k := range []string{"gt", "gte", "lt", "lte"} {
			b, ok := p.bound[k]
			if !ok {
				continue
			}
			sym := map[string]string{"gt": ">", "gte": ">=", "lt": "<", "lte": "<="}[k]
			and = append(and, expr+" "+sym+" ?")
			if s, isText := b.(string); isText && p.field == "log.offset" {
				b = number64(s)
			}
			*args = append(*args, b)
		}
		return strings.Join(and, " AND "), nil
	case opPrefix:
		*args = append(*args, len([]rune(p.text)), p.text)
		return "substr(" + expr + ", 1, ?) = ?", nil
	case opContains:
		*args = append(*args, p.text)
		return "instr(" + expr + ", ?) > 0", nil
	case opWildcard:
		*args = append(*args, globOf(p.text))
		return expr + " GLOB ?", nil
	}
	return expr + " IS NOT NULL", nil
}

// globOf turns an Elasticsearch wildcard pattern into SQLite's GLOB.
func globOf(pattern string) string {
	var b strings.Builder
	escaped := false
	for _, r := range pattern {
		switch {
		case escaped:
			escaped = false
			if strings.ContainsRune("*?[", r) {
				b.WriteString("[" + string(r) + "]")
			} else {
				b.WriteRune(r)
			}
		case r == '\\':
			escaped = true
		case r == '[':
			b.WriteString("[[]")
		default:
			b.WriteRune(r)
		}
	}
	return b.String()
}

// matchPattern is an Elasticsearch wildcard match: * any text, ? one character, \ escapes.
func matchPattern(pattern, s string) bool {
	type tok struct {
		r          rune
		star, wild bool
	}
	var ts []tok
	escaped := false
	for _, r := range pattern {
		switch {
		case !escaped && r == '\\':
			escaped = true
			continue
		case !escaped && r == '*':
			ts = append(ts, tok{star: true})
		case !escaped && r == '?':
			ts = append(ts, tok{wild: true})
		default:
			ts = append(ts, tok{r: r})
		}
		escaped = false
	}
	rs := []rune(s)
	i, j, star, mark := 0, 0, -1, 0
	for i < len(rs) {
		switch {
		case j < len(ts) && ts[j].star:
			star, mark = j, i
			j++
		case j < len(ts) && (ts[j].wild || ts[j].r == rs[i]):
			i++
			j++
		case star >= 0:
			mark++
			i, j = mark, star+1
		default:
			return false
		}
	}
	for j < len(ts) && ts[j].star {
		j++
	}
	return j == len(ts)
}
