// Package httpserve is how every role of the platform serves HTTP: bounded, logged, counted, stopped gracefully.
//
// It knows no routes but its own /healthz, /readyz and /metrics.
package httpserve

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"runtime/debug"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp"

	"cumulet.io/internal/problem"
)

// Config is one HTTP service.
type Config struct {
	// Role names the service in logs, metrics and traces.
	Role string
	// Handler is the service.
	Handler http.Handler
	// Ready tells whether the role can do its work; nil means always. It may wait until its context ends, which it does soon.
	Ready func(context.Context) error
	// Metrics is where the service registers its own metrics and what /metrics answers from.
	Metrics *prometheus.Registry
	// Gather has metrics of others, that are answered beside; may be nil.
	Gather prometheus.Gatherer
	// Logger gets one line for each failed request, and for each request at debug.
	Logger *slog.Logger
	// Grace bounds the wait for open requests at the stop; 0 means 10 s.
	Grace time.Duration
}

// readyWithin bounds the answer of /readyz.
const readyWithin = 3 * time.Second

// Run serves on l until ctx ends, then stops: no new requests, open ones get Grace. Requests' contexts end with the
// grace, so that streams and watches end too.
func Run(ctx context.Context, l net.Listener, c Config) error {
	base, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	srv := &http.Server{
		Handler:           handler(c),
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    64 << 10,
		BaseContext:       func(net.Listener) context.Context { return base },
		ErrorLog:          slog.NewLogLogger(c.Logger.Handler(), slog.LevelDebug),
	}
	failed := make(chan error, 1)
	go func() { failed <- srv.Serve(l) }()
	select {
	case err := <-failed:
		return fmt.Errorf("serve %s: %w", c.Role, err)
	case <-ctx.Done():
	}
	grace := c.Grace
	if grace == 0 {
		grace = 10 * time.Second
	}
	stop, done := context.WithTimeout(context.WithoutCancel(ctx), grace)
	defer done()
	// Watches and follows never end by themselves: end their contexts first, then wait for the rest.
	time.AfterFunc(grace/10, cancel)
	err := srv.Shutdown(stop)
	if errors.Is(err, context.DeadlineExceeded) {
		err = srv.Close()
	}
	<-failed //nolint:errcheck // http.ErrServerClosed
	if err != nil {
		return fmt.Errorf("stop %s: %w", c.Role, err)
	}
	return nil
}

func handler(c Config) http.Handler {
	requests := prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: "cumulet", Subsystem: "http", Name: "requests_total",
		Help: "HTTP requests by role, method and status class.", ConstLabels: prometheus.Labels{"role": c.Role}}, []string{"method", "class"})
	seconds := prometheus.NewHistogramVec(prometheus.HistogramOpts{Namespace: "cumulet", Subsystem: "http", Name: "request_seconds",
		Help: "Time to answer a request, streams included.", ConstLabels: prometheus.Labels{"role": c.Role},
		Buckets: []float64{.001, .005, .025, .1, .5, 2.5, 10, 60}}, []string{"method"})
	if c.Metrics != nil {
		c.Metrics.MustRegister(requests, seconds)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, r *http.Request) {
		if c.Ready != nil {
			// Who asks wants an answer while there is none, too, before it gives up.
			ctx, cancel := context.WithTimeout(r.Context(), readyWithin)
			defer cancel()
			if err := c.Ready(ctx); err != nil {
				problem.Write(w, problem.New(problem.ErrUnavailable, "%s is not ready: %v", c.Role, err))
				return
			}
		}
		fmt.Fprintln(w, "ok")
	})
	if c.Metrics != nil {
		mux.Handle("GET /metrics", promhttp.HandlerFor(gatherers(c), promhttp.HandlerOpts{ErrorHandling: promhttp.ContinueOnError}))
	}
	mux.Handle("/", otelhttp.NewHandler(c.Handler, c.Role))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		start := time.Now()
		id := newID()
		w.Header().Set("X-Request-Id", id)
		sw := &statusWriter{ResponseWriter: w}
		defer func() {
			if p := recover(); p != nil {
				if p == http.ErrAbortHandler { //nolint:errorlint,err113 // the sentinel panics are compared by identity, as net/http does
					panic(p)
				}
				c.Logger.ErrorContext(r.Context(), "request panicked", "request", id, "panic", p, "stack", string(debug.Stack()))
				if sw.status == 0 {
					problem.Write(sw, errors.New("panic"))
				}
			}
			status := sw.status
			if status == 0 {
				status = http.StatusOK
			}
			took := time.Since(start)
			requests.WithLabelValues(methodLabel(r.Method), fmt.Sprintf("%dxx", status/100)).Inc()
			seconds.WithLabelValues(methodLabel(r.Method)).Observe(took.Seconds())
			level := slog.LevelDebug
			if status >= http.StatusInternalServerError {
				level = slog.LevelError
			}
			c.Logger.Log(r.Context(), level, "request", "request", id, "method", r.Method, "path", r.URL.Path, "status", status, "took", took)
		}()
		mux.ServeHTTP(sw, r)
	})
}

// methodLabel keeps a client's invented method out of the metrics.
func methodLabel(m string) string {
	switch m {
	case http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete:
		return m
	}
	return "other"
}

func newID() string {
	var b [9]byte
	_, _ = rand.Read(b[:]) //nolint:errcheck // crypto/rand.Read never fails
	return hex.EncodeToString(b[:])
}

// statusWriter remembers the status; Unwrap keeps flushing, hijacking and full duplex through http.ResponseController.
type statusWriter struct {
	http.ResponseWriter
	status int
}

func (w *statusWriter) WriteHeader(code int) {
	if w.status == 0 {
		w.status = code
	}
	w.ResponseWriter.WriteHeader(code)
}

func (w *statusWriter) Write(b []byte) (int, error) {
	if w.status == 0 {
		w.status = http.StatusOK
	}
	return w.ResponseWriter.Write(b)
}

func (w *statusWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// Flush is here for libraries that assert http.Flusher.
func (w *statusWriter) Flush() {
	_ = http.NewResponseController(w.ResponseWriter).Flush() //nolint:errcheck // Flusher has no error
}

// ReadFrom keeps sendfile for large bodies.
func (w *statusWriter) ReadFrom(r io.Reader) (int64, error) {
	if w.status == 0 {
		w.status = http.StatusOK
	}
	return copyTo(w.ResponseWriter, r)
}

func gatherers(c Config) prometheus.Gatherers {
	all := prometheus.Gatherers{c.Metrics}
	if c.Gather != nil {
		all = append(all, c.Gather)
	}
	return all
}
