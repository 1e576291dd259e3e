package role

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"cumulet.io/billing/meter"
	"cumulet.io/cis"
	"cumulet.io/cis/control"
	"cumulet.io/cis/control/store"
	"cumulet.io/cis/engine"
	"cumulet.io/cis/engine/memory"
	"cumulet.io/cis/server"
	"cumulet.io/internal/httpserve"
	logsclient "cumulet.io/logs/client"
	"cumulet.io/registry/hubtoken"
)

// control is the container instance service with its engine and the collector of what the engine writes.
func (p *process) control(ctx context.Context) ([]part, error) {
	c := p.cfg.Control
	log := p.log.With("role", string(Control))
	verifier, err := p.verifier()
	if err != nil {
		return nil, err
	}
	db, err := p.database(ctx, c.Database)
	if err != nil {
		return nil, err
	}
	key, err := store.LoadKey(p.cfg.Path("control.key"))
	if err != nil {
		return nil, err
	}
	records, err := store.Open(ctx, store.Config{DB: db, Key: key, Logger: log})
	if err != nil {
		return nil, err
	}
	p.close = append(p.close, records.Close)
	logSource, err := p.source(accountControl, hubtoken.AudienceLogs, hubtoken.ActionOperator)
	if err != nil {
		return nil, err
	}
	stored, err := logsclient.New(logsclient.Config{BaseURL: p.cfg.Logs.URL, Source: logSource})
	if err != nil {
		return nil, err
	}
	place, err := p.place(ctx, log)
	if err != nil {
		return nil, err
	}
	service, err := control.New(control.Config{
		Store: records, NewEngine: place.engine, Region: p.cfg.Node.Region, Node: p.cfg.Node.Name,
		AllowPrivileged: c.AllowPrivileged, Sandbox: sandboxPolicy(c.Sandbox),
		KeepEnded: time.Duration(c.KeepEndedDays) * 24 * time.Hour,
		Quota:     control.Quota{Instances: c.Quota.Instances, MilliCPU: c.Quota.CPU * 1000, MemoryMiB: c.Quota.MemoryGiB << 10},
		Logs: func(ctx context.Context, org, id string, req cis.LogRequest) (io.ReadCloser, error) {
			return stored.Logs(ctx, org, id, req)
		},
		Logger: log,
	})
	if err != nil {
		return nil, err
	}
	handler, err := server.New(server.Config{Service: service, Verifier: verifier, Logger: log})
	if err != nil {
		return nil, err
	}
	http, err := p.serve(ctx, c.Listen, httpserve.Config{Role: string(Control), Handler: p.discovery(handler), Ready: place.ready, Metrics: metrics(), Gather: place.metrics})
	if err != nil {
		return nil, err
	}
	parts := slices.Concat(place.parts, []part{http, {"instances", func(ctx context.Context) error {
		// The engine can adopt nothing before its runtime answers.
		for {
			wait, cancel := context.WithTimeout(ctx, 10*time.Second)
			err := place.ready(wait)
			cancel()
			if ctx.Err() != nil {
				return nil
			}
			if err == nil {
				break
			}
			log.Warn("waiting for the container runtime", "error", err)
		}
		return service.Run(ctx)
	}}})
	if place.meters != nil {
		collector, err := p.collector(place.meters, service, log)
		if err != nil {
			return nil, err
		}
		parts = append(parts, collector...)
	}
	return parts, nil
}

// place is where instances run: an engine and what it needs around it.
type place struct {
	engine func(engine.Sink) (engine.Engine, error)
	// ready tells whether the engine's runtime answers; it waits until ctx ends.
	ready func(context.Context) error
	parts []part
	// meters writes meter events; nil when the engine uses nothing that is billed.
	meters *meter.Writer
	// metrics are the instances' own; nil when there are none. Set with the engine.
	metrics prometheus.Gatherer
}

func (p *process) place(ctx context.Context, log *slog.Logger) (*place, error) {
	switch p.cfg.Control.Engine {
	case "memory":
		return &place{
			engine: func(sink engine.Sink) (engine.Engine, error) {
				return memory.New(memory.Config{Sink: sink, Node: p.cfg.Node.Name, Region: p.cfg.Node.Region})
			},
			ready: func(context.Context) error { return nil },
		}, nil
	case "cri":
		return p.criPlace(ctx, log)
	}
	return nil, errors.New("control.engine: must be cri or memory")
}
