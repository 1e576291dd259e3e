package embedded

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

// maxSize is Elasticsearch's index.max_result_window; maxAnswer bounds the documents of one answer in bytes.
const (
	maxSize   = 10_000
	maxAnswer = 32 << 20
	// countedTo is how far hits are counted when the request does not say.
	countedTo = 10_000
)

// request is a search that was read whole.
type request struct {
	index   string
	lenient bool
	query   node
	sort    []sortKey
	shown   bool // the sort was asked for
	after   []any
	size    int
	count   int64 // how far to count; 0 not at all, below 0 all
	source  bool
}

// turn waits for a place among the searches.
func (s *Store) turn(r *http.Request) (context.Context, func(), error) {
	ctx, cancel := context.WithTimeout(r.Context(), s.o.QueryTime)
	select {
	case s.searches <- struct{}{}:
		return ctx, func() { <-s.searches; cancel() }, nil
	case <-ctx.Done():
		cancel()
		return nil, nil, &apiError{status: http.StatusTooManyRequests, typ: "es_rejected_execution_exception", reason: "too many searches at once"}
	}
}

func (s *Store) search(r *http.Request) (any, error) {
	begin := time.Now()
	ctx, done, err := s.turn(r)
	if err != nil {
		return nil, err
	}
	defer done()
	body, err := s.readBody(r, "application/json")
	if err != nil {
		return nil, err
	}
	req, err := parseSearch(r, body)
	if err != nil {
		return nil, err
	}
	ixs, err := s.match(req.index, req.lenient)
	if err != nil {
		return nil, err
	}
	run, err := newRun(ctx, ixs, req)
	if err != nil {
		return nil, err
	}
	defer run.close()
	rows, err := run.rows()
	if err != nil {
		return nil, err
	}
	hits := object{"max_score": nil, "hits": rows}
	if req.count != 0 {
		n, more, err := run.count(req.count)
		if err != nil {
			return nil, err
		}
		hits["total"] = object{"value": n, "relation": map[bool]string{false: "eq", true: "gte"}[more]}
	}
	return object{"took": time.Since(begin).Milliseconds(), "timed_out": false, "_shards": shards(len(ixs)), "hits": hits}, nil
}

func shards(n int) object {
	return object{"total": n, "successful": n, "skipped": 0, "failed": 0}
}

func (s *Store) count(r *http.Request) (any, error) {
	ctx, done, err := s.turn(r)
	if err != nil {
		return nil, err
	}
	defer done()
	body, err := s.readBody(r, "application/json")
	if err != nil {
		return nil, err
	}
	req := &request{index: r.PathValue("index")}
	if req.lenient, err = searchParams(r); err != nil {
		return nil, err
	}
	var b struct {
		Query json.RawMessage `json:"query"`
	}
	if len(body) > 0 {
		if err := strict(body, &b, "[count]"); err != nil {
			return nil, err
		}
	}
	if req.query, err = parseQuery(b.Query); err != nil {
		return nil, err
	}
	ixs, err := s.match(req.index, req.lenient)
	if err != nil {
		return nil, err
	}
	run, err := newRun(ctx, ixs, req)
	if err != nil {
		return nil, err
	}
	defer run.close()
	n, _, err := run.count(-1)
	return object{"count": n, "_shards": shards(len(ixs))}, err
}

// refresh has nothing to do: what is acknowledged is searchable.
func (s *Store) refresh(r *http.Request) (any, error) {
	lenient, err := searchParams(r)
	if err != nil {
		return nil, err
	}
	ixs, err := s.match(r.PathValue("index"), lenient)
	return object{"_shards": shards(len(ixs))}, err
}

// openPIT gives an id that stands for the indices; it does not freeze their content, which only ever grows.
func (s *Store) openPIT(r *http.Request) (any, error) {
	lenient, err := searchParams(r)
	if err != nil {
		return nil, err
	}
	ixs, err := s.match(r.PathValue("index"), lenient)
	if err != nil {
		return nil, err
	}
	names := make([]string, len(ixs))
	for i, ix := range ixs {
		names[i] = ix.name
	}
	return object{"id": pitPrefix + base64.RawURLEncoding.EncodeToString([]byte(strings.Join(names, ","))), "_shards": shards(len(ixs))}, nil
}

const pitPrefix = "pit-"

// pitIndices reads an id back; names that have expired since are passed over.
func pitIndices(id string) (string, error) {
	text, ok := strings.CutPrefix(id, pitPrefix)
	b, err := base64.RawURLEncoding.DecodeString(text)
	if !ok || err != nil {
		return "", badRequest("illegal_argument_exception", "invalid id: [%.100s]", id)
	}
	for name := range strings.SplitSeq(string(b), ",") {
		if name != "" && !nameRule.MatchString(name) {
			return "", badRequest("illegal_argument_exception", "invalid id: [%.100s]", id)
		}
	}
	if len(b) == 0 {
		return "-", nil // no index has this name
	}
	return string(b), nil
}

func (s *Store) closePIT(r *http.Request) (any, error) {
	body, err := s.readBody(r, "application/json")
	if err != nil {
		return nil, err
	}
	var b struct {
		ID string `json:"id"`
	}
	if err := strict(body, &b, "[close point in time]"); err != nil {
		return nil, err
	}
	if _, err := pitIndices(b.ID); err != nil {
		return nil, err
	}
	return object{"succeeded": true, "num_freed": 1}, nil
}

func parseSearch(r *http.Request, body []byte) (*request, error) {
	var b struct {
		Query  json.RawMessage `json:"query"`
		Sort   json.RawMessage `json:"sort"`
		After  json.RawMessage `json:"search_after"`
		Size   *int            `json:"size"`
		From   int             `json:"from"`
		Total  json.RawMessage `json:"track_total_hits"`
		Source *bool           `json:"_source"`
		PIT    *struct {
			ID        string `json:"id"`
			KeepAlive string `json:"keep_alive"`
		} `json:"pit"`
	}
	if len(body) > 0 {
		if err := strict(body, &b, "[search]"); err != nil {
			return nil, err
		}
	}
	req := &request{index: r.PathValue("index"), size: 10, count: countedTo, source: b.Source == nil || *b.Source}
	var err error
	if req.lenient, err = searchParams(r); err != nil {
		return nil, err
	}
	if err := parseTotal(b.Total, req); err != nil {
		return nil, err
	}
	if b.Size != nil {
		req.size = *b.Size
	}
	switch {
	case req.size < 0 || req.size > maxSize:
		return nil, badRequest("illegal_argument_exception", "[size] must be 0 to %d, not %d", maxSize, req.size)
	case b.From != 0:
		return nil, unsupported("[from] other than 0: page with search_after")
	case b.PIT != nil && req.index != "":
		return nil, badRequest("action_request_validation_exception", "[indices] cannot be used with point in time")
	case b.PIT != nil:
		if req.index, err = pitIndices(b.PIT.ID); err != nil {
			return nil, err
		}
		req.lenient = true
	}
	if req.query, err = parseQuery(b.Query); err != nil {
		return nil, err
	}
	if req.sort, err = parseSort(b.Sort); err != nil {
		return nil, err
	}
	req.after, err = parseAfter(b.After, req.sort)
	if req.shown = len(req.sort) > 0; !req.shown {
		req.sort = []sortKey{{field: "@timestamp"}}
	}
	return req, err
}

func parseTotal(raw json.RawMessage, req *request) error {
	switch text := string(raw); text {
	case "", "null":
	case "true":
		req.count = -1
	case "false":
		req.count = 0
	default:
		n, err := strconv.ParseInt(text, 10, 64)
		if err != nil || n < 0 {
			return badRequest("illegal_argument_exception", "[track_total_hits] must be a boolean or a number")
		}
		req.count = n
	}
	return nil
}

// checkParams refuses URL parameters that would be passed over in silence.
func checkParams(r *http.Request, known ...string) error {
	for k := range r.URL.Query() {
		if k != "pretty" && k != "human" && k != "error_trace" && !slices.Contains(known, k) {
			return unsupported("request parameter [%.100s]", k)
		}
	}
	return nil
}

// searchParams reads the parameters that reading requests share.
func searchParams(r *http.Request) (lenient bool, err error) {
	err = checkParams(r, "typed_keys", "ignore_unavailable", "allow_no_indices", "expand_wildcards", "keep_alive",
		"request_cache", "preference", "batched_reduce_size", "ccs_minimize_roundtrips", "rest_total_hits_as_int")
	if v := r.URL.Query().Get("rest_total_hits_as_int"); v != "" && v != "false" {
		err = unsupported("request parameter [rest_total_hits_as_int]")
	}
	v := r.URL.Query().Get("ignore_unavailable")
	return v == "true" || r.URL.Query().Has("ignore_unavailable") && v == "", err
}
