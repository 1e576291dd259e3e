package embedded

import (
	"bytes"
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// node is a query. It is one of all, none, and, or, not and *pred.
type node interface{}

type (
	allNode  struct{}
	noneNode struct{}
	andNode  []node
	orNode   []node
	notNode  struct{ n node }
)

// Operators of a pred.
const (
	opTerms = iota
	opRange
	opPrefix
	opWildcard
	opContains
	opExists
)

// pred asks something of one field. A document without the field does not match.
type pred struct {
	op    int
	field string
	terms []any          // opTerms: string, int64, float64 or bool
	text  string         // opPrefix, opWildcard, opContains
	bound map[string]any // opRange: gt, gte, lt, lte
}

// Bounds of a query, against requests that would take memory or stack.
const (
	maxDepth   = 20
	maxClauses = 1024
	maxTerms   = 4096
)

// parser reads a query once.
type parser struct{ clauses int }

var fieldRule = regexp.MustCompile(`^[A-Za-z_@][A-Za-z0-9_@-]*(\.[A-Za-z0-9_@-]+)*$`)

func fieldName(f string) (string, error) {
	if len(f) > 200 || !fieldRule.MatchString(f) {
		return "", badRequest("illegal_argument_exception", "invalid field name [%.200s]", f)
	}
	return strings.TrimSuffix(f, ".keyword"), nil
}

// parseQuery reads a query of the DSL; nil or absent is match_all.
func parseQuery(raw json.RawMessage) (node, error) {
	if len(raw) == 0 || string(raw) == "null" {
		return allNode{}, nil
	}
	p := &parser{}
	return p.query(raw, 0)
}

func (p *parser) query(raw json.RawMessage, depth int) (node, error) {
	if p.clauses++; p.clauses > maxClauses {
		return nil, badRequest("illegal_argument_exception", "the query has more than %d clauses", maxClauses)
	}
	if depth > maxDepth {
		return nil, badRequest("illegal_argument_exception", "the query is nested deeper than %d", maxDepth)
	}
	kind, body, err := single(raw, "query")
	if err != nil {
		return nil, err
	}
	switch kind {
	case "match_all":
		return allNode{}, only(body, kind, "boost")
	case "match_none":
		return noneNode{}, only(body, kind)
	case "bool":
		return p.boolean(body, depth)
	case "term", "prefix", "wildcard", "match_phrase":
		return onField(kind, body)
	case "terms":
		return terms(body)
	case "range":
		return rangeOf(body)
	case "exists":
		var e struct {
			Field string `json:"field"`
		}
		if err := strict(body, &e, "[exists]"); err != nil {
			return nil, err
		}
		f, err := fieldName(e.Field)
		return &pred{op: opExists, field: f}, err
	}
	return nil, unsupported("query [%.100s]", kind)
}

func (p *parser) boolean(body json.RawMessage, depth int) (node, error) {
	var b struct {
		Must    json.RawMessage `json:"must"`
		Filter  json.RawMessage `json:"filter"`
		MustNot json.RawMessage `json:"must_not"`
		Should  json.RawMessage `json:"should"`
		Min     *int            `json:"minimum_should_match"`
		Boost   *float64        `json:"boost"`
	}
	if err := strict(body, &b, "[bool]"); err != nil {
		return nil, err
	}
	and := andNode{}
	for _, part := range []json.RawMessage{b.Must, b.Filter} {
		ns, err := p.list(part, depth)
		if err != nil {
			return nil, err
		}
		and = append(and, ns...)
	}
	nots, err := p.list(b.MustNot, depth)
	if err != nil {
		return nil, err
	}
	should, err := p.list(b.Should, depth)
	if err != nil {
		return nil, err
	}
	need := 0
	if len(should) > 0 && len(and) == 0 {
		need = 1
	}
	if b.Min != nil {
		need = *b.Min
	}
	switch {
	case need < 0 || need > 1:
		return nil, unsupported("[bool] minimum_should_match of %d: 0 and 1 are", need)
	case need == 1 && len(should) == 0:
		and = append(and, noneNode{})
	case need == 1:
		and = append(and, orNode(should))
	}
	for _, n := range nots {
		and = append(and, notNode{n})
	}
	return and, nil
}

// list reads one query or an array of them.
func (p *parser) list(raw json.RawMessage, depth int) ([]node, error) {
	raw = bytes.TrimSpace(raw)
	if len(raw) == 0 || string(raw) == "null" {
		return nil, nil
	}
	many := []json.RawMessage{raw}
	if raw[0] == '[' {
		if err := json.Unmarshal(raw, &many); err != nil {
			return nil, badRequest("parsing_exception", "[bool] malformed clauses")
		}
	}
	out := make([]node, 0, len(many))
	for _, m := range many {
		n, err := p.query(m, depth+1)
		if err != nil {
			return nil, err
		}
		out = append(out, n)
	}
	return out, nil
}

// onField reads {"field": value} or {"field": {"value": value}}.
func onField(kind string, body json.RawMessage) (node, error) {
	name, raw, err := single(body, kind)
	if err != nil {
		return nil, err
	}
	field, err := fieldName(name)
	if err != nil {
		return nil, err
	}
	if t := bytes.TrimSpace(raw); len(t) > 0 && t[0] == '{' {
		var m map[string]json.RawMessage
		if err := json.Unmarshal(raw, &m); err != nil {
			return nil, badRequest("parsing_exception", "[%s] malformed query", kind)
		}
		key := "value"
		if kind == "match_phrase" {
			key = "query"
		}
		for k, v := range m {
			switch {
			case k == key || k == "wildcard" && kind == "wildcard":
				raw = v
			case k == "boost":
			case k == "case_insensitive" && string(v) == "false":
			case k == "slop" && string(v) == "0":
			default:
				return nil, unsupported("[%s] parameter [%.100s]", kind, k)
			}
		}
	}
	v, err := scalar(raw, kind)
	if err != nil {
		return nil, err
	}
	if kind == "term" {
		return &pred{op: opTerms, field: field, terms: []any{v}}, nil
	}
	text, ok := v.(string)
	if !ok {
		text = fmt.Sprint(v)
	}
	ops := map[string]int{"prefix": opPrefix, "wildcard": opWildcard, "match_phrase": opContains}
	return wildcardAsContains(&pred{op: ops[kind], field: field, text: text}), nil
}

// wildcardAsContains turns a pattern of the form *text*, with \ escapes, into a search for the text.
func wildcardAsContains(p *pred) *pred {
	if p.op != opWildcard || len(p.text) < 2 || p.text[0] != '*' || p.text[len(p.text)-1] != '*' {
		return p
	}
	var b strings.Builder
	inner := p.text[1 : len(p.text)-1]
	for i := 0; i < len(inner); i++ {
		switch inner[i] {
		case '*', '?':
			return p
		case '\\':
			if i++; i == len(inner) {
				return p // the last * is escaped
			}
		}
		b.WriteByte(inner[i])
	}
	return &pred{op: opContains, field: p.field, text: b.String()}
}

func terms(body json.RawMessage) (node, error) {
	var m map[string]json.RawMessage
	if err := json.Unmarshal(body, &m); err != nil {
		return nil, badRequest("parsing_exception", "[terms] malformed query")
	}
	delete(m, "boost")
	if len(m) != 1 {
		return nil, badRequest("parsing_exception", "[terms] takes one field")
	}
	for name, raw := range m {
		field, err := fieldName(name)
		if err != nil {
			return nil, err
		}
		var vs []json.RawMessage
		if err := json.Unmarshal(raw, &vs); err != nil {
			return nil, unsupported("[terms] with anything but an array")
		}
		if len(vs) > maxTerms {
			return nil, badRequest("illegal_argument_exception", "[terms] has more than %d values", maxTerms)
		}
		p := &pred{op: opTerms, field: field}
		for _, v := range vs {
			x, err := scalar(v, "terms")
			if err != nil {
				return nil, err
			}
			p.terms = append(p.terms, x)
		}
		return p, nil
	}
	return noneNode{}, nil
}

func rangeOf(body json.RawMessage) (node, error) {
	name, raw, err := single(body, "range")
	if err != nil {
		return nil, err
	}
	field, err := fieldName(name)
	if err != nil {
		return nil, err
	}
	var m map[string]json.RawMessage
	if err := json.Unmarshal(raw, &m); err != nil {
		return nil, badRequest("parsing_exception", "[range] malformed query")
	}
	p := &pred{op: opRange, field: field, bound: map[string]any{}}
	for k, v := range m {
		switch k {
		case "gt", "gte", "lt", "lte":
			if string(v) == "null" {
				continue
			}
			if p.bound[k], err = scalar(v, "range"); err != nil {
				return nil, err
			}
			if isDate(field) {
				ns, ok := parseTime(v, time.Millisecond)
				if !ok {
					return nil, badRequest("parse_exception", "failed to parse date field [%.100s]: RFC 3339 or epoch milliseconds are supported, no date math", v)
				}
				p.bound[k] = ns
			}
		case "boost":
		case "format":
			if f := strings.Trim(string(v), `"`); f != "strict_date_optional_time_nanos" && f != "strict_date_optional_time" {
				return nil, unsupported("[range] format %.100s", v)
			}
		default:
			return nil, unsupported("[range] parameter [%.100s]", k)
		}
	}
	return p, nil
}

// isDate tells the two fields that are times.
func isDate(field string) bool { return field == "@timestamp" || field == "cri.time" }

// single reads an object of one member.
func single(raw json.RawMessage, what string) (string, json.RawMessage, error) {
	var m map[string]json.RawMessage
	if err := json.Unmarshal(raw, &m); err != nil || len(m) != 1 {
		return "", nil, badRequest("parsing_exception", "[%.100s] must be an object of one member", what)
	}
	for k, v := range m {
		return k, v, nil
	}
	return "", nil, nil
}

// only checks that an object has no other members.
func only(raw json.RawMessage, what string, keys ...string) error {
	var m map[string]json.RawMessage
	if err := json.Unmarshal(raw, &m); err != nil {
		return badRequest("parsing_exception", "[%s] malformed", what)
	}
	for k := range m {
		if !slices.Contains(keys, k) {
			return unsupported("[%s] parameter [%.100s]", what, k)
		}
	}
	return nil
}

// strict decodes and names an unknown member.
func strict(raw json.RawMessage, to any, what string) error {
	d := json.NewDecoder(bytes.NewReader(raw))
	d.DisallowUnknownFields()
	if err := d.Decode(to); err != nil {
		if name, ok := strings.CutPrefix(err.Error(), "json: unknown field "); ok {
			return unsupported("%s parameter [%.100s]", what, strings.Trim(name, `"`))
		}
		return badRequest("parsing_exception", "%s is malformed: %v", what, err)
	}
	if d.More() {
		return badRequest("parsing_exception", "%s has something behind its end", what)
	}
	return nil
}

// scalar reads a string, number or boolean.
func scalar(raw json.RawMessage, what string) (any, error) {
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	var v any
	if err := d.Decode(&v); err != nil {
		return nil, badRequest("parsing_exception", "[%s] malformed value", what)
	}
	switch x := v.(type) {
	case string, bool:
		return x, nil
	case json.Number:
		if n, err := strconv.ParseInt(x.String(), 10, 64); err == nil {
			return n, nil
		}
		f, err := x.Float64()
		if err != nil {
			return nil, badRequest("illegal_argument_exception", "[%s] number out of range", what)
		}
		return f, nil
	}
	return nil, badRequest("parsing_exception", "[%s] needs a string, number or boolean", what)
}
