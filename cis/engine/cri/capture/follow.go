package capture

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/fsnotify/fsnotify"
)

const (
	// settle is the least time between two looks at a container that writes all the while.
	settle = 5 * time.Millisecond
	// recheck is how long notifications are trusted, blindCheck the time between two looks without them.
	recheck, blindCheck = time.Second, 50 * time.Millisecond
	// retry is the time after a failure.
	retry = time.Second
	// finishBound is how long Finish waits for the last writer.
	finishBound = 3 * time.Second
)

// Follow copies what comes until ctx ends or the Copier is closed.
func (c *Copier) Follow(ctx context.Context, w *Watcher, log *slog.Logger) {
	defer w.add(c)()
	if c.damaged {
		log.ErrorContext(ctx, "the journal of a container's output is damaged: what was written before now may be missing in its log", "log", c.log)
	}
	timer := time.NewTimer(0)
	defer timer.Stop()
	wait := func(d time.Duration, kick <-chan struct{}) {
		timer.Reset(d)
		select {
		case <-ctx.Done():
		case <-kick:
		case <-timer.C:
		}
	}
	for ctx.Err() == nil {
		more, err := c.copy(false)
		switch {
		case errors.Is(err, os.ErrClosed):
			return
		case err != nil:
			log.ErrorContext(ctx, "container output not copied to its log, will be repeated", "log", c.log, "error", err)
			wait(retry, nil)
		case !more:
			wait(settle, nil)
			wait(c.patience(w), c.kick)
		}
	}
}

// patience is how long to wait for news before looking without.
func (c *Copier) patience(w *Watcher) time.Duration {
	if w == nil || c.blind.Load() {
		return blindCheck
	}
	return recheck
}

// Finish copies all that is left of the output of a container that has ended, closes the Copier and removes the files.
// When something still holds the output open it waits a little for that. After an error everything is kept, for another
// Open.
func (c *Copier) Finish(ctx context.Context) error {
	end := time.Now().Add(finishBound)
	for {
		idle := c.idle() // before the look: what was written before is then seen
		more, err := c.copy(false)
		if err != nil {
			return errors.Join(fmt.Errorf("finish log: %w", err), c.Close())
		}
		if err := ctx.Err(); err != nil {
			return errors.Join(err, c.Close())
		}
		if more {
			continue
		}
		if idle || time.Now().After(end) {
			break
		}
		select {
		case <-ctx.Done():
		case <-c.kick:
		case <-time.After(10 * time.Millisecond):
		}
	}
	for more := true; more; {
		var err error
		if more, err = c.copy(true); err != nil {
			return errors.Join(fmt.Errorf("finish log: %w", err), c.Close())
		}
	}
	if err := errors.Join(c.Close(), discard(c.dir)); err != nil {
		return fmt.Errorf("finish log: %w", err)
	}
	return nil
}

// Watcher tells Copiers that something was written. One serves all of a machine. A nil Watcher is one that tells
// nothing; then they look often.
type Watcher struct {
	w    *fsnotify.Watcher
	done chan struct{}

	// change is held while a watch is added or removed, mu for the map alone: the library may hold its own lock until run
	// takes what it has to say, so that run must never wait for who is in the library.
	change sync.Mutex
	mu     sync.Mutex
	dirs   map[string]*Copier
}

// NewWatcher begins to watch. Close it when the Copiers are done.
func NewWatcher() (*Watcher, error) {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return nil, fmt.Errorf("watch outputs: %w", err)
	}
	x := &Watcher{w: w, done: make(chan struct{}), dirs: map[string]*Copier{}}
	go x.run()
	return x, nil
}

func (w *Watcher) run() {
	defer close(w.done)
	for {
		select {
		case e, ok := <-w.w.Events:
			if !ok {
				return
			}
			c := w.of(filepath.Dir(e.Name))
			if c == nil {
				continue
			}
			for i, s := range streams() {
				if filepath.Base(e.Name) == string(s) {
					c.note(i)
				}
			}
		case _, ok := <-w.w.Errors: // an overflow: each Copier looks by itself before long
			if !ok {
				return
			}
		}
	}
}

// add begins to tell c; the returned function ends that.
func (w *Watcher) add(c *Copier) func() {
	if w == nil {
		return func() {}
	}
	w.change.Lock()
	defer w.change.Unlock()
	w.set(c.dir, c)
	if err := w.w.Add(c.dir); err != nil {
		c.blind.Store(true)
	}
	return func() {
		w.change.Lock()
		defer w.change.Unlock()
		if w.of(c.dir) == c {
			w.set(c.dir, nil)
			w.w.Remove(c.dir) //nolint:errcheck,gosec // the directory may have gone, and the watch with it
		}
	}
}

// of gives the Copier that is told of a directory, nil when there is none.
func (w *Watcher) of(dir string) *Copier {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.dirs[dir]
}

func (w *Watcher) set(dir string, c *Copier) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if c == nil {
		delete(w.dirs, dir)
	} else {
		w.dirs[dir] = c
	}
}

// Close ends the watching.
func (w *Watcher) Close() error {
	if w == nil {
		return nil
	}
	err := w.w.Close()
	<-w.done
	return err
}
