package inside

import (
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"cumulet.io/internal/testenv"
)

// process is one of this machine.
type process struct{ name, args, cgroup string }

// processes are all that run, but the kernel's own.
func processes(t *testing.T) []process {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	var all []process
	for _, f := range files {
		args, err := os.ReadFile(f)
		if err != nil || len(args) == 0 {
			continue // ended, or the kernel's
		}
		cgroup, err := os.ReadFile(filepath.Join(filepath.Dir(f), "cgroup"))
		if err != nil {
			continue
		}
		name, _, _ := strings.Cut(string(args), "\x00")
		all = append(all, process{filepath.Base(name), strings.ReplaceAll(string(args), "\x00", " "), strings.TrimSpace(string(cgroup))})
	}
	return all
}

// left is what sandboxes could leave behind on this machine: processes, mounts, interfaces, cgroups, Kata's own files.
func left(t *testing.T, env *testenv.ContainerdEnv) string {
	t.Helper()
	var all []string
	for _, p := range processes(t) {
		if !strings.HasPrefix(p.args, "/bin/sh -c read -r _;") { // the engine's, for its connection to containerd
			all = append(all, "process "+p.name)
		}
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		all = append(all, "mount "+strings.Fields(line)[4])
	}
	interfaces, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range interfaces {
		if i.Name != env.Bridge { // stays
			all = append(all, "interface "+i.Name)
		}
	}
	for _, pattern := range []string{"/run/vc/sbs/*", "/run/vc/vm/*", "/run/vc/firecracker/*", "/run/kata-containers/shared/sandboxes/*", "/run/netns/*", env.Dir + "/engine/instances/*"} {
		files, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, files...)
	}
	err = filepath.WalkDir("/sys/fs/cgroup", func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err == nil && d.IsDir() && strings.Count(path, "/") > 4 { // below the root of the instances
			all = append(all, "cgroup "+path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(all)
	return strings.Join(all, "\n")
}
