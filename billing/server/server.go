// Package server is the HTTP API of billing: bills, the FOCUS export, reconciliation, the price book, the quarantine
// and the closing of months.
//
// openapi.yaml describes it and is served with it. The package authorises and reads parameters; what is billed is the
// ledger's. Errors are problem+json; billing/client is the other end.
package server

import (
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"time"

	"cumulet.io/billing/ledger"
	"cumulet.io/billing/price"
	"cumulet.io/billing/reconcile"
	"cumulet.io/billing/statement"
	"cumulet.io/internal/problem"
	"cumulet.io/registry/hubtoken"
)

//go:embed openapi.yaml
var openAPI []byte

// Config is what the API needs.
type Config struct {
	Ledger *ledger.Ledger
	// Inventory is what reconciliation compares with.
	Inventory reconcile.Inventory
	Verifier  hubtoken.Verifier
	// Focus names provider, publisher and issuer in the export.
	Focus statement.FocusOptions
	// Reconcile bounds what reconciliation tolerates; the zero value is good.
	Reconcile reconcile.Options
	// Logger is nil for slog.Default.
	Logger *slog.Logger
	// Now is nil for time.Now.
	Now func() time.Time
}

// maxHeavy bounds the reconciliations at a time; each reads all events of a period.
const maxHeavy = 2

type server struct {
	cfg   Config
	heavy chan struct{}
}

// route is one operation. handle returns an error only when nothing has been answered yet.
type route struct {
	method, path string
	handle       func(http.ResponseWriter, *http.Request) error
}

// New makes the handler: everything under /v1, and /openapi.yaml.
func New(cfg Config) (http.Handler, error) {
	if cfg.Ledger == nil || cfg.Inventory == nil || cfg.Verifier == nil {
		return nil, errors.New("billing server: a ledger, an inventory and a verifier of tokens are required")
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Reconcile.Now == nil {
		cfg.Reconcile.Now = cfg.Now
	}
	s := &server{cfg: cfg, heavy: make(chan struct{}, maxHeavy)}
	mux := http.NewServeMux()
	for _, rt := range s.routes() {
		mux.Handle(rt.method+" "+rt.path, hubtoken.Authenticate(cfg.Verifier, hubtoken.AudienceBilling, s.serve(rt)))
	}
	mux.HandleFunc("GET /openapi.yaml", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/yaml")
		_, _ = w.Write(openAPI) //nolint:errcheck // the client has gone
	})
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		s.fail(w, r, problem.New(problem.ErrNotFound, "there is nothing here for %s; /openapi.yaml describes what there is", r.Method))
	})
	return mux, nil
}

func (s *server) routes() []route {
	return []route{
		{"GET", "/v1/orgs/{org}/bill", s.bill},
		{"GET", "/v1/orgs/{org}/bill.focus.csv", s.focus},
		{"POST", "/v1/reconcile", s.reconcile},
		{"GET", "/v1/pricebook", s.priceBook},
		{"GET", "/v1/quarantine", s.quarantine},
		{"GET", "/v1/months", s.months},
		{"POST", "/v1/months/{month}/close", s.closeMonth},
	}
}

func (s *server) serve(rt route) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := rt.handle(w, r); err != nil {
			s.fail(w, r, err)
		}
	})
}

// fail answers with the problem; the cause of an internal error goes to the log under the request's id.
func (s *server) fail(w http.ResponseWriter, r *http.Request, err error) {
	if status := problem.Write(w, classify(err)); status >= http.StatusInternalServerError && status != http.StatusNotImplemented {
		s.cfg.Logger.ErrorContext(r.Context(), "request failed", "method", r.Method, "path", r.URL.Path, "status", status,
			"request", w.Header().Get("X-Request-Id"), "error", err.Error())
	}
}

// classify gives the ledger's errors their class.
func classify(err error) error {
	for _, c := range []struct{ is, class error }{
		{ledger.ErrPeriod, problem.ErrInvalid},
		{ledger.ErrClose, problem.ErrConflict},
		{ledger.ErrTooMuch, problem.ErrTooLarge},
		{price.ErrNoPrice, problem.ErrConflict},
	} {
		if errors.Is(err, c.is) {
			return problem.New(c.class, "%v", err)
		}
	}
	return err
}

// answer writes v as JSON.
func answer(w http.ResponseWriter, v any) error {
	body, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode the answer: %w", err)
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	_, _ = w.Write(append(body, '\n')) //nolint:errcheck // the client has gone
	return nil
}
