package cri

import (
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// propagate lets what is mounted below a directory later be seen in mount namespaces that were made before, as that of a
// virtual machine's shim: a part of a volume is mounted when its container is made, and the sandbox is there then. On a
// machine that systemd runs all mounts are so; else the directory becomes a mount of its own.
func propagate(dir string) error {
	info, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return fmt.Errorf("list mounts: %w", err)
	}
	if sharedMount(string(info), dir) {
		return nil
	}
	if err := unix.Mount(dir, dir, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("mount %s on itself: %w", dir, err)
	}
	if err := unix.Mount("", dir, "", unix.MS_SHARED, ""); err != nil {
		return fmt.Errorf("share the mounts of %s: %w", dir, err)
	}
	return nil
}

// sharedMount tells from a mountinfo, as proc(5) has it, whether the mount that dir is on shares what is mounted on it.
func sharedMount(info, dir string) bool {
	unescape := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
	best, shared := "", false
	for line := range strings.Lines(info) {
		f := strings.Fields(line) // id parent device root mountpoint options [optional…] - …
		if len(f) < 7 {
			continue
		}
		point := unescape.Replace(f[4])
		if point != dir && point != "/" && !strings.HasPrefix(dir, point+"/") || len(point) < len(best) {
			continue
		}
		best, shared = point, false // the last mounted hides the others
		for _, o := range f[6:] {
			if o == "-" {
				break
			}
			shared = shared || strings.HasPrefix(o, "shared:")
		}
	}
	return shared
}
