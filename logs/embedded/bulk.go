package embedded

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"net/http"
	"strconv"
	"time"
)

// item is one action of a bulk request with what became of it.
type item struct {
	action    string // create or index
	index, id string
	status    int
	typ, why  string
}

// maxItems bounds the actions of one request.
const maxItems = 200_000

// bulk applies a request of create and index actions. The answer is sent when everything it acknowledges is on the
// disk; an error answer may leave some of it applied, which a repeat finds as 409.
func (s *Store) bulk(r *http.Request) (any, error) {
	select {
	case s.bulks <- struct{}{}:
		defer func() { <-s.bulks }()
	default:
		return nil, &apiError{status: http.StatusTooManyRequests, typ: "es_rejected_execution_exception", reason: "too many bulk requests at once"}
	}
	begin := time.Now()
	if err := checkParams(r, "refresh", "timeout", "wait_for_active_shards", "require_alias"); err != nil {
		return nil, err
	}
	body, err := s.readBody(r, "application/x-ndjson", "application/json")
	if err != nil {
		return nil, err
	}
	items, perIndex, order, err := parseBulk(body, r.PathValue("index"))
	if err != nil {
		return nil, err
	}
	for _, name := range order {
		if err := s.applyTo(r, name, perIndex[name], items); err != nil {
			return nil, err
		}
	}
	return bulkAnswer{items: items, took: time.Since(begin)}, nil
}

func (s *Store) applyTo(r *http.Request, name string, ops []op, items []item) error {
	ix, err := s.get(r.Context(), name)
	if e, ok := err.(*apiError); ok && e.status == http.StatusBadRequest { //nolint:errorlint // made by get itself
		for _, o := range ops {
			it := &items[o.item]
			it.status, it.typ, it.why = e.status, e.typ, e.reason
		}
		return nil
	}
	if err != nil {
		return err
	}
	release, ok := ix.acquire()
	if !ok {
		return closedErr(true)
	}
	defer release()
	statuses, err := ix.apply(r.Context(), ops)
	if err != nil {
		return err
	}
	for i, st := range statuses {
		it := &items[ops[i].item]
		it.status = st
		if st == exists {
			it.typ, it.why = "version_conflict_engine_exception", "["+it.id+"]: version conflict, document already exists (current version [1])"
		}
	}
	return nil
}

// parseBulk reads the whole body before anything is applied. A broken action line fails the request, a broken document
// its item alone. order has the indices in the order of their first action.
func parseBulk(body []byte, def string) (items []item, perIndex map[string][]op, order []string, err error) {
	perIndex = map[string][]op{}
	if len(body) == 0 {
		return nil, nil, nil, badRequest("parse_exception", "request body is required")
	}
	if body[len(body)-1] != '\n' {
		return nil, nil, nil, badRequest("illegal_argument_exception", "The bulk request must be terminated by a newline [\\n]")
	}
	next := func() []byte {
		var l []byte
		l, body, _ = bytes.Cut(body, []byte{'\n'})
		return bytes.TrimSuffix(l, []byte{'\r'})
	}
	for n := 1; len(body) > 0; n++ {
		l := next()
		if len(bytes.TrimSpace(l)) == 0 {
			continue
		}
		it, err := parseAction(l, n)
		if err != nil {
			return nil, nil, nil, err
		}
		if len(body) == 0 {
			return nil, nil, nil, badRequest("illegal_argument_exception", "the action on line [%d] has no document", n)
		}
		if len(items) == maxItems {
			return nil, nil, nil, badRequest("illegal_argument_exception", "more than %d actions", maxItems)
		}
		if it.index == "" {
			it.index = def
		}
		if it.index == "" {
			return nil, nil, nil, badRequest("action_request_validation_exception", "the action on line [%d] has no index", n)
		}
		if it.id == "" {
			it.id = autoID()
		}
		o, bad := parseDoc(next(), it.id)
		n++
		o.item, o.overwrite = len(items), it.action == "index"
		if bad != "" {
			it.status, it.typ, it.why = http.StatusBadRequest, "document_parsing_exception", bad
		} else {
			if _, known := perIndex[it.index]; !known {
				order = append(order, it.index)
			}
			perIndex[it.index] = append(perIndex[it.index], o)
		}
		items = append(items, it)
	}
	return items, perIndex, order, nil
}

func autoID() string {
	var b [12]byte
	_, _ = rand.Read(b[:]) //nolint:errcheck // it never fails
	return hex.EncodeToString(b[:])
}

// parseAction reads {"create":{"_index":…,"_id":…}}. n is the number of its line.
func parseAction(l []byte, n int) (item, error) {
	var it item
	p := scanner{b: l}
	actions, unknown := 0, ""
	ok := p.object(func(key string) bool {
		it.action = key
		actions++
		return p.object(func(key string) bool {
			v, ok := p.str()
			switch key {
			case "_index":
				it.index = v
			case "_id":
				it.id = v
			case "_type":
			default:
				unknown = key
			}
			return ok && unknown == ""
		})
	})
	switch {
	case unknown != "":
		return it, badRequest("illegal_argument_exception", "Action/metadata line [%d] contains an unknown parameter [%s]", n, unknown)
	case !ok || !p.end() || actions != 1:
		return it, badRequest("illegal_argument_exception", "Malformed action/metadata line [%d], expected one action with string parameters", n)
	case it.action != "create" && it.action != "index":
		return it, unsupported("bulk action [%s] on line [%d]: create and index are", it.action, n)
	case len(it.id) > 512:
		return it, badRequest("illegal_argument_exception", "the _id on line [%d] is longer than 512 bytes", n)
	}
	return it, nil
}

// parseDoc reads one document; bad says what is wrong with it.
func parseDoc(doc []byte, id string) (o op, bad string) {
	o.id = id
	if l, ok := parseLine(doc); ok {
		o.path, o.offset = l.src.path, l.offset
		if LineID(l.src.path, l.offset) == id {
			o.line, o.isLine = l, true
			return o, ""
		}
	}
	var d struct {
		Time json.RawMessage `json:"@timestamp"`
		CRI  struct {
			Time json.RawMessage `json:"time"`
		} `json:"cri"`
		Log struct {
			Offset json.Number `json:"offset"`
			File   struct {
				Path string `json:"path"`
			} `json:"file"`
		} `json:"log"`
	}
	trimmed := bytes.TrimSpace(doc)
	if len(trimmed) == 0 || trimmed[0] != '{' || !json.Valid(doc) {
		return o, "failed to parse: the document is not a JSON object"
	}
	_ = json.Unmarshal(doc, &d) //nolint:errcheck // members of another type are left out, as a mapping would not
	o.doc = trimmed
	if d.Time != nil {
		t, ok := parseTime(d.Time, time.Millisecond)
		if !ok {
			return o, "failed to parse field [@timestamp] of type [date]"
		}
		o.time = cutMillis(t)
	}
	if d.CRI.Time != nil {
		t, ok := parseTime(d.CRI.Time, time.Millisecond)
		if !ok {
			return o, "failed to parse field [cri.time] of type [date_nanos]"
		}
		o.criTime = &t
	}
	o.path = ""
	if off, err := strconv.ParseInt(d.Log.Offset.String(), 10, 64); err == nil && d.Log.File.Path != "" &&
		LineID(d.Log.File.Path, off) == id {
		o.path, o.offset = d.Log.File.Path, off
	}
	return o, ""
}

// parseTime reads a JSON date: RFC 3339 text, or a number of units since 1970. It answers nanoseconds.
func parseTime(raw json.RawMessage, unit time.Duration) (int64, bool) {
	var s string
	if json.Unmarshal(raw, &s) == nil {
		t, err := time.Parse(time.RFC3339Nano, s)
		ns := t.UnixNano()
		return ns, err == nil && time.Unix(0, ns).Equal(t)
	}
	n, err := strconv.ParseInt(string(bytes.TrimSpace(raw)), 10, 64)
	ns := n * int64(unit)
	return ns, err == nil && ns/int64(unit) == n
}

// cutMillis rounds nanoseconds since 1970 down to a millisecond.
func cutMillis(ns int64) int64 {
	const ms = int64(time.Millisecond)
	return ns - ((ns%ms)+ms)%ms
}

// bulkAnswer writes its JSON itself: it has thousands of items.
type bulkAnswer struct {
	items []item
	took  time.Duration
}

// MarshalJSON gives Elasticsearch's answer to _bulk.
func (a bulkAnswer) MarshalJSON() ([]byte, error) {
	b := make([]byte, 0, 64+180*len(a.items))
	bad := false
	for _, it := range a.items {
		bad = bad || it.status >= 300
	}
	b = append(b, `{"took":`...)
	b = strconv.AppendInt(b, a.took.Milliseconds(), 10)
	b = append(b, `,"errors":`...)
	b = strconv.AppendBool(b, bad)
	b = append(b, `,"items":[`...)
	for i, it := range a.items {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(b, `{"`...)
		b = append(b, it.action...)
		b = append(b, `":{"_index":`...)
		b = appendString(b, it.index)
		b = append(b, `,"_id":`...)
		b = appendString(b, it.id)
		b = append(b, `,"status":`...)
		b = strconv.AppendInt(b, int64(it.status), 10)
		switch it.status {
		case created:
			b = append(b, `,"_version":1,"result":"created"`...)
		case updated:
			b = append(b, `,"_version":2,"result":"updated"`...)
		default:
			b = append(b, `,"error":{"type":`...)
			b = appendString(b, it.typ)
			b = append(b, `,"reason":`...)
			b = appendString(b, it.why)
			b = append(b, '}')
		}
		b = append(b, "}}"...)
	}
	return append(b, "]}"...), nil
}
