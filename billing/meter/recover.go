package meter

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sort"

	"cumulet.io/billing"
)

const checkpointName = "checkpoint"

// header is the checkpoint's first line; the last event of each life follows, a line each.
type header struct {
	Version int `json:"version"`
	// Covered are the files whose events are all in the checkpoint.
	Covered []string `json:"covered"`
}

// recover reads the checkpoint and every file that it does not cover, cuts torn ends, and writes a new checkpoint.
func (w *Writer) recover() error {
	covered, err := w.readCheckpoint()
	if err != nil {
		return err
	}
	paths, err := filepath.Glob(filepath.Join(w.dir, "meter-*.ndjson"))
	if err != nil {
		return err
	}
	sort.Strings(paths)
	for _, path := range paths {
		if !covered[filepath.Base(path)] {
			if err := w.replay(path); err != nil {
				return fmt.Errorf("read %s: %w", filepath.Base(path), err)
			}
		}
		w.sealed[path] = true
	}
	return w.checkpoint()
}

func (w *Writer) readCheckpoint() (map[string]bool, error) {
	covered := map[string]bool{}
	f, err := os.Open(filepath.Join(w.dir, checkpointName))
	if errors.Is(err, os.ErrNotExist) {
		return covered, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close() //nolint:errcheck // only read from
	r := bufio.NewReaderSize(f, 64<<10)
	first, err := r.ReadBytes('\n')
	if err != nil {
		return nil, fmt.Errorf("read checkpoint: %w", err)
	}
	var h header
	if err := json.Unmarshal(first, &h); err != nil {
		return nil, fmt.Errorf("read checkpoint: %w", err)
	}
	if h.Version != 1 {
		return nil, fmt.Errorf("read checkpoint: version %d is not known here", h.Version)
	}
	for _, name := range h.Covered {
		covered[name] = true
	}
	_, err = eachLine(r, func(text []byte) error {
		ev, err := billing.DecodeEvent(text)
		if err != nil {
			return fmt.Errorf("read checkpoint: %w", err)
		}
		w.learn(ev)
		return nil
	})
	return covered, err
}

// replay learns from one file and cuts a torn last line.
func (w *Writer) replay(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // only read from
	st, err := f.Stat()
	if err != nil {
		return err
	}
	whole, err := eachLine(bufio.NewReaderSize(f, 64<<10), func(text []byte) error {
		ev, err := billing.DecodeEvent(text)
		if err != nil {
			w.opts.Logger.Warn("a line of a meter file is not an event", "path", path, "error", err.Error())
			return nil
		}
		w.learn(ev)
		return nil
	})
	if err != nil || whole == st.Size() {
		return err
	}
	w.opts.Logger.Warn("torn end of a meter file cut off", "path", path, "bytes", st.Size()-whole)
	return w.opts.files.Truncate(path, whole)
}

// learn takes an event into the state if it is later than what is known.
func (w *Writer) learn(ev billing.Event) {
	l := w.lives[ev.Instance]
	if l == nil {
		l = &life{}
		w.lives[ev.Instance] = l
	}
	if ev.Incarnation > l.last.Incarnation || ev.Incarnation == l.last.Incarnation && ev.Sequence >= l.last.Sequence {
		l.last = ev
	}
}

// eachLine calls f with every line that ends with a newline and returns how many bytes they are. A line longer than
// the reader's buffer is given in part, which no decoder takes.
func eachLine(r *bufio.Reader, f func([]byte) error) (int64, error) {
	var whole, pending int64
	var long bool
	for {
		text, err := r.ReadSlice('\n')
		pending += int64(len(text))
		switch {
		case errors.Is(err, bufio.ErrBufferFull):
			long = true
			continue
		case errors.Is(err, io.EOF):
			return whole, nil
		case err != nil:
			return whole, err
		}
		whole += pending
		pending = 0
		if long {
			text, long = []byte("line too long"), false
		}
		if err := f(bytes.TrimSuffix(text, []byte("\n"))); err != nil {
			return whole, err
		}
	}
}

// checkpoint stores the last event of every life and which files it covers. Everything must be durable in the files:
// syncMu and mu are held and nothing is unsynced.
func (w *Writer) checkpoint() error {
	wall, _ := w.opts.Clock.Now()
	h := header{Version: 1, Covered: make([]string, 0, len(w.sealed))}
	for path := range w.sealed {
		h.Covered = append(h.Covered, filepath.Base(path))
	}
	sort.Strings(h.Covered)
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	if err := enc.Encode(h); err != nil {
		return fmt.Errorf("write checkpoint: %w", err)
	}
	ids := make([]string, 0, len(w.lives))
	for id, l := range w.lives {
		if l.last.Kind == billing.EventStopped && wall.Sub(l.last.Time) > w.opts.KeepStopped {
			delete(w.lives, id)
			continue
		}
		ids = append(ids, id)
	}
	sort.Strings(ids)
	for _, id := range ids {
		text, err := w.lives[id].last.Encode()
		if err != nil {
			return fmt.Errorf("write checkpoint: %w", err)
		}
		b.Write(text)
		b.WriteByte('\n')
	}
	return replace(w.opts.files, w.dir, filepath.Join(w.dir, checkpointName), b.Bytes())
}

// Prune removes files that this process does not write to any more and that shipped confirms to be shipped to their
// end; empty ones go without asking. What the meter needs of them is in the checkpoint first. It returns how many went.
func (w *Writer) Prune(shipped func(path string) bool) (int, error) {
	w.syncMu.Lock()
	defer w.syncMu.Unlock()
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return 0, ErrClosed
	}
	w.rotate()
	var gone []string
	for path := range w.sealed {
		st, err := os.Stat(path)
		if errors.Is(err, os.ErrNotExist) {
			delete(w.sealed, path)
			continue
		}
		if err != nil {
			return 0, fmt.Errorf("prune meter files: %w", err)
		}
		if st.Size() == 0 || shipped(path) {
			gone = append(gone, path)
		}
	}
	if len(gone) == 0 {
		return 0, nil
	}
	if err := w.settle(); err != nil {
		return 0, fmt.Errorf("prune meter files: %w", err)
	}
	if err := w.checkpoint(); err != nil {
		return 0, fmt.Errorf("prune meter files: %w", err)
	}
	sort.Strings(gone)
	for i, path := range gone {
		if err := w.opts.files.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return i, fmt.Errorf("prune meter files: %w", err)
		}
		delete(w.sealed, path)
	}
	return len(gone), w.opts.files.SyncDir(w.dir)
}
