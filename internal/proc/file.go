package proc

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
)

// File is a log file of bounded size: at MaxBytes it is renamed to NAME.1, an
// older NAME.1 to NAME.2 and so on, and at most Keep old ones stay. It is safe
// for concurrent use.
type File struct {
	path     string
	maxBytes int64
	keep     int

	mu   sync.Mutex
	f    *os.File
	size int64
}

// OpenFile opens or makes the file, readable by its owner only, and appends to
// it. The disk it may use is about (keep+1) * maxBytes.
func OpenFile(path string, maxBytes int64, keep int) (*File, error) {
	if maxBytes <= 0 || keep < 0 {
		return nil, fmt.Errorf("open %s: maxBytes %d and keep %d: want at least 1 and 0", path, maxBytes, keep)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	l := &File{path: path, maxBytes: maxBytes, keep: keep}
	if err := l.open(); err != nil {
		return nil, err
	}
	return l, nil
}

func (l *File) open() error {
	f, err := os.OpenFile(l.path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	info, err := f.Stat()
	if err != nil {
		return errors.Join(err, f.Close())
	}
	l.f, l.size = f, info.Size()
	return nil
}

// Write appends b, whole, to one file.
func (l *File) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.f == nil {
		return 0, os.ErrClosed
	}
	if l.size > 0 && l.size+int64(len(b)) > l.maxBytes {
		if err := l.rotate(); err != nil {
			return 0, fmt.Errorf("rotate %s: %w", l.path, err)
		}
	}
	n, err := l.f.Write(b)
	l.size += int64(n)
	return n, err
}

// rotate begins a new file. Where that fails the old one is emptied: for a log,
// the bound matters more than the lines.
func (l *File) rotate() error {
	old := l.f
	err := l.shift()
	if err == nil {
		err = l.open()
	}
	if err != nil {
		l.size = 0
		return old.Truncate(0)
	}
	return old.Close()
}

// shift renames NAME to NAME.1, NAME.1 to NAME.2 and so on; the last one goes.
func (l *File) shift() error {
	if l.keep == 0 {
		return os.Remove(l.path)
	}
	for i := l.keep; i > 0; i-- {
		from := l.path
		if i > 1 {
			from = fmt.Sprintf("%s.%d", l.path, i-1)
		}
		err := os.Rename(from, fmt.Sprintf("%s.%d", l.path, i))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
}

// Trim bounds a log that another process appends to, and may go on appending to
// while this one is gone: when it is longer than maxBytes, it becomes NAME.1 and
// is emptied, as File does it. Lines that are written meanwhile may be lost.
func Trim(path string, maxBytes int64, keep int) error {
	st, err := os.Stat(path)
	if err != nil || st.Size() <= maxBytes {
		return err
	}
	for i := keep - 1; i > 0; i-- {
		err := os.Rename(fmt.Sprintf("%s.%d", path, i), fmt.Sprintf("%s.%d", path, i+1))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	if keep > 0 {
		if err := copyFile(path, path+".1"); err != nil {
			return err
		}
	}
	return os.Truncate(path, 0)
}

func copyFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

// Close ends the writing; a later Write is an error. Closing twice is fine.
func (l *File) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.f == nil {
		return nil
	}
	err := l.f.Close()
	l.f = nil
	return err
}
