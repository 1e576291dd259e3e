// Package control decides about instances: it admits them, keeps the desired state, tells the engine, and takes what the
// engine reports.
//
// An instance is a record first and a sandbox second, so a crash between the two loses nothing: after a start, the engine
// is told of every instance that has not ended. The package does no HTTP (cis/server) and runs no container (cis/engine).
package control

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"cumulet.io/cis"
	"cumulet.io/cis/control/store"
	"cumulet.io/cis/engine"
	"cumulet.io/cis/sandbox"
	"cumulet.io/internal/problem"
)

// Config is what the control plane needs.
type Config struct {
	// Store keeps the record. Required; its closing is the caller's, after Run has returned.
	Store *store.Store
	// NewEngine makes the engine, given the sink for its reports. Required.
	NewEngine func(engine.Sink) (engine.Engine, error)
	// Region and Node name the place; they stand in a status whose engine names none.
	Region, Node string
	// Quota bounds each org that OrgQuota does not name and that none was set for; zero fields do not bound.
	Quota    Quota
	OrgQuota map[string]Quota
	// AllowPrivileged lets instances of class runc ask for privileged containers, which are the host's root.
	AllowPrivileged bool
	// Sandbox says which sandbox classes the orgs' instances may have.
	Sandbox sandbox.Policy
	// Logs reads from the log store what the engine has no longer; nil where there is none. problem.ErrNotFound means that
	// it has nothing either.
	Logs LogsFunc
	// KeepEnded is how long the record of an ended instance stays readable; 0 means a day.
	KeepEnded time.Duration
	// Logger is nil for slog.Default, Now for time.Now.
	Logger *slog.Logger
	Now    func() time.Time
}

// LogsFunc reads a container's log, as cis.LogReader has it.
type LogsFunc func(ctx context.Context, org, id string, req cis.LogRequest) (io.ReadCloser, error)

// The control plane is the whole service, and what engines report to.
var (
	_ cis.Instances     = (*Control)(nil)
	_ cis.Watcher       = (*Control)(nil)
	_ cis.EventLister   = (*Control)(nil)
	_ cis.Execer        = (*Control)(nil)
	_ cis.LogReader     = (*Control)(nil)
	_ cis.PortForwarder = (*Control)(nil)
	_ cis.StatsReader   = (*Control)(nil)
	_ cis.Quotas        = (*Control)(nil)
	_ engine.Sink       = (*Control)(nil)
)

// Control is the control plane of one region. Safe for concurrent use. Instances that it answers are redacted, and
// shared: they must not be changed.
type Control struct {
	cfg    Config
	store  *store.Store
	engine engine.Engine
	log    *slog.Logger

	mu    sync.Mutex
	dirty map[string]struct{} // ids that the engine must hear of
	order []string            // of dirty, oldest first
	wake  chan struct{}       // holds at most one value

	host hostCache

	// updates are taken, by id, while files of volumes change: the engine gets them in the order of the record.
	seed    maphash.Seed
	updates [64]chan struct{}
}

// New makes the control plane and its engine. Nothing runs before Run.
func New(cfg Config) (*Control, error) {
	if cfg.Store == nil || cfg.NewEngine == nil {
		return nil, errors.New("control: a store and an engine are required")
	}
	if cfg.KeepEnded == 0 {
		cfg.KeepEnded = 24 * time.Hour
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	c := &Control{cfg: cfg, store: cfg.Store, log: cfg.Logger, dirty: map[string]struct{}{}, wake: make(chan struct{}, 1), seed: maphash.MakeSeed()}
	for i := range c.updates {
		c.updates[i] = make(chan struct{}, 1)
	}
	e, err := cfg.NewEngine(c)
	if err != nil {
		return nil, fmt.Errorf("control: engine: %w", err)
	}
	c.engine = e
	return c, nil
}

const (
	firstRetry = 200 * time.Millisecond
	lastRetry  = 10 * time.Second
	pruneEvery = 10 * time.Minute
	pruneBatch = 200
)

// Run runs the engine, tells it of every live instance and then of each change, and removes records of instances that ended
// long ago, until ctx ends; it then returns nil. Instances go on running.
func (c *Control) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		if err := c.engine.Run(ctx); err != nil {
			return fmt.Errorf("engine: %w", err)
		}
		if ctx.Err() == nil {
			return errors.New("engine: stopped by itself")
		}
		return nil
	})
	g.Go(func() error { return c.drive(ctx) })
	g.Go(func() error { return c.prune(ctx) })
	return g.Wait()
}

// drive tells the engine what is wanted: once everything, then what changes.
func (c *Control) drive(ctx context.Context) error {
	for wait := firstRetry; ; wait = min(wait*2, lastRetry) {
		all := c.store.All()
		err := c.engine.Sync(ctx, all)
		if err == nil {
			c.log.InfoContext(ctx, "engine knows all live instances", "instances", len(all))
			break
		}
		if ctx.Err() != nil {
			return nil
		}
		c.log.ErrorContext(ctx, "engine cannot be told of the live instances, trying again", "error", err)
		if !sleep(ctx, wait) {
			return nil
		}
	}
	wait := firstRetry
	for {
		ids := c.takeDirty()
		failed := 0
		for i, id := range ids {
			in := c.store.Live(id)
			if in == nil {
				continue
			}
			if err := c.engine.Ensure(ctx, in); err != nil {
				if ctx.Err() != nil {
					return nil
				}
				c.log.ErrorContext(ctx, "engine cannot be told of an instance, trying again", "instance", id, "org", in.Org, "error", err)
				c.touch(ids[i])
				failed++
			}
		}
		if failed > 0 {
			if !sleep(ctx, wait) {
				return nil
			}
			wait = min(wait*2, lastRetry)
			continue
		}
		wait = firstRetry
		select {
		case <-ctx.Done():
			return nil
		case <-c.wake:
		}
	}
}

// touch makes the engine hear of an instance again.
func (c *Control) touch(id string) {
	c.mu.Lock()
	if _, ok := c.dirty[id]; !ok {
		c.dirty[id] = struct{}{}
		c.order = append(c.order, id)
	}
	c.mu.Unlock()
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

func (c *Control) takeDirty() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	ids := c.order
	c.order = nil
	clear(c.dirty)
	return ids
}

func (c *Control) prune(ctx context.Context) error {
	for {
		n, err := c.store.Prune(ctx, c.cfg.Now().Add(-c.cfg.KeepEnded), pruneBatch)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			c.log.ErrorContext(ctx, "ended instances cannot be removed, trying again later", "error", err)
		case n == pruneBatch:
			continue
		}
		if !sleep(ctx, pruneEvery) {
			return nil
		}
	}
}

// sleep waits; false means that ctx has ended.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// instance gives an org's instance, redacted, and checks the names.
func (c *Control) instance(ctx context.Context, org, id string) (*cis.Instance, error) {
	if err := cis.ValidateOrg(org); err != nil {
		return nil, err
	}
	if !cis.ValidID(id) {
		return nil, problem.New(problem.ErrNotFound, "there is no instance %.64q here", id)
	}
	return c.store.Get(ctx, org, id)
}
