package vmservice

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// shimDir is where the shim has the places at which it mounts root file systems.
const shimDir = "/run/kata-containers/shared/sandboxes"

// cgroupDir is where the machine's cgroups are.
const cgroupDir = "/sys/fs/cgroup"

// sweepAfter is how long after a shim was killed it is looked for what it has
// left: containerd cleans up, too, and may make some of it anew as it does.
var sweepAfter = []time.Duration{0, time.Second, 3 * time.Second, 10 * time.Second}

// sweep removes the empty directories and cgroups of a shim that was killed. Its
// mounts and processes have ended with it.
func (s *Service) sweep(v *vm) {
	for _, wait := range sweepAfter {
		select {
		case <-time.After(wait):
		case <-s.ctx.Done():
		}
		err := removeEmpty(filepath.Join(shimDir, v.id))
		for _, dir := range findCgroups(cgroupDir, "kata_"+v.id) {
			err = errors.Join(err, removeEmpty(dir))
		}
		if err != nil {
			v.log.Warn("what its shim has left could not be removed", "error", err)
		}
	}
}

// removeEmpty removes a directory and those in it, as far as there are no files
// but a cgroup's, which are not to be removed.
func removeEmpty(dir string) error {
	var dirs []string
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err == nil && e.IsDir() {
			dirs = append(dirs, path)
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	})
	for _, d := range slices.Backward(dirs) {
		if e := os.Remove(d); e != nil && !errors.Is(e, fs.ErrNotExist) {
			err = errors.Join(err, e)
		}
	}
	return err
}

// findCgroups finds the cgroups of that name in every hierarchy.
func findCgroups(root, name string) []string {
	var found []string
	// What cannot be read, or has gone meanwhile, has nothing to remove.
	_ = filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.IsDir() {
			return nil
		}
		if e.Name() == name {
			found = append(found, path)
			return filepath.SkipDir
		}
		return nil
	})
	return found
}
