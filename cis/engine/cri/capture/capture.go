// Package capture brings what a container writes into its log file under the CRI contract, each line once, whoever is
// killed meanwhile.
//
// A container's shim copies the container's output to wherever containerd told it to, and outlives every other process
// of the platform. By itself containerd names pipes there and reads them: what it has read and not written yet, a line
// without its end above all, is lost when it is killed, and so is what comes while nobody holds the pipe. So the shim is
// given files instead (Divert). They keep every byte until it is in the log, and a journal beside them tells how far the
// log is (Copier), so that a copy which was cut short goes on where it was.
//
// The package reads and writes files of one container; it knows nothing of instances, and asks nothing of containerd.
package capture

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"cumulet.io/logs"
)

// streams are the outputs, in the order in which they are numbered here.
func streams() [2]logs.Stream { return [2]logs.Stream{logs.Stdout, logs.Stderr} }

// Prepare makes an empty directory with the files that the shim will write: what an earlier try has left goes.
func Prepare(dir string) error {
	if err := discard(dir); err != nil {
		return fmt.Errorf("prepare output: %w", err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("prepare output: %w", err)
	}
	for _, s := range streams() {
		if err := os.WriteFile(filepath.Join(dir, string(s)), nil, 0o600); err != nil {
			return fmt.Errorf("prepare output: %w", err)
		}
	}
	return nil
}

// Written tells whether anything has come to what Prepare made.
func Written(dir string) bool {
	for _, s := range streams() {
		if st, err := os.Stat(filepath.Join(dir, string(s))); err == nil && st.Size() > 0 {
			return true
		}
	}
	return false
}

// discard removes a directory so that it is there whole or not at all, also after a kill.
func discard(dir string) error {
	gone := dir + ".gone"
	if err := os.RemoveAll(gone); err != nil {
		return err
	}
	if err := os.Rename(dir, gone); err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		return err
	}
	return os.RemoveAll(gone)
}

// ErrNoPipe is wrapped when a container has no pipes where containerd puts them.
var ErrNoPipe = errors.New("the container's pipes are not where containerd puts them")

// Divert has the shim of a container that has been made and not been started write to the files in dir. stateDir is the
// CRI service's state directory. Restore puts containerd's own pipes back in place, for after the start: the shim opens
// its outputs then, and never again. Without that a containerd that is started again would read the files, too, to no
// effect.
func Divert(stateDir, id, dir string) error {
	n := 0
	for _, s := range streams() {
		pipes, err := find(stateDir, id, s)
		if err != nil {
			return fmt.Errorf("divert output: %w", err)
		}
		for _, p := range pipes {
			ok, err := is(p, unix.S_IFIFO)
			if err == nil && !ok {
				err = ErrNoPipe
			}
			if err != nil {
				return fmt.Errorf("divert output: %s: %w", p, err)
			}
			if err := replace(p, filepath.Join(dir, string(s))); err != nil {
				return fmt.Errorf("divert output: %w", err)
			}
			n++
		}
	}
	if n == 0 {
		return fmt.Errorf("divert output of container %s: %w", id, ErrNoPipe)
	}
	return nil
}

// Diverted tells whether all outputs of a container are diverted, and Restore has not been called since.
func Diverted(stateDir, id string) bool {
	n := 0
	for _, s := range streams() {
		pipes, err := find(stateDir, id, s)
		if err != nil {
			return false
		}
		for _, p := range pipes {
			if ok, err := is(p, unix.S_IFLNK); err != nil || !ok {
				return false
			}
			n++
		}
	}
	return n > 0
}

// Restore takes Divert back, as far as it has come; where nothing is diverted it does nothing.
func Restore(stateDir, id string) error {
	var errs []error
	for _, s := range streams() {
		pipes, err := find(stateDir, id, s)
		if err != nil {
			return fmt.Errorf("put pipes back: %w", err)
		}
		for _, p := range pipes {
			// containerd may have removed both with a container that ended at once.
			if err := os.Rename(aside(p), p); err != nil && !errors.Is(err, os.ErrNotExist) {
				errs = append(errs, fmt.Errorf("put pipe back: %w", err))
			}
		}
	}
	return errors.Join(errs...)
}

// find gives where containerd has the pipe of a stream; a terminal has no second one.
func find(stateDir, id string, s logs.Stream) ([]string, error) {
	return filepath.Glob(filepath.Join(stateDir, "containers", id, "io", "*", id+"-"+string(s)))
}

// is tells whether a path is a file of that type itself.
func is(path string, fileType uint32) (bool, error) {
	var st unix.Stat_t
	err := unix.Lstat(path, &st)
	return err == nil && st.Mode&unix.S_IFMT == fileType, err
}

// replace puts a link to a file where a pipe is, in one step; the pipe itself, which containerd has open, goes aside.
func replace(pipe, file string) error {
	link := pipe + ".file"
	if err := os.Remove(link); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := os.Symlink(file, link); err != nil {
		return err
	}
	if err := os.Link(pipe, aside(pipe)); err != nil {
		return err
	}
	return os.Rename(link, pipe)
}

func aside(pipe string) string { return pipe + ".pipe" }
