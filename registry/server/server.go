// Package server puts the registry's parts together behind one handler: images on /v2/, tokens on /token, their keys on
// /.well-known/jwks.json, and the management API on /v1/.
//
// It listens on nothing and reads no configuration file: cmd does.
package server

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"net/url"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"cumulet.io/internal/problem"
	"cumulet.io/internal/sqldb"
	"cumulet.io/registry"
	"cumulet.io/registry/charts"
	"cumulet.io/registry/directory"
	"cumulet.io/registry/files"
	"cumulet.io/registry/gos"
	"cumulet.io/registry/gos/driver"
	"cumulet.io/registry/hubtoken"
	"cumulet.io/registry/index"
	"cumulet.io/registry/oci"
	"cumulet.io/registry/token"
	"cumulet.io/registry/webhook"
	"cumulet.io/registry/weblogin"
)

// Config is for New. DB, Dir and PublicURL are required.
type Config struct {
	// DB keeps the directory. It stays the caller's to close.
	DB *sqldb.DB
	// Dir keeps token keys and the upload secret, and blobs unless Storage says otherwise.
	Dir string
	// PublicURL is how clients reach this server, such as https://hub.example: without path.
	PublicURL string
	// Hosts are further names of the registry, "host" or "host:port", that a token may be asked for.
	Hosts []string
	// Issuer is the hubtokens' iss, which every verifier must expect; "" is PublicURL.
	Issuer string
	// KeyAlgorithm is for new signing keys, "" is EdDSA; RotateEvery is their life, 0 is 30 days.
	KeyAlgorithm hubtoken.Algorithm
	RotateEvery  time.Duration
	// TokenTTL is the life of a hubtoken; 0 is 5 min.
	TokenTTL time.Duration
	// Bootstrap is made at start where it is missing.
	Bootstrap directory.Bootstrap
	// HashCost is for passwords; zero is right for production.
	HashCost directory.HashCost
	// Storage is where blobs are kept. Without stores it is one region with a directory under Dir, and without a tracker
	// that is in DB. Its References and Logger are the server's to set.
	Storage gos.Config
	// Outbox is given every event besides the webhooks; nil is nobody.
	Outbox registry.Outbox
	// WebhookNetworks are networks that webhooks may call besides the public Internet.
	WebhookNetworks []netip.Prefix
	// Quota is of orgs that have none of their own; zero is no bound.
	Quota registry.Quota
	// AuditRetention is how long audit entries are kept; 0 is a year.
	AuditRetention time.Duration
	// GroupsFor is how long after a login what a provider's groups gave stays; 0 is for ever.
	GroupsFor time.Duration
	// TrustedProxies are the networks of proxies whose X-Forwarded-For tells a client's address, for the throttle of
	// guesses and the audit log.
	TrustedProxies []netip.Prefix
	// Patience is how long the slowest upload may take for 32 KiB; 0 is 1 min.
	Patience time.Duration
	// OIDC are the OpenID providers with which people may log in.
	OIDC []weblogin.Provider
	// Logger is for what goes wrong; nil is slog.Default.
	Logger *slog.Logger
}

// Server is the registry. Safe for concurrent use. Run keeps its keys fresh; Close ends it.
type Server struct {
	cfg       Config
	issuer    string
	keys      *hubtoken.Keys
	verifier  hubtoken.Verifier
	directory *directory.Store
	tokens    *token.Service
	index     *index.Store
	storage   *gos.Region
	images    *oci.Registry
	webhooks  *webhook.Service
	logins    *weblogin.Service // nil without an OpenID provider
	files     *files.Store
	charts    *charts.Store
	// content serves files and charts: apart from the mux, which would send odd paths elsewhere.
	content http.Handler
	// base is the public URL without path.
	base string
	mux  *http.ServeMux
}

// New opens the registry: schema, keys, accounts, storage. It starts no listener.
func New(ctx context.Context, cfg Config) (*Server, error) {
	s, err := open(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("open registry: %w", err)
	}
	return s, nil
}

func open(ctx context.Context, cfg Config) (*Server, error) {
	if cfg.DB == nil || cfg.Dir == "" {
		return nil, errors.New("database and directory are needed")
	}
	public, err := url.Parse(cfg.PublicURL)
	if err != nil || public.Host == "" || public.Scheme != "http" && public.Scheme != "https" || strings.Trim(public.Path, "/") != "" || public.User != nil {
		return nil, fmt.Errorf("the public URL must be http(s)://host[:port], not %q", cfg.PublicURL)
	}
	base := public.Scheme + "://" + public.Host
	cfg.RotateEvery = cmp.Or(cfg.RotateEvery, 30*24*time.Hour)
	// Keys that live less than their tokens would pile up.
	if cfg.RotateEvery < hubtoken.MaxTTL {
		return nil, fmt.Errorf("token keys cannot be replaced more often than every %s", hubtoken.MaxTTL)
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	oci.BridgeLogs(cfg.Logger)
	s := &Server{cfg: cfg, issuer: cmp.Or(cfg.Issuer, base), base: base}

	if s.keys, err = hubtoken.OpenKeys(hubtoken.KeysConfig{Path: filepath.Join(cfg.Dir, "keys", "hubtoken.json"), Algorithm: cfg.KeyAlgorithm}); err != nil {
		return nil, err
	}
	if s.verifier, err = hubtoken.NewVerifier(hubtoken.Config{KeySet: s.keys, Issuer: s.issuer}); err != nil {
		return nil, err
	}
	outbox := &lateOutbox{}
	if s.directory, err = directory.Open(ctx, cfg.DB, directory.Config{Cost: cfg.HashCost, Quota: cfg.Quota,
		AuditRetention: cfg.AuditRetention, GroupsFor: cfg.GroupsFor, Outbox: outbox, Logger: cfg.Logger}); err != nil {
		return nil, err
	}
	s.webhooks, err = webhook.New(ctx, webhook.Config{DB: cfg.DB, KeyFile: filepath.Join(cfg.Dir, "keys", "webhook-secrets"), PublicURL: base,
		Allow: cfg.WebhookNetworks, Auditor: s.directory, Logger: cfg.Logger})
	if err != nil {
		return nil, err
	}
	if cfg.Outbox != nil {
		outbox.outboxes = append(outbox.outboxes, cfg.Outbox)
	}
	outbox.outboxes = append(outbox.outboxes, s.webhooks)
	if err := s.directory.Bootstrap(ctx, cfg.Bootstrap); err != nil {
		return nil, err
	}
	if len(cfg.OIDC) > 0 {
		s.logins, err = weblogin.New(weblogin.Config{Directory: s.directory, Providers: cfg.OIDC, PublicURL: base, Auditor: s.directory, Logger: cfg.Logger})
		if err != nil {
			return nil, err
		}
	}
	s.tokens, err = token.New(token.Config{Directory: s.directory, Offline: s.directory, Verifier: s.verifier,
		Issuer: hubtoken.NewIssuer(s.keys, s.issuer), Hosts: append([]string{public.Host}, cfg.Hosts...), TTL: cfg.TokenTTL,
		Devices: s.directory, Auditor: s.directory, Logger: cfg.Logger})
	if err != nil {
		return nil, err
	}
	if s.index, err = index.Open(ctx, cfg.DB, index.Config{}); err != nil {
		return nil, err
	}
	cfg.Storage.References = s.index
	if s.storage, err = openStorage(ctx, cfg); err != nil {
		return nil, err
	}
	// A node starts without its tracker, and serves what its replica knows; but an index is not filled from a part.
	if complete, err := s.index.Complete(ctx); err != nil || !complete {
		if err = errors.Join(err, s.storage.Check(ctx)); err != nil {
			return nil, errors.Join(err, s.storage.Close())
		}
	}
	if err := s.openContent(ctx, outbox); err != nil {
		return nil, errors.Join(err, s.storage.Close())
	}
	driver.Register()
	s.images, err = oci.New(ctx, oci.Config{Directory: s.directory, Verifier: s.verifier, Index: s.index, Quotas: imageQuotas{s},
		Auditor: s.directory, Blobs: s.storage, Patience: cfg.Patience, Realm: base + "/token", Service: public.Host,
		Driver: driver.Name, Parameters: map[string]any{driver.ParameterRegion: s.storage},
		SecretFile: filepath.Join(cfg.Dir, "keys", "upload-secret"), Outbox: outbox, Logger: cfg.Logger})
	if err != nil {
		return nil, errors.Join(err, s.storage.Close())
	}
	s.routes()
	return s, nil
}

func (s *Server) routes() {
	s.mux = http.NewServeMux()
	s.mux.Handle("/v2/", gos.Unavailable(s.images))
	s.tokens.Register(s.mux)
	if s.logins != nil {
		s.logins.Register(s.mux)
	} else {
		s.mux.HandleFunc("POST /token/device", func(w http.ResponseWriter, _ *http.Request) { problem.Write(w, noProvider()) })
	}
	s.mux.HandleFunc("GET /.well-known/jwks.json", s.jwks)
	s.mux.HandleFunc("GET /v1/openapi/registry.yaml", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/yaml")
		_, _ = w.Write(registry.OpenAPI()) //nolint:errcheck // the client has gone
	})
	v1 := http.NewServeMux()
	v1.HandleFunc("GET /v1/orgs/{org}/repositories", s.listRepositories)
	v1.HandleFunc("GET /v1/repositories/{org}/{repository...}", s.getRepository)
	v1.HandleFunc("PATCH /v1/repositories/{org}/{repository...}", s.patchRepository)
	s.peopleRoutes(v1)
	s.webhookRoutes(v1)
	s.imageRoutes(v1)
	v1.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) {
		problem.Write(w, problem.New(problem.ErrNotFound, "the registry has no such address"))
	})
	api := s.audited(hubtoken.Authenticate(s.verifier, hubtoken.AudienceRegistry, withActor(v1)))
	s.mux.Handle("/v1/orgs/", api)
	s.mux.Handle("/v1/repositories/", api)
	for _, path := range imagePrefixes() {
		s.mux.Handle(path, api)
	}
	for _, path := range []string{"/v1/orgs", "/v1/account", "/v1/account/", "/v1/accounts", "/v1/accounts/", "/v1/audit"} {
		s.mux.Handle(path, api)
	}
}

// ServeHTTP implements http.Handler.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	actor := registry.Actor{Address: clientAddress(r, s.cfg.TrustedProxies)} // who it is comes with the token
	r = r.WithContext(registry.WithActor(r.Context(), actor))
	if strings.HasPrefix(r.URL.Path, files.Prefix) || strings.HasPrefix(r.URL.Path, charts.Prefix) {
		s.content.ServeHTTP(w, r)
		return
	}
	s.mux.ServeHTTP(w, r)
}

// Run keeps the registry in order until ctx ends: its signing keys, its directory (see directory.Store.Run), its storage
// (see gos.Region.Run), its images (see oci.Registry.Run), its files, and its webhooks, which it sends.
func (s *Server) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return s.rotate(ctx) })
	group.Go(func() error { return s.directory.Run(ctx) })
	group.Go(func() error { return s.storage.Run(ctx) })
	group.Go(func() error { return s.images.Run(ctx) })
	group.Go(func() error { return s.webhooks.Run(ctx) })
	group.Go(func() error { return s.files.Run(ctx) })
	return group.Wait()
}

// rotate replaces the signing key when it is old, until ctx ends. A fault is logged and tried again: the old key serves.
func (s *Server) rotate(ctx context.Context) error {
	tick := time.NewTicker(time.Hour)
	defer tick.Stop()
	for {
		if err := s.keys.RotateIfOlder(s.cfg.RotateEvery); err != nil {
			s.cfg.Logger.ErrorContext(ctx, "the signing key is not replaced", "error", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// Close ends background work. The database stays open.
func (s *Server) Close() error { return errors.Join(s.images.Close(), s.storage.Close()) }

// Storage is where the registry's content is.
func (s *Server) Storage() *gos.Region { return s.storage }

// Issuer is the iss of this server's tokens.
func (s *Server) Issuer() string { return s.issuer }

// Verifier checks this server's tokens in its own process.
func (s *Server) Verifier() hubtoken.Verifier { return s.verifier }

// Webhooks sends events to where the orgs' admins want them.
func (s *Server) Webhooks() *webhook.Service { return s.webhooks }

// Auditor keeps what was changed and what was denied.
func (s *Server) Auditor() registry.Auditor { return s.directory }

// Quotas tells the orgs' bounds.
func (s *Server) Quotas() registry.Quotas { return s.directory }

// Directory is the store of accounts, orgs and repositories.
func (s *Server) Directory() *directory.Store { return s.directory }

// Index is what the registry holds, as rows; its Live tells garbage collection what is needed.
func (s *Server) Index() *index.Store { return s.index }

// Images is the image registry.
func (s *Server) Images() *oci.Registry { return s.images }

// Tokens is the token service; its Delegate makes credentials for pulling an instance's images.
func (s *Server) Tokens() *token.Service { return s.tokens }

// RotateKeys replaces the signing key now. Live tokens stay valid until they expire.
func (s *Server) RotateKeys() error { return s.keys.Rotate() }

// Check tells whether the registry can serve: its database answers, and the storage's tracker, where there is no replica
// of it. A node that has one serves pulls without its tracker: to take it out of service would end them.
func (s *Server) Check(ctx context.Context) error {
	if s.cfg.Storage.Replica == nil {
		if err := s.storage.Check(ctx); err != nil {
			return err
		}
	}
	if err := s.cfg.DB.PingContext(ctx); err != nil {
		return fmt.Errorf("registry database: %w", err)
	}
	return nil
}

func (s *Server) jwks(w http.ResponseWriter, r *http.Request) {
	doc, err := s.keys.JWKS()
	if err != nil {
		s.fail(w, r, err)
		return
	}
	w.Header().Set("Content-Type", "application/jwk-set+json")
	w.Header().Set("Cache-Control", "no-cache") // a verifier that meets a new key must get it
	_, _ = w.Write(doc)                         //nolint:errcheck // the client has gone
}
