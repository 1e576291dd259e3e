package gos

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"

	"cumulet.io/internal/problem"
	"cumulet.io/registry/gos/tracker"
)

// References tells what manifests need. Safe for concurrent use.
type References interface {
	// Live tells whether a manifest of a repository, stored or being stored, names a digest as layer or config. On an
	// error the link stays.
	Live(ctx context.Context, repository string, d digest.Digest) (bool, error)
}

// Config is for New. Name, Stores and Tracker are required.
type Config struct {
	// Name is this node's region.
	Name string
	// Stores has the object store of each region, this one included.
	Stores map[string]ObjectStore
	// Tracker is the one of all regions.
	Tracker *tracker.Tracker
	// Replica is this node's copy of the tracker, from which it reads when the tracker does not answer. nil is right where
	// the tracker is a part of this machine.
	Replica *tracker.Tracker
	// SpoolDir is where blobs on their way from other regions are; "" is the system's temporary directory.
	SpoolDir string
	// PresignTTL is for how long a redirect to the store holds; 0 is 20 min. No blob is deleted sooner after its mark.
	PresignTTL time.Duration
	// UploadAge is the age of an upload that is given up; 0 is 7 days.
	UploadAge time.Duration
	// SyncInterval is how far the replica may be behind, 0 is 1 s; SweepInterval how often garbage is looked for, 0 is 5 min.
	SyncInterval, SweepInterval time.Duration
	// References says which layers manifests need; nil: every link keeps its layer.
	References References
	// Logger is for what goes wrong; nil is slog.Default.
	Logger *slog.Logger
}

// Region is one node of a region. Safe for concurrent use. Run collects garbage and keeps the replica fresh; Close ends
// fills under way.
type Region struct {
	cfg   Config
	store ObjectStore
	node  string
	log   *slog.Logger

	// trackerDown is the time in Unix nanoseconds until which reads go to the replica at once; 0 while the tracker answers.
	trackerDown atomic.Int64

	mu       sync.Mutex
	spools   map[digest.Digest]*spool
	active   map[digest.Digest]int
	suspects map[tracker.Object]time.Time
	fills    sync.WaitGroup
	ctx      context.Context //nolint:containedctx // of the fills, which no client's request owns
	cancel   context.CancelFunc
}

// New makes a node of a region.
func New(cfg Config) (*Region, error) {
	if cfg.Tracker == nil || cfg.Stores[cfg.Name] == nil {
		return nil, fmt.Errorf("region %q: a tracker and a store of its own are needed", cfg.Name)
	}
	def := func(d *time.Duration, v time.Duration) {
		if *d <= 0 {
			*d = v
		}
	}
	def(&cfg.PresignTTL, 20*time.Minute)
	def(&cfg.UploadAge, 7*24*time.Hour)
	def(&cfg.SyncInterval, time.Second)
	def(&cfg.SweepInterval, 5*time.Minute)
	if cfg.SpoolDir != "" {
		if err := os.MkdirAll(cfg.SpoolDir, 0o700); err != nil {
			return nil, fmt.Errorf("region %q: spool: %w", cfg.Name, err)
		}
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	r := &Region{cfg: cfg, store: cfg.Stores[cfg.Name], node: rand.Text(), log: cfg.Logger.With("region", cfg.Name),
		spools: map[digest.Digest]*spool{}, active: map[digest.Digest]int{}, suspects: map[tracker.Object]time.Time{}}
	r.ctx, r.cancel = context.WithCancel(context.Background())
	return r, nil
}

// Close ends what comes from other regions at this moment.
func (r *Region) Close() error {
	r.cancel()
	r.fills.Wait()
	return nil
}

// Name is the region's.
func (r *Region) Name() string { return r.cfg.Name }

// Check tells whether the region can take a push: its tracker answers.
func (r *Region) Check(ctx context.Context) error { return r.cfg.Tracker.Ping(ctx) }

// read asks the tracker and, when it does not answer, the replica. The replica knows what is there and not what is not:
// what it lacks is unavailable, never unknown.
func read[T any](ctx context.Context, r *Region, primary, fallback func(*tracker.Tracker) (T, error)) (T, error) {
	replica := r.cfg.Replica
	if replica == nil {
		return primary(r.cfg.Tracker)
	}
	switch down := r.trackerDown.Load(); {
	case down == 0:
		out, err := primary(r.cfg.Tracker)
		if !errors.Is(err, problem.ErrUnavailable) {
			return out, err
		}
		r.trackerDown.Store(time.Now().Add(trackerPause).UnixNano())
		r.log.WarnContext(ctx, "the tracker does not answer: reading from the replica", "error", err)
	case down < time.Now().UnixNano() && r.trackerDown.CompareAndSwap(down, math.MaxInt64):
		r.fills.Go(r.probe)
	}
	out, err := fallback(replica)
	if errors.Is(err, problem.ErrNotFound) {
		err = problem.New(problem.ErrUnavailable, "the tracker does not answer, and this region knows no such thing without it")
	}
	return out, err
}

// trackerPause is for how long a tracker that did not answer is not asked again.
const trackerPause = time.Second

// probe asks the tracker whether it is back. It is nobody's request: a client that gives up, as clients do at the first 503,
// would end each try before its time.
func (r *Region) probe() {
	if err := r.cfg.Tracker.Ping(r.ctx); err != nil {
		r.trackerDown.Store(time.Now().Add(trackerPause).UnixNano())
		return
	}
	r.trackerDown.Store(0)
	r.log.Info("the tracker answers again")
}

// Find finds a blob and keeps it from being collected for a while. problem.ErrNotFound where there is none.
func (r *Region) find(ctx context.Context, d digest.Digest) (*tracker.Blob, error) {
	if err := d.Validate(); err != nil {
		return nil, problem.Invalid("digest", "must be a digest as sha256:…", d.String())
	}
	b, err := read(ctx, r, func(t *tracker.Tracker) (*tracker.Blob, error) { return t.Touch(ctx, d) },
		func(t *tracker.Tracker) (*tracker.Blob, error) { return t.Find(ctx, d) })
	if err != nil {
		return nil, blobError(ctx, d, err)
	}
	return b, nil
}

func blobError(ctx context.Context, d digest.Digest, err error) error {
	if errors.Is(err, problem.ErrNotFound) {
		return problem.New(problem.ErrNotFound, "there is no blob %s", d)
	}
	note(ctx, err)
	return err
}

// Stat gives a blob's size and keeps it from being collected for half a lease. problem.ErrNotFound where there is none.
func (r *Region) Stat(ctx context.Context, d digest.Digest) (int64, error) {
	b, err := r.find(ctx, d)
	if err != nil {
		return 0, err
	}
	return b.Size, nil
}

// Linked tells whether a repository has a layer or config, keeps both it and its link from being collected, and gives its
// size. problem.ErrNotFound where it has none.
func (r *Region) Linked(ctx context.Context, repository string, d digest.Digest) (int64, error) {
	if err := d.Validate(); err != nil {
		return 0, problem.Invalid("digest", "must be a digest as sha256:…", d.String())
	}
	f, err := r.File(ctx, tracker.LayerPath(repository, d))
	if err == nil && f.Dir {
		err = problem.New(problem.ErrNotFound, "")
	}
	if err != nil {
		return 0, blobError(ctx, d, err)
	}
	return r.Stat(ctx, d)
}

// Open reads a blob from an offset on. The reader gives an error, never an early end, when what it reads turns out not
// to be the blob. The caller closes it. problem.ErrNotFound where there is none.
func (r *Region) Open(ctx context.Context, d digest.Digest, offset int64) (io.ReadCloser, error) {
	b, err := r.find(ctx, d)
	if err != nil {
		return nil, err
	}
	return r.open(ctx, b, offset)
}

func (r *Region) open(ctx context.Context, b *tracker.Blob, offset int64) (io.ReadCloser, error) {
	if offset < 0 {
		return nil, problem.Invalid("offset", "must not be negative", offset)
	}
	if b.Inline != nil {
		return io.NopCloser(bytes.NewReader(b.Inline[min(offset, b.Size):])), nil
	}
	if key := b.In(r.cfg.Name); key != "" {
		body, err := r.store.Get(ctx, key, offset, -1)
		if err == nil {
			return r.hold(b.Digest, &exactly{ReadCloser: body, left: max(0, b.Size-offset)}), nil
		}
		if b, err = r.lost(ctx, b, key, err); err != nil {
			return nil, err
		}
	}
	s, err := r.spool(ctx, b)
	if err != nil {
		return nil, err
	}
	body := s.reader(ctx, offset)
	if err := s.begun(ctx); err != nil {
		return nil, errors.Join(err, body.Close())
	}
	return r.hold(b.Digest, body), nil
}

// lost is called when this region's object of a blob cannot be read. When it is not there, its row goes and the blob
// comes from another region again.
func (r *Region) lost(ctx context.Context, b *tracker.Blob, key string, err error) (*tracker.Blob, error) {
	if !errors.Is(err, ErrNoObject) {
		return nil, r.storeFault(ctx, err)
	}
	r.log.ErrorContext(ctx, "an object is missing in the store", "digest", b.Digest, "object", key)
	if len(b.Replicas) < 2 {
		return nil, r.storeFault(ctx, err)
	}
	if err := r.cfg.Tracker.LoseReplica(ctx, b.Digest, tracker.Object{Region: r.cfg.Name, Key: key}); err != nil {
		return nil, blobError(ctx, b.Digest, err)
	}
	return r.find(ctx, b.Digest)
}

// storeFault says that a store does not do its work.
func (r *Region) storeFault(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return fmt.Errorf("object store: %w", ctx.Err())
	}
	if !errors.Is(err, problem.ErrUnavailable) {
		r.log.ErrorContext(ctx, "the object store failed", "error", err)
		err = fmt.Errorf("%w: %w", problem.New(problem.ErrUnavailable, "the object store does not answer: try again"), err)
	}
	note(ctx, err)
	return err
}

// exactly turns an early end into an error.
type exactly struct {
	io.ReadCloser
	left int64
}

// Read implements io.Reader.
func (e *exactly) Read(p []byte) (int, error) {
	n, err := e.ReadCloser.Read(p)
	e.left -= int64(n)
	if errors.Is(err, io.EOF) && e.left > 0 {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

// held is a reader whose blob's lease is renewed until it is closed.
type held struct {
	io.ReadCloser
	once    sync.Once
	release func()
}

// Close implements io.Closer.
func (h *held) Close() error {
	h.once.Do(h.release)
	return h.ReadCloser.Close()
}

func (r *Region) hold(d digest.Digest, body io.ReadCloser) io.ReadCloser {
	r.mu.Lock()
	r.active[d]++
	r.mu.Unlock()
	return &held{ReadCloser: body, release: func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.active[d]--; r.active[d] == 0 {
			delete(r.active, d)
		}
	}}
}

// File reads a small file of the core's layout, or finds a directory. Errors are problem's.
func (r *Region) File(ctx context.Context, path string) (*tracker.File, error) {
	f, err := read(ctx, r, func(t *tracker.Tracker) (*tracker.File, error) { return t.File(ctx, path) },
		func(t *tracker.Tracker) (*tracker.File, error) { return t.Read(ctx, path) })
	if err != nil {
		note(ctx, err)
		return nil, err
	}
	return f, nil
}

// List lists a directory of the core's layout.
func (r *Region) List(ctx context.Context, path string) ([]tracker.File, error) {
	list := func(t *tracker.Tracker) ([]tracker.File, error) { return t.List(ctx, path) }
	files, err := read(ctx, r, list, list)
	if err != nil {
		note(ctx, err)
	}
	return files, err
}

// OpenFile reads a file of the core's layout that is no blob, from an offset on.
func (r *Region) OpenFile(ctx context.Context, path string, offset int64) (io.ReadCloser, error) {
	f, err := r.File(ctx, path)
	if err != nil {
		return nil, err
	}
	if f.Dir {
		return nil, problem.New(problem.ErrNotFound, "%s is a directory", path)
	}
	if f.Object.Key == "" {
		return io.NopCloser(bytes.NewReader(f.Content[min(offset, int64(len(f.Content))):])), nil
	}
	store := r.cfg.Stores[f.Object.Region]
	if store == nil {
		return nil, r.storeFault(ctx, fmt.Errorf("region %q is not configured here", f.Object.Region))
	}
	body, err := store.Get(ctx, f.Object.Key, offset, -1)
	if err != nil {
		return nil, r.storeFault(ctx, err)
	}
	return &exactly{ReadCloser: body, left: max(0, f.Size-offset)}, nil
}

// Tracker is where changes go. Errors of it are to be noted with Note.
func (r *Region) Tracker() *tracker.Tracker { return r.cfg.Tracker }
