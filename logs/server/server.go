// Package server is the log query API: an org's stored lines by HTTP, as pages, as a stream of records, or as the text
// that `kubectl logs` shows.
//
// It authorises by hubtoken (audience logs, read on the org) and asks a logs.Store; it stores nothing and reads no
// node's files. openapi.yaml describes it and is served with it.
package server

import (
	"bytes"
	"context"
	_ "embed" // the OpenAPI document
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"mime"
	"net/http"
	"strings"
	"time"

	"cumulet.io/internal/problem"
	"cumulet.io/logs"
	"cumulet.io/registry/hubtoken"
)

//go:embed openapi.yaml
var openAPI []byte

// Store is what the API reads.
type Store interface {
	logs.Store
	logs.AttemptReader
}

// Config of New. Store and Verifier are required.
type Config struct {
	Store    Store
	Verifier hubtoken.Verifier
	// Logger gets failures; nil means slog.Default.
	Logger *slog.Logger
	// Poll is how often a followed log is looked at; 0 means a second.
	Poll time.Duration
	// MaxStreams bounds streams open at once; 0 means 256.
	MaxStreams int
	// PageTime bounds one look at the store; 0 means 30 s.
	PageTime time.Duration
}

type server struct {
	Config
	streams chan struct{}
}

// New makes the API's handler.
func New(c Config) http.Handler {
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	if c.Poll <= 0 {
		c.Poll = time.Second
	}
	if c.MaxStreams <= 0 {
		c.MaxStreams = 256
	}
	if c.PageTime <= 0 {
		c.PageTime = 30 * time.Second
	}
	s := &server{Config: c, streams: make(chan struct{}, c.MaxStreams)}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/openapi.yaml", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/yaml")
		_, _ = w.Write(openAPI) //nolint:errcheck // the client has gone
	})
	mux.Handle("GET /v1/orgs/{org}/logs", hubtoken.Authenticate(c.Verifier, hubtoken.AudienceLogs, http.HandlerFunc(s.logs)))
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		s.fail(w, r, problem.New(problem.ErrNotFound, "there is nothing here for %s; /v1/openapi.yaml describes what there is", r.Method))
	})
	return mux
}

// The media types of an answer.
const (
	typeJSON   = "application/json"
	typeNDJSON = "application/x-ndjson"
	typeText   = "text/plain"
)

// accepted chooses by the Accept header: the first of its types that there is; JSON by default.
func accepted(r *http.Request) (string, error) {
	values := r.Header.Values("Accept")
	if len(values) == 0 {
		return typeJSON, nil
	}
	for part := range strings.SplitSeq(strings.Join(values, ","), ",") {
		switch t, _, _ := mime.ParseMediaType(part); t { //nolint:errcheck // a type that is none matches none
		case typeJSON, "*/*", "application/*", "":
			return typeJSON, nil
		case typeNDJSON, typeText:
			return t, nil
		case "text/*":
			return typeText, nil
		}
	}
	return "", problem.Invalid("Accept", "must have application/json, application/x-ndjson or text/plain", strings.Join(values, ","))
}

func (s *server) logs(w http.ResponseWriter, r *http.Request) {
	if err := s.answer(w, r); err != nil {
		s.fail(w, r, err)
	}
}

// fail answers with err; a client's own going is nobody's fault.
func (s *server) fail(w http.ResponseWriter, r *http.Request, err error) {
	if errors.Is(err, logs.ErrBadCursor) {
		err = problem.Invalid("cursor", "must be what an earlier page of the same query gave", r.URL.Query().Get("cursor"))
	}
	if errors.Is(err, context.DeadlineExceeded) && r.Context().Err() == nil {
		err = problem.New(problem.ErrUnavailable, "the query takes too long: ask for less")
	}
	if d := problem.Of(err); d.Status >= 500 && r.Context().Err() == nil {
		s.Logger.ErrorContext(r.Context(), "log query", "org", r.PathValue("org"), "error", err)
	}
	problem.Write(w, err)
}

func (s *server) answer(w http.ResponseWriter, r *http.Request) error {
	org := r.PathValue("org")
	if !hubtoken.FromContext(r.Context()).AllowsOrg(org, hubtoken.ActionRead) {
		return problem.New(problem.ErrForbidden, "the token does not allow reading logs of %q", org)
	}
	typ, err := accepted(r)
	if err != nil {
		return err
	}
	q, err := parse(r, typ)
	if err != nil {
		return err
	}
	if typ == typeJSON {
		return s.page(w, r, q)
	}
	select {
	case s.streams <- struct{}{}:
		defer func() { <-s.streams }()
	default:
		return &problem.Error{Class: problem.ErrExhausted, Detail: "too many log streams are open", RetryAfter: 5 * time.Second}
	}
	out := &stream{w: w, typ: typ}
	if typ == typeText {
		err = s.text(r.Context(), out, q)
	} else {
		err = s.records(r.Context(), out, q)
	}
	if err == nil {
		return out.begin()
	}
	if !out.begun {
		return err
	}
	// The status is sent: a connection that breaks is the only way to say that this is not all.
	if r.Context().Err() == nil {
		s.Logger.ErrorContext(r.Context(), "log stream", "org", org, "error", err)
	}
	panic(http.ErrAbortHandler)
}

// search looks at the store once, within PageTime.
func (s *server) search(ctx context.Context, q logs.Query) (logs.Page, error) {
	ctx, cancel := context.WithTimeout(ctx, s.PageTime)
	defer cancel()
	return s.Store.Search(ctx, q)
}

func (s *server) page(w http.ResponseWriter, r *http.Request, q *query) error {
	p, err := s.search(r.Context(), q.Query)
	if err != nil {
		return err
	}
	if p.Records == nil {
		p.Records = []logs.Record{}
	}
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(p); err != nil {
		return fmt.Errorf("log page: %w", err)
	}
	header(w, typeJSON)
	_, _ = w.Write(b.Bytes()) //nolint:errcheck // the client has gone
	return nil
}

// header says what follows; a browser must not take a tenant's text for a page.
func header(w http.ResponseWriter, typ string) {
	if typ == typeText {
		typ += "; charset=utf-8"
	}
	w.Header().Set("Content-Type", typ)
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.Header().Set("Cache-Control", "no-store")
}

// stream is an answer that is sent as it comes. The status goes with the first byte, so an error before it is one.
type stream struct {
	w     http.ResponseWriter
	typ   string
	begun bool
}

func (s *stream) begin() error {
	if !s.begun {
		s.begun = true
		header(s.w, s.typ)
		s.w.WriteHeader(http.StatusOK)
	}
	return nil
}

func (s *stream) Write(p []byte) (int, error) {
	if err := s.begin(); err != nil {
		return 0, err
	}
	return s.w.Write(p)
}

func (s *stream) flush() error {
	if err := s.begin(); err != nil {
		return err
	}
	if err := http.NewResponseController(s.w).Flush(); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return fmt.Errorf("log stream: %w", err)
	}
	return nil
}
