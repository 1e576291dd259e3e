// Package role wires the platform's parts into the server's roles.
//
// A role is a set of long-running parts with one listener or more. Roles talk to each other over HTTP also when they
// share a process: what works in one process works on many machines.
package role

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"runtime"
	"slices"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"golang.org/x/sync/errgroup"

	"cumulet.io/cmd/cisd/config"
	"cumulet.io/internal/httpserve"
	"cumulet.io/internal/problem"
)

// Name is a role's name and subcommand.
type Name string

// The roles.
const (
	Registry Name = "registry"
	Logs     Name = "logs"
	Control  Name = "control"
	Billing  Name = "billing"
	Kubelet  Name = "kubelet"
)

// All is every role, in the order in which they are set up.
func All() []Name { return []Name{Registry, Logs, Control, Billing, Kubelet} }

// part is something that runs until its context ends.
type part struct {
	name string
	run  func(context.Context) error
}

// process is what one process has in common.
type process struct {
	cfg     *config.Config
	version string
	log     *slog.Logger
	close   []func() error
	// alone is false when the process has every role.
	alone bool
}

// heapFloor keeps the garbage collector from running dozens of times a second over a heap of a few megabytes while many
// instances start: it is counted as part of the heap, and as it is never written, it takes no memory. The heap may so hold
// as much garbage at most, beside what the collector allows anyway.
const heapFloor = 64 << 20

// Run runs roles until ctx ends or one of them fails, and stops them gracefully.
func Run(ctx context.Context, cfg *config.Config, version string, roles ...Name) (err error) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(cfg.Log.Level)); err != nil {
		return fmt.Errorf("log.level: %w", err)
	}
	p := &process{cfg: cfg, version: version, alone: len(roles) == 1,
		log: slog.New(slog.NewJSONHandler(os.Stderr, &slog.HandlerOptions{Level: level}))}
	if err := os.MkdirAll(cfg.StateDir, 0o711); err != nil {
		return fmt.Errorf("make state directory: %w", err)
	}
	defer func() {
		for i := len(p.close) - 1; i >= 0; i-- {
			err = errors.Join(err, p.close[i]())
		}
	}()
	if err := p.tracing(ctx, roles); err != nil {
		return err
	}
	if slices.Contains(roles, Control) || slices.Contains(roles, Kubelet) {
		defer runtime.KeepAlive(make([]byte, heapFloor))
	}
	group, ctx := errgroup.WithContext(ctx)
	for _, r := range roles {
		parts, err := p.build(ctx, r)
		if err != nil {
			return fmt.Errorf("%s: %w", r, err)
		}
		for _, one := range parts {
			group.Go(func() error {
				if err := one.run(ctx); err != nil && !errors.Is(err, context.Canceled) {
					return fmt.Errorf("%s: %s: %w", r, one.name, err)
				}
				return nil
			})
		}
	}
	p.log.Info("cisd runs", "version", version, "roles", roles, "state", cfg.StateDir)
	return group.Wait()
}

func (p *process) build(ctx context.Context, r Name) ([]part, error) {
	switch r {
	case Registry:
		return p.registry(ctx)
	case Logs:
		return p.logs(ctx)
	case Control:
		return p.control(ctx)
	case Billing:
		return p.billing(ctx)
	case Kubelet:
		if p.cfg.Kubelet.Kubeconfig == "" {
			if p.alone {
				return nil, errors.New("kubelet.kubeconfig is not set")
			}
			p.log.Info("no kubelet.kubeconfig: instances come from the API alone")
			return nil, nil
		}
		return p.kubelet(ctx)
	}
	return nil, fmt.Errorf("no such role")
}

// serve opens the listener now, so that a taken port is an error of the start, and gives the part that serves it.
func (p *process) serve(ctx context.Context, listen string, c httpserve.Config) (part, error) {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", listen)
	if err != nil {
		return part{}, problem.New(problem.ErrConflict, "cannot listen on %s: %v; choose another address in the configuration", listen, err)
	}
	c.Logger = p.log.With("role", c.Role)
	p.log.Info("listening", "role", c.Role, "address", l.Addr().String())
	return part{"http", func(ctx context.Context) error { return httpserve.Run(ctx, l, c) }}, nil
}

// metrics is a role's own registry, with the process's figures.
func metrics() *prometheus.Registry {
	r := prometheus.NewRegistry()
	r.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return r
}
