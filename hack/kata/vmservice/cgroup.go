package vmservice

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// inCgroups has the calling thread in a process's cgroups while it calls start, and so for good what that starts: the shim is
// in its sandbox's, which Kata's drivers on hosts with KVM put their hypervisor into as well (sandbox_cgroup_only). So a
// machine's memory and processes are counted, limited and found as the sandbox's. The thread must not stay: whoever ends
// all that is in a sandbox's cgroups would find this service there.
//
// All but the processor's: its limit is for what the guest does, which takes an emulator ten times that. Version 2 of cgroups
// cannot tell the two apart; there the machine stays where the service is.
func inCgroups(pid int, start func() error) (err error) {
	own, err := os.ReadFile("/proc/thread-self/cgroup")
	if err != nil {
		return err
	}
	sandbox, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, joinCgroups(string(own))) }()
	if err := joinCgroups(string(sandbox)); err != nil {
		return err
	}
	return start()
}

// joinCgroups puts the calling thread into the cgroups of a process's list.
func joinCgroups(list string) error {
	for hierarchy, path := range countingCgroups(list) {
		tasks := filepath.Join(cgroupDir, hierarchy, path, "tasks")
		err := os.WriteFile(tasks, []byte(strconv.Itoa(unix.Gettid())), 0)
		if err != nil && !errors.Is(err, fs.ErrNotExist) { // a hierarchy that is not mounted
			return fmt.Errorf("join cgroup: %w", err)
		}
	}
	return nil
}

// countingCgroups are, by their hierarchy, the cgroups of version 1 that do not limit the processor, from a process's list as
// cgroups(7) has it.
func countingCgroups(list string) map[string]string {
	found := map[string]string{}
	for line := range strings.Lines(list) {
		_, rest, _ := strings.Cut(strings.TrimSuffix(line, "\n"), ":")
		controllers, path, ok := strings.Cut(rest, ":")
		if ok && controllers != "" && !strings.HasPrefix(controllers, "cpu") && !strings.Contains(controllers, "=") {
			found[controllers] = path
		}
	}
	return found
}
