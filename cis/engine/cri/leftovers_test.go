package cri

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"cumulet.io/internal/mounts"
)

// leftovers are what instances could leave behind on the machine, by kind: processes, mounts with the network namespaces
// among them, cables and taps, sockets and files of virtual machines.
func (b *bench) leftovers(t *testing.T) []string {
	t.Helper()
	var all []string
	for _, p := range b.machinery() {
		all = append(all, "process "+p.name)
	}
	dirs := []string{b.env.Dir}
	if b.kata != nil {
		dirs = append(dirs, filepath.Dir(b.kata.StateDir))
	}
	for _, dir := range dirs {
		points, err := mounts.In(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range points {
			if filepath.Base(p) != "null-netns" { // gVisor's, one for all sandboxes and kept
				all = append(all, "mount "+p)
			}
		}
	}
	ports, err := os.ReadDir("/sys/class/net/" + b.env.Bridge + "/brif")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	for _, p := range ports {
		all = append(all, "cable "+p.Name())
	}
	if b.kata != nil {
		vms, err := os.ReadDir(b.kata.StateDir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
		for _, v := range vms {
			all = append(all, "virtual machine "+v.Name())
		}
	}
	return append(all, b.cgroupsLeft()...)
}

// beyond is what there is now that was not before. What was there for a moment then, as the child of a containerd that is
// just becoming another program, need not be there again.
func beyond(now, before []string) []string {
	before = slices.Clone(before)
	var more []string
	for _, x := range now {
		if i := slices.Index(before, x); i >= 0 {
			before = slices.Delete(before, i, i+1)
		} else {
			more = append(more, x)
		}
	}
	return more
}

type process struct {
	pid  int
	name string
}

// machinery are the processes of sandboxes: of the shims, the virtual machines and their file servers. They name the
// directory of this containerd, or of this VM service.
func (b *bench) machinery() []process {
	var all []process
	marks, but := []string{b.env.Dir + "/"}, []int{os.Getpid(), b.env.Daemon.PID()}
	if b.kata != nil {
		marks, but = append(marks, b.kata.StateDir+"/"), append(but, b.kata.PID())
	}
	dirs, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	for _, d := range dirs {
		pid, err := strconv.Atoi(d.Name())
		if err != nil || slices.Contains(but, pid) {
			continue
		}
		text, err := os.ReadFile(filepath.Join("/proc", d.Name(), "cmdline"))
		if err != nil {
			continue
		}
		args := strings.ReplaceAll(string(text), "\x00", " ")
		if slices.ContainsFunc(marks, func(m string) bool { return strings.Contains(args, m) }) {
			name, _, _ := strings.Cut(args, " ")
			all = append(all, process{pid, filepath.Base(name)})
		}
	}
	return all
}

// cgroupsLeft are those of instances.
func (b *bench) cgroupsLeft() []string {
	var all []string
	for _, root := range b.cgroup.roots() {
		dirs, err := os.ReadDir(root)
		if err != nil {
			continue // there is none before the first instance
		}
		for _, d := range dirs {
			if d.IsDir() {
				all = append(all, "cgroup "+filepath.Join(root, d.Name()))
			}
		}
	}
	return all
}
