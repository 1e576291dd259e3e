package cri

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// cgroups makes the cgroup of each instance before its sandbox, so that its limits hold for everything in it, also
// where the runtime (gVisor) does not apply those of single containers. It knows cgroup v1 and v2.
type cgroups struct {
	root string // as containerd has it, "/cumulet"
	v2   string // where v2 is mounted; "" means v1
	v1   map[string]string
}

// cgroupLimits are an instance's; 0 means none.
type cgroupLimits struct {
	memoryBytes, milliCPU, pids int64
}

const cgroupMount = "/sys/fs/cgroup"

const cpuPeriod = 100_000 // microseconds

func hostCgroups(root string) cgroups { return findCgroups(cgroupMount, root) }

func findCgroups(mount, root string) cgroups {
	c := cgroups{root: path.Clean("/" + root)}
	var st unix.Statfs_t
	if unix.Statfs(mount, &st) == nil && st.Type == unix.CGROUP2_SUPER_MAGIC {
		c.v2 = mount
		return c
	}
	c.v1 = map[string]string{}
	entries, err := os.ReadDir(mount)
	if err != nil {
		return c
	}
	for _, e := range entries {
		dir := filepath.Join(mount, e.Name())
		if e.Type()&fs.ModeSymlink != 0 {
			continue // cpu -> cpu,cpuacct
		}
		if unix.Statfs(dir, &st) != nil || st.Type != unix.CGROUP_SUPER_MAGIC && st.Type != unix.CGROUP2_SUPER_MAGIC {
			continue // the hybrid's "unified" has no controllers, but containerd makes its cgroups there too
		}
		for _, name := range strings.Split(e.Name(), ",") {
			c.v1[name] = dir
		}
	}
	return c
}

// path is the cgroup of an instance as CRI wants it. Its last element begins with "pod": by that, gVisor's shim knows
// that the cgroup is the whole sandbox's.
func (c cgroups) path(id string) string { return c.root + "/" + podPrefix + id }

const podPrefix = "pod-"

// ids are the instances that have a cgroup in some hierarchy.
func (c cgroups) ids() []string {
	found := map[string]bool{}
	for _, root := range c.roots() {
		dirs, err := os.ReadDir(root)
		if err != nil {
			continue // there is none before the first instance
		}
		for _, d := range dirs {
			if id, ok := strings.CutPrefix(d.Name(), podPrefix); ok && d.IsDir() {
				found[id] = true
			}
		}
	}
	return slices.Collect(maps.Keys(found))
}

// dirs are the directories of an instance's cgroup: one with v2, one for each hierarchy with v1.
func (c cgroups) dirs(id string) []string {
	return c.in(c.path(id))
}

// roots are the directories below which all instances' are.
func (c cgroups) roots() []string { return c.in(c.root) }

// in is a cgroup's directory in each hierarchy.
func (c cgroups) in(path string) []string {
	if c.v2 != "" {
		return []string{filepath.Join(c.v2, path)}
	}
	seen := map[string]bool{}
	var out []string
	for _, dir := range c.v1 {
		if !seen[dir] {
			seen[dir] = true
			out = append(out, filepath.Join(dir, path))
		}
	}
	return out
}

// create makes the cgroup and sets its limits of memory and processes. That of CPU is set by limitCPU once a container
// runs, so that a small instance does not wait for its own sandbox.
func (c cgroups) create(id string, l cgroupLimits) error {
	var err error
	if c.v2 != "" {
		err = c.createV2(id, l)
	} else {
		err = c.createV1(id, l)
	}
	if err != nil {
		return fmt.Errorf("make instance cgroup: %w", err)
	}
	return nil
}

func (c cgroups) createV1(id string, l cgroupLimits) error {
	set := func(controller, file string, value int64) error {
		dir, ok := c.v1[controller]
		if !ok {
			return nil // the kernel has no such controller
		}
		dir = filepath.Join(dir, c.path(id))
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		if value <= 0 {
			return nil
		}
		return writeControl(dir, file, strconv.FormatInt(value, 10))
	}
	return errors.Join(set("memory", "memory.limit_in_bytes", l.memoryBytes),
		set("cpu", "cpu.shares", shares(l.milliCPU)), set("pids", "pids.max", l.pids))
}

func (c cgroups) createV2(id string, l cgroupLimits) error {
	dir := c.v2
	for _, elem := range strings.Split(strings.Trim(c.path(id), "/"), "/") {
		// Controllers are given from each cgroup to its children; one that the host lacks is left out.
		for _, ctl := range []string{"cpuset", "cpu", "io", "memory", "pids"} {
			err := writeControl(dir, "cgroup.subtree_control", "+"+ctl)
			if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EINVAL) {
				return err
			}
		}
		dir = filepath.Join(dir, elem)
		if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	var err error
	if l.memoryBytes > 0 {
		err = errors.Join(err, writeControl(dir, "memory.max", strconv.FormatInt(l.memoryBytes, 10)))
	}
	if l.pids > 0 {
		err = errors.Join(err, writeControl(dir, "pids.max", strconv.FormatInt(l.pids, 10)))
	}
	return err
}

// limitCPU bounds the CPU time of the instance, in thousandths of a CPU.
func (c cgroups) limitCPU(id string, milliCPU int64) error {
	if milliCPU <= 0 {
		return nil
	}
	quota := strconv.FormatInt(max(1000, milliCPU*cpuPeriod/1000), 10)
	var err error
	if c.v2 != "" {
		err = writeControl(filepath.Join(c.v2, c.path(id)), "cpu.max", quota+" "+strconv.Itoa(cpuPeriod))
	} else if dir, ok := c.v1["cpu"]; ok {
		err = writeControl(filepath.Join(dir, c.path(id)), "cpu.cfs_quota_us", quota)
	}
	if err != nil {
		return fmt.Errorf("limit CPU of instance: %w", err)
	}
	return nil
}

func writeControl(dir, file, value string) error {
	f, err := os.OpenFile(filepath.Join(dir, file), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(value)
	return errors.Join(err, f.Close())
}

// outOfMemory tells whether the instance has come to its memory limit. With v2 that is the count of kills; with v1 the
// count is each cgroup's own and goes with it, so that the limit was reached is what can be known.
func (c cgroups) outOfMemory(id string) bool {
	if c.v2 != "" {
		b, err := os.ReadFile(filepath.Join(c.v2, c.path(id), "memory.events"))
		if err != nil {
			return false
		}
		for _, line := range strings.Split(string(b), "\n") {
			if n, ok := strings.CutPrefix(line, "oom_kill "); ok {
				return n != "0"
			}
		}
		return false
	}
	dir, ok := c.v1["memory"]
	if !ok {
		return false
	}
	b, err := os.ReadFile(filepath.Join(dir, c.path(id), "memory.failcnt"))
	return err == nil && strings.TrimSpace(string(b)) != "0"
}

// remove removes the cgroup with what is left below it. Processes that are just ending are waited for a little; those that
// still run then are killed: the sandbox is gone by now, and what a start that was cut short has left is nobody's.
func (c cgroups) remove(id string) error {
	var err error
	for _, dir := range c.dirs(id) {
		if e := removeCgroup(dir); e != nil {
			err = errors.Join(err, fmt.Errorf("remove instance cgroup: %w", e))
		}
	}
	return err
}

func removeCgroup(dir string) error {
	began := time.Now()
	for {
		err := removeCgroupOnce(dir)
		left := time.Since(began)
		if err == nil || !errors.Is(err, unix.EBUSY) || left > removeBound {
			return err
		}
		if left > removePatience {
			if err := killCgroup(dir); err != nil {
				return err
			}
		}
		time.Sleep(10 * time.Millisecond) // the kernel tells nobody when the last process has gone
	}
}

// How long the processes of a cgroup have to end by themselves, and in all.
const (
	removePatience = 500 * time.Millisecond
	removeBound    = 5 * time.Second
)

// killCgroup kills every process in a cgroup and below it.
func killCgroup(dir string) error {
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.Name() != "cgroup.procs" {
			return err
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		for _, f := range strings.Fields(string(b)) {
			// 0 is a process that is not to be seen from here.
			if pid, err := strconv.Atoi(f); err == nil && pid > 0 {
				if err := unix.Kill(pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
					return fmt.Errorf("kill %d: %w", pid, err)
				}
			}
		}
		return nil
	})
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
		return nil // a cgroup that has gone meanwhile
	}
	return err
}

func removeCgroupOnce(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.IsDir() {
			if err := removeCgroupOnce(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	if err := unix.Rmdir(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
