package collect

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"cumulet.io/logs/crilog"
)

// Reaper removes the log directories of instances that have ended, when the store has all their lines and nobody has
// written there for a while, and cuts the beginning of logs that have grown long while their instances run, as far as the
// store has it. Nothing else may remove them: a line that is gone before it is shipped is lost. When Filebeat ships
// and yet leaves something of an ended instance, it is started again.
type Reaper struct {
	// Collector ships LogRoot.
	Collector *Collector
	// Ended tells whether an instance has ended for good and will write no more. It is asked with names from the path.
	Ended func(ctx context.Context, org, instance string) bool
	// Grace is how long the directory rests after its last change; 0 means a minute. What is there costs Filebeat, though
	// nothing is written to it: about 65 us/s for a file.
	Grace time.Duration
	// Patience is how long nothing more of a directory is shipped before Filebeat is started again; 0 means 10 minutes.
	Patience time.Duration
	// Every is how often Run looks; 0 means a minute.
	Every time.Duration
	// Keep is how many bytes of a log stay on the node when all of it is shipped; 0 means all. What is not shipped stays
	// in any case.
	Keep int64
	// Log gets what was removed and what failed.
	Log *slog.Logger

	left map[string]leftover // at the last pass, by directory
}

// leftover is a directory that rests with lines that have not arrived.
type leftover struct {
	shipped   int64     // bytes that have
	since     time.Time // when this was first so
	acked     int64     // all that Filebeat had shipped by then
	restarted bool      // Filebeat has been started again for it
}

// Run looks every so often until ctx ends; then it returns nil.
func (r *Reaper) Run(ctx context.Context) error {
	every := r.Every
	if every <= 0 {
		every = time.Minute
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		if _, err := r.Pass(ctx); err != nil && ctx.Err() == nil {
			r.Log.ErrorContext(ctx, "remove shipped logs", "error", err)
		}
		if _, err := r.Cut(ctx); err != nil && ctx.Err() == nil {
			r.Log.ErrorContext(ctx, "cut shipped logs", "error", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// Pass looks once and tells how many instances' logs it removed.
func (r *Reaper) Pass(ctx context.Context) (removed int, err error) {
	grace := r.Grace
	if grace <= 0 {
		grace = time.Minute
	}
	root := r.Collector.o.LogRoot
	dirs, err := filepath.Glob(filepath.Join(root, "*", "*"))
	if err != nil {
		return 0, fmt.Errorf("list logs: %w", err)
	}
	var reg registry
	var errs []error
	left := map[string]leftover{}
	for _, dir := range dirs {
		if ctx.Err() != nil {
			break
		}
		org, instance := filepath.Base(filepath.Dir(dir)), filepath.Base(dir)
		if !r.Ended(ctx, org, instance) {
			continue
		}
		if reg == nil { // after Ended: what it says is not older than the end
			if reg, err = r.Collector.registry(); err != nil {
				return removed, err
			}
		}
		rests, all, bytes, err := reg.look(dir, time.Now().Add(-grace))
		switch {
		case err != nil || !rests:
		case !all:
			left[dir] = leftover{shipped: bytes}
		default:
			if err = os.RemoveAll(dir); err == nil {
				removed++
				r.Log.InfoContext(ctx, "removed shipped logs", "org", org, "instance", instance)
			}
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("logs of instance %s: %w", instance, err))
		}
	}
	r.ship(ctx, left)
	return removed, errors.Join(errs...)
}

// ship starts Filebeat again, once for each directory, when it does not see what is left there: it has nothing to do, or
// ships others' lines and nothing of these.
func (r *Reaper) ship(ctx context.Context, left map[string]leftover) {
	before := r.left
	r.left = left
	if len(left) == 0 {
		return
	}
	patience := r.Patience
	if patience <= 0 {
		patience = 10 * time.Minute
	}
	st, err := r.Collector.Stats(ctx)
	if err != nil {
		return // it is not up: the time begins anew
	}
	var unseen []string
	for dir, l := range left {
		if was, ok := before[dir]; ok && was.shipped == l.shipped {
			l = was
		} else {
			l.since, l.acked = time.Now(), st.Acked
		}
		works := st.Active == 0 || st.Acked != l.acked // else it waits for the store
		if works && !l.restarted && time.Since(l.since) >= patience {
			l.restarted = true
			unseen = append(unseen, dir)
		}
		left[dir] = l
	}
	if len(unseen) > 0 {
		for dir, l := range left { // it is for all of them
			l.since = time.Now()
			left[dir] = l
		}
		r.Log.WarnContext(ctx, "Filebeat leaves lines of ended instances behind; it is started again", "instances", len(unseen), "one", unseen[0])
		r.Collector.Restart()
	}
}

// Cut looks once at every log, cuts those that take more than Keep, and tells how many bytes it gave back.
func (r *Reaper) Cut(ctx context.Context) (freed int64, err error) {
	if r.Keep <= 0 {
		return 0, nil
	}
	files, err := filepath.Glob(filepath.Join(r.Collector.o.LogRoot, "*", "*", "*", "*.log"))
	if err != nil {
		return 0, fmt.Errorf("list logs: %w", err)
	}
	var reg registry
	var errs []error
	for _, path := range files {
		if ctx.Err() != nil {
			break
		}
		used, err := crilog.Used(path)
		if err == nil && used > r.Keep {
			if reg == nil {
				if reg, err = r.Collector.registry(); err != nil {
					return freed, err
				}
			}
			var n int64
			n, err = reg.cut(path, r.Keep)
			if freed += n; n > 0 {
				r.Log.InfoContext(ctx, "cut a shipped log", "log", path, "bytes", n)
			}
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return freed, errors.Join(errs...)
}

// cut keeps what is not shipped, and at least so many bytes.
func (r registry) cut(path string, keep int64) (int64, error) {
	st, err := os.Stat(path)
	if err != nil {
		return 0, fmt.Errorf("look at log: %w", err)
	}
	return crilog.CutFront(path, min(r[path], st.Size()-keep))
}

// look tells whether everything below dir was last changed before, and then, whether all lines have arrived and how many bytes.
func (r registry) look(dir string, before time.Time) (rests, all bool, shipped int64, err error) {
	rests, all = true, true
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		st, err := d.Info()
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		if !st.ModTime().Before(before) {
			rests = false
			return fs.SkipAll
		}
		if !d.Type().IsRegular() || filepath.Ext(path) != ".log" {
			return nil
		}
		ok, err := r.shipped(path)
		all, shipped = all && ok, shipped+r[path]
		return err
	})
	return rests, all, shipped, err
}
