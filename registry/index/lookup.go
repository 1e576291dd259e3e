package index

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"sync"

	lru "github.com/hashicorp/golang-lru/v2"
	"github.com/opencontainers/go-digest"
)

// maxLookups bounds how many answers of Lookup are remembered, about 300 bytes each.
const maxLookups = 16 << 10

// Entry is what serving a manifest needs.
type Entry struct {
	Digest, Content digest.Digest
	MediaType       string
	Size            int64
}

// Lookup finds a manifest by tag or digest (a reference with a colon). ErrNotFound when there is none.
func (s *Store) Lookup(ctx context.Context, repository, reference string) (Entry, error) {
	var since uint64
	if s.lookups != nil {
		if e, ok := s.lookups.entries.Get(lookupKey{repository, reference}); ok {
			return e, nil
		}
		since = s.lookups.now()
	}
	query := `SELECT m.digest, m.content, m.media_type, m.size FROM index_tags t
		JOIN index_manifests m ON m.repository = t.repository AND m.digest = t.digest WHERE t.repository = ? AND t.tag = ?`
	isDigest := strings.Contains(reference, ":")
	if isDigest {
		query = `SELECT digest, content, media_type, size FROM index_manifests WHERE repository = ? AND digest = ?`
	}
	var e Entry
	err := s.db.QueryRowContext(ctx, s.db.Q(query), repository, reference).Scan(&e.Digest, &e.Content, &e.MediaType, &e.Size)
	switch {
	case errors.Is(err, sql.ErrNoRows) && isDigest:
		return e, manifestUnknown(repository, digest.Digest(reference))
	case errors.Is(err, sql.ErrNoRows):
		return e, tagUnknown(repository, reference)
	case err != nil:
		return e, fmt.Errorf("look up manifest: %w", err)
	}
	if s.lookups != nil {
		s.lookups.add(since, lookupKey{repository, reference}, e)
	}
	return e, nil
}

type lookupKey struct{ repository, reference string }

// lookupCache remembers what Lookup found. A write forgets after it has committed and before it is acknowledged; what
// was read before such a moment is not remembered after it.
type lookupCache struct {
	entries *lru.Cache[lookupKey, Entry]
	mu      sync.Mutex
	writes  uint64
}

func newLookupCache() (*lookupCache, error) {
	entries, err := lru.New[lookupKey, Entry](maxLookups)
	return &lookupCache{entries: entries}, err
}

func (c *lookupCache) now() uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.writes
}

func (c *lookupCache) add(since uint64, key lookupKey, e Entry) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.writes == since {
		c.entries.Add(key, e)
	}
}

// forget is called for everything that a write has changed, also when it cannot tell whether it has.
func (s *Store) forget(repository string, references ...string) {
	if s.lookups == nil {
		return
	}
	s.lookups.mu.Lock()
	defer s.lookups.mu.Unlock()
	s.lookups.writes++
	for _, r := range references {
		s.lookups.entries.Remove(lookupKey{repository, r})
	}
}
