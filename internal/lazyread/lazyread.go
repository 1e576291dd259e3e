// Package lazyread reads content of a known size that is opened where it is read: http.ServeContent seeks to learn the
// size, and for a range reads a part alone.
package lazyread

import (
	"errors"
	"io"
)

// Seeker is content that Open gives from an offset on. It is for one goroutine. Close it.
type Seeker struct {
	Size int64
	Open func(offset int64) (io.ReadCloser, error)

	at     int64
	body   io.ReadCloser
	bodyAt int64
	err    error
}

// Opened is content of which a body is open already, from an offset on.
func Opened(size, from int64, body io.ReadCloser, open func(offset int64) (io.ReadCloser, error)) *Seeker {
	return &Seeker{Size: size, Open: open, body: body, bodyAt: from}
}

// Seek implements io.Seeker. Nothing is opened or closed by it.
func (s *Seeker) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		offset += s.at
	case io.SeekEnd:
		offset += s.Size
	}
	if offset < 0 || offset > s.Size {
		return 0, errors.New("seek outside of the content")
	}
	s.at = offset
	return offset, nil
}

// Read implements io.Reader. Content that ends before its size is io.ErrUnexpectedEOF.
func (s *Seeker) Read(p []byte) (int, error) {
	if s.at >= s.Size {
		return 0, io.EOF
	}
	if s.body != nil && s.bodyAt != s.at {
		if err := s.Close(); err != nil {
			return 0, s.fail(err)
		}
	}
	if s.body == nil {
		body, err := s.Open(s.at)
		if err != nil {
			return 0, s.fail(err)
		}
		s.body, s.bodyAt = body, s.at
	}
	n, err := s.body.Read(p)
	s.at += int64(n)
	s.bodyAt = s.at
	if errors.Is(err, io.EOF) && s.at < s.Size {
		err = io.ErrUnexpectedEOF
	}
	if err != nil && !errors.Is(err, io.EOF) {
		err = s.fail(err)
	}
	return n, err
}

func (s *Seeker) fail(err error) error {
	if s.err == nil {
		s.err = err
	}
	return err
}

// Err is the first error of reading, which http.ServeContent keeps to itself; nil when all that was read was there.
func (s *Seeker) Err() error { return s.err }

// Close implements io.Closer.
func (s *Seeker) Close() error {
	if s.body == nil {
		return nil
	}
	err := s.body.Close()
	s.body = nil
	return err
}
