package crilog

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"cumulet.io/internal/fswatch"
)

// Options of Copy. The zero value copies the whole file.
type Options struct {
	// Tail keeps the last records only, when not nil; a piece of a long line counts as one, as in the kubelet.
	Tail *int64
	// Since leaves out records that are older.
	Since time.Time
	// LimitBytes ends the copy after so many bytes of output, when above 0.
	LimitBytes int64
	// Timestamps puts the time before each line, in TimeFormat.
	Timestamps bool
	// Follow goes on at the end of the file, as it grows, until Ended is closed and the end is reached again, or ctx
	// ends. With Ended nil only ctx ends it.
	Follow bool
	Ended  <-chan struct{}
}

// recheck is how long Follow trusts the notifications: file systems without them still make progress. blindCheck is the time
// between two looks where there are none.
const recheck, blindCheck = time.Second, 100 * time.Millisecond

// Copy writes the text of the CRI log file at path to w. Both streams go to w in the file's order. Lines that are no
// CRI record are left out, and so is the beginning of a file that was cut (CutFront). A cancelled ctx is returned as its
// error, a missing file wraps fs.ErrNotExist.
func Copy(ctx context.Context, w io.Writer, path string, o Options) error {
	path, err := filepath.EvalSymlinks(path)
	if err != nil {
		return fmt.Errorf("copy log: %w", err)
	}
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("copy log: %w", err)
	}
	c := &copier{f: f, path: path, left: -1, p: NewPrinter(w, o.Since, o.LimitBytes, o.Timestamps), o: o}
	defer func() { c.f.Close() }() //nolint:errcheck // read only
	if c.off, err = front(f); err != nil {
		return fmt.Errorf("copy log: %w", err)
	}
	if o.Tail != nil {
		if c.off, err = tailStart(f, c.off, *o.Tail); err != nil {
			return fmt.Errorf("copy log: %w", err)
		}
		if !o.Follow {
			c.left = max(*o.Tail, 0)
		}
	}
	if o.Follow {
		err = c.follow(ctx)
	} else {
		err = c.drain(ctx, true)
	}
	if errors.Is(err, ErrLimit) || errors.Is(err, errEnough) {
		return nil
	}
	return err
}

// errEnough ends a copy whose tail is complete.
var errEnough = errors.New("enough")

type copier struct {
	f    *os.File
	path string
	off  int64 // where the next record begins
	left int64 // records still to copy; below 0: all
	p    *Printer
	o    Options
	r    *bufio.Reader
}

// drain copies from off to the end of the file and leaves off behind the last whole record. A record without a newline
// at the end is copied only when last is set.
func (c *copier) drain(ctx context.Context, last bool) error {
	if _, err := c.f.Seek(c.off, io.SeekStart); err != nil {
		return fmt.Errorf("copy log: %w", err)
	}
	if c.r == nil {
		c.r = bufio.NewReaderSize(c.f, 64<<10)
	} else {
		c.r.Reset(c.f)
	}
	var long []byte
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		if c.left == 0 {
			return errEnough
		}
		line, n, err := readRecord(c.r, &long)
		if err != nil && !errors.Is(err, io.EOF) {
			return fmt.Errorf("copy log: %w", err)
		}
		if errors.Is(err, io.EOF) && (n == 0 || !last) {
			return nil
		}
		c.off += n
		e, perr := Parse(line)
		if perr == nil {
			if c.left > 0 {
				c.left--
			}
			perr = c.p.Print(e)
			if perr != nil {
				return perr
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
	}
}

// readRecord reads through the next newline. It gives at most MaxRecord bytes and the number that it passed over.
func readRecord(r *bufio.Reader, long *[]byte) (line []byte, n int64, err error) {
	line, err = r.ReadSlice('\n')
	n = int64(len(line))
	if !errors.Is(err, bufio.ErrBufferFull) {
		return line, n, err
	}
	*long = append((*long)[:0], line...)
	for errors.Is(err, bufio.ErrBufferFull) {
		line, err = r.ReadSlice('\n')
		n += int64(len(line))
		if room := MaxRecord - len(*long); room > 0 {
			*long = append(*long, line[:min(room, len(line))]...)
		}
	}
	return *long, n, err
}

// follow copies until the container has ended and the end of its file is reached.
func (c *copier) follow(ctx context.Context) error {
	check := recheck
	news, err := fswatch.Start(filepath.Dir(c.path))
	if err != nil {
		check = blindCheck
	}
	defer news.Close() //nolint:errcheck // nothing is written through it
	timer := time.NewTimer(check)
	defer timer.Stop()
	for {
		// Asked before the drain: what was written before the end is then read.
		ended := isClosed(c.o.Ended)
		if err := c.drain(ctx, ended); err != nil {
			return err
		}
		if replaced, err := c.reopen(ctx); err != nil {
			return err
		} else if replaced {
			continue
		}
		if ended {
			return nil
		}
		timer.Reset(check)
		if err := c.wait(ctx, news, timer.C); err != nil {
			return err
		}
	}
}

// wait returns when the file may have changed, the container ended, or it is time to look.
func (c *copier) wait(ctx context.Context, news *fswatch.News, look <-chan time.Time) error {
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-c.o.Ended:
			return nil
		case e := <-news.Events:
			if filepath.Base(e.Name) == filepath.Base(c.path) {
				return nil
			}
		case <-news.Errors: //nolint:errcheck // an overflown queue: look at once
			return nil
		case <-look:
			return nil
		}
	}
}

// reopen changes to a new file of the same name, as a rotation leaves it, and begins again at the start of one that
// was truncated. A name that is gone is no change: the open file still has its end.
func (c *copier) reopen(ctx context.Context) (bool, error) {
	now, err := os.Stat(c.path)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("follow log: %w", err)
	}
	old, err := c.f.Stat()
	if err != nil {
		return false, fmt.Errorf("follow log: %w", err)
	}
	if os.SameFile(old, now) {
		if now.Size() >= c.off {
			return false, nil
		}
		c.off = 0
		return true, nil
	}
	f, err := os.Open(c.path)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("follow log: %w", err)
	}
	// What was written between the last read and the rotation is still in the old file.
	if err := c.drain(ctx, true); err != nil {
		return false, errors.Join(err, f.Close())
	}
	err = c.f.Close()
	c.f, c.off = f, 0
	return true, err
}

func isClosed(ch <-chan struct{}) bool {
	select {
	case <-ch:
		return true
	default:
		return false
	}
}

// tailStart finds where the last n records from first on begin, reading backwards. A last line without newline is not
// counted.
func tailStart(f *os.File, first, n int64) (int64, error) {
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil || n < 0 {
		return first, err
	}
	buf := make([]byte, 32<<10)
	var count int64
	for right := size; right > first; {
		left := max(right-int64(len(buf)), first)
		block := buf[:right-left]
		if _, err := f.ReadAt(block, left); err != nil && !errors.Is(err, io.EOF) {
			return 0, err
		}
		for i := bytes.LastIndexByte(block, '\n'); i >= 0; i = bytes.LastIndexByte(block[:i], '\n') {
			if count++; count > n {
				return left + int64(i) + 1, nil
			}
		}
		right = left
	}
	return first, nil
}
