package role

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"cumulet.io/billing/meter"
	"cumulet.io/cis/control"
	"cumulet.io/internal/problem"
	"cumulet.io/logs/collect"
)

// pruneEvery is how often meter files that have been shipped are removed.
const pruneEvery = 10 * time.Minute

// collector ships what the engine and the meter write, and removes it once the store has it and nobody needs it here.
func (p *process) collector(meters *meter.Writer, service *control.Control, log *slog.Logger) ([]part, error) {
	c := p.cfg.Control
	if c.Collector.Disabled {
		log.Info("control.collector.disabled: logs and meter events stay here until an agent of the operator's ships them")
		return nil, nil
	}
	user := p.cfg.Logs.Elasticsearch.WriteUser
	password, err := p.credential(user)
	if err != nil {
		return nil, err
	}
	binary := c.Collector.Filebeat
	if binary == "" {
		binary = "filebeat"
		if own := filepath.Join(c.CRI.BinDir, "filebeat"); c.CRI.BinDir != "" {
			if _, err := os.Stat(own); err == nil {
				binary = own
			}
		}
	}
	for _, dir := range []string{logRoot(p.cfg), p.meterDir()} {
		if err := os.MkdirAll(dir, 0o711); err != nil {
			return nil, err
		}
	}
	beat, err := collect.New(collect.Options{Binary: binary, Dir: p.cfg.Path("filebeat"), LogRoot: logRoot(p.cfg), MeterDir: p.meterDir(),
		Store: p.bulkURL(), User: user, Password: password}, log)
	if err != nil {
		return nil, err
	}
	reaper := &collect.Reaper{Collector: beat, Log: log, Keep: c.Collector.KeepMiB << 20, Ended: func(ctx context.Context, org, id string) bool {
		in, err := service.Get(ctx, org, id)
		// A record that is gone was of an instance that ended long ago.
		return err == nil && in.Status.Phase.Final() || errors.Is(err, problem.ErrNotFound)
	}}
	return []part{{"filebeat", beat.Run}, {"reaper", reaper.Run}, {"meter files", func(ctx context.Context) error {
		return prune(ctx, meters, beat, log)
	}}}, nil
}

// meterDir is where the meter writes, and what the collector reads into the meter's own index.
func (p *process) meterDir() string { return p.cfg.Path("meter") }

// prune removes meter files that have arrived, now and then, until ctx ends.
func prune(ctx context.Context, meters *meter.Writer, beat *collect.Collector, log *slog.Logger) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pruneEvery):
		}
		if _, err := meters.Prune(func(path string) bool {
			ok, err := beat.Shipped(path)
			return ok && err == nil
		}); err != nil {
			log.Warn("meter files not removed", "error", err)
		}
	}
}
