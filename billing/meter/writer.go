// Package meter writes a node's meter events: the lines that every bill is made from.
//
// The events are NDJSON in a directory of their own, which a log shipper reads. The files are the truth: a restart
// reads them (and a checkpoint of those that were removed) and goes on counting where the last event stands. A file
// is appended to by one process only and never after a fault: after a kill -9 or a failed write a new file begins, and
// what is torn at the end of the old one is cut off. So a shipper that holds half a line can never join it to another.
// File names are never used again, because shippers remember places by name.
//
// The package knows nothing of containers or of prices, and does not ship.
package meter

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"cumulet.io/billing"
)

// Errors of the package; test with errors.Is.
var (
	// ErrClosed: the Writer was closed.
	ErrClosed = errors.New("the meter writer is closed")
	// ErrLocked: another process writes into the directory.
	ErrLocked = errors.New("another process meters into this directory")
	// ErrEnded: the life of the instance was stopped; it does not begin again.
	ErrEnded = errors.New("the instance's life has ended")
	// ErrMismatch: the subject contradicts what the instance's life began with.
	ErrMismatch = errors.New("the subject differs from the one that the meter started with")
	// ErrInvalid: the subject cannot be written as an event.
	ErrInvalid = errors.New("the subject of the meter is not valid")
)

// Defaults of Options.
const (
	DefaultMaxFileBytes = 64 << 20
	DefaultKeepStopped  = 7 * 24 * time.Hour
	maxBacklog          = 10_000
)

// Options configures a Writer. The zero value is good.
type Options struct {
	// Clock is the node's; nil means SystemClock.
	Clock Clock
	// Logger gets warnings; nil means slog.Default.
	Logger *slog.Logger
	// Heartbeat is how often a live meter appends an event; 0 means billing.HeartbeatInterval.
	Heartbeat time.Duration
	// Evidence is until when (wall clock) the instances with a live meter are known to have lived; nil means now. A
	// heartbeat tells no more than that: an end that is learned of later than it happened is then never before it.
	Evidence func() time.Time
	// MaxFileBytes begins a new file above it; 0 means DefaultMaxFileBytes. A new UTC day begins one too.
	MaxFileBytes int64
	// KeepStopped is how long an ended life is remembered, so that a late Start of it makes no second one; 0 means
	// DefaultKeepStopped.
	KeepStopped time.Duration

	files filesystem
}

// Writer writes the meter events of one node. Safe for concurrent use.
type Writer struct {
	dir  string
	opts Options
	lock *os.File

	// syncMu is held while the file is synced, exchanged or a checkpoint is made; taken before mu.
	syncMu sync.Mutex
	// mu guards everything below.
	mu     sync.Mutex
	lives  map[string]*life
	closed bool

	current  file
	path     string
	day      string
	size     int64 // bytes written to current
	durable  int64 // bytes of current that are synced
	broken   bool  // current must not be written any more
	unsynced []line
	written  uint64 // lines made
	synced   uint64 // lines durable
	sealed   map[string]bool
	torn     map[string]int64
}

// line is an event's bytes with its newline, kept until it is durable.
type line struct {
	n    uint64
	text []byte
}

// life is an instance's meter state: its last event, from which everything goes on.
type life struct {
	last billing.Event
	// attached: this process vouches for the instance, so time since last counts.
	attached bool
}

// Open takes the directory (made when missing), repairs what a crash left and reads the state of all lives.
// No event is written until Start. It fails with ErrLocked while another process has it.
func Open(dir string, opts Options) (*Writer, error) {
	if opts.Clock == nil {
		c, err := SystemClock()
		if err != nil {
			return nil, fmt.Errorf("open meter: %w", err)
		}
		opts.Clock = c
	}
	if opts.Logger == nil {
		opts.Logger = slog.Default()
	}
	if opts.Heartbeat <= 0 {
		opts.Heartbeat = billing.HeartbeatInterval
	}
	if opts.MaxFileBytes <= 0 {
		opts.MaxFileBytes = DefaultMaxFileBytes
	}
	if opts.KeepStopped <= 0 {
		opts.KeepStopped = DefaultKeepStopped
	}
	if opts.files == nil {
		opts.files = osFiles{}
	}
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return nil, fmt.Errorf("open meter: %w", err)
	}
	lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open meter: %w", err)
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) {
			err = ErrLocked
		}
		return nil, errors.Join(fmt.Errorf("open meter %s: %w", dir, err), lock.Close())
	}
	w := &Writer{dir: dir, opts: opts, lock: lock,
		lives: map[string]*life{}, sealed: map[string]bool{}, torn: map[string]int64{}}
	if err := w.recover(); err != nil {
		return nil, errors.Join(fmt.Errorf("open meter %s: %w", dir, err), lock.Close())
	}
	return w, nil
}

// Close makes everything durable and gives the directory free. Lives go on when it is opened again.
func (w *Writer) Close() error {
	w.syncMu.Lock()
	defer w.syncMu.Unlock()
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return nil
	}
	w.closed = true
	err := w.settle()
	if err == nil {
		err = w.checkpoint()
	}
	if w.current != nil {
		err = errors.Join(err, w.current.Close())
		w.current = nil
	}
	return errors.Join(err, w.lock.Close())
}

// append makes an event and writes it; mu is held. The event stands from now on: when the write fails it is kept and
// written to a new file by the flush that must follow.
func (w *Writer) append(l *life, ev billing.Event) error {
	if w.closed {
		return ErrClosed
	}
	if len(w.unsynced) >= maxBacklog {
		return fmt.Errorf("%d events wait for the disk", len(w.unsynced))
	}
	ev.ID = billing.EventID(ev.Instance, ev.Incarnation, ev.Sequence)
	if err := ev.Validate(); err != nil {
		return err
	}
	text, err := ev.Encode()
	if err != nil {
		return err
	}
	text = append(text, '\n')
	w.written++
	w.unsynced = append(w.unsynced, line{n: w.written, text: text})
	l.last = ev
	if w.broken {
		return nil
	}
	if w.current == nil {
		if err := w.begin(); err != nil {
			w.fault(err)
			return nil
		}
	}
	n, err := w.current.Write(text)
	w.size += int64(n)
	if err != nil {
		w.fault(err)
	}
	return nil
}

// begin opens a new file; mu is held.
func (w *Writer) begin() error {
	wall, _ := w.opts.Clock.Now()
	var tag [6]byte
	if _, err := rand.Read(tag[:]); err != nil {
		return err
	}
	day := wall.UTC().Format("20060102")
	path := filepath.Join(w.dir, fmt.Sprintf("meter-%s-%s-%s.ndjson", day, wall.UTC().Format("150405"), hex.EncodeToString(tag[:])))
	f, err := w.opts.files.Create(path)
	if err != nil {
		return err
	}
	if err := w.opts.files.SyncDir(w.dir); err != nil {
		w.torn[path] = 0
		return errors.Join(err, f.Close())
	}
	w.current, w.path, w.day, w.size, w.durable = f, path, day, 0, 0
	return nil
}

// fault gives the current file up; mu is held.
func (w *Writer) fault(err error) {
	w.broken = true
	w.opts.Logger.Warn("meter file given up after a fault", "path", w.path, "error", err.Error())
}

// flush makes line n durable. Callers that come together share one sync.
func (w *Writer) flush(n uint64) error {
	w.syncMu.Lock()
	defer w.syncMu.Unlock()
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.synced >= n {
		return nil
	}
	if !w.broken {
		f, target, size := w.current, w.written, w.size
		w.mu.Unlock()
		err := f.Sync()
		w.mu.Lock()
		if err == nil {
			w.settled(target, size)
			w.rotate()
			return nil
		}
		w.fault(err)
	}
	return w.settle()
}

// settled notes that all lines up to target are durable; mu is held.
func (w *Writer) settled(target uint64, size int64) {
	w.synced, w.durable = target, size
	i := 0
	for i < len(w.unsynced) && w.unsynced[i].n <= target {
		i++
	}
	w.unsynced = append([]line(nil), w.unsynced[i:]...)
}

// settle makes every line durable, in a new file when the current one is broken; syncMu and mu are held.
func (w *Writer) settle() error {
	if !w.broken {
		if w.synced == w.written {
			return nil
		}
		err := w.current.Sync()
		if err == nil {
			w.settled(w.written, w.size)
			return nil
		}
		w.fault(err)
	}
	if w.current != nil {
		w.torn[w.path] = w.durable
		if err := w.current.Close(); err != nil {
			w.opts.Logger.Warn("close of a faulty meter file", "path", w.path, "error", err.Error())
		}
		w.current = nil
	}
	if err := w.begin(); err != nil {
		return fmt.Errorf("begin meter file: %w", err)
	}
	for _, l := range w.unsynced {
		n, err := w.current.Write(l.text)
		w.size += int64(n)
		if err != nil {
			return fmt.Errorf("write meter events again: %w", err)
		}
	}
	if err := w.current.Sync(); err != nil {
		return fmt.Errorf("write meter events again: %w", err)
	}
	w.settled(w.written, w.size)
	w.broken = false
	w.mend()
	return nil
}

// mend cuts given-up files to what was durable in them, now that the rest is durable elsewhere; mu is held.
func (w *Writer) mend() {
	for path, size := range w.torn {
		err := w.opts.files.Truncate(path, size)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			w.opts.Logger.Warn("meter file not mended; the next start does it", "path", path, "error", err.Error())
		}
		delete(w.torn, path)
		w.sealed[path] = true
	}
}

// rotate ends the current file when it is full or of another day; syncMu and mu are held.
func (w *Writer) rotate() {
	wall, _ := w.opts.Clock.Now()
	if w.current == nil || w.broken || w.synced != w.written || w.size < w.opts.MaxFileBytes && w.day == wall.UTC().Format("20060102") {
		return
	}
	if err := w.current.Close(); err != nil {
		w.opts.Logger.Warn("close of a meter file", "path", w.path, "error", err.Error())
	}
	w.sealed[w.path] = true
	w.current = nil
}
