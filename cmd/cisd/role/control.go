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
	"cumulet.io/cmd/cisd/config"
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
	orgQuotas := map[string]control.Quota{}
	for org, q := range c.OrgQuotas {
		orgQuotas[org] = quota(q)
	}
	service, err := control.New(control.Config{
		Store: records, NewEngine: place.engine, Region: p.cfg.Node.Region, Node: p.cfg.Node.Name,
		AllowPrivileged: c.AllowPrivileged, Sandbox: sandboxPolicy(c.Sandbox),
		KeepEnded: time.Duration(c.KeepEndedDays) * 24 * time.Hour,
		Quota:     quota(c.Quota), OrgQuota: orgQuotas,
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
		if !await(ctx, place.ready, log) {
			return nil
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

// Bounds of await.
const (
	readyWithin = 10 * time.Second
	readyAgain  = time.Second
)

// await waits until ready, which may wait itself or answer at once, tells that there is nothing to wait for; false when
// ctx has ended.
func await(ctx context.Context, ready func(context.Context) error, log *slog.Logger) bool {
	for {
		wait, cancel := context.WithTimeout(ctx, readyWithin)
		err := ready(wait)
		cancel()
		if ctx.Err() != nil {
			return false
		}
		if err == nil {
			return true
		}
		log.Warn("waiting for the container runtime", "error", err)
		select {
		case <-ctx.Done():
			return false
		case <-time.After(readyAgain):
		}
	}
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

func quota(q config.Quota) control.Quota {
	return control.Quota{Instances: q.Instances, MilliCPU: q.CPU * 1000, MemoryMiB: q.MemoryGiB << 10}
}
