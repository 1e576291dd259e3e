// Package server is the HTTP API of the container instance service: routes, authorisation, strict parameters, streams.
//
// openapi.yaml describes it and is served with it. The package decides nothing about instances: the service behind it
// (cis/control) does. Errors are problem+json; cis/client is the other end.
package server

import (
	"context"
	"crypto/rand"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"mime"
	"net/http"
	"runtime/debug"
	"strings"
	"time"

	"sigs.k8s.io/yaml"

	"cumulet.io/cis"
	"cumulet.io/internal/params"
	"cumulet.io/internal/problem"
	"cumulet.io/registry/hubtoken"
)

//go:embed openapi.yaml
var openAPI []byte

// Service is what the API is of; *control.Control is one. What it answers is redacted already.
type Service interface {
	cis.Instances
	cis.Watcher
	cis.EventLister
	cis.Execer
	cis.LogReader
	cis.PortForwarder
	cis.StatsReader
	cis.Quotas
	Sandboxes(ctx context.Context) (*cis.Sandboxes, error)
}

// Config is what the API needs.
type Config struct {
	Service  Service
	Verifier hubtoken.Verifier
	// Logger is nil for slog.Default.
	Logger *slog.Logger
	// Now is nil for time.Now; a watch ends with its token.
	Now func() time.Time
}

// access is what a route asks of the token.
type access string

const (
	anyToken access = ""
	read     access = hubtoken.ActionRead
	write    access = hubtoken.ActionWrite
	operator access = hubtoken.ActionOperator // or an administrator of the platform
)

// route is one operation. handle returns an error only when nothing has been answered yet.
type route struct {
	method, path string
	access       access
	handle       func(http.ResponseWriter, *http.Request) error
}

type server struct {
	cfg Config
	svc Service
	log *slog.Logger
	mux *http.ServeMux
}

// New makes the handler: everything under /v1, and /openapi.json and /openapi.yaml. The HTTP server around it should have a
// BaseContext that ends at shutdown, since watches and streams go on for as long as their request's context.
func New(cfg Config) (http.Handler, error) {
	if cfg.Service == nil || cfg.Verifier == nil {
		return nil, errors.New("cis server: a service and a verifier of tokens are required")
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	s := &server{cfg: cfg, svc: cfg.Service, log: cfg.Logger, mux: http.NewServeMux()}
	for _, rt := range s.routes() {
		s.mux.Handle(rt.method+" "+rt.path, hubtoken.Authenticate(cfg.Verifier, hubtoken.AudienceCIS, s.serve(rt)))
	}
	asJSON, err := yaml.YAMLToJSON(openAPI)
	if err != nil {
		return nil, fmt.Errorf("cis server: openapi.yaml: %w", err)
	}
	s.mux.Handle("GET /openapi.json", document("application/json", asJSON))
	s.mux.Handle("GET /openapi.yaml", document("application/yaml", openAPI))
	s.mux.HandleFunc("/", s.noRoute)
	return s.outer(), nil
}

const (
	instances  = "/v1/orgs/{org}/instances"
	instance   = instances + "/{id}"
	containers = instance + "/containers/{container}"
	quota      = "/v1/orgs/{org}/quota"
)

func (s *server) routes() []route {
	return []route{
		{"POST", instances, write, s.create},
		{"GET", instances, read, s.list},
		{"GET", instance, read, s.get},
		{"DELETE", instance, write, s.delete},
		{"PUT", instance + "/volumes/{volume}", write, s.updateVolume},
		{"GET", instance + "/events", read, s.events},
		{"GET", "/v1/orgs/{org}/watch", read, s.watch},
		{"GET", containers + "/log", read, s.logs},
		{"GET", containers + "/exec", write, s.exec},
		{"POST", containers + "/exec", write, s.exec},
		{"GET", containers + "/attach", write, s.exec},
		{"POST", containers + "/attach", write, s.exec},
		{"POST", instance + "/portforward", write, s.portForward},
		{"GET", "/v1/orgs/{org}/stats", read, s.stats},
		{"GET", quota, operator, s.quota},
		{"PUT", quota, operator, s.setQuota},
		{"DELETE", quota, operator, s.unsetQuota},
		{"GET", "/v1/sandboxes", anyToken, s.sandboxes},
	}
}

// serve authorises and turns errors into answers.
func (s *server) serve(rt route) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		err := s.authorise(r, rt.access)
		if err == nil {
			err = rt.handle(w, r)
		}
		if err != nil {
			s.fail(w, r, err)
		}
	})
}

func (s *server) authorise(r *http.Request, a access) error {
	if a == anyToken {
		return nil
	}
	org := r.PathValue("org")
	if err := cis.ValidateOrg(org); err != nil {
		return err
	}
	claims := hubtoken.FromContext(r.Context())
	if a == operator {
		if !claims.Allows(hubtoken.TypePlatform, "*", hubtoken.ActionOperator) && !claims.Allows(hubtoken.TypePlatform, "*", hubtoken.ActionAdmin) {
			return problem.New(problem.ErrForbidden, "quotas are for operators and administrators of the platform")
		}
		return nil
	}
	if !claims.AllowsOrg(org, string(a)) {
		return problem.New(problem.ErrForbidden, "the token does not give %s access to organisation %q", a, org)
	}
	return nil
}

// fail answers with the problem. The cause of an internal error goes to the log, under the request's id.
func (s *server) fail(w http.ResponseWriter, r *http.Request, err error) {
	if r.Context().Err() != nil && errors.Is(err, context.Canceled) {
		err = problem.New(problem.ErrUnavailable, "the request was cancelled")
	}
	if status := problem.Write(w, err); status >= http.StatusInternalServerError && status != http.StatusNotImplemented {
		s.log.ErrorContext(r.Context(), "request failed", "method", r.Method, "path", r.URL.Path, "status", status,
			"requestId", w.Header().Get("X-Request-Id"), "error", err)
	}
}

// outer gives each request an id and keeps a panic to itself.
func (s *server) outer() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Request-Id", strings.ToLower(rand.Text()))
		defer func() {
			p := recover()
			if p == nil {
				return
			}
			if p == http.ErrAbortHandler { //nolint:errorlint // compared as net/http does
				panic(p)
			}
			s.log.ErrorContext(r.Context(), "handler panicked", "method", r.Method, "path", r.URL.Path,
				"requestId", w.Header().Get("X-Request-Id"), "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
			panic(http.ErrAbortHandler) // whatever was being answered is cut
		}()
		s.mux.ServeHTTP(w, r)
	})
}

// noRoute answers what no route matches: 405 where the path is right, else 404.
func (s *server) noRoute(w http.ResponseWriter, r *http.Request) {
	var allow []string
	for _, m := range []string{http.MethodGet, http.MethodPost, http.MethodPut, http.MethodDelete} {
		try := r.Clone(r.Context())
		try.Method = m
		if _, pattern := s.mux.Handler(try); pattern != "/" {
			allow = append(allow, m)
		}
	}
	if len(allow) == 0 {
		s.fail(w, r, problem.New(problem.ErrNotFound, "there is nothing at this path; /openapi.yaml describes what there is"))
		return
	}
	w.Header().Set("Allow", strings.Join(allow, ", "))
	d := problem.Document{Type: "about:blank", Title: "Method not allowed", Status: http.StatusMethodNotAllowed,
		Detail: "use one of " + strings.Join(allow, ", "), RequestID: w.Header().Get("X-Request-Id")}
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(d.Status)
	_ = json.NewEncoder(w).Encode(d) //nolint:errcheck // the client has gone
}

func document(contentType string, body []byte) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", contentType)
		w.Header().Set("Cache-Control", "max-age=3600")
		_, _ = w.Write(body) //nolint:errcheck // the client has gone
	})
}

// answer writes v as JSON.
func answer(w http.ResponseWriter, status int, v any) error {
	body, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode the answer: %w", err)
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(status)
	_, _ = w.Write(append(body, '\n')) //nolint:errcheck // the client has gone
	return nil
}

// wantJSON refuses a body that says it is something else.
func wantJSON(r *http.Request) error {
	ct := r.Header.Get("Content-Type")
	if ct == "" {
		return nil
	}
	if t, _, err := mime.ParseMediaType(ct); err != nil || t != "application/json" {
		return problem.Invalid("Content-Type", "must be application/json", ct)
	}
	return nil
}

// maxQuery bounds the raw query of a call, and so every parameter.
const maxQuery = 256 << 10

// query reads the query of a call that takes the named parameters.
func query(r *http.Request, names ...string) *params.Query {
	return params.Read(r, "this call", maxQuery, names...)
}
