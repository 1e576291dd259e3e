package platform

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// Leftovers tells what ended instances have left on the machine: shims, mounts, network namespaces, cgroups. nil means
// nothing. Call it when no instance is live.
func (p *Platform) Leftovers() error {
	var errs []error
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	for _, l := range strings.Split(string(mounts), "\n") {
		// Fields: id parent dev root mountpoint …
		f := strings.Fields(l)
		if len(f) < 5 || !strings.HasPrefix(f[4], p.StateDir+"/") ||
			filepath.Base(f[4]) == "null-netns" || // gVisor's, one for all sandboxes and kept
			f[4] == filepath.Join(p.StateDir, "engine/instances") { // the engine's own, for Kata
			continue
		}
		errs = append(errs, fmt.Errorf("mount %s", f[4]))
	}
	cmdlines, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return err
	}
	for _, c := range cmdlines {
		data, err := os.ReadFile(c)
		if err != nil {
			continue
		}
		if line := strings.ReplaceAll(string(data), "\x00", " "); strings.Contains(line, "containerd-shim") && strings.Contains(line, p.StateDir) {
			errs = append(errs, fmt.Errorf("process %s", line))
		}
	}
	return errors.Join(errs...)
}
