package bench

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
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
