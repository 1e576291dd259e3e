package cri

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"cumulet.io/internal/mounts"
)

// sweepEvery is the time between two looks for what starts that were cut short have left, for sweepLately after each time that
// there may have been one, and while there is something; otherwise it is one in sweepRarely looks.
const (
	sweepEvery  = 10 * time.Second
	sweepLately = 2 * time.Minute
	sweepRarely = 30
)

// suspect has the next looks taken: containerd has been started again, or has not made a sandbox that it was asked for.
func (e *Engine) suspect() { e.suspected.Store(time.Now().UnixNano()) }

// stray is something on this machine of which containerd knows nothing: a shim, a bundle or a network namespace.
type stray struct {
	kind, name string
	pid        int // a shim's
}

// strays are what a look found, each with how it is removed. That goes which the next look finds so, too.
type strays map[stray]func() error

// sweep removes the cgroups, shims, bundles and network namespaces that starts have left which were cut short. It is given the strays
// of the look before, and gives its own.
func (e *Engine) sweep(ctx context.Context, before strays) strays {
	e.sweepCgroups()
	if e.cfg.TaskDir == "" {
		return nil // that containerd is its operator's
	}
	found, err := e.strays(namespaces.WithNamespace(ctx, criNamespace))
	if err != nil {
		e.log.Warn("not all that starts may have left is looked for", "error", err)
	}
	now := strays{}
	for s, remove := range found {
		if before[s] == nil {
			now[s] = remove
			continue
		}
		e.log.Info("what containerd does not know is removed", "kind", s.kind, "name", s.name)
		if err := remove(); err != nil {
			e.log.Warn("stray not removed", "kind", s.kind, "name", s.name, "error", err)
		}
	}
	return now
}

// strays looks for all kinds; with an error it gives those of the others.
func (e *Engine) strays(ctx context.Context) (strays, error) {
	all, err := shims()
	if err != nil {
		return nil, err
	}
	all = slices.DeleteFunc(all, func(s shimProcess) bool { return s.address != e.cfg.Socket || s.id == "" })
	found := strays{}
	e.strayShims(found, all)
	return found, errors.Join(e.strayBundles(ctx, found, all), e.strayNetworks(ctx, found))
}

// strayShims are those of this containerd that have no bundle: containerd was killed, or told to make the sandbox no more, when it
// had just started them, and knows nothing of them.
func (e *Engine) strayShims(found strays, all []shimProcess) {
	for _, s := range all {
		if _, err := os.Stat(bundleDir(e.cfg.TaskDir, s.id)); !errors.Is(err, os.ErrNotExist) {
			continue
		}
		found[stray{"shim", s.id, s.pid}] = func() error {
			if err := unix.Kill(s.pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("kill shim %d: %w", s.pid, err)
			}
			return e.removeShimSocket(s.id)
		}
	}
}

// strayBundles are those of this containerd that have neither a shim nor a container. containerd gives one up whose mount is in use
// still, as by a start that goes on while it, started again, cleans up after the one before (its Bundle.Delete and
// atomicDelete).
func (e *Engine) strayBundles(ctx context.Context, found strays, all []shimProcess) error {
	dirs, err := os.ReadDir(bundleDir(e.cfg.TaskDir, ""))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("list bundles: %w", err)
	}
	for _, d := range dirs {
		name := d.Name()
		id := strings.TrimPrefix(name, ".") // the dot is of one that containerd was removing
		if slices.ContainsFunc(all, func(s shimProcess) bool { return s.id == id }) {
			continue
		}
		_, err := e.ctrd.ContainerService().Get(ctx, id)
		if err == nil {
			continue
		}
		if !errdefs.IsNotFound(err) {
			return fmt.Errorf("container of bundle %s: %w", name, err)
		}
		found[stray{kind: "bundle", name: name}] = func() error { return mounts.RemoveAll(bundleDir(e.cfg.TaskDir, name)) }
	}
	return nil
}

// strayNetworks are the network namespaces of this containerd that no sandbox of its has: containerd was killed before it had noted
// what it had just made.
func (e *Engine) strayNetworks(ctx context.Context, found strays) error {
	dir := e.networkDir()
	files, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) || err == nil && len(files) == 0 {
		return nil
	}
	if err != nil {
		return fmt.Errorf("list network namespaces: %w", err)
	}
	used, err := e.networks(ctx)
	if err != nil {
		return err
	}
	for _, f := range files {
		if name := f.Name(); !used[name] {
			found[stray{kind: "network namespace", name: name}] = func() error { return mounts.RemoveAll(filepath.Join(dir, name)) }
		}
	}
	return nil
}

// networkDir is where containerd mounts the network namespaces that it makes (its setting netns_mounts_under_state_dir).
func (e *Engine) networkDir() string { return filepath.Join(e.criStateDir(), "netns") }

// networks are the names of the network namespaces that containerd's CRI service has noted of its sandboxes.
func (e *Engine) networks(ctx context.Context) (map[string]bool, error) {
	all, err := e.ctrd.SandboxStore().List(ctx)
	if err != nil {
		return nil, fmt.Errorf("list sandboxes: %w", err)
	}
	used := map[string]bool{}
	for _, s := range all {
		m := struct {
			Version  string
			Metadata struct{ NetNSPath string }
		}{}
		if noted, ok := s.Extensions[sandboxMetadata]; ok {
			if err := json.Unmarshal(noted.GetValue(), &m); err != nil {
				return nil, fmt.Errorf("metadata of sandbox %s: %w", s.ID, err)
			}
		}
		if m.Version != "v1" {
			return nil, fmt.Errorf("metadata of sandbox %s: of version %q, not understood", s.ID, m.Version)
		}
		used[filepath.Base(m.Metadata.NetNSPath)] = true
	}
	return used, nil
}

// sandboxMetadata is the name under which the CRI service notes what it knows of a sandbox (its podsandbox.MetadataKey).
const sandboxMetadata = "metadata"

// sweepCgroups removes those of instances that have ended here: a runtime that was at work still has made them anew, and what
// is in them is nobody's.
func (e *Engine) sweepCgroups() {
	for _, id := range e.cgroup.ids() {
		e.mu.Lock()
		ended := e.ended.has(id)
		e.mu.Unlock()
		if !ended {
			continue
		}
		if err := e.cgroup.remove(id); err != nil {
			e.log.Warn("instance cgroup not removed", "instance", id, "error", err)
		}
	}
}
