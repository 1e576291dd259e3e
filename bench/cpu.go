package bench

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"cumulet.io/hack/platform"
)

// Cgroups of a benchmark: of this process and all that it starts, and of the instances of the raw side. The platform's
// instances are in its own.
const (
	groupAll = "cumulet-bench"
	groupRaw = "cumulet-bench-raw"
)

// groups is where processor time is counted: what else runs on the machine is not in it. The kernel counts what processes
// of a cgroup have used after their end, too.
type groups struct {
	mount string // of the hierarchy that counts
	v2    bool
}

// joinGroups puts this process, and so all that it starts from now on, into a cgroup of its own until the end.
func joinGroups(b *testing.B) groups {
	b.Helper()
	g := groups{mount: "/sys/fs/cgroup", v2: true}
	if _, err := os.Stat(g.mount + "/cgroup.controllers"); err != nil {
		g = groups{mount: "/sys/fs/cgroup/cpuacct"}
	}
	for _, name := range []string{groupAll, groupRaw} {
		dir := filepath.Join(g.mount, name)
		if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
			b.Skipf("processor time cannot be counted here: %v", err)
		}
		b.Cleanup(func() { removeGroup(name) })
	}
	move := func(to string) error {
		return os.WriteFile(filepath.Join(g.mount, to, "cgroup.procs"), fmt.Append(nil, os.Getpid()), 0o600)
	}
	if err := move(groupAll); err != nil {
		b.Skipf("processor time cannot be counted here: %v", err)
	}
	b.Cleanup(func() {
		if err := move(""); err != nil {
			b.Error(err)
		}
	})
	return g
}

// removeGroup removes an empty cgroup from every hierarchy: the runtimes make theirs below it in each.
func removeGroup(name string) {
	for _, pattern := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/*"} {
		dirs, err := filepath.Glob(filepath.Join(pattern, name))
		if err != nil {
			continue
		}
		for _, dir := range dirs {
			_ = os.Remove(dir) //nolint:errcheck // one that is not empty stays
		}
	}
}

// seconds is the processor time of cgroups since they were made; one that is not there has used none.
func (g groups) seconds(names ...string) (float64, error) {
	var sum float64
	for _, name := range names {
		file, unit := "cpuacct.usage", 1e9
		if g.v2 {
			file, unit = "cpu.stat", 1e6
		}
		text, err := os.ReadFile(filepath.Join(g.mount, name, file))
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return 0, err
		}
		n, err := strconv.ParseFloat(strings.Fields(strings.TrimPrefix(string(text), "usage_usec "))[0], 64)
		if err != nil {
			return 0, fmt.Errorf("%s: %w", name, err)
		}
		sum += n / unit
	}
	return sum, nil
}

// clientSeconds is the processor time of this process since its start, which is the client of both sides.
func clientSeconds() float64 {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano()).Seconds()
}

// apart keeps the control plane on the first half of the processors, and the platform and this process on the others, until the end
// of b: as where the API server has machines of its own.
func apart(b *testing.B, p *platform.Platform) {
	b.Helper()
	n := runtime.NumCPU()
	if n < 2 {
		b.Skip("there is one processor only")
	}
	var plane, rest, all unix.CPUSet
	for i := range n {
		all.Set(i)
		if i < n/2 {
			plane.Set(i)
		} else {
			rest.Set(i)
		}
	}
	keep := func(plane, rest *unix.CPUSet) error {
		errs := []error{affinity(os.Getpid(), rest)}
		for name, pids := range p.Pids() {
			for _, pid := range pids {
				if name == "devcluster" {
					errs = append(errs, affinity(pid, plane))
				} else {
					errs = append(errs, affinity(pid, rest))
				}
			}
		}
		return errors.Join(errs...)
	}
	if err := keep(&plane, &rest); err != nil {
		b.Skipf("processors cannot be chosen here: %v", err)
	}
	b.Cleanup(func() {
		if err := keep(&all, &all); err != nil {
			b.Error(err)
		}
	})
}

// affinity chooses the processors of all threads of a process; those that they start inherit it.
func affinity(pid int, set *unix.CPUSet) error {
	for range 2 { // one more for those that were started meanwhile
		tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
		if err != nil {
			return err
		}
		for _, t := range tasks {
			tid, err := strconv.Atoi(t.Name())
			if err == nil {
				err = unix.SchedSetaffinity(tid, set)
			}
			if err != nil && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("processors of thread %s: %w", t.Name(), err)
			}
		}
	}
	return nil
}
