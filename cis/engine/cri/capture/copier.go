package capture

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// maxBatch is how much output becomes records at a time, bytes.
	maxBatch = 64 << 10
	// maxBatches bounds one call of copy, so that no stream waits long for the other.
	maxBatches = 16
	// punchAt is how much copied output may stay in a file before its space is given back, and punchKeep how much of it
	// stays then, for those who are attached and a little behind.
	punchAt, punchKeep = 4 << 20, 1 << 20
	// stale is how old the last output may be to get the time of being copied.
	stale = time.Second
)

// Copier copies the output of one run of a container into its log. Its methods may be called by several goroutines.
type Copier struct {
	dir, log string
	kick     chan struct{} // something was written
	blind    atomic.Bool   // nobody tells when
	damaged  bool          // the journal was found unreadable

	mu      sync.Mutex
	order   []int // streams in the order in which they were written
	raw     [2]*os.File
	punched [2]int64
	out     *os.File
	state   *os.File
	j       journal
	size    int64 // of out
	sound   bool  // the log and j are known to agree
	closed  bool
}

// Open opens what Prepare made in dir, to be copied to the end of the file log; an earlier copy is gone on with. There
// must be one Copier at a time. An error that wraps os.ErrNotExist means that nothing is there to be copied.
func Open(dir, log string) (*Copier, error) {
	c := &Copier{dir: dir, log: log, kick: make(chan struct{}, 1)}
	if err := c.open(); err != nil {
		return nil, errors.Join(fmt.Errorf("open output: %w", err), c.close())
	}
	return c, nil
}

func (c *Copier) open() (err error) {
	for i, s := range streams() {
		if c.raw[i], err = os.Open(filepath.Join(c.dir, string(s))); err != nil {
			return err
		}
	}
	if err = os.MkdirAll(filepath.Dir(c.log), 0o755); err != nil {
		return err
	}
	if c.out, err = os.OpenFile(c.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o640); err != nil {
		return err
	}
	if c.state, err = os.OpenFile(filepath.Join(c.dir, "journal"), os.O_CREATE|os.O_RDWR, 0o600); err != nil {
		return err
	}
	return c.recover()
}

// recover makes the log and the journal agree: a batch that is not whole in the log is completed.
func (c *Copier) recover() error {
	st, err := c.out.Stat()
	if err != nil {
		return err
	}
	c.size = st.Size()
	b := make([]byte, journalSize+1)
	n, err := c.state.ReadAt(b, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if n == 0 {
		c.j, c.sound = journal{}, true // nothing has been copied
		return nil
	}
	j, err := decodeJournal(b[:n])
	if err != nil {
		// Only a machine that lost its power leaves it so; then nothing is known but that the past is over.
		for i, f := range c.raw {
			st, err := f.Stat()
			if err != nil {
				return err
			}
			c.j.Done[i] = st.Size()
		}
		c.damaged, c.sound = true, true
		return nil
	}
	c.j = *j
	raw := make([]byte, j.N)
	if _, err := io.ReadFull(io.NewSectionReader(c.raw[j.Stream], j.Done[j.Stream], j.N), raw); err != nil {
		return fmt.Errorf("read output: %w", err)
	}
	records, _ := appendRecords(nil, raw, streams()[j.Stream], time.Unix(0, j.At), true)
	have := min(max(c.size-j.From, 0), int64(len(records)))
	if err := c.append(records[have:]); err != nil {
		return err
	}
	c.j.Done[j.Stream] += j.N
	c.sound = true
	return nil
}

func (c *Copier) append(b []byte) error {
	n, err := c.out.Write(b)
	c.size += int64(n)
	if err != nil {
		return fmt.Errorf("write log: %w", err)
	}
	return nil
}

// note tells that a stream was written to; others may have been.
func (c *Copier) note(stream int) {
	c.mu.Lock()
	if n := len(c.order); n < 64 && (n == 0 || c.order[n-1] != stream) {
		c.order = append(c.order, stream)
	}
	c.mu.Unlock()
	select {
	case c.kick <- struct{}{}:
	default:
	}
}

// copy copies what is there to be copied, and tells whether it has left something for the next call. With flush, a line
// without an end is copied as well.
func (c *Copier) copy(flush bool) (more bool, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return false, os.ErrClosed
	}
	if !c.sound {
		if err := c.recover(); err != nil {
			return false, err
		}
	}
	c.sound = false // until it has gone well
	order := slices.Concat(c.order, []int{0, 1})
	c.order = c.order[:0]
	for batches := 0; len(order) > 0; {
		n, err := c.batch(order[0], flush)
		if err != nil {
			return false, err
		}
		if n == 0 {
			order = order[1:]
		} else if batches++; batches == maxBatches {
			more = true
			break
		}
	}
	c.sound = true
	return more, c.punch()
}

// batch copies one batch of a stream and gives its size.
func (c *Copier) batch(stream int, flush bool) (int, error) {
	st, err := c.raw[stream].Stat()
	if err != nil {
		return 0, err
	}
	left := st.Size() - c.j.Done[stream]
	if left <= 0 {
		return 0, nil
	}
	raw := make([]byte, min(left, maxBatch))
	if _, err := io.ReadFull(io.NewSectionReader(c.raw[stream], c.j.Done[stream], int64(len(raw))), raw); err != nil {
		return 0, fmt.Errorf("read output: %w", err)
	}
	at := time.Now()
	if at.Sub(st.ModTime()) > stale {
		at = st.ModTime() // nobody was there to copy it when it came
	}
	if last := time.Unix(0, c.j.At); at.Before(last) {
		at = last // a log goes forward
	}
	records, n := appendRecords(make([]byte, 0, len(raw)+len(raw)/2+128), raw, streams()[stream], at, flush && left <= maxBatch)
	if n == 0 {
		return 0, nil
	}
	j := c.j
	j.Stream, j.N, j.At, j.From, j.To = int64(stream), int64(n), at.UnixNano(), c.size, c.size+int64(len(records))
	if _, err := c.state.WriteAt(j.encode(), 0); err != nil {
		return 0, fmt.Errorf("write journal: %w", err)
	}
	if err := c.append(records); err != nil {
		return 0, err
	}
	c.j = j
	c.j.Done[stream] += int64(n)
	return n, nil
}

// punch gives back the space of what has been copied.
func (c *Copier) punch() error {
	for i, f := range c.raw {
		if c.j.Done[i]-c.punched[i] < punchAt {
			continue
		}
		upTo := c.j.Done[i] - punchKeep
		w, err := os.OpenFile(f.Name(), os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		err = unix.Fallocate(int(w.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, upTo)
		if errors.Is(err, unix.EOPNOTSUPP) {
			err = nil // then it stays until the container ends
		}
		c.punched[i] = upTo
		if err = errors.Join(err, w.Close()); err != nil {
			return fmt.Errorf("give space back: %w", err)
		}
	}
	return nil
}

// idle tells that nobody can write to the container's output any more.
func (c *Copier) idle() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, f := range c.raw {
		if c.closed {
			return true
		}
		// The kernel grants a read lease only on a file that is open for writing nowhere.
		if _, err := unix.FcntlInt(f.Fd(), unix.F_SETLEASE, unix.F_RDLCK); errors.Is(err, unix.EAGAIN) {
			return false
		} else if err == nil {
			if _, err := unix.FcntlInt(f.Fd(), unix.F_SETLEASE, unix.F_UNLCK); err != nil {
				return true
			}
		}
	}
	return true
}

// Close ends the copying; what is not copied stays for the next Open.
func (c *Copier) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.close()
}

func (c *Copier) close() error {
	if c.closed {
		return nil
	}
	c.closed = true
	var errs []error
	for _, f := range []*os.File{c.raw[0], c.raw[1], c.out, c.state} {
		if f != nil {
			errs = append(errs, f.Close())
		}
	}
	return errors.Join(errs...)
}
