package gos

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"

	"cumulet.io/internal/problem"
	"cumulet.io/registry/gos/tracker"
)

const (
	// chunkSize is what one ranged read of a source asks for, fillers how many are under way for a blob.
	chunkSize = 8 << 20
	fillers   = 4
	// withheld is how much of a blob's end no reader gets before the digest is verified.
	withheld = 64 << 10
	// A chunk's read is given up after this many tries in a row that brought nothing; a source that sends nothing for
	// stallTime has failed.
	fillTries = 6
	stallTime = 15 * time.Second
	// leadTime is how long a dead leader keeps others waiting.
	leadTime = 15 * time.Second
	// suspectTime is for how long a source that gave wrong bytes is asked last.
	suspectTime = 10 * time.Minute
)

// spool is a blob on its way from another region: a file that one filler writes and any number of readers read as it
// grows. A reader that is slow or leaves stops neither.
type spool struct {
	size int64
	file *os.File

	mu       sync.Mutex
	changed  chan struct{} // closed and replaced when anything below changes
	filled   []int64       // of each chunk
	verified bool
	err      error
	done     bool // the filler needs the file no more
	readers  int
}

func newSpool(dir string, size int64) (*spool, error) {
	f, err := os.CreateTemp(dir, "gos-spool-")
	if err != nil {
		return nil, err
	}
	// Without a name it ends with the process, however that ends.
	if err := os.Remove(f.Name()); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &spool{size: size, file: f, changed: make(chan struct{}), filled: make([]int64, (size+chunkSize-1)/chunkSize)}, nil
}

// update changes the state and wakes who waits.
func (s *spool) update(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
	close(s.changed)
	s.changed = make(chan struct{})
	s.closeUnused()
}

// failOn makes an error, if it is one, the fate of all readers, and gives it back.
func (s *spool) failOn(err error) error {
	if err != nil {
		s.update(func() {
			if s.err == nil {
				s.err = fmt.Errorf("%w: %w", problem.New(problem.ErrUnavailable, "the blob could not be had from another region: try again"), err)
			}
		})
	}
	return err
}

func (s *spool) closeUnused() {
	if s.done && s.readers == 0 && s.file != nil {
		s.file.Close()
		s.file = nil
	}
}

// begun waits until something of the blob has come, or its fill has failed.
func (s *spool) begun(ctx context.Context) error {
	for {
		s.mu.Lock()
		changed, err := s.changed, s.err
		any := s.verified
		for _, n := range s.filled {
			any = any || n > 0
		}
		s.mu.Unlock()
		if any || err != nil {
			return err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (s *spool) failed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err != nil
}

// reader reads from an offset on. It sees no byte of the last withheld ones before all are verified.
func (s *spool) reader(ctx context.Context, offset int64) *spoolReader {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.readers++
	return &spoolReader{s: s, ctx: ctx, offset: offset, limit: max(0, s.size-withheld)}
}

type spoolReader struct {
	s *spool
	//nolint:containedctx // of the one who reads
	ctx    context.Context
	offset int64
	// limit is where reading stops while the digest is not verified.
	limit  int64
	closed bool
}

// Read implements io.Reader.
func (r *spoolReader) Read(p []byte) (int, error) {
	s := r.s
	if r.offset >= s.size {
		return 0, r.atEnd()
	}
	if len(p) == 0 {
		return 0, nil
	}
	for {
		s.mu.Lock()
		changed, err, file := s.changed, s.err, s.file
		chunk := r.offset / chunkSize
		to := chunk*chunkSize + s.filled[chunk]
		if !s.verified {
			to = min(to, r.limit)
		}
		s.mu.Unlock()
		if r.closed {
			return 0, os.ErrClosed
		}
		if n := to - r.offset; n > 0 {
			got, err := file.ReadAt(p[:min(n, int64(len(p)))], r.offset)
			r.offset += int64(got)
			if got > 0 {
				err = nil
			}
			return got, err
		}
		if err != nil {
			return 0, err
		}
		select {
		case <-changed:
		case <-r.ctx.Done():
			return 0, r.ctx.Err()
		}
	}
}

// atEnd waits for the verdict: a blob that is empty has no byte that could be withheld.
func (r *spoolReader) atEnd() error {
	for {
		r.s.mu.Lock()
		changed, err, verified := r.s.changed, r.s.err, r.s.verified
		r.s.mu.Unlock()
		if verified || r.limit == r.s.size {
			return io.EOF
		}
		if err != nil {
			return err
		}
		select {
		case <-changed:
		case <-r.ctx.Done():
			return r.ctx.Err()
		}
	}
}

// Close implements io.Closer.
func (r *spoolReader) Close() error {
	r.s.mu.Lock()
	defer r.s.mu.Unlock()
	if !r.closed {
		r.closed = true
		r.s.readers--
		r.s.closeUnused()
	}
	return nil
}

// spool gives the spool of a blob that is not in this region, beginning its fill when it is the first to ask.
func (r *Region) spool(ctx context.Context, b *tracker.Blob) (*spool, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if s := r.spools[b.Digest]; s != nil && !s.failed() {
		return s, nil
	}
	if r.ctx.Err() != nil {
		return nil, problem.New(problem.ErrUnavailable, "the registry is stopping")
	}
	s, err := newSpool(r.cfg.SpoolDir, b.Size)
	if err != nil {
		return nil, r.storeFault(ctx, fmt.Errorf("spool: %w", err))
	}
	r.spools[b.Digest] = s
	r.active[b.Digest]++
	r.fills.Go(func() {
		err := r.fill(r.ctx, b, s)
		r.mu.Lock()
		if r.spools[b.Digest] == s {
			delete(r.spools, b.Digest)
		}
		if r.active[b.Digest]--; r.active[b.Digest] == 0 {
			delete(r.active, b.Digest)
		}
		r.mu.Unlock()
		if err != nil {
			r.log.ErrorContext(r.ctx, "a blob could not be had from another region", "digest", b.Digest, "error", err)
			_ = s.failOn(err) //nolint:errcheck // it is err
		}
		s.update(func() { s.done = true })
	})
	return s, nil
}

// fill brings a blob into the spool, verifies it and stores it in this region.
func (r *Region) fill(ctx context.Context, b *tracker.Blob, s *spool) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	name := "fill/" + r.cfg.Name + "/" + b.Digest.String()
	owner := r.node + "/" + rand.Text() // of this fill: one that failed may still be ending
	b, leads, err := r.lead(ctx, name, owner, b)
	if err != nil {
		return err
	}
	if leads {
		var renewing sync.WaitGroup
		renewing.Go(func() { r.renew(ctx, name, owner) })
		defer func() {
			cancel()
			renewing.Wait()
			resign, stop := context.WithTimeout(context.WithoutCancel(ctx), closeTime)
			defer stop()
			if err := r.cfg.Tracker.Resign(resign, name, owner); err != nil {
				r.log.WarnContext(ctx, "others wait until the lead is over", "digest", b.Digest, "error", err)
			}
		}()
	}
	group, gctx := errgroup.WithContext(ctx)
	// A fault is told to the readers at once: the storing is one of them.
	group.Go(func() error { return s.failOn(r.fetch(gctx, b, s)) })
	group.Go(func() error { return s.failOn(r.verify(gctx, b, s)) })
	if leads {
		group.Go(func() error {
			// A fault of the others comes to it through its reader.
			if err := r.replicate(ctx, b, s); err != nil && ctx.Err() == nil {
				// Readers have what they came for; the next pull tries again.
				r.log.WarnContext(ctx, "a blob from another region is not stored", "digest", b.Digest, "error", err)
			}
			return nil
		})
	}
	return group.Wait()
}

// lead waits until this node is the one of its region that brings a blob, or another has brought it: then leads is false,
// and the blob has an object here.
func (r *Region) lead(ctx context.Context, name, owner string, b *tracker.Blob) (blob *tracker.Blob, leads bool, err error) {
	for {
		if leads, err = r.cfg.Tracker.Lead(ctx, name, owner, leadTime); err != nil {
			return nil, false, err
		}
		// Between its caller's look and this one another may have brought it.
		if blob, err = r.cfg.Tracker.Touch(ctx, b.Digest); err != nil {
			return nil, false, err
		}
		if blob.In(r.cfg.Name) != "" {
			if leads {
				err = r.cfg.Tracker.Resign(ctx, name, owner)
			}
			return blob, false, err
		}
		if leads {
			return blob, true, nil
		}
		select {
		case <-ctx.Done():
			return nil, false, ctx.Err()
		case <-time.After(100 * time.Millisecond):
		}
	}
}

func (r *Region) renew(ctx context.Context, name, owner string) {
	tick := time.NewTicker(leadTime / 3)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			if _, err := r.cfg.Tracker.Lead(ctx, name, owner, leadTime); err != nil && ctx.Err() == nil {
				r.log.WarnContext(ctx, "a lead is not renewed", "lead", name, "error", err)
			}
		}
	}
}

// verify follows the fill from the start and compares the digest.
func (r *Region) verify(ctx context.Context, b *tracker.Blob, s *spool) error {
	reader := s.reader(ctx, 0)
	reader.limit = s.size
	defer reader.Close()
	hash := b.Digest.Algorithm().Hash()
	if _, err := io.Copy(hash, reader); err != nil {
		return err
	}
	if got := digest.NewDigest(b.Digest.Algorithm(), hash); got != b.Digest {
		r.mu.Lock()
		for _, o := range b.Replicas {
			if o.Region == r.source(b) {
				r.suspects[o] = time.Now()
			}
		}
		r.mu.Unlock()
		return fmt.Errorf("the source's bytes have digest %s", got)
	}
	s.update(func() { s.verified = true })
	return nil
}

// source is the region that is asked first. The lock is held.
func (r *Region) source(b *tracker.Blob) string {
	if sources := r.sourcesLocked(b); len(sources) > 0 {
		return sources[0].Region
	}
	return ""
}

// sourcesLocked gives the objects that a blob can be read from, in the order in which they are asked: this region's
// own, then those that are above suspicion.
func (r *Region) sourcesLocked(b *tracker.Blob) []tracker.Object {
	var own, good, bad []tracker.Object
	for _, o := range b.Replicas {
		switch at, suspect := r.suspects[o]; {
		case r.cfg.Stores[o.Region] == nil:
		case suspect && time.Since(at) < suspectTime:
			bad = append(bad, o)
		case o.Region == r.cfg.Name:
			own = append(own, o)
		default:
			good = append(good, o)
		}
	}
	return append(append(own, good...), bad...)
}

// fetch reads the blob's chunks, several at a time.
func (r *Region) fetch(ctx context.Context, b *tracker.Blob, s *spool) error {
	r.mu.Lock()
	sources := r.sourcesLocked(b)
	r.mu.Unlock()
	if len(sources) == 0 {
		return errors.New("no region that is configured here has it")
	}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(fillers)
	for chunk := range s.filled {
		if ctx.Err() != nil {
			break
		}
		group.Go(func() error { return r.fetchChunk(ctx, sources, s, int64(chunk)) })
	}
	return group.Wait()
}

func (r *Region) fetchChunk(ctx context.Context, sources []tracker.Object, s *spool, chunk int64) error {
	start := chunk * chunkSize
	size := min(chunkSize, s.size-start)
	var got int64
	var last error
	for try := 0; got < size; try++ {
		if try == fillTries {
			return fmt.Errorf("read %d bytes at %d: %w", size-got, start+got, last)
		}
		if try > 0 {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(min(50*time.Millisecond<<try, 2*time.Second)):
			}
		}
		n, err := r.fetchRange(ctx, sources[try%len(sources)], s, chunk, start+got, size-got)
		got += n
		if err == nil && got < size {
			err = io.ErrUnexpectedEOF
		}
		if n > 0 {
			try = -1 // what brings something may go on
		}
		if last = err; err != nil && ctx.Err() != nil {
			return ctx.Err()
		}
	}
	return nil
}

// fetchRange copies one ranged read into the spool and gives how much came.
func (r *Region) fetchRange(ctx context.Context, o tracker.Object, s *spool, chunk, offset, length int64) (int64, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stalled := time.AfterFunc(stallTime, func() { cancel(errors.New("the source sends nothing")) })
	defer stalled.Stop()
	body, err := r.cfg.Stores[o.Region].Get(ctx, o.Key, offset, length)
	if err != nil {
		return 0, fmt.Errorf("region %s: %w", o.Region, err)
	}
	defer body.Close()
	buf := buffers.Get().(*[]byte) //nolint:errcheck // it has nothing else
	defer buffers.Put(buf)
	var got int64
	for got < length {
		n, err := body.Read((*buf)[:min(int64(len(*buf)), length-got)])
		if n > 0 {
			stalled.Reset(stallTime)
			if _, err := s.file.WriteAt((*buf)[:n], offset+got); err != nil {
				return got, fmt.Errorf("spool: %w", err)
			}
			got += int64(n)
			s.update(func() { s.filled[chunk] += int64(n) })
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return got, fmt.Errorf("region %s: %w", o.Region, errors.Join(err, context.Cause(ctx)))
		}
	}
	return got, nil
}

// buffers are for copying.
var buffers = sync.Pool{New: func() any { b := make([]byte, 128<<10); return &b }} //nolint:gochecknoglobals // a pool

// replicate stores the blob in this region: one more reader of the spool.
func (r *Region) replicate(ctx context.Context, b *tracker.Blob, s *spool) error {
	reader := s.reader(ctx, 0)
	defer reader.Close()
	o, _, err := r.putObject(ctx, reader, b.Size)
	if err != nil {
		return err
	}
	stored, err := r.cfg.Tracker.AddReplica(ctx, b, o)
	if err == nil && !stored {
		r.log.InfoContext(ctx, "a blob from another region is not kept: it is gone or was there already", "digest", b.Digest)
	}
	return err
}
