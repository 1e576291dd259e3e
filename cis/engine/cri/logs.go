package cri

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	"cumulet.io/cis"
	"cumulet.io/internal/problem"
	"cumulet.io/logs/crilog"
)

// Logs implements engine.LogReader. The files outlive the instance until the collector removes them.
func (e *Engine) Logs(ctx context.Context, id string, req cis.LogRequest, w io.Writer) error {
	path, ended, err := e.findLog(id, req)
	if err != nil {
		return fmt.Errorf("read log: %w", err)
	}
	err = crilog.Copy(ctx, w, path, crilog.Options{Tail: req.Tail, Since: req.Since, LimitBytes: req.LimitBytes,
		Timestamps: req.Timestamps, Follow: req.Follow && !req.Previous, Ended: ended})
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("read log: %w", problem.New(problem.ErrNotFound, "the log of container %q is not on this node", req.Container))
	}
	if err != nil {
		return fmt.Errorf("read log: %w", err)
	}
	return nil
}

// findLog gives the file of the asked attempt, and a channel that is closed when nothing is added to it any more.
func (e *Engine) findLog(id string, req cis.LogRequest) (string, <-chan struct{}, error) {
	over := make(chan struct{})
	close(over)
	if !validID(id) {
		return "", nil, problem.New(problem.ErrNotFound, "there is no instance %q", id)
	}
	a, err := e.actor(id)
	if err != nil {
		path, err := e.keptLog(id, req)
		return path, over, err
	}
	name := req.Container
	if name == "" && len(a.spec.Containers) == 1 {
		name = a.spec.Containers[0].Name
	}
	v := a.view.Load()
	if v == nil {
		return "", nil, problem.New(problem.ErrUnavailable, "instance %s is being looked up", id)
	}
	if name == cis.GuestLog {
		path, err := e.keptLog(id, req)
		return path, over, err
	}
	c, ok := v.containers[name]
	attempt := c.attempt
	if req.Previous {
		attempt--
	}
	switch {
	case !ok:
		return "", nil, problem.New(problem.ErrNotFound, "instance %s has no container %q", id, name)
	case c.attempt < 0:
		return "", nil, problem.New(problem.ErrConflict, "container %q of instance %s has not started yet", name, id)
	case attempt < 0:
		return "", nil, problem.New(problem.ErrNotFound, "container %q of instance %s has no previous attempt", name, id)
	}
	var ended <-chan struct{} = over
	if c.running && !req.Previous {
		ended = c.ended
	}
	return a.logFile(name, attempt), ended, nil
}

// keptLog finds a log of an instance that has ended.
func (e *Engine) keptLog(id string, req cis.LogRequest) (string, error) {
	missing := problem.New(problem.ErrNotFound, "the log of container %q is not on this node", req.Container)
	orgs, err := os.ReadDir(e.cfg.LogRoot)
	if err != nil {
		return "", fmt.Errorf("list logs: %w", err)
	}
	for _, o := range orgs {
		dir := filepath.Join(e.cfg.LogRoot, o.Name(), id)
		if _, err := os.Stat(dir); err != nil {
			continue
		}
		last := logAttempts(dir, 0)
		name := req.Container
		if req.Container != cis.GuestLog {
			delete(last, cis.GuestLog)
		}
		if name == "" && len(last) == 1 {
			for name = range last {
			}
		}
		n, ok := last[name]
		if req.Previous {
			n--
		}
		if !ok || n < 0 {
			return "", missing
		}
		return filepath.Join(dir, name, strconv.Itoa(n)+".log"), nil
	}
	return "", missing
}
