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

// joinCgroups puts the calling thread, and so what it starts, into a process's cgroups: the shim is in its sandbox's, which
// Kata's drivers on hosts with KVM put their hypervisor into as well (sandbox_cgroup_only). So a machine's memory and
// processes are counted, limited and found as the sandbox's.
//
// All but the processor's: its limit is for what the guest does, which takes an emulator ten times that. Version 2 of cgroups
// cannot tell the two apart; there the machine stays where the service is.
func joinCgroups(pid int) error {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		return err
	}
	for hierarchy, path := range countingCgroups(string(text)) {
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
