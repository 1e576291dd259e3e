package agent

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	pb "github.com/kata-containers/kata-containers/src/runtime/virtcontainers/pkg/agent/protocols/grpc"
	"golang.org/x/sys/unix"
)

// cgroups is the directory that the containers' cgroups, of version 2, are in.
type cgroups string

var controllers = []string{"cpu", "memory", "pids", "io"}

func newCgroups(root string) (cgroups, error) {
	dir := filepath.Join(root, "pod")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	for _, d := range []string{root, dir} {
		for _, c := range controllers {
			if err := os.WriteFile(filepath.Join(d, "cgroup.subtree_control"), []byte("+"+c), 0); err != nil {
				return "", fmt.Errorf("enable cgroup controller %s: %w", c, err)
			}
		}
	}
	return cgroups(dir), nil
}

// cgroup is a container's.
type cgroup struct {
	dir string

	mu      sync.Mutex
	kills   uint64 // OOM kills that were told of
	onOOM   func()
	watcher *os.File
}

func (c cgroups) create(id string, r *pb.LinuxResources) (*cgroup, error) {
	g := &cgroup{dir: filepath.Join(string(c), id)}
	if err := os.Mkdir(g.dir, 0o755); err != nil {
		return nil, fmt.Errorf("make cgroup: %w", err)
	}
	if err := g.limit(r); err != nil {
		return nil, errors.Join(err, g.remove())
	}
	return g, nil
}

func (g *cgroup) open() (*os.File, error) { return os.Open(g.dir) }

func (g *cgroup) write(file, value string) error {
	return os.WriteFile(filepath.Join(g.dir, file), []byte(value), 0)
}

// limit sets the limits that the resources have; the others stay.
func (g *cgroup) limit(r *pb.LinuxResources) error {
	for _, s := range settings(r) {
		if err := g.write(s[0], s[1]); err != nil {
			return fmt.Errorf("set %s to %s: %w", s[0], s[1], err)
		}
	}
	return nil
}

// settings translates resources, which are in terms of cgroup version 1, to
// files of version 2 and what to write into them.
func settings(r *pb.LinuxResources) [][2]string {
	var out [][2]string
	if r == nil {
		return nil
	}
	if m := r.Memory; m != nil && m.Limit != 0 {
		out = append(out, [2]string{"memory.max", most(m.Limit)})
	}
	if c := r.CPU; c != nil {
		if c.Shares > 0 {
			// The usual linear map of [2, 262144] to [1, 10000].
			weight := 1 + (min(max(c.Shares, 2), 262144)-2)*9999/262142
			out = append(out, [2]string{"cpu.weight", strconv.FormatUint(weight, 10)})
		}
		if c.Quota != 0 || c.Period != 0 {
			period := c.Period
			if period == 0 {
				period = 100000
			}
			quota := c.Quota
			if quota == 0 {
				quota = -1
			}
			out = append(out, [2]string{"cpu.max", most(quota) + " " + strconv.FormatUint(period, 10)})
		}
	}
	if p := r.Pids; p != nil && p.Limit != 0 {
		out = append(out, [2]string{"pids.max", most(p.Limit)})
	}
	return out
}

// most is a limit, negative for none, as version 2 has it.
func most(n int64) string {
	if n < 0 {
		return "max"
	}
	return strconv.FormatInt(n, 10)
}

// kill kills every process in the cgroup.
func (g *cgroup) kill() error { return g.write("cgroup.kill", "1") }

// signal signals every process in the cgroup.
func (g *cgroup) signal(s unix.Signal) error {
	if s == unix.SIGKILL {
		return g.kill()
	}
	b, err := os.ReadFile(filepath.Join(g.dir, "cgroup.procs"))
	if err != nil {
		return err
	}
	for _, f := range strings.Fields(string(b)) {
		pid, err := strconv.Atoi(f)
		if err != nil || pid <= 0 {
			continue // of another PID namespace
		}
		if err := unix.Kill(pid, s); err != nil && !errors.Is(err, unix.ESRCH) {
			return err
		}
	}
	return nil
}

// remove removes the cgroup, whose processes have been killed. The kernel takes
// a moment to let go of them.
func (g *cgroup) remove() error {
	if g.watcher != nil {
		g.watcher.Close()
	}
	var err error
	for range 500 {
		err = os.Remove(g.dir)
		if err == nil || errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		time.Sleep(10 * time.Millisecond)
	}
	return fmt.Errorf("remove cgroup: %w", err)
}

// watch calls f each time that the kernel has killed for want of memory.
func (g *cgroup) watch(f func()) error {
	g.onOOM = f
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return fmt.Errorf("watch memory: %w", err)
	}
	if _, err := unix.InotifyAddWatch(fd, filepath.Join(g.dir, "memory.events"), unix.IN_MODIFY); err != nil {
		unix.Close(fd)
		return fmt.Errorf("watch memory: %w", err)
	}
	g.watcher = os.NewFile(uintptr(fd), "inotify")
	go func() {
		b := make([]byte, 4096)
		for {
			if _, err := g.watcher.Read(b); err != nil {
				return // closed
			}
			g.checkOOM()
		}
	}()
	return nil
}

// checkOOM tells of kills that were not told of yet.
func (g *cgroup) checkOOM() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if n := readStats(filepath.Join(g.dir, "memory.events"))["oom_kill"]; n > g.kills {
		g.kills = n
		g.onOOM()
	}
}
