package gos

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"cumulet.io/internal/problem"
	"cumulet.io/registry/gos/tracker"
)

const (
	// writeTime bounds the writing of one object.
	writeTime = 24 * time.Hour
	// closeTime is how long after its request's end a writer may still be closed.
	closeTime = time.Minute
)

// Put stores what src gives as content-addressed content that owner keeps until it releases it, and gives its digest and
// size. Owners are names of the caller's choice, as "file/acme/tools/1.2/tools.tar.gz"; one digest may have many. After
// an error nothing is kept.
func (r *Region) Put(ctx context.Context, owner string, src io.Reader) (digest.Digest, int64, error) {
	if owner == "" {
		return "", 0, problem.Invalid("owner", "must not be empty", owner)
	}
	digester := digest.Canonical.Digester()
	object, size, err := r.putObject(ctx, io.TeeReader(src, digester.Hash()), -1)
	if err != nil {
		return "", 0, fmt.Errorf("store blob: %w", err)
	}
	d := digester.Digest()
	if err := r.cfg.Tracker.CommitBlob(ctx, d, size, object, owner); err != nil {
		note(ctx, err)
		return "", 0, fmt.Errorf("store blob: %w", err)
	}
	return d, size, nil
}

// sourceReader remembers why the source of an object ended.
type sourceReader struct {
	r   io.Reader
	err error
}

// Read implements io.Reader.
func (s *sourceReader) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		s.err = err
	}
	return n, err
}

// Reference makes owner keep a blob that is there; problem.ErrNotFound where there is none.
func (r *Region) Reference(ctx context.Context, owner string, d digest.Digest) error {
	err := r.cfg.Tracker.Reference(ctx, owner, d)
	if err != nil {
		return blobError(ctx, d, err)
	}
	return nil
}

// Release ends owner's hold on a blob, with "" on all that it holds. It is no error when there is none.
func (r *Region) Release(ctx context.Context, owner string, d digest.Digest) error {
	err := r.cfg.Tracker.Release(ctx, owner, d)
	note(ctx, err)
	return err
}

// putObject stores an object of this region that the tracker knows as intended. After an error it is garbage. An error of
// src, as that of a client that has gone or of another region, is given as it is: it is not the store's fault.
func (r *Region) putObject(ctx context.Context, src io.Reader, size int64) (tracker.Object, int64, error) {
	o := tracker.Object{Region: r.cfg.Name, Key: NewKey()}
	if err := r.cfg.Tracker.Intend(ctx, o, r.cfg.Tracker.Now().Add(writeTime)); err != nil {
		note(ctx, err)
		return o, 0, err
	}
	source := &sourceReader{r: src}
	n, err := r.store.Put(ctx, o.Key, source, size)
	if err != nil {
		r.discard(ctx, o)
		if source.err != nil {
			return o, 0, source.err
		}
		return o, 0, r.storeFault(ctx, err)
	}
	return o, n, nil
}

// discard gives an object to the sweeper. When that fails, the sweeper finds it when its intent is over.
func (r *Region) discard(ctx context.Context, o tracker.Object) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTime)
	defer cancel()
	if err := r.cfg.Tracker.Discard(ctx, o); err != nil {
		r.log.WarnContext(ctx, "an object stays until its time is over", "object", o.Key, "error", err)
	}
}

// Writer appends to a file of the core's layout. Each writer stores one object, and a commit of a file that one writer
// wrote costs no request to the store; the objects of several are composed. For one goroutine.
type Writer struct {
	r    *Region
	path string
	//nolint:containedctx // the core's writers take none with Write
	ctx      context.Context
	segments []tracker.Segment
	size     int64

	// What follows is of the object that is being written; to is nil when there is none.
	to     ObjectWriter
	object tracker.Object
	begun  int64
	stop   func() // ends the watch over the request's end

	closed bool
	err    error
}

// Writer opens a file for writing: from its start, or behind what earlier writers have stored.
func (r *Region) Writer(ctx context.Context, path string, resume bool) (*Writer, error) {
	w := &Writer{r: r, path: path, ctx: ctx}
	segments, err := r.cfg.Tracker.Segments(ctx, path)
	if err != nil {
		note(ctx, err)
		return nil, err
	}
	if !resume && len(segments) > 0 {
		if err := r.cfg.Tracker.Restart(ctx, path); err != nil {
			note(ctx, err)
			return nil, err
		}
		segments = nil
	}
	for _, s := range segments {
		w.size = s.Start + s.Size
	}
	w.segments = segments
	return w, nil
}

// Size is what is stored of the file and what was written to this writer.
func (w *Writer) Size() int64 { return w.size }

// Write implements io.Writer.
func (w *Writer) Write(p []byte) (int, error) {
	if w.err != nil {
		return 0, w.err
	}
	if w.closed {
		return 0, errors.New("gos: write to a closed writer")
	}
	if len(p) == 0 {
		return 0, nil
	}
	if w.to == nil {
		if err := w.begin(); err != nil {
			return 0, w.fail(err)
		}
	}
	n, err := w.to.Write(p)
	w.size += int64(n)
	if err != nil {
		w.abandon(w.ctx)
		return n, w.fail(w.r.storeFault(context.WithoutCancel(w.ctx), err))
	}
	return n, nil
}

// begin starts an object.
func (w *Writer) begin() error {
	w.object = tracker.Object{Region: w.r.cfg.Name, Key: NewKey()}
	if err := w.r.cfg.Tracker.Intend(w.ctx, w.object, w.r.cfg.Tracker.Now().Add(writeTime)); err != nil {
		note(w.ctx, err)
		return err
	}
	// What a client sent before it went away is stored, so that it can go on from there: the request's end does not end
	// the writing, its Close does. A writer that is never closed is cut off.
	to, err := create(context.WithoutCancel(w.ctx), w.r.store, w.object.Key)
	if err != nil {
		w.r.discard(w.ctx, w.object)
		return w.r.storeFault(w.ctx, err)
	}
	w.to, w.begun = to, w.size
	w.stop = afterEnd(w.ctx, closeTime, to.Abort)
	return nil
}

// afterEnd calls f a while after ctx is over, unless it is stopped before.
func afterEnd(ctx context.Context, wait time.Duration, f func()) (stop func()) {
	var mu sync.Mutex
	var timer *time.Timer
	stopped := false
	unwatch := context.AfterFunc(ctx, func() {
		mu.Lock()
		defer mu.Unlock()
		if !stopped {
			timer = time.AfterFunc(wait, f)
		}
	})
	return func() {
		unwatch()
		mu.Lock()
		defer mu.Unlock()
		stopped = true
		if timer != nil {
			timer.Stop()
		}
	}
}

// create begins an object of a store, by a pipe where the store wants a reader.
func create(ctx context.Context, store ObjectStore, key string) (ObjectWriter, error) {
	if c, ok := store.(Creator); ok {
		return c.Create(ctx, key)
	}
	ctx, cancel := context.WithTimeout(ctx, writeTime)
	pr, pw := io.Pipe()
	p := &pipeWriter{PipeWriter: pw, done: make(chan struct{})}
	go func() {
		defer cancel()
		defer close(p.done)
		if _, err := store.Put(ctx, key, pr, -1); err != nil {
			p.err = err
			pr.CloseWithError(err)
		}
	}()
	return p, nil
}

// pipeWriter is the writing end of a Put.
type pipeWriter struct {
	*io.PipeWriter
	done chan struct{}
	err  error // of Put, once done is closed
}

// Commit implements ObjectWriter.
func (p *pipeWriter) Commit() error {
	closeErr := p.Close()
	<-p.done
	return errors.Join(p.err, closeErr)
}

// Abort implements ObjectWriter.
func (p *pipeWriter) Abort() {
	p.CloseWithError(context.Canceled)
	<-p.done
}

// finish ends the object that is being written.
func (w *Writer) finish() error {
	err := w.to.Commit()
	w.stop()
	w.to = nil
	if err != nil {
		w.r.discard(w.ctx, w.object)
		return w.r.storeFault(context.WithoutCancel(w.ctx), err)
	}
	return nil
}

// abandon gives up the object that is being written.
func (w *Writer) abandon(ctx context.Context) {
	w.stop()
	w.to.Abort()
	w.to = nil
	w.r.discard(ctx, w.object)
}

// fail makes every later call fail: what was written is not stored.
func (w *Writer) fail(err error) error {
	if w.err == nil {
		w.err = err
		note(w.ctx, err)
		noteLost(w.ctx)
	}
	return w.err
}

// flush stores what was written as a segment.
func (w *Writer) flush() error {
	if w.to == nil {
		return w.err
	}
	if err := w.finish(); err != nil {
		return w.fail(err)
	}
	s := tracker.Segment{Object: w.object, Start: w.begun, Size: w.size - w.begun}
	if err := w.r.cfg.Tracker.AddSegment(context.WithoutCancel(w.ctx), w.path, s); err != nil {
		w.r.discard(w.ctx, w.object)
		return w.fail(err)
	}
	w.segments = append(w.segments, s)
	return nil
}

// Close stores what was written, to be resumed or committed by another writer.
func (w *Writer) Close() error {
	if w.closed {
		return w.err
	}
	w.closed = true
	return w.flush()
}

// Cancel gives up the file.
func (w *Writer) Cancel(ctx context.Context) error {
	w.closed = true
	if w.to != nil {
		w.abandon(ctx)
	}
	err := w.r.cfg.Tracker.Restart(context.WithoutCancel(ctx), w.path)
	note(ctx, err)
	return err
}

// Commit makes what is stored the file's content.
func (w *Writer) Commit(ctx context.Context) error {
	if w.closed {
		return errors.New("gos: commit of a closed writer")
	}
	if err := w.Close(); err != nil {
		return err
	}
	whole, err := w.whole(ctx)
	if err != nil {
		return w.fail(err)
	}
	if err := w.r.cfg.Tracker.CommitFile(ctx, w.path, whole, w.size); err != nil {
		if len(w.segments) > 1 {
			w.r.discard(ctx, whole)
		}
		return w.fail(err)
	}
	return nil
}

// whole gives the one object that holds all segments.
func (w *Writer) whole(ctx context.Context) (tracker.Object, error) {
	switch len(w.segments) {
	case 0:
		return tracker.Object{}, nil
	case 1:
		return w.segments[0].Object, nil
	}
	o := tracker.Object{Region: w.r.cfg.Name, Key: NewKey()}
	if err := w.r.cfg.Tracker.Intend(ctx, o, w.r.cfg.Tracker.Now().Add(writeTime)); err != nil {
		return o, err
	}
	n, err := w.compose(ctx, o.Key)
	if err == nil && n != w.size {
		err = fmt.Errorf("%d bytes were composed, not %d", n, w.size)
	}
	if err != nil {
		w.r.discard(ctx, o)
		return o, w.r.storeFault(ctx, err)
	}
	return o, nil
}

func (w *Writer) compose(ctx context.Context, key string) (int64, error) {
	parts := make([]string, 0, len(w.segments))
	for _, s := range w.segments {
		if s.Region != w.r.cfg.Name {
			break
		}
		parts = append(parts, s.Key)
	}
	if len(parts) == len(w.segments) {
		return w.r.store.Compose(ctx, key, parts)
	}
	// The client has changed regions in the middle.
	readers := make([]io.Reader, 0, len(w.segments))
	for _, s := range w.segments {
		store := w.r.cfg.Stores[s.Region]
		if store == nil {
			return 0, fmt.Errorf("region %q is not configured here", s.Region)
		}
		body, err := store.Get(ctx, s.Key, 0, -1)
		if err != nil {
			return 0, err
		}
		defer body.Close()
		readers = append(readers, body)
	}
	return w.r.store.Put(ctx, key, io.MultiReader(readers...), w.size)
}
