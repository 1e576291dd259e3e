// Package dir is an object store in a local directory: the embedded default, and what tests compare others with.
//
// An object is a file of its own, written aside, synced and renamed. It is for one machine: nothing is replicated.
package dir

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"cumulet.io/registry/gos"
)

// partials holds objects that are being written.
const partials = ".partial"

// stale is the age of what a killed process left in partials.
const stale = 7 * 24 * time.Hour

// Store is a directory of objects. Several processes may share it.
type Store struct{ root string }

var (
	_ gos.ObjectStore = (*Store)(nil)
	_ gos.FileOpener  = (*Store)(nil)
)

// Open makes the directory where it is missing and removes what killed processes left in it a week ago.
func Open(root string) (*Store, error) {
	s := &Store{root: root}
	if err := os.MkdirAll(filepath.Join(root, partials), 0o700); err != nil {
		return nil, fmt.Errorf("open object directory: %w", err)
	}
	entries, err := os.ReadDir(filepath.Join(root, partials))
	if err != nil {
		return nil, fmt.Errorf("open object directory: %w", err)
	}
	for _, e := range entries {
		if info, err := e.Info(); err == nil && time.Since(info.ModTime()) > stale {
			os.Remove(filepath.Join(root, partials, e.Name()))
		}
	}
	return s, nil
}

func (s *Store) path(key string) (string, error) {
	if !gos.ValidKey(key) {
		return "", fmt.Errorf("%q is no object key", key)
	}
	return filepath.Join(s.root, filepath.FromSlash(key)), nil
}

// Put implements gos.ObjectStore.
func (s *Store) Put(ctx context.Context, key string, r io.Reader, size int64) (n int64, err error) {
	path, err := s.path(key)
	if err != nil {
		return 0, err
	}
	f, err := os.CreateTemp(filepath.Join(s.root, partials), "put-")
	if err != nil {
		return 0, fmt.Errorf("put object: %w", err)
	}
	defer func() {
		if err != nil {
			f.Close()
			os.Remove(f.Name())
			err = fmt.Errorf("put object: %w", err)
		}
	}()
	if n, err = io.Copy(f, r); err != nil {
		return n, err
	}
	if size >= 0 && n != size {
		return n, fmt.Errorf("%d bytes came, not %d: %w", n, size, io.ErrUnexpectedEOF)
	}
	if err := ctx.Err(); err != nil {
		return n, err
	}
	if err := f.Sync(); err != nil {
		return n, err
	}
	if err := f.Close(); err != nil {
		return n, err
	}
	if err := s.makeShard(filepath.Dir(path)); err != nil {
		return n, err
	}
	// A key is written once: a second object under it would be a fault of the caller.
	if err := os.Link(f.Name(), path); err != nil {
		return n, err
	}
	if err := os.Remove(f.Name()); err != nil {
		return n, err
	}
	return n, syncDir(filepath.Dir(path))
}

func (s *Store) makeShard(dir string) error {
	err := os.Mkdir(dir, 0o700)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return syncDir(s.root)
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// OpenFile implements gos.FileOpener.
func (s *Store) OpenFile(_ context.Context, key string) (*os.File, error) {
	path, err := s.path(key)
	if err != nil {
		return nil, err
	}
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, gos.ErrNoObject
	}
	if err != nil {
		return nil, fmt.Errorf("open object: %w", err)
	}
	return f, nil
}

// section is part of a file.
type section struct {
	io.Reader
	io.Closer
}

// Get implements gos.ObjectStore.
func (s *Store) Get(ctx context.Context, key string, offset, length int64) (io.ReadCloser, error) {
	if offset < 0 {
		return nil, fmt.Errorf("get object: offset %d", offset)
	}
	f, err := s.OpenFile(ctx, key)
	if err != nil {
		return nil, err
	}
	if _, err := f.Seek(offset, io.SeekStart); err != nil {
		return nil, errors.Join(fmt.Errorf("get object: %w", err), f.Close())
	}
	if length < 0 {
		return f, nil
	}
	return section{io.LimitReader(f, length), f}, nil
}

// Stat implements gos.ObjectStore.
func (s *Store) Stat(_ context.Context, key string) (int64, error) {
	path, err := s.path(key)
	if err != nil {
		return 0, err
	}
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, gos.ErrNoObject
	}
	if err != nil {
		return 0, fmt.Errorf("stat object: %w", err)
	}
	return info.Size(), nil
}

// Compose implements gos.ObjectStore.
func (s *Store) Compose(ctx context.Context, key string, parts []string) (int64, error) {
	readers := make([]io.Reader, 0, len(parts))
	for _, part := range parts {
		f, err := s.OpenFile(ctx, part)
		if err != nil {
			return 0, fmt.Errorf("compose object: %w", err)
		}
		defer f.Close()
		readers = append(readers, f)
	}
	return s.Put(ctx, key, io.MultiReader(readers...), -1)
}

// Delete implements gos.ObjectStore.
func (s *Store) Delete(_ context.Context, key string) error {
	path, err := s.path(key)
	if err != nil {
		return err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("delete object: %w", err)
	}
	return nil
}
