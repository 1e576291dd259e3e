package webhook

import (
	"cmp"
	"context"
	"embed"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"cumulet.io/internal/sqldb"
	"cumulet.io/registry"
)

//go:embed migrations/*.sql
var migrations embed.FS

// Config is for New. DB and KeyFile are required.
type Config struct {
	// DB holds the directory's tables already. It stays the caller's to close.
	DB *sqldb.DB
	// KeyFile has the key that seals signing secrets, shared by all processes of a registry. Made when missing.
	KeyFile string
	// PublicURL is the registry's, for payloads.
	PublicURL string
	// Allow are networks that hooks may reach besides the public Internet.
	Allow []netip.Prefix
	// Auditor keeps who changed what; nil is nobody.
	Auditor registry.Auditor
	// Timeout bounds one attempt; 0 is 15 s.
	Timeout time.Duration
	// Backoff is the waits between the attempts of a delivery, the last of which ends it; nil is a day in all.
	Backoff []time.Duration
	// DisableAfter is how long a hook may fail before it is disabled; 0 is 3 days.
	DisableAfter time.Duration
	// Keep is how long finished deliveries are kept; 0 is 14 days.
	Keep time.Duration
	// Now is the clock; nil is time.Now.
	Now func() time.Time
	// Logger is told of what goes wrong; nil is slog.Default.
	Logger *slog.Logger
}

// DefaultBackoff are the waits between attempts: a day in all.
func DefaultBackoff() []time.Duration {
	return []time.Duration{5 * time.Second, 30 * time.Second, 2 * time.Minute, 10 * time.Minute, 30 * time.Minute, time.Hour,
		2 * time.Hour, 4 * time.Hour, 8 * time.Hour, 8*time.Hour + 15*time.Minute}
}

// Bounds on calls at the same time, so that a slow target holds up nobody else.
const (
	perHook = 4
	perOrg  = 16
	overall = 512
)

// Service is the outbox and its sender. Safe for concurrent use; several processes may share one PostgreSQL database.
type Service struct {
	cfg    Config
	vault  *vault
	client *http.Client
	pulls  pulls
	// wake tells Run of new work in this process.
	wake    chan struct{}
	running atomic.Bool
	slots   chan struct{}

	mu      sync.Mutex
	sending map[string]bool          // hooks with a sender in this process
	orgs    map[string]chan struct{} // slots by org
}

var _ registry.Outbox = (*Service)(nil)

// New brings the schema up to date. It sends nothing: Run does.
func New(ctx context.Context, cfg Config) (*Service, error) {
	if cfg.DB == nil || cfg.KeyFile == "" {
		return nil, errors.New("webhooks: database and key file are needed")
	}
	cfg.Timeout = cmp.Or(cfg.Timeout, 15*time.Second)
	cfg.DisableAfter = cmp.Or(cfg.DisableAfter, 72*time.Hour)
	cfg.Keep = cmp.Or(cfg.Keep, 14*24*time.Hour)
	if cfg.Backoff == nil {
		cfg.Backoff = DefaultBackoff()
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	s := &Service{cfg: cfg, client: newClient(cfg.Allow, cfg.Timeout), wake: make(chan struct{}, 1), slots: make(chan struct{}, overall),
		sending: map[string]bool{}, orgs: map[string]chan struct{}{}}
	var err error
	if s.vault, err = openVault(cfg.KeyFile); err != nil {
		return nil, err
	}
	if err := cfg.DB.Migrate(ctx, "registry-webhook", migrations, "migrations"); err != nil {
		return nil, fmt.Errorf("webhooks: %w", err)
	}
	return s, nil
}

func (s *Service) poke() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// skipLocked is for a SELECT whose rows the transaction will change: on PostgreSQL another process's are passed over.
// SQLite has one writer at a time anyway.
func (s *Service) skipLocked() string {
	if s.cfg.DB.Dialect == sqldb.Postgres {
		return ` FOR UPDATE SKIP LOCKED`
	}
	return ""
}

func unix(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}

func timeOf(ns int64) time.Time { return time.Unix(0, ns).UTC() }

func optionalTime(ns int64) *time.Time {
	if ns == 0 {
		return nil
	}
	t := timeOf(ns)
	return &t
}
