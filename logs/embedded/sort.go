package embedded

import (
	"bytes"
	"encoding/json"
	"strconv"
	"strings"
	"time"
)

// sortKey is one key of a search's order.
type sortKey struct {
	field string
	desc  bool
	text  bool // a date is answered as text with nanoseconds
}

const maxSortKeys = 12

// parseSort reads the sort member: an array, or one key.
func parseSort(raw json.RawMessage) ([]sortKey, error) {
	raw = bytes.TrimSpace(raw)
	if len(raw) == 0 || string(raw) == "null" {
		return nil, nil
	}
	parts := []json.RawMessage{raw}
	if raw[0] == '[' {
		if err := json.Unmarshal(raw, &parts); err != nil {
			return nil, badRequest("parsing_exception", "[sort] is malformed")
		}
	}
	if len(parts) > maxSortKeys {
		return nil, badRequest("illegal_argument_exception", "[sort] has more than %d keys", maxSortKeys)
	}
	var keys []sortKey
	for _, part := range parts {
		k, err := parseSortKey(part)
		if err != nil {
			return nil, err
		}
		keys = append(keys, k)
	}
	return keys, nil
}

func parseSortKey(raw json.RawMessage) (k sortKey, err error) {
	var name string
	if json.Unmarshal(raw, &name) != nil {
		var body json.RawMessage
		if name, body, err = single(raw, "sort"); err != nil {
			return k, err
		}
		var o struct {
			Order    string `json:"order"`
			Format   string `json:"format"`
			Missing  string `json:"missing"`
			Unmapped string `json:"unmapped_type"`
			Numeric  string `json:"numeric_type"`
		}
		if json.Unmarshal(body, &o.Order) != nil {
			if err := strict(body, &o, "[sort]"); err != nil {
				return k, err
			}
		}
		switch {
		case o.Order != "" && o.Order != "asc" && o.Order != "desc":
			return k, badRequest("illegal_argument_exception", "[sort] order must be asc or desc")
		case o.Missing != "" && o.Missing != "_last":
			return k, unsupported("[sort] missing [%.100s]", o.Missing)
		case o.Format != "" && o.Format != "strict_date_optional_time_nanos":
			return k, unsupported("[sort] format [%.100s]", o.Format)
		}
		k.desc, k.text = o.Order == "desc", o.Format != ""
	}
	switch name {
	case "_score", "_doc", "_shard_doc":
		return k, unsupported("[sort] by [%s]", name)
	}
	k.field, err = fieldName(name)
	k.text = k.text && isDate(k.field)
	return k, err
}

// parseAfter reads search_after into the values that rows are compared by.
func parseAfter(raw json.RawMessage, keys []sortKey) ([]any, error) {
	raw = bytes.TrimSpace(raw)
	if len(raw) == 0 || string(raw) == "null" {
		return nil, nil
	}
	var parts []json.RawMessage
	if err := json.Unmarshal(raw, &parts); err != nil {
		return nil, badRequest("parsing_exception", "[search_after] must be an array")
	}
	if len(parts) == 0 || len(parts) != len(keys) {
		return nil, badRequest("illegal_argument_exception", "[search_after] has %d value(s) but sort has %d", len(parts), len(keys))
	}
	var out []any
	for i, part := range parts {
		if isDate(keys[i].field) {
			unit := time.Nanosecond
			if keys[i].field == "@timestamp" {
				unit = time.Millisecond
			}
			ns, ok := parseTime(part, unit)
			if !ok {
				return nil, badRequest("illegal_argument_exception", "[search_after] value %d is not a date", i)
			}
			out = append(out, ns)
			continue
		}
		v, err := scalar(part, "search_after")
		if err != nil {
			return nil, err
		}
		out = append(out, v)
	}
	return out, nil
}

// show gives a sort value as it is answered.
func (k sortKey) show(v any) any {
	ns, ok := v.(int64)
	switch {
	case !ok || !isDate(k.field):
		return v
	case k.text:
		return time.Unix(0, ns).UTC().Format(time.RFC3339Nano)
	case k.field == "@timestamp":
		return ns / int64(time.Millisecond)
	}
	return ns
}

// after gives the condition that a row of t comes behind the tuple at, and appends its arguments. Missing values come
// last in either direction.
func (t table) after(keys []sortKey, at []any, args *[]any) (string, error) {
	var or, equal []string
	var equalArgs []any
	var bound string
	var boundArgs []any
	for i, k := range keys {
		v, err := t.field(k.field)
		if err != nil {
			return "", err
		}
		if v.expr == "" {
			c := 0
			switch {
			case !v.isConst && at[i] == nil:
			case !v.isConst:
				c = 1
			case at[i] == nil:
				c = -1
			default:
				if c = compare(v.konst, at[i]); k.desc {
					c = -c
				}
			}
			if c > 0 {
				or = append(or, strings.Join(append([]string{"1"}, equal...), " AND "))
				*args = append(*args, equalArgs...)
			}
			if c != 0 {
				break
			}
			continue
		}
		if at[i] == nil { // only missing values are level with it, nothing is behind
			equal = append(equal, v.expr+" IS NULL")
			continue
		}
		op := " > ?"
		if k.desc {
			op = " < ?"
		}
		behind := v.expr + op
		if v.null {
			behind = "(" + behind + " OR " + v.expr + " IS NULL)"
		} else if i == 0 { // said apart, for the index
			bound, boundArgs = v.expr+strings.Replace(op, " ?", "= ?", 1), []any{at[i]}
		}
		or = append(or, strings.Join(append(append([]string{}, equal...), behind), " AND "))
		*args = append(append(*args, equalArgs...), at[i])
		equal = append(equal, v.expr+" = ?")
		equalArgs = append(equalArgs, at[i])
	}
	cond := "0"
	if len(or) > 0 {
		cond = "(" + strings.Join(or, " OR ") + ")"
	}
	if bound != "" {
		cond = cond + " AND " + bound
		*args = append(*args, boundArgs...)
	}
	return cond, nil
}

// compare orders sort values of one key: numbers, then texts, as SQLite does.
func compare(a, b any) int {
	x, xText := a.(string)
	y, yText := b.(string)
	switch {
	case xText && yText:
		return strings.Compare(x, y)
	case xText:
		return 1
	case yText:
		return -1
	}
	i, iInt := a.(int64)
	j, jInt := b.(int64)
	if iInt && jInt {
		switch {
		case i < j:
			return -1
		case i > j:
			return 1
		}
		return 0
	}
	f, g := float(a), float(b)
	switch {
	case f < g:
		return -1
	case f > g:
		return 1
	}
	return 0
}

func float(v any) float64 {
	switch v := v.(type) {
	case int64:
		return float64(v)
	case float64:
		return v
	case bool:
		if v {
			return 1
		}
	}
	return 0
}

// number64 reads a number from text, where a numeric field is asked with text.
func number64(s string) any {
	if n, err := strconv.ParseInt(s, 10, 64); err == nil {
		return n
	}
	if f, err := strconv.ParseFloat(s, 64); err == nil {
		return f
	}
	return s
}

// compareRows orders two tuples by the keys; nil comes last.
func compareRows(keys []sortKey, a, b []any) int {
	for i, k := range keys {
		switch {
		case a[i] == nil && b[i] == nil:
			continue
		case a[i] == nil:
			return 1
		case b[i] == nil:
			return -1
		}
		c := compare(a[i], b[i])
		if k.desc {
			c = -c
		}
		if c != 0 {
			return c
		}
	}
	return 0
}
