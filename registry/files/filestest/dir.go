// Package filestest keeps content for the tests of what stands on files.Blobs, which must see what is stored and what is not.
package filestest

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"github.com/opencontainers/go-digest"

	"cumulet.io/internal/problem"
)

// Dir is a files.Blobs of one machine and process: a directory for each digest, with the content and an empty file for each
// owner, so that it goes with the last of them.
type Dir struct {
	root string
	// stripes keep a release from racing with a put of the same content.
	stripes [64]sync.Mutex
}

// OpenDir opens or makes the directory, and removes what a killed process had not finished.
func OpenDir(root string) (*Dir, error) {
	d := &Dir{root: root}
	tmp := filepath.Join(root, "tmp")
	if err := os.RemoveAll(tmp); err != nil {
		return nil, fmt.Errorf("open blobs: %w", err)
	}
	if err := os.MkdirAll(tmp, 0o700); err != nil {
		return nil, fmt.Errorf("open blobs: %w", err)
	}
	return d, nil
}

func (d *Dir) dirOf(dg digest.Digest) string {
	hex := dg.Encoded()
	return filepath.Join(d.root, hex[:2], hex)
}

func (d *Dir) lock(dg digest.Digest) *sync.Mutex {
	h := fnv.New32a()
	h.Write([]byte(dg))
	return &d.stripes[h.Sum32()%uint32(len(d.stripes))]
}

func ownerName(owner string) string { return "owner-" + digest.FromString(owner).Encoded() }

// Put implements files.Blobs.
func (d *Dir) Put(_ context.Context, owner string, src io.Reader) (dg digest.Digest, size int64, err error) {
	tmp := filepath.Join(d.root, "tmp", rand.Text())
	f, err := os.OpenFile(tmp, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return "", 0, fmt.Errorf("store content: %w", err)
	}
	defer os.Remove(tmp)
	digester := digest.Canonical.Digester()
	size, err = io.Copy(io.MultiWriter(f, digester.Hash()), src)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return "", 0, fmt.Errorf("store content: %w", err)
	}
	dg = digester.Digest()
	mu := d.lock(dg)
	mu.Lock()
	defer mu.Unlock()
	dir := d.dirOf(dg)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", 0, fmt.Errorf("store content: %w", err)
	}
	blob := filepath.Join(dir, "content")
	// The owner's name is made first: content without one is for the taking.
	if err := os.WriteFile(filepath.Join(dir, ownerName(owner)), nil, 0o600); err != nil {
		return "", 0, fmt.Errorf("store content: %w", err)
	}
	if err := os.Link(tmp, blob); err != nil && !errors.Is(err, fs.ErrExist) {
		return "", 0, fmt.Errorf("store content: %w", err)
	}
	for _, p := range []string{dir, filepath.Dir(dir), d.root} {
		if err := syncDir(p); err != nil {
			return "", 0, fmt.Errorf("store content: %w", err)
		}
	}
	return dg, size, nil
}

func syncDir(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// Open implements files.Blobs.
func (d *Dir) Open(_ context.Context, dg digest.Digest, offset int64) (io.ReadCloser, error) {
	if err := dg.Validate(); err != nil {
		return nil, problem.Invalid("digest", "must be a digest", dg)
	}
	f, err := os.Open(filepath.Join(d.dirOf(dg), "content"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, problem.New(problem.ErrNotFound, "there is no content %s", dg)
	}
	if err != nil {
		return nil, fmt.Errorf("open content: %w", err)
	}
	if _, err := f.Seek(offset, io.SeekStart); err != nil {
		return nil, errors.Join(fmt.Errorf("open content: %w", err), f.Close())
	}
	return f, nil
}

// Release implements files.Blobs.
func (d *Dir) Release(ctx context.Context, owner string, dg digest.Digest) error {
	if dg == "" {
		held, err := filepath.Glob(filepath.Join(d.root, "*", "*", ownerName(owner)))
		for _, p := range held {
			err = errors.Join(err, d.Release(ctx, owner, digest.NewDigestFromEncoded(digest.Canonical, filepath.Base(filepath.Dir(p)))))
		}
		return err
	}
	if err := dg.Validate(); err != nil {
		return problem.Invalid("digest", "must be a digest", dg)
	}
	mu := d.lock(dg)
	mu.Lock()
	defer mu.Unlock()
	dir := d.dirOf(dg)
	if err := os.Remove(filepath.Join(dir, ownerName(owner))); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("release content: %w", err)
	}
	names, err := filepath.Glob(filepath.Join(dir, "owner-*"))
	if err != nil || len(names) > 0 {
		return err
	}
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("release content: %w", err)
	}
	return nil
}
