// Package mounts finds and undoes what is mounted in a directory, before the directory is removed: a removal goes
// through a mount that is still there. It mounts nothing.
package mounts

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// rounds bounds how often new mounts are looked for: a mount point may carry several.
const rounds = 100

// In gives the mount points at dir and below it, in the order in which they were mounted.
func In(dir string) ([]string, error) {
	info, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("list mounts: %w", err)
	}
	// The kernel writes blanks and backslashes as octal escapes.
	unescape := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
	var found []string
	for line := range strings.Lines(string(info)) {
		f := strings.Fields(line) // id parent device root mountpoint … (proc(5))
		if len(f) < 5 {
			continue
		}
		if point := unescape.Replace(f[4]); point == dir || strings.HasPrefix(point, dir+"/") {
			found = append(found, point)
		}
	}
	return found, nil
}

// Unmount unmounts everything at dir and below it, the last mounted first. While it fails, nothing there may be removed.
func Unmount(dir string) error {
	for range rounds {
		points, err := In(dir)
		if err != nil || len(points) == 0 {
			return err
		}
		for _, p := range slices.Backward(points) {
			err := unix.Unmount(p, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
			if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("unmount %s: %w", p, err)
			}
		}
	}
	return fmt.Errorf("unmount %s: mounts keep appearing", dir)
}

// RemoveAll unmounts everything in dir and removes it.
func RemoveAll(dir string) error {
	if err := Unmount(dir); err != nil {
		return err
	}
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("remove: %w", err)
	}
	return nil
}
