package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

const dirPrefix = "katahost-"

// newRunDir makes a directory for this run in dir, and removes those that killed
// runs have left: a run holds a lock on its own.
func newRunDir(dir string) (path string, remove func() error, err error) {
	old, err := filepath.Glob(filepath.Join(dir, dirPrefix+"*"))
	if err != nil {
		return "", nil, err
	}
	for _, d := range old {
		lock, err := lockDir(d)
		if err != nil {
			continue // another run's, or gone
		}
		if err := errors.Join(os.RemoveAll(d), lock.Close()); err != nil {
			return "", nil, fmt.Errorf("remove what a killed run has left: %w", err)
		}
	}
	path, err = os.MkdirTemp(dir, dirPrefix)
	if err != nil {
		return "", nil, err
	}
	lock, err := lockDir(path)
	if err != nil {
		return "", nil, err
	}
	return path, func() error { return errors.Join(os.RemoveAll(path), lock.Close()) }, nil
}

func lockDir(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	var st unix.Stat_t
	err = unix.Fstat(int(f.Fd()), &st)
	if err == nil && st.Uid != uint32(os.Geteuid()) {
		err = fmt.Errorf("%s is another user's", path)
	}
	if err == nil {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}
