package gos

import (
	"context"
	"errors"
	"io"
	"net/http"
	"sync/atomic"

	"cumulet.io/internal/problem"
)

type faultsKey struct{}

// faults is what went wrong below while a request was served.
type faults struct {
	// unavailable: the tracker or a store did not answer. lost: what was written is not stored.
	unavailable, lost atomic.Bool
}

// note remembers for Unavailable that something did not answer.
func note(ctx context.Context, err error) {
	if f, ok := ctx.Value(faultsKey{}).(*faults); ok && errors.Is(err, problem.ErrUnavailable) {
		f.unavailable.Store(true)
	}
}

// Note is for a caller of Tracker: see Unavailable.
func Note(ctx context.Context, err error) { note(ctx, err) }

// noteLost remembers that what was written is not stored.
func noteLost(ctx context.Context) {
	if f, ok := ctx.Value(faultsKey{}).(*faults); ok {
		f.lost.Store(true)
	}
}

// Unavailable answers 503 where next, the distribution core, would say 500 because the tracker or a store did not answer,
// which the core cannot tell from a fault of its own, and where it would acknowledge bytes that could not be stored: it
// ignores what closing an upload says.
func Unavailable(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		f := &faults{}
		next.ServeHTTP(&faultWriter{ResponseWriter: w, faults: f}, r.WithContext(context.WithValue(r.Context(), faultsKey{}, f)))
	})
}

type faultWriter struct {
	http.ResponseWriter
	faults *faults
	wrote  bool
	// replaced says that the body is ours already.
	replaced bool
}

// Unwrap is for http.ResponseController.
func (w *faultWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

const unavailableBody = `{"errors":[{"code":"UNAVAILABLE","message":"the registry's storage does not answer: try again"}]}` + "\n"

// WriteHeader implements http.ResponseWriter.
func (w *faultWriter) WriteHeader(status int) {
	if w.wrote {
		return // the core says first that the client has gone, and then its error
	}
	if status >= 200 {
		w.wrote = true
	}
	if status >= 500 && w.faults.unavailable.Load() || status >= 200 && w.faults.lost.Load() {
		w.replaced = true
		h := w.Header()
		for _, name := range []string{"Location", "Range", "Docker-Content-Digest", "Docker-Upload-UUID", "Content-Length", "Etag", "Cache-Control"} {
			h.Del(name)
		}
		h.Set("Content-Type", "application/json")
		h.Set("Retry-After", "5")
		w.ResponseWriter.WriteHeader(http.StatusServiceUnavailable)
		_, _ = io.WriteString(w.ResponseWriter, unavailableBody) //nolint:errcheck // the client has gone
		return
	}
	w.ResponseWriter.WriteHeader(status)
}

// Write implements http.ResponseWriter.
func (w *faultWriter) Write(p []byte) (int, error) {
	if !w.wrote {
		w.WriteHeader(http.StatusOK)
	}
	if w.replaced {
		return len(p), nil
	}
	return w.ResponseWriter.Write(p)
}

// ReadFrom implements io.ReaderFrom, so that a file is still sent by the kernel.
func (w *faultWriter) ReadFrom(src io.Reader) (int64, error) {
	if !w.wrote {
		w.WriteHeader(http.StatusOK)
	}
	if w.replaced {
		return io.Copy(io.Discard, src)
	}
	return io.Copy(w.ResponseWriter, src)
}
