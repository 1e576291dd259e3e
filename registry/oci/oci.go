// Package oci serves the OCI distribution API on /v2/, with distribution v3 as its core and hubtokens as its access
// control. What the core lacks is added around it: a catalog that shows a tenant its own repositories, mounts that
// need a right on their source, rows for pushed repositories, push events.
//
// It gives out no tokens and decides nobody's role: what a verified token carries is what counts.
package oci

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"github.com/distribution/distribution/v3/configuration"
	"github.com/distribution/distribution/v3/registry/api/errcode"
	"github.com/distribution/distribution/v3/registry/handlers"
	_ "github.com/distribution/distribution/v3/registry/storage/driver/filesystem" // the embedded default

	"cumulet.io/registry"
	"cumulet.io/registry/hubtoken"
)

// maxManifestBytes is the largest manifest that is taken: 4 MiB, as the distribution specification asks for at least.
const maxManifestBytes = 4 << 20

// Directory knows repositories. Errors are of problem's classes. Safe for concurrent use.
type Directory interface {
	// Pushed records a push; the first makes the repository, private.
	Pushed(ctx context.Context, repository, account string) error
	// Memberships gives an account's orgs.
	Memberships(ctx context.Context, account string) ([]registry.Membership, error)
	// Repositories lists the repositories of orgs after a name, in byte order.
	Repositories(ctx context.Context, orgs []string, public bool, after string, limit int) ([]registry.Repository, error)
}

// Config is for New. All but Driver, Outbox and Logger are required.
type Config struct {
	Directory Directory
	Verifier  hubtoken.Verifier
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
	// Logger is for what goes wrong here; nil is slog.Default.
	Logger *slog.Logger
}

// Registry serves /v2/. Safe for concurrent use.
type Registry struct {
	cfg Config
	app *handlers.App
}

// nobody is the outbox of a registry that has none.
type nobody struct{}

// Emit implements registry.Outbox.
func (nobody) Emit(context.Context, registry.Event) error { return nil }

// New makes a registry. Close it when it is no longer served.
func New(cfg Config) (r *Registry, err error) {
	if cfg.Directory == nil || cfg.Verifier == nil || cfg.Service == "" || cfg.SecretFile == "" {
		return nil, errors.New("registry: directory, verifier, service and secret file are needed")
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
	r = &Registry{cfg: cfg}
	// The core panics on a configuration that it does not like.
	defer func() {
		if p := recover(); p != nil {
			r, err = nil, fmt.Errorf("registry: storage %s: %v", cfg.Driver, p)
		}
	}()
	r.app = handlers.NewApp(context.Background(), r.configuration(secret))
	return r, nil
}

// configuration is the core's.
func (r *Registry) configuration(secret string) *configuration.Configuration {
	c := &configuration.Configuration{Version: "0.1"}
	c.HTTP.Secret = secret
	// Locations name no host, so that a client's Host header goes nowhere.
	c.HTTP.RelativeURLs = true
	parameters := configuration.Parameters{}
	for k, v := range r.cfg.Parameters {
		parameters[k] = v
	}
	c.Storage = configuration.Storage{
		r.cfg.Driver: parameters,
		"delete":     {"enabled": true},
		"redirect":   {"disable": true},
		// No cache of blob descriptors: what was collected, or deleted by another node, must not be found any more, and
		// each look renews a lease. Abandoned uploads are the storage's to remove.
		"maintenance": {"uploadpurging": map[any]any{"enabled": false}},
	}
	c.Auth = configuration.Auth{extension: {optionRegistry: r}}
	c.Middleware = map[string][]configuration.Middleware{
		"repository": {{Name: extension, Options: configuration.Parameters{optionRegistry: r}}}}
	// An index may name manifests that are elsewhere (image-spec 1.1, "sparse"), a layer may have URLs (Windows bases).
	c.Validation.Manifests.Indexes.Platforms = "none"
	c.Validation.Manifests.URLs.Allow = []string{"^https?://"}
	return c
}

// Close ends the core's background work. Requests under way go on.
func (r *Registry) Close() error { return r.app.Shutdown() }

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
	if req.Method == http.MethodPut && req.ContentLength > maxManifestBytes && strings.Contains(req.URL.Path, "/manifests/") {
		w.Header().Set("Connection", "close")
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusRequestEntityTooLarge)
		_, _ = fmt.Fprintf(w, `{"errors":[{"code":"SIZE_INVALID","message":"a manifest is at most %d bytes long"}]}`+"\n", maxManifestBytes) //nolint:errcheck // the client has gone
		return
	}
	r.app.ServeHTTP(w, withoutDeniedMount(req))
}

func (r *Registry) fail(w http.ResponseWriter, req *http.Request, err error) {
	if err := errcode.ServeJSON(w, err); err != nil {
		r.cfg.Logger.DebugContext(req.Context(), "the client has gone", "error", err)
	}
}

// withoutDeniedMount turns a mount from a repository that the token may not pull into a plain upload, which is the
// specification's answer (202) of a registry that cannot mount: it tells nothing of the source, and clients go on.
func withoutDeniedMount(req *http.Request) *http.Request {
	q := req.URL.Query()
	from := q.Get("from")
	if req.Method != http.MethodPost || from == "" || hubtoken.FromContext(req.Context()).Allows(hubtoken.TypeRepository, from, "pull") {
		return req
	}
	if state, ok := req.Context().Value(stateKey{}).(authState); !ok || state != tokenGood {
		return req // the challenge asks for both repositories
	}
	q.Del("from")
	q.Del("mount")
	out := req.Clone(req.Context())
	out.URL.RawQuery = q.Encode()
	out.RequestURI = out.URL.RequestURI()
	return out
}

// readSecret reads the secret, making it when there is none.
func readSecret(path string) (string, error) {
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		if err := makeSecret(path); err != nil {
			return "", err
		}
		text, err = os.ReadFile(path)
	}
	if err != nil {
		return "", err
	}
	st, err := os.Stat(path)
	if err != nil {
		return "", err
	}
	if st.Mode().Perm()&0o077 != 0 {
		return "", fmt.Errorf("%s may be read by others (mode %04o): chmod 600 it", path, st.Mode().Perm())
	}
	if len(text) < 32 {
		return "", fmt.Errorf("%s is shorter than 32 bytes", path)
	}
	return string(text), nil
}

func makeSecret(path string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	tmp, err := os.CreateTemp(filepath.Dir(path), ".secret.*") // of mode 0600
	if err != nil {
		return err
	}
	_, err = tmp.WriteString(rand.Text() + rand.Text())
	if err == nil {
		err = tmp.Sync()
	}
	if err = errors.Join(err, tmp.Close()); err == nil {
		// Of several nodes that start at once, one makes it.
		if err = os.Link(tmp.Name(), path); errors.Is(err, fs.ErrExist) {
			err = nil
		}
	}
	return errors.Join(err, os.Remove(tmp.Name()))
}
