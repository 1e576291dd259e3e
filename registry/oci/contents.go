package oci

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/distribution/distribution/v3"
	"github.com/hashicorp/golang-lru/v2/simplelru"
	"github.com/opencontainers/go-digest"

	"cumulet.io/internal/problem"
	"cumulet.io/registry/index"
)

const (
	// maxContents bounds the manifests that are remembered, in bytes. One above maxContent is not.
	maxContents = 16 << 20
	maxContent  = 256 << 10
	// maxConfigBytes bounds the config that is read for its labels.
	maxConfigBytes = 4 << 20
)

// contents remembers manifests by the digest of what they are, so nothing of it is ever stale.
type contents struct {
	mu    sync.Mutex
	lru   *simplelru.LRU[digest.Digest, []byte]
	bytes int
}

func newContents() (*contents, error) {
	c := &contents{}
	var err error
	c.lru, err = simplelru.NewLRU(1<<16, func(_ digest.Digest, body []byte) { c.bytes -= len(body) })
	return c, err
}

func (c *contents) get(dgst digest.Digest) ([]byte, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.lru.Get(dgst)
}

func (c *contents) add(dgst digest.Digest, body []byte) {
	if len(body) > maxContent {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.lru.Contains(dgst) {
		return
	}
	c.bytes += len(body)
	c.lru.Add(dgst, body)
	for c.bytes > maxContents {
		c.lru.RemoveOldest()
	}
}

// content gives a manifest of a repository by its canonical digest. Callers do not change it.
func (r *Registry) content(ctx context.Context, name string, dgst digest.Digest) ([]byte, error) {
	if body, ok := r.contents.get(dgst); ok {
		return body, nil
	}
	repo, err := r.repository(ctx, name)
	if err != nil {
		return nil, err
	}
	manifests, err := repo.Manifests(ctx)
	if err != nil {
		return nil, err
	}
	m, err := manifests.Get(ctx, dgst)
	if err != nil {
		return nil, err
	}
	_, body, err := m.Payload()
	if err != nil {
		return nil, err
	}
	if got := digest.FromBytes(body); got != dgst {
		return nil, fmt.Errorf("the store has %s under %s", got, dgst)
	}
	r.contents.add(dgst, body)
	return body, nil
}

// describe completes what the index keeps of a manifest with what the store knows of its blobs: their canonical
// digests and true sizes, whatever the manifest claims, and the image's config.
func (r *Registry) describe(ctx context.Context, repo distribution.Repository, m *index.Manifest) error {
	config, isImage := m.ConfigOf()
	blobs := repo.Blobs(ctx)
	for i := range m.Blobs {
		b := &m.Blobs[i]
		named := b.Digest
		if b.Kind == index.KindManifest {
			e, err := r.cfg.Index.Lookup(ctx, m.Repository, b.Digest.String())
			switch {
			case err == nil:
				b.Digest, b.Size = e.Content, e.Size
			case !errors.Is(err, problem.ErrNotFound):
				return err
			}
			continue
		}
		desc, err := blobs.Stat(ctx, b.Digest)
		switch {
		case err == nil:
			b.Digest, b.Size = desc.Digest, desc.Size
		case errors.Is(err, distribution.ErrBlobUnknown):
			b.Kind = index.KindForeign // the core has found that it may be missing
			continue
		default:
			return err
		}
		if isImage && named == config && b.Kind == index.KindConfig && b.Size <= maxConfigBytes {
			body, err := readBlob(ctx, blobs, b.Digest)
			if err != nil {
				return err
			}
			m.AddConfig(body)
		}
	}
	return nil
}

func readBlob(ctx context.Context, blobs distribution.BlobStore, dgst digest.Digest) ([]byte, error) {
	f, err := blobs.Open(ctx, dgst)
	if err != nil {
		return nil, err
	}
	defer f.Close() //nolint:errcheck // read only, and the core's readers call it an error
	return io.ReadAll(io.LimitReader(f, maxConfigBytes))
}
