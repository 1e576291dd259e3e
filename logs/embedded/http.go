package embedded

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"slices"
	"strings"
)

// Version is what GET / says: the newest API that the clients in use accept.
const Version = "8.19.7"

const vendorType = "application/vnd.elasticsearch+json"

// apiError is an answer in Elasticsearch's form.
type apiError struct {
	status      int
	typ, reason string
}

func (e *apiError) Error() string { return e.typ + ": " + e.reason }

func badRequest(typ, format string, args ...any) *apiError {
	return &apiError{status: http.StatusBadRequest, typ: typ, reason: fmt.Sprintf(format, args...)}
}

// unsupported names what this front does not do.
func unsupported(format string, args ...any) *apiError {
	return badRequest("illegal_argument_exception", "unsupported: "+format, args...)
}

type object = map[string]any

// ServeHTTP answers the Elasticsearch API.
func (s *Store) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("X-Elastic-Product", "Elasticsearch")
	w.Header().Set("Content-Type", "application/json")
	if strings.Contains(r.Header.Get("Accept"), vendorType) {
		w.Header().Set("Content-Type", vendorType+";compatible-with=8")
	}
	s.mux.ServeHTTP(w, r)
}

func (s *Store) routes() http.Handler {
	mux := http.NewServeMux()
	add := func(pattern string, write bool, h func(*http.Request) (any, error)) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			err := s.authorize(r, write)
			var answer any
			if err == nil {
				r.Body = http.MaxBytesReader(w, r.Body, s.o.MaxBody)
				answer, err = h(r)
			}
			if err != nil {
				s.fail(w, r, err)
				return
			}
			body, err := json.Marshal(answer)
			if err != nil {
				s.fail(w, r, err)
				return
			}
			if r.Method != http.MethodHead {
				_, _ = w.Write(body) //nolint:errcheck // the client has gone
			}
		})
	}
	add("GET /{$}", false, func(*http.Request) (any, error) { return info(), nil })
	add("GET /_license", false, func(*http.Request) (any, error) {
		return object{"license": object{"status": "active", "uid": "embedded", "type": "basic"}}, nil
	})
	for _, p := range []string{"/_bulk", "/{index}/_bulk"} {
		add("POST "+p, true, s.bulk)
		add("PUT "+p, true, s.bulk)
	}
	for _, m := range []string{"GET ", "POST "} {
		add(m+"/_search", false, s.search)
		add(m+"/{index}/_search", false, s.search)
		add(m+"/_count", false, s.count)
		add(m+"/{index}/_count", false, s.count)
		add(m+"/_refresh", false, s.refresh)
		add(m+"/{index}/_refresh", false, s.refresh)
	}
	add("POST /{index}/_pit", false, s.openPIT)
	add("DELETE /_pit", false, s.closePIT)
	add("/", false, func(r *http.Request) (any, error) {
		return nil, &apiError{status: http.StatusNotFound, typ: "illegal_argument_exception",
			reason: "this store has no handler for " + r.Method + " " + r.URL.Path}
	})
	return mux
}

func info() object {
	return object{"name": "embedded", "cluster_name": "cumulet", "cluster_uuid": "embedded", "tagline": "You Know, for Search",
		"version": object{"number": Version, "build_flavor": "default", "build_type": "embedded", "build_hash": "unknown",
			"build_date": "2026-01-01T00:00:00Z", "build_snapshot": false, "lucene_version": "9.12.2",
			"minimum_wire_compatibility_version": "7.17.0", "minimum_index_compatibility_version": "7.0.0"}}
}

// fail answers with err. Only an apiError's text leaves the server.
func (s *Store) fail(w http.ResponseWriter, r *http.Request, err error) {
	var e *apiError
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &e):
	case errors.As(err, &tooLarge):
		e = &apiError{status: http.StatusRequestEntityTooLarge, typ: "content_too_long_exception",
			reason: fmt.Sprintf("the body is larger than %d bytes", s.o.MaxBody)}
	case errors.Is(err, context.DeadlineExceeded):
		e = &apiError{status: http.StatusServiceUnavailable, typ: "search_phase_execution_exception", reason: "the query takes too long: ask for less"}
	case r.Context().Err() != nil:
		e = &apiError{status: 499, typ: "task_cancelled_exception", reason: "the client has gone"}
	default:
		s.o.Log.ErrorContext(r.Context(), "log store request", "method", r.Method, "path", r.URL.Path, "error", err)
		e = &apiError{status: http.StatusInternalServerError, typ: "exception", reason: "the store failed; its log has the cause"}
	}
	if e.status == http.StatusUnauthorized {
		w.Header().Set("WWW-Authenticate", `Basic realm="security", charset="UTF-8"`)
	}
	cause := object{"type": e.typ, "reason": e.reason}
	body, _ := json.Marshal(object{"status": e.status, //nolint:errcheck // strings and numbers
		"error": object{"type": e.typ, "reason": e.reason, "root_cause": []any{cause}}})
	w.WriteHeader(e.status)
	_, _ = w.Write(body) //nolint:errcheck // the client has gone
}

// readBody reads and unpacks the whole body: nothing is applied of a body that is cut.
func (s *Store) readBody(r *http.Request, types ...string) ([]byte, error) {
	if ct := r.Header.Get("Content-Type"); ct != "" {
		t, _, err := mime.ParseMediaType(ct)
		if err != nil || !slices.Contains(types, strings.Replace(t, "vnd.elasticsearch+", "", 1)) {
			return nil, &apiError{status: http.StatusNotAcceptable, typ: "content_type_header_exception",
				reason: "Content-Type header [" + ct + "] is not supported"}
		}
	}
	var body io.Reader = r.Body
	switch enc := r.Header.Get("Content-Encoding"); enc {
	case "", "identity":
	case "gzip":
		zr, err := gzip.NewReader(r.Body)
		if err != nil {
			return nil, bodyErr(err)
		}
		body = io.LimitReader(zr, s.o.MaxBody+1)
	default:
		return nil, &apiError{status: http.StatusUnsupportedMediaType, typ: "illegal_argument_exception", reason: "unsupported Content-Encoding [" + enc + "]"}
	}
	var b bytes.Buffer
	if n := r.ContentLength; n > 0 && n <= s.o.MaxBody {
		b.Grow(int(n) + bytes.MinRead)
	}
	if _, err := b.ReadFrom(body); err != nil {
		return nil, bodyErr(err)
	}
	if int64(b.Len()) > s.o.MaxBody {
		return nil, &http.MaxBytesError{Limit: s.o.MaxBody}
	}
	return b.Bytes(), nil
}

// bodyErr is a 400 unless the body is too large.
func bodyErr(err error) error {
	var tooLarge *http.MaxBytesError
	if errors.As(err, &tooLarge) {
		return err
	}
	return badRequest("parse_exception", "the body cannot be read: %v", err)
}
