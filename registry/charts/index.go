package charts

import (
	"bytes"
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/Masterminds/semver/v3"
	"github.com/hashicorp/golang-lru/v2/simplelru"
	"sigs.k8s.io/yaml"

	"cumulet.io/internal/sqldb"
)

// Entry is what index.yaml says of a version (Helm, "The index file").
type Entry struct {
	Metadata
	Created time.Time `json:"created"`
	// Digest is the archive's SHA-256, without algorithm.
	Digest string `json:"digest"`
	// URLs are of the archive, relative to the index.
	URLs []string `json:"urls"`
}

// maxCached bounds the indexes in memory, in bytes.
const maxCached = 64 << 20

// Index is a repository's index.yaml.
type Index struct {
	Text []byte
	ETag string
	// Changed is when the last chart came or went; zero when there never was one.
	Changed time.Time
}

// index is a repository's index in parts: a change of one chart costs the text of that chart.
type index struct {
	Index
	revision int64
	blocks   map[string][]byte
	bytes    int
	// turn lets one at a time bring it up to date.
	turn sync.Mutex
}

type indexCache struct {
	mu    sync.Mutex
	lru   *simplelru.LRU[string, *index]
	bytes int
}

func newIndexCache() (*indexCache, error) {
	c := &indexCache{}
	var err error
	c.lru, err = simplelru.NewLRU(1<<20, func(_ string, i *index) { c.bytes -= i.bytes })
	return c, err
}

func (c *indexCache) get(repository string) *index {
	c.mu.Lock()
	defer c.mu.Unlock()
	i, ok := c.lru.Get(repository)
	if !ok {
		i = &index{blocks: map[string][]byte{}}
		c.lru.Add(repository, i)
	}
	return i
}

// weigh counts an index anew and drops others until all fit.
func (c *indexCache) weigh(repository string, i *index, size int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if there, ok := c.lru.Peek(repository); !ok || there != i {
		return // dropped meanwhile
	}
	c.bytes += size - i.bytes
	i.bytes = size
	for c.bytes > maxCached && c.lru.Len() > 0 {
		c.lru.RemoveOldest()
	}
}

// Index gives a repository's index.yaml: an empty one where there is no chart.
func (s *Store) Index(ctx context.Context, repository string) (*Index, error) {
	i := s.cache.get(repository)
	i.turn.Lock()
	defer i.turn.Unlock()
	var revision, changed int64
	err := s.cfg.DB.QueryRowContext(ctx, s.cfg.DB.Q(`SELECT revision, changed FROM registry_chart_repositories WHERE repository = ?`), repository).Scan(&revision, &changed)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return nil, fmt.Errorf("read index: %w", err)
	}
	if i.Text != nil && revision == i.revision {
		out := i.Index
		return &out, nil
	}
	names, err := s.names(ctx, s.cfg.DB, repository, i.revision)
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		list, err := s.versions(ctx, s.cfg.DB, repository, name)
		if err != nil {
			return nil, err
		}
		if len(list) == 0 {
			delete(i.blocks, name)
			continue
		}
		if i.blocks[name], err = block(name, list); err != nil {
			return nil, fmt.Errorf("make index: %w", err)
		}
	}
	size := 0
	for _, b := range i.blocks {
		size += len(b)
	}
	var text bytes.Buffer
	text.Grow(size + 200)
	text.WriteString("apiVersion: v1\n")
	if len(i.blocks) == 0 {
		text.WriteString("entries: {}\n")
	} else {
		text.WriteString("entries:\n")
	}
	order := make([]string, 0, len(i.blocks))
	for name := range i.blocks {
		order = append(order, name)
	}
	slices.Sort(order)
	for _, name := range order {
		text.Write(i.blocks[name])
	}
	at := time.Unix(0, changed).UTC()
	if changed == 0 {
		at = time.Unix(0, 0).UTC()
	}
	// contextPath is for ChartMuseum's clients: where their API is.
	fmt.Fprintf(&text, "generated: %q\nserverInfo:\n  contextPath: %s\n", at.Format(time.RFC3339Nano), contextPath)
	sum := sha256.Sum256(text.Bytes())
	i.Index = Index{Text: text.Bytes(), ETag: `"` + hex.EncodeToString(sum[:16]) + `"`}
	if changed != 0 {
		i.Changed = at
	}
	i.revision = revision
	s.cache.weigh(repository, i, size+text.Len())
	out := i.Index
	return &out, nil
}

// names gives the charts of a repository that have changed since a revision.
func (s *Store) names(ctx context.Context, db sqldb.Querier, repository string, since int64) ([]string, error) {
	rows, err := db.QueryContext(ctx, s.cfg.DB.Q(`SELECT name FROM registry_chart_names WHERE repository = ? AND revision > ?`), repository, since)
	if err != nil {
		return nil, fmt.Errorf("read index: %w", err)
	}
	defer rows.Close() //nolint:errcheck // Err tells
	var out []string
	for rows.Next() {
		var name string
		if err := rows.Scan(&name); err != nil {
			return nil, fmt.Errorf("read index: %w", err)
		}
		out = append(out, name)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("read index: %w", err)
	}
	return out, nil
}

// versions gives all versions of a chart, the highest first.
func (s *Store) versions(ctx context.Context, db sqldb.Querier, repository, name string) ([]Chart, error) {
	rows, err := db.QueryContext(ctx, s.cfg.DB.Q(`SELECT entry, size, owner FROM registry_charts WHERE repository = ? AND name = ?`), repository, name)
	if err != nil {
		return nil, fmt.Errorf("read chart: %w", err)
	}
	defer rows.Close() //nolint:errcheck // Err tells
	var out []Chart
	for rows.Next() {
		var c Chart
		var entry string
		if err := rows.Scan(&entry, &c.Size, &c.owner); err != nil {
			return nil, fmt.Errorf("read chart: %w", err)
		}
		if err := json.Unmarshal([]byte(entry), &c.Entry); err != nil {
			return nil, fmt.Errorf("read chart: %w", err)
		}
		out = append(out, c)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("read chart: %w", err)
	}
	parsed := map[string]*semver.Version{}
	for _, c := range out {
		if parsed[c.Version], err = semver.StrictNewVersion(c.Version); err != nil {
			return nil, fmt.Errorf("read chart: version %s: %w", c.Version, err)
		}
	}
	slices.SortFunc(out, func(a, b Chart) int { return parsed[b.Version].Compare(parsed[a.Version]) })
	return out, nil
}

// block is a chart's part of the index.
func block(name string, list []Chart) ([]byte, error) {
	entries := make([]Entry, 0, len(list))
	for _, c := range list {
		entries = append(entries, c.Entry)
	}
	text, err := yaml.Marshal(map[string][]Entry{name: entries})
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	for line := range bytes.Lines(text) {
		if len(bytes.TrimSpace(line)) > 0 {
			out.WriteString("  ")
		}
		out.Write(line)
	}
	return out.Bytes(), nil
}
