package testenv

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"cumulet.io/cis/engine/cri/containerd"
	"cumulet.io/cis/engine/cri/fence"
)

// ContainerdEnv is a containerd of the test's own, with PauseImage and
// BusyboxImage in it.
type ContainerdEnv struct {
	Socket   string   // of CRI
	Dir      string   // short; the test may put its own files below it, too
	Runtimes []string // the runtime handlers it has: runc, and runsc if built
	// CgroupParent is for the pods' CgroupParent: a path to add elements to, or
	// with systemd the name of a slice. All below it is removed with the test.
	CgroupParent string
	Bridge       string       // of the pods' network
	Subnet       netip.Prefix // of the pods; its first address is this machine's
	Daemon       *containerd.Daemon

	t    testing.TB
	stop func() error
}

// Bounds of starting and of removing what a test has left.
const (
	startTimeout  = 60 * time.Second
	removeTimeout = 120 * time.Second
)

// Containerd starts a containerd with its own directory, bridge and subnet, as
// changed by options. It skips the test where root or a tool is missing.
func Containerd(t testing.TB, options ...func(*containerd.Config)) *ContainerdEnv {
	t.Helper()
	RequireRoot(t)
	bin := filepath.Dir(Tool(t, "containerd"))
	bridge := Tool(t, "bridge") // a CNI plugin
	Tool(t, "runc")
	pause, busybox := Image(t, "pause"), Image(t, "busybox")

	s := takeSlot(t, true)
	config := containerd.Config{
		Dir:            s.dir,
		BinDirs:        []string{bin},
		CNIBinDir:      filepath.Dir(bridge),
		Handlers:       containerd.DetectHandlers([]string{bin}, ""),
		SandboxImage:   PauseImage,
		SandboxArchive: pause,
		Network:        containerd.Network{Bridge: s.bridge, Subnet: s.subnet},
		Log:            logger(t),
	}
	for _, o := range options {
		o(&config)
	}
	d, err := containerd.New(config)
	if err != nil {
		t.Fatal(err)
	}
	e := &ContainerdEnv{Socket: d.Socket(), Dir: s.dir, Runtimes: d.Handlers(), Daemon: d, CgroupParent: "/" + s.cgroup, Bridge: s.bridge, Subnet: s.subnet, t: t}
	if d.Host().Systemd {
		e.CgroupParent = s.cgroup + ".slice"
	}
	e.purge(s) // what a killed run has left
	t.Cleanup(func() { e.purge(s) })
	e.stop = start(d.Run)
	t.Cleanup(e.shutDown)

	ctx, cancel := context.WithTimeout(t.Context(), startTimeout)
	defer cancel()
	if err := d.Ready(ctx); err != nil {
		t.Fatal(err)
	}
	e.Import(busybox)
	return e
}

// Import loads an image archive and returns the reference of its first image.
func (e *ContainerdEnv) Import(archive string) string {
	e.t.Helper()
	refs, err := e.Daemon.ImportImages(e.t.Context(), archive, false)
	if err != nil {
		e.t.Fatal(err)
	}
	return refs[0]
}

// Has is whether the containerd has the runtime handler.
func (e *ContainerdEnv) Has(runtime string) bool { return slices.Contains(e.Runtimes, runtime) }

// Kill kills containerd as a crash would and waits until it has been started
// again. Ready waits until it answers.
func (e *ContainerdEnv) Kill() {
	e.t.Helper()
	pid := e.Daemon.PID()
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		e.t.Fatalf("kill containerd %d: %v", pid, err)
	}
	Eventually(e.t, startTimeout, func() error {
		if e.Daemon.PID() == pid {
			return fmt.Errorf("containerd %d has not been started again", pid)
		}
		return nil
	})
}

// Down kills containerd as a crash would and keeps it down. Up starts it again.
func (e *ContainerdEnv) Down() {
	e.t.Helper()
	pid := e.Daemon.PID()
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		e.t.Fatalf("kill containerd %d: %v", pid, err)
	}
	if err := e.stop(); err != nil {
		e.t.Fatal(err)
	}
}

// Up starts containerd after Down and waits until it is ready.
func (e *ContainerdEnv) Up() {
	e.t.Helper()
	e.stop = start(e.Daemon.Run)
	e.Ready()
}

// Ready waits until containerd can run sandboxes.
func (e *ContainerdEnv) Ready() {
	e.t.Helper()
	ctx, cancel := context.WithTimeout(e.t.Context(), startTimeout)
	defer cancel()
	if err := e.Daemon.Ready(ctx); err != nil {
		e.t.Fatal(err)
	}
}

// shutDown ends the sandboxes gently, then the daemon.
func (e *ContainerdEnv) shutDown() {
	ctx, cancel := context.WithTimeout(context.Background(), removeTimeout)
	defer cancel()
	if err := e.Daemon.RemoveSandboxes(ctx); err != nil {
		e.t.Error(err)
	}
	if err := e.stop(); err != nil {
		e.t.Error(err)
	}
	if e.t.Failed() {
		e.t.Logf("containerd's log ends:\n%s", tail(filepath.Join(e.Dir, "log", "containerd.log")))
	}
}

// purge removes everything of the slot's, whoever left it there.
func (e *ContainerdEnv) purge(s slot) {
	ctx, cancel := context.WithTimeout(context.Background(), removeTimeout)
	defer cancel()
	if err := errors.Join(e.Daemon.Purge(ctx), fence.Remove(s.bridge), removeCgroups(s.cgroup)); err != nil {
		e.t.Error(err)
	}
}

// removeCgroups removes the top-level cgroup of that name, or that slice, in
// every hierarchy. Its processes must have ended.
func removeCgroups(name string) error {
	const root = "/sys/fs/cgroup"
	var errs []error
	for _, pattern := range []string{"", "*"} {
		for _, suffix := range []string{"", ".slice"} {
			tops, err := filepath.Glob(filepath.Join(root, pattern, name+suffix))
			errs = append(errs, err)
			for _, top := range tops {
				errs = append(errs, removeCgroup(top))
			}
		}
	}
	return errors.Join(errs...)
}

// removeCgroup removes a cgroup and those in it, the innermost first. The kernel
// takes a moment to let go of ended processes.
func removeCgroup(dir string) error {
	var dirs []string
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err == nil && entry.IsDir() {
			dirs = append(dirs, path)
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	})
	if err != nil {
		return err
	}
	for _, d := range slices.Backward(dirs) {
		err := poll(5*time.Second, func() error {
			if err := os.Remove(d); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}
