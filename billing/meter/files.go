package meter

import (
	"errors"
	"fmt"
	"os"
)

// file is what the writer needs of an open file.
type file interface {
	Write(p []byte) (int, error)
	Sync() error
	Close() error
}

// filesystem is every change that the writer makes to its directory, so that a test can end the process at any of them.
type filesystem interface {
	// Create makes a new file for writing; it is an error when there is one.
	Create(path string) (file, error)
	Rename(from, to string) error
	Remove(path string) error
	Truncate(path string, size int64) error
	SyncDir(path string) error
}

type osFiles struct{}

func (osFiles) Create(path string) (file, error) {
	return os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o640)
}

func (osFiles) Rename(from, to string) error { return os.Rename(from, to) }

func (osFiles) Remove(path string) error { return os.Remove(path) }

func (osFiles) Truncate(path string, size int64) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	if err := f.Truncate(size); err != nil {
		return errors.Join(err, f.Close())
	}
	return errors.Join(f.Sync(), f.Close())
}

func (osFiles) SyncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// replace writes a whole file so that a reader finds the old or the new content, also after a crash.
func replace(fs filesystem, dir, path string, content []byte) error {
	tmp := path + ".new"
	if err := fs.Remove(tmp); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("replace %s: %w", path, err)
	}
	f, err := fs.Create(tmp)
	if err != nil {
		return fmt.Errorf("replace %s: %w", path, err)
	}
	if _, err := f.Write(content); err != nil {
		return errors.Join(fmt.Errorf("replace %s: %w", path, err), f.Close())
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("replace %s: %w", path, err)
	}
	if err := fs.Rename(tmp, path); err != nil {
		return fmt.Errorf("replace %s: %w", path, err)
	}
	return fs.SyncDir(dir)
}
