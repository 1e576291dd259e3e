package cri

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"cumulet.io/internal/testenv"
)

// cgroup v2 as the kernel has it, also on a machine whose controllers are v1's: cgroups are made, and go with what runs
// in them.
func TestCgroupV2(t *testing.T) {
	testenv.RequireRoot(t)
	mount := t.TempDir()
	if err := unix.Mount("none", mount, "cgroup2", 0, ""); err != nil {
		t.Skipf("cgroup v2 cannot be mounted here: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(mount, 0); err != nil {
			t.Error(err)
		}
	})
	c := findCgroups(mount, "/cutest-v2-"+strconv.Itoa(os.Getpid()))
	if c.v2 != mount {
		t.Fatalf("%+v", c)
	}
	t.Cleanup(func() {
		for _, dir := range c.roots() {
			if err := removeCgroup(dir); err != nil {
				t.Error(err)
			}
		}
	})
	if err := c.create("i-1", cgroupLimits{}); err != nil {
		t.Fatal(err)
	}
	inner := filepath.Join(c.dirs("i-1")[0], "inner")
	if err := os.Mkdir(inner, 0o755); err != nil {
		t.Fatal(err)
	}
	stray := exec.Command("sleep", "1000")
	if err := stray.Start(); err != nil {
		t.Fatal(err)
	}
	if err := writeControl(inner, "cgroup.procs", strconv.Itoa(stray.Process.Pid)); err != nil {
		t.Fatal(errors.Join(err, stray.Process.Kill()))
	}
	waited := make(chan error, 1)
	go func() { waited <- stray.Wait() }()
	if err := c.remove("i-1"); err != nil {
		t.Error(err)
	}
	if err := <-waited; err == nil || stray.ProcessState.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Errorf("%v", err)
	}
	if _, err := os.Stat(c.dirs("i-1")[0]); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%v", err)
	}
}

// The files of cgroup v2 that the engine writes and reads, as a kernel with its controllers has them.
func TestCgroupV2Files(t *testing.T) {
	c := cgroups{root: "/x", v2: t.TempDir()}
	dir := c.dirs("i-1")[0]
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, d := range []string{c.v2, filepath.Dir(dir), dir} {
		for name, content := range map[string]string{"cgroup.subtree_control": "", "memory.max": "max\n", "pids.max": "max\n", "cpu.max": "max 100000\n",
			"memory.events": "low 0\nhigh 0\nmax 12\noom 0\noom_kill 0\noom_group_kill 0\n"} {
			if err := os.WriteFile(filepath.Join(d, name), []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := errors.Join(c.create("i-1", cgroupLimits{memoryBytes: 1 << 30, pids: 100}), c.limitCPU("i-1", 1500)); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"memory.max": "1073741824", "pids.max": "100", "cpu.max": "150000 100000"} {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil || len(b) < len(want) || string(b[:len(want)]) != want {
			t.Errorf("%s: %q, %v", name, b, err)
		}
	}
	if c.outOfMemory("i-1") {
		t.Error("a limit that was only reached counts as a kill")
	}
	if err := os.WriteFile(filepath.Join(dir, "memory.events"), []byte("low 0\nhigh 0\nmax 40\noom 1\noom_kill 1\noom_group_kill 0\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if !c.outOfMemory("i-1") {
		t.Error("a kill does not count")
	}
}
