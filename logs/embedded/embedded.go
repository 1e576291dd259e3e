// Package embedded is an Elasticsearch-API front for one machine: what Filebeat writes with and go-elasticsearch v8
// searches with, kept in SQLite files, one for each index.
//
// It speaks GET /, /_license, _bulk (create and index), _search, _count, _pit and _refresh, no more; anything
// else is a 400 or 404 that names it. A bulk request is answered when it is on the disk. Lines of containers
// are kept in a compact form with a dictionary of their sources, every other document as it came. It is not a search
// engine: text is matched as text, there is no scoring and there are no aggregations.
package embedded

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"
)

// Options of Open.
type Options struct {
	// Dir holds the index files; made when missing.
	Dir string
	// Writer may write and read (the collector), Reader read only. Both are required.
	Writer, Reader Credential
	// Log gets what goes wrong; required.
	Log *slog.Logger
	// LogDays and MeterMonths are how long Run keeps log and meter indices, counted from the end of the index's own
	// day or month; 0 keeps them for ever.
	LogDays, MeterMonths int
	// MaxBody bounds a request's body, as sent and unpacked; 0 means 100 MiB.
	MaxBody int64
	// MaxBulks and MaxSearches bound what is worked on at once; 0 means 2 and 8. A bulk request above it is answered
	// 429, as is a search that had no turn within the query's time.
	MaxBulks, MaxSearches int
	// QueryTime bounds one search; 0 means 20 s. Past it the answer is a 503, never a partial one.
	QueryTime time.Duration
	// Now is the clock; nil means time.Now.
	Now func() time.Time
}

// Store is the open store. It is an http.Handler of the Elasticsearch API. Safe for concurrent use.
type Store struct {
	o        Options
	bulks    chan struct{}
	searches chan struct{}
	mux      http.Handler

	mu      sync.RWMutex
	indices map[string]*index
	closed  bool
}

// maxIndices bounds the files that a stray date can make.
const maxIndices = 2000

const fileSuffix = ".db"

var nameRule = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,99}$`)

// Open opens the store in o.Dir with every index that is there.
func Open(ctx context.Context, o Options) (*Store, error) {
	if err := errors.Join(o.Writer.check("writer"), o.Reader.check("reader")); err != nil {
		return nil, fmt.Errorf("open log store: %w", err)
	}
	if o.Writer.User == o.Reader.User {
		return nil, errors.New("open log store: the writer and the reader must be different users")
	}
	if o.Log == nil {
		return nil, errors.New("open log store: Log is required")
	}
	setDefault(&o.MaxBody, 100<<20)
	setDefault(&o.MaxBulks, 2)
	setDefault(&o.MaxSearches, 8)
	setDefault(&o.QueryTime, 20*time.Second)
	if o.Now == nil {
		o.Now = time.Now
	}
	if err := os.MkdirAll(o.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("open log store: %w", err)
	}
	s := &Store{o: o, bulks: make(chan struct{}, o.MaxBulks), searches: make(chan struct{}, o.MaxSearches),
		indices: map[string]*index{}}
	s.mux = s.routes()
	files, err := filepath.Glob(filepath.Join(o.Dir, "*"+fileSuffix))
	if err != nil {
		return nil, fmt.Errorf("open log store: %w", err)
	}
	for _, f := range files {
		name := strings.TrimSuffix(filepath.Base(f), fileSuffix)
		ix, err := openIndex(ctx, name, f)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("open log store: %w", err), s.Close())
		}
		s.indices[name] = ix
	}
	return s, nil
}

func setDefault[T int | int64 | time.Duration](v *T, d T) {
	if *v <= 0 {
		*v = d
	}
}

// Close closes every index; requests under way fail. Nothing that was acknowledged depends on it.
func (s *Store) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	var errs []error
	for _, ix := range s.indices {
		errs = append(errs, ix.close())
	}
	clear(s.indices)
	return errors.Join(errs...)
}

// get gives an index for writing, made when missing.
func (s *Store) get(ctx context.Context, name string) (*index, error) {
	s.mu.RLock()
	ix, closed := s.indices[name], s.closed
	s.mu.RUnlock()
	if ix != nil || closed {
		return ix, closedErr(closed)
	}
	if !nameRule.MatchString(name) || strings.Contains(name, "..") {
		return nil, badRequest("invalid_index_name_exception", "invalid index name %q", name)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if ix = s.indices[name]; ix != nil || s.closed {
		return ix, closedErr(s.closed)
	}
	if len(s.indices) >= maxIndices {
		return nil, badRequest("validation_exception", "this store has %d indices, its most", maxIndices)
	}
	ix, err := openIndex(ctx, name, filepath.Join(s.o.Dir, name+fileSuffix))
	if err != nil {
		return nil, err
	}
	s.indices[name] = ix
	return ix, nil
}

func closedErr(closed bool) error {
	if closed {
		return &apiError{status: http.StatusServiceUnavailable, typ: "node_closed_exception", reason: "the store is closing"}
	}
	return nil
}

// match gives the indices that expr (names and * wildcards, with commas; "" is all) selects, in name order. A plain
// name that is missing is an error unless lenient.
func (s *Store) match(expr string, lenient bool) ([]*index, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	found := map[string]*index{}
	for part := range strings.SplitSeq(expr, ",") {
		switch {
		case part == "" || part == "_all" || part == "*":
			for n, ix := range s.indices {
				found[n] = ix
			}
		case strings.HasPrefix(part, "-"):
			return nil, badRequest("illegal_argument_exception", "excluding indices is not supported: %q", part)
		case strings.Contains(part, "*"):
			for n, ix := range s.indices {
				if wildcard(part, n) {
					found[n] = ix
				}
			}
		case s.indices[part] != nil:
			found[part] = s.indices[part]
		case !lenient:
			return nil, &apiError{status: http.StatusNotFound, typ: "index_not_found_exception", reason: "no such index [" + part + "]"}
		}
	}
	out := make([]*index, 0, len(found))
	for _, ix := range found {
		out = append(out, ix)
	}
	slices.SortFunc(out, func(a, b *index) int { return strings.Compare(a.name, b.name) })
	return out, nil
}

// wildcard matches s against a pattern whose only special character is *.
func wildcard(pattern, s string) bool {
	parts := strings.Split(pattern, "*")
	if len(parts) == 1 {
		return pattern == s
	}
	if !strings.HasPrefix(s, parts[0]) {
		return false
	}
	s = s[len(parts[0]):]
	last := len(parts) - 1
	for _, p := range parts[1:last] {
		_, after, ok := strings.Cut(s, p)
		if !ok {
			return false
		}
		s = after
	}
	return strings.HasSuffix(s, parts[last])
}
