package containerd

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Host is what a machine allows its container runtime.
type Host struct {
	// Systemd is whether systemd runs the machine and so owns its cgroups. A
	// pod's cgroup parent is then a slice's name ("a-b.slice"), else a path.
	Systemd bool
	// CgroupV2 is whether the unified hierarchy is the only one.
	CgroupV2 bool
	// LowerOOMScore is whether this process may lower a process's oom_score_adj,
	// which needs CAP_SYS_RESOURCE.
	LowerOOMScore bool
}

// DetectHost looks at the machine this process runs on.
func DetectHost() (Host, error) {
	var h Host
	switch _, err := os.Stat("/run/systemd/system"); {
	case err == nil:
		h.Systemd = true
	case !errors.Is(err, fs.ErrNotExist):
		return Host{}, fmt.Errorf("look for systemd: %w", err)
	}
	var fsinfo unix.Statfs_t
	if err := unix.Statfs("/sys/fs/cgroup", &fsinfo); err != nil {
		return Host{}, fmt.Errorf("look for cgroups at /sys/fs/cgroup: %w", err)
	}
	h.CgroupV2 = fsinfo.Type == unix.CGROUP2_SUPER_MAGIC
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return Host{}, fmt.Errorf("look for capabilities: %w", err)
	}
	if h.LowerOOMScore, err = hasCapability(status, unix.CAP_SYS_RESOURCE); err != nil {
		return Host{}, fmt.Errorf("look for capabilities: %w", err)
	}
	return h, nil
}

// hasCapability reads the effective set in a /proc/PID/status.
func hasCapability(status []byte, capability int) (bool, error) {
	for line := range bytes.Lines(status) {
		if set, ok := strings.CutPrefix(string(line), "CapEff:"); ok {
			bits, err := strconv.ParseUint(strings.TrimSpace(set), 16, 64)
			return bits&(1<<capability) != 0, err
		}
	}
	return false, errors.New("no CapEff line")
}

// defaultMTU is the MTU of the interface with the default route, or 1500.
func defaultMTU() int {
	const ethernet = 1500
	routes, err := os.Open("/proc/net/route")
	if err != nil {
		return ethernet
	}
	defer routes.Close() // only read from
	for s := bufio.NewScanner(routes); s.Scan(); {
		// Interface, destination, gateway, flags, ...: a zero destination is
		// the default route.
		f := strings.Fields(s.Text())
		if len(f) < 8 || f[1] != "00000000" || f[7] != "00000000" {
			continue
		}
		b, err := os.ReadFile(filepath.Join("/sys/class/net", filepath.Base(f[0]), "mtu"))
		if err != nil {
			return ethernet
		}
		if mtu, err := strconv.Atoi(strings.TrimSpace(string(b))); err == nil {
			return min(mtu, 9000)
		}
	}
	return ethernet
}
