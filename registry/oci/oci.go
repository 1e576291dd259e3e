// Package oci serves the OCI distribution API on /v2/, with distribution v3 as its core and hubtokens as its access
// control. What the core lacks is added around it: manifests, tags and referrers from an index, blobs without a detour,
// a catalog that shows a tenant its own repositories, mounts that need a right on their source, quotas, rules, events.
//
// It gives out no tokens and decides nobody's role: what a verified token carries is what counts.
package oci

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/distribution/distribution/v3"
	"github.com/distribution/distribution/v3/registry/api/errcode"
	"github.com/distribution/distribution/v3/registry/handlers"
	"github.com/distribution/distribution/v3/registry/storage/driver"
	"github.com/distribution/distribution/v3/registry/storage/driver/factory"
	_ "github.com/distribution/distribution/v3/registry/storage/driver/filesystem" // the embedded default
	"github.com/opencontainers/go-digest"

	"cumulet.io/internal/problem"
	"cumulet.io/registry"
	"cumulet.io/registry/hubtoken"
	"cumulet.io/registry/index"
)

// maxManifestBytes is the largest manifest that is taken: 4 MiB, as the distribution specification asks for at least.
const maxManifestBytes = 4 << 20

// Directory knows repositories. Errors are of problem's classes. Safe for concurrent use.
type Directory interface {
	// Pushed records a push; the first makes the repository, private.
	Pushed(ctx context.Context, repository, account string) error
	// Catalog lists the names of the repositories that an account may pull, after a name, in byte order.
	Catalog(ctx context.Context, account, after string, limit int) ([]string, error)
	// Repository gives a repository, or an error of class ErrNotFound.
	Repository(ctx context.Context, name string) (*registry.Repository, error)
	// MayPush is an error of class ErrExhausted for a repository that is not there, of an org that has as many as it may.
	MayPush(ctx context.Context, repository string) error
}

// BlobServer gives out blobs that the caller has been found to have a right to. ServeBlob answers GET and HEAD, ranges
// included; the headers Docker-Content-Digest, Content-Type, ETag and Cache-Control are set already. dgst is the
// canonical one; size is below 0 when it is not known. An error, of problem's classes, tells that nothing was written;
// ErrNotFound that the store has no such blob. Safe for concurrent use.
type BlobServer interface {
	ServeBlob(w http.ResponseWriter, r *http.Request, dgst digest.Digest, size int64) error
}

// Config is for New. Directory, Verifier, Index, Realm, Service, SecretFile and what the driver needs are required.
type Config struct {
	Directory Directory
	Verifier  hubtoken.Verifier
	// Index keeps rows of what is stored, on one database with the directory or on its own.
	Index *index.Store
	// Quotas bounds what orgs store; nil is no bound.
	Quotas registry.Quotas
	// Auditor is told of deletions, of changed rules and of accesses that were denied; nil is nobody.
	Auditor registry.Auditor
	// Blobs serves blobs; nil is the core, and of the file system the files themselves.
	Blobs BlobServer
	// Realm is the token service's URL as clients reach it, and Service the name that they ask it for.
	Realm, Service string
	// Driver is a registered storage driver; "" is "filesystem". Parameters are the driver's own; of the file system
	// it is "rootdirectory".
	Driver     string
	Parameters map[string]any
	// SecretFile holds the key that signs upload state in URLs, shared by all nodes of a registry. Of mode 0600; made
	// when missing.
	SecretFile string
	// Outbox is given an event for each stored manifest before its push is answered; an error fails the push. nil is nobody.
	Outbox registry.Outbox
	// Patience is how long the slowest upload may take for 32 KiB; 0 is 1 min.
	Patience time.Duration
	// Logger is for what goes wrong here; nil is slog.Default.
	Logger *slog.Logger
}

// Registry serves /v2/. Safe for concurrent use.
type Registry struct {
	cfg      Config
	app      *handlers.App
	driver   driver.StorageDriver
	store    distribution.Namespace
	contents *contents
	links    *links
	pulls    *pulls
	quotas   *quotaNotices
}

// nobody is the outbox of a registry that has none.
type nobody struct{}

// Emit implements registry.Outbox.
func (nobody) Emit(context.Context, registry.Event) error { return nil }

// New makes a registry. Close it when it is no longer served.
func New(ctx context.Context, cfg Config) (r *Registry, err error) {
	if cfg.Directory == nil || cfg.Verifier == nil || cfg.Index == nil || cfg.Service == "" || cfg.SecretFile == "" {
		return nil, errors.New("registry: directory, verifier, index, service and secret file are needed")
	}
	if u, err := url.Parse(cfg.Realm); err != nil || u.Host == "" {
		return nil, errors.New("registry: the realm must be a URL")
	}
	if strings.ContainsAny(cfg.Realm+cfg.Service, "\"\\\r\n") {
		return nil, errors.New("registry: realm and service must be free of quotes")
	}
	if cfg.Driver == "" {
		cfg.Driver = "filesystem"
	}
	if cfg.Driver == "filesystem" && cfg.Parameters["rootdirectory"] == nil {
		return nil, errors.New("registry: the filesystem driver needs rootdirectory")
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	cfg.Patience = cmp.Or(cfg.Patience, time.Minute)
	if cfg.Outbox == nil {
		cfg.Outbox = nobody{}
	}
	secret, err := readSecret(cfg.SecretFile)
	if err != nil {
		return nil, fmt.Errorf("registry: secret file: %w", err)
	}
	if err := extendOnce(); err != nil {
		return nil, fmt.Errorf("registry: %w", err)
	}
	r = &Registry{cfg: cfg, pulls: newPulls(), quotas: newQuotaNotices()}
	if r.driver, err = factory.Create(ctx, cfg.Driver, cfg.Parameters); err != nil {
		return nil, fmt.Errorf("registry: storage %s: %w", cfg.Driver, err)
	}
	if r.store, err = openStore(ctx, r.driver); err != nil {
		return nil, fmt.Errorf("registry: storage %s: %w", cfg.Driver, err)
	}
	if r.contents, err = newContents(); err != nil {
		return nil, fmt.Errorf("registry: %w", err)
	}
	if r.links, err = newLinks(); err != nil {
		return nil, fmt.Errorf("registry: %w", err)
	}
	if root, ok := cfg.Parameters["rootdirectory"].(string); ok && cfg.Driver == "filesystem" && cfg.Blobs == nil {
		r.cfg.Blobs = blobFiles{root}
	}
	if err := r.fillIndex(ctx); err != nil {
		return nil, fmt.Errorf("registry: %w", err)
	}
	// The core panics on a configuration that it does not like.
	defer func() {
		if p := recover(); p != nil {
			r, err = nil, fmt.Errorf("registry: storage %s: %v", cfg.Driver, p)
		}
	}()
	r.app = handlers.NewApp(context.Background(), r.configuration(secret))
	return r, nil
}

// Close ends the core's background work and writes down what Run has not. Requests under way go on.
func (r *Registry) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	return errors.Join(r.flushPulls(ctx), r.app.Shutdown())
}

// ServeHTTP implements http.Handler.
func (r *Registry) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	req, err := r.authenticate(req)
	if err != nil {
		// The keys cannot be had: that is no verdict on the token.
		r.cfg.Logger.WarnContext(req.Context(), "a token cannot be verified", "error", err)
		w.Header().Set("Retry-After", "5")
		r.fail(w, req, errcode.ErrorCodeUnavailable)
		return
	}
	if req.URL.Path == "/v2/_catalog" {
		r.catalog(w, req)
		return
	}
	rt := parseRoute(req.URL.Path)
	switch rt.end {
	case endManifest:
		r.manifest(w, req, rt)
	case endTags:
		r.tags(w, req, rt)
	case endReferrers:
		r.referrers(w, req, rt)
	case endBlob:
		r.blob(w, req, rt)
	case endUploads:
		r.beginUpload(w, req, rt)
	case endUpload:
		r.continueUpload(w, req)
	default:
		r.app.ServeHTTP(w, req)
	}
}

// begin sets what every answer has.
func begin(w http.ResponseWriter) {
	w.Header().Set("Docker-Distribution-API-Version", "registry/2.0")
	w.Header().Set("X-Content-Type-Options", "nosniff")
}

// allowMethods tells whether the method is one of these; any other is answered.
func (r *Registry) allowMethods(w http.ResponseWriter, req *http.Request, methods ...string) bool {
	if slices.Contains(methods, req.Method) {
		return true
	}
	w.Header().Set("Allow", strings.Join(methods, ", "))
	r.fail(w, req, errcode.ErrorCodeUnsupported)
	return false
}

// problem answers with an error of problem's classes: unknown is the code for what is not there.
func (r *Registry) problem(w http.ResponseWriter, req *http.Request, operation string, err error, unknown errcode.ErrorCode) {
	r.fail(w, req, r.coded(req.Context(), operation, err, unknown))
}

// coded turns an error into one of the specification's codes, with what the client may know.
func (r *Registry) coded(ctx context.Context, operation string, err error, unknown errcode.ErrorCode) error {
	var p *problem.Error
	if errors.As(err, &p) {
		switch {
		case errors.Is(err, problem.ErrNotFound):
			return unknown.WithMessage(p.Detail)
		case errors.Is(err, problem.ErrForbidden), errors.Is(err, problem.ErrExhausted):
			return errcode.ErrorCodeDenied.WithMessage(p.Detail)
		case errors.Is(err, problem.ErrInvalid):
			return errcode.ErrorCodeManifestInvalid.WithMessage(p.Detail)
		}
	}
	if ctx.Err() == nil {
		r.cfg.Logger.ErrorContext(ctx, "request failed", "operation", operation, "error", err)
	}
	return errcode.ErrorCodeUnavailable.WithMessage("the registry cannot do this now: try again")
}

func (r *Registry) fail(w http.ResponseWriter, req *http.Request, err error) {
	if err := errcode.ServeJSON(w, err); err != nil {
		r.cfg.Logger.DebugContext(req.Context(), "the client has gone", "error", err)
	}
}
