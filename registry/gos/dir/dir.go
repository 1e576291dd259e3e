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
	"sync"
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
	_ gos.Creator     = (*Store)(nil)
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
func (s *Store) Put(ctx context.Context, key string, r io.Reader, size int64) (int64, error) {
	return s.put(ctx, key, size, func(p *partial) (int64, error) { return io.Copy(p, r) })
}

// put stores what fill writes.
func (s *Store) put(ctx context.Context, key string, size int64, fill func(*partial) (int64, error)) (int64, error) {
	p, err := s.create(key)
	if err != nil {
		return 0, err
	}
	n, err := fill(p)
	if err == nil && size >= 0 && n != size {
		err = fmt.Errorf("%d bytes came, not %d: %w", n, size, io.ErrUnexpectedEOF)
	}
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		p.Abort()
		return n, fmt.Errorf("put object: %w", err)
	}
	return n, p.Commit()
}

// Create implements gos.Creator.
func (s *Store) Create(_ context.Context, key string) (gos.ObjectWriter, error) { return s.create(key) }

func (s *Store) create(key string) (*partial, error) {
	path, err := s.path(key)
	if err != nil {
		return nil, err
	}
	f, err := os.CreateTemp(filepath.Join(s.root, partials), "put-")
	if err != nil {
		return nil, fmt.Errorf("put object: %w", err)
	}
	return &partial{store: s, path: path, file: f}, nil
}

// partial is an object that is being written.
type partial struct {
	store *Store
	path  string
	file  *os.File

	mu    sync.Mutex
	ended bool
}

// writeSize is what is written to a file at once. For more, Linux looks for pages of an order above 3, for which it
// compacts memory: that costs more than the calls that are saved.
const writeSize = 32 << 10

// Write implements io.Writer.
func (p *partial) Write(b []byte) (n int, err error) {
	for len(b) > 0 && err == nil {
		var written int
		written, err = p.file.Write(b[:min(len(b), writeSize)])
		n, b = n+written, b[written:]
	}
	return n, err
}

// Commit implements gos.ObjectWriter.
func (p *partial) Commit() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ended {
		return errors.New("put object: it was given up")
	}
	p.ended = true
	if err := p.commit(); err != nil {
		p.remove()
		return fmt.Errorf("put object: %w", err)
	}
	return nil
}

func (p *partial) commit() error {
	if err := p.file.Sync(); err != nil {
		return err
	}
	if err := p.file.Close(); err != nil {
		return err
	}
	shard := filepath.Dir(p.path)
	if err := p.store.makeShard(shard); err != nil {
		return err
	}
	// A key is written once: a second object under it would be a fault of the caller.
	if err := os.Link(p.file.Name(), p.path); err != nil {
		return err
	}
	err := os.Remove(p.file.Name())
	if err == nil {
		err = syncDir(shard)
	}
	if err != nil {
		os.Remove(p.path)
	}
	return err
}

// Abort implements gos.ObjectWriter.
func (p *partial) Abort() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.ended {
		p.ended = true
		p.remove()
	}
}

// remove leaves nothing, or what Open finds a week later.
func (p *partial) remove() {
	p.file.Close()
	os.Remove(p.file.Name())
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

// Compose implements gos.ObjectStore. The kernel copies.
func (s *Store) Compose(ctx context.Context, key string, parts []string) (int64, error) {
	return s.put(ctx, key, -1, func(p *partial) (n int64, err error) {
		for _, part := range parts {
			f, err := s.OpenFile(ctx, part)
			if err != nil {
				return n, err
			}
			got, err := io.Copy(p.file, f)
			if n += got; err != nil {
				return n, errors.Join(err, f.Close())
			}
			if err := f.Close(); err != nil {
				return n, err
			}
		}
		return n, nil
	})
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
