// Package collect ships a node's files to the log store with Filebeat: containers' CRI logs and meter events.
//
// It writes Filebeat's configuration, keeps the process running, tells from its registry what has arrived, and removes
// the logs of ended instances when all of it has. It never reads a line itself. Bytes of a line that are no UTF-8
// arrive as U+FFFD, one for each: the store's documents are JSON; the node's file keeps them as they are.
package collect

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"cumulet.io/internal/proc"
)

// Collector supervises one Filebeat. Safe for concurrent use.
type Collector struct {
	o   Options
	log *slog.Logger
	// restart ends Filebeat, for Run to start it again; nil before its first start.
	restart atomic.Pointer[context.CancelFunc]
	started func(pid int) // for tests
}

// New checks the options.
func New(o Options, log *slog.Logger) (*Collector, error) {
	if err := o.check(); err != nil {
		return nil, fmt.Errorf("log collector: %w", err)
	}
	return &Collector{o: o, log: log}, nil
}

// Run keeps Filebeat running until ctx ends, then stops it and returns nil. What it had not shipped, the next Run does.
// It dies with this process, even by SIGKILL.
func (c *Collector) Run(ctx context.Context) error {
	for _, dir := range []string{c.o.Dir, c.o.LogRoot, c.o.MeterDir} {
		if err := os.MkdirAll(dir, 0o750); err != nil {
			return fmt.Errorf("log collector: %w", err)
		}
	}
	cfg, err := c.o.config()
	if err != nil {
		return err
	}
	file := filepath.Join(c.o.Dir, "filebeat.yml")
	// Filebeat refuses a configuration that others can write.
	if err := os.WriteFile(file+".new", cfg, 0o600); err != nil {
		return fmt.Errorf("log collector: %w", err)
	}
	if err := os.Rename(file+".new", file); err != nil {
		return fmt.Errorf("log collector: %w", err)
	}
	filebeat := proc.Child{
		Name: "filebeat", Path: c.o.Binary, Args: []string{"-c", file, "-e"}, Dir: c.o.Dir, Log: c.log, DieWithParent: true, Started: c.started,
		Env: []string{passwordEnv + "=" + c.o.Password, "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=" + c.o.Dir},
	}
	for ctx.Err() == nil {
		run, end := context.WithCancel(ctx)
		c.restart.Store(&end)
		err := filebeat.Run(run)
		end()
		if err != nil {
			return err
		}
	}
	return nil
}

// Restart has Filebeat end and start again, which makes it look at every file anew. What is not shipped stays.
func (c *Collector) Restart() {
	if end := c.restart.Load(); end != nil {
		(*end)()
	}
}

// Stats is what Filebeat tells of itself.
type Stats struct {
	// Acked, Failed and Dropped count events since Filebeat's start: stored, sent again, given up (never, as configured).
	Acked, Failed, Dropped int64
	// Active is how many were read and are not stored yet.
	Active int64
}

// Stats asks Filebeat; an error means that it is not up.
func (c *Collector) Stats(ctx context.Context) (Stats, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	tr := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", c.o.socket())
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://filebeat/stats", nil)
	if err != nil {
		return Stats{}, fmt.Errorf("filebeat: %w", err)
	}
	resp, err := (&http.Client{Transport: tr}).Do(req)
	if err != nil {
		return Stats{}, fmt.Errorf("filebeat is not up: %w", err)
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err = errors.Join(err, resp.Body.Close()); err != nil {
		return Stats{}, fmt.Errorf("filebeat: %w", err)
	}
	var s struct {
		Libbeat struct {
			Output struct {
				Events struct{ Acked, Failed, Dropped int64 }
			}
			Pipeline struct {
				Events struct{ Active int64 }
			}
		}
	}
	if err := json.Unmarshal(body, &s); err != nil || resp.StatusCode != http.StatusOK {
		return Stats{}, fmt.Errorf("filebeat answered %s", resp.Status)
	}
	e := s.Libbeat.Output.Events
	return Stats{Acked: e.Acked, Failed: e.Failed, Dropped: e.Dropped, Active: s.Libbeat.Pipeline.Events.Active}, nil
}

// Ready is nil when Filebeat is up.
func (c *Collector) Ready(ctx context.Context) error {
	_, err := c.Stats(ctx)
	return err
}
