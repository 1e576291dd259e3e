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

// strays are what a look found of which containerd knows nothing: it goes when the next look finds it so, too.
type strays struct {
	shims      map[shimProcess]bool
	bundles    map[string]bool // by name of their directory
	namespaces map[string]bool // of the network, by name of their file
}

func (s strays) any() bool { return len(s.shims)+len(s.bundles)+len(s.namespaces) > 0 }

// sweep removes the cgroups, shims, bundles and network namespaces that starts have left which were cut short. It is given the strays
// of the look before, and gives its own.
func (e *Engine) sweep(ctx context.Context, before strays) strays {
	e.sweepCgroups()
	if e.cfg.TaskDir == "" {
		return strays{} // that containerd is its operator's
	}
	all, err := shims()
	if err != nil {
		e.log.Warn("shims not looked for", "error", err)
		return strays{}
	}
	all = slices.DeleteFunc(all, func(s shimProcess) bool { return s.address != e.cfg.Socket || s.id == "" })
	ctx = namespaces.WithNamespace(ctx, criNamespace)
	return strays{shims: e.sweepShims(all, before.shims), bundles: e.sweepBundles(ctx, all, before.bundles),
		namespaces: e.sweepNetworks(ctx, before.namespaces)}
}

// sweepShims kills the shims of this containerd that have no bundle, and had none at the look before: containerd was killed,
// or told to make the sandbox no more, when it had just started them, and knows nothing of them.
func (e *Engine) sweepShims(all []shimProcess, before map[shimProcess]bool) map[shimProcess]bool {
	now := map[shimProcess]bool{}
	for _, s := range all {
		if _, err := os.Stat(bundleDir(e.cfg.TaskDir, s.id)); !errors.Is(err, os.ErrNotExist) {
			continue
		}
		if !before[s] {
			now[s] = true
			continue
		}
		e.log.Info("a shim that containerd does not know is killed", "pid", s.pid, "sandbox", s.id)
		err := unix.Kill(s.pid, unix.SIGKILL)
		if err == nil || errors.Is(err, unix.ESRCH) {
			err = e.removeShimSocket(s.id)
		}
		if err != nil {
			e.log.Warn("shim not removed", "pid", s.pid, "sandbox", s.id, "error", err)
		}
	}
	return now
}

// sweepBundles removes the bundles of this containerd, with what is mounted in them, that have neither a shim nor a container, and
// had none at the look before. containerd gives one up whose mount is in use still, as by a start that goes on while it,
// started again, cleans up after the one before (its Bundle.Delete and atomicDelete).
func (e *Engine) sweepBundles(ctx context.Context, all []shimProcess, before map[string]bool) map[string]bool {
	dirs, err := os.ReadDir(bundleDir(e.cfg.TaskDir, ""))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		e.log.Warn("bundles not looked for", "error", err)
	}
	now := map[string]bool{}
	for _, d := range dirs {
		name := d.Name()
		id := strings.TrimPrefix(name, ".") // the dot is of one that containerd was removing
		if slices.ContainsFunc(all, func(s shimProcess) bool { return s.id == id }) {
			continue
		}
		_, err := e.ctrd.ContainerService().Get(ctx, id)
		switch {
		case errdefs.IsNotFound(err) && !before[name]:
			now[name] = true
		case errdefs.IsNotFound(err):
			e.log.Info("a bundle that containerd does not know is removed", "container", id)
			if err := mounts.RemoveAll(bundleDir(e.cfg.TaskDir, name)); err != nil {
				e.log.Warn("bundle not removed", "container", id, "error", err)
			}
		case err != nil:
			e.log.Warn("container of a bundle not looked for", "container", id, "error", err)
			return now
		}
	}
	return now
}

// sweepNetworks removes the network namespaces of this containerd that no sandbox of its has, and had none at the look before:
// containerd was killed before it had noted what it had just made.
func (e *Engine) sweepNetworks(ctx context.Context, before map[string]bool) map[string]bool {
	dir := networkDir(e.cfg.TaskDir)
	files, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) || err == nil && len(files) == 0 {
		return nil
	}
	var used map[string]bool
	if err == nil {
		used, err = e.networks(ctx)
	}
	if err != nil {
		e.log.Warn("network namespaces not looked for", "error", err)
		return nil
	}
	now := map[string]bool{}
	for _, f := range files {
		name := f.Name()
		switch {
		case used[name]:
		case !before[name]:
			now[name] = true
		default:
			e.log.Info("a network namespace that no sandbox has is removed", "namespace", name)
			if err := mounts.RemoveAll(filepath.Join(dir, name)); err != nil {
				e.log.Warn("network namespace not removed", "namespace", name, "error", err)
			}
		}
	}
	return now
}

// networkDir is where a containerd with that task directory mounts the network namespaces that it makes (its setting
// netns_mounts_under_state_dir).
func networkDir(taskDir string) string {
	return filepath.Join(filepath.Dir(taskDir), "io.containerd.grpc.v1.cri", "netns")
}

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
