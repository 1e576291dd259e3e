// Package slowbody cuts off request bodies that come so slowly that they hold a connection, and what hangs on it, for
// their own sake.
//
// It is for bodies that may be long: a short one has a time of its own.
package slowbody

import (
	"errors"
	"io"
	"net/http"
	"os"
	"time"
)

// Least must come within the patience, again and again.
const Least = 32 << 10

// ErrSlow is of a body that was cut off, beside the connection's own error.
var ErrSlow = errors.New("the body comes too slowly")

type reader struct {
	io.ReadCloser
	control  *http.ResponseController
	patience time.Duration
	since    time.Time
	bytes    int
}

// Reader gives the body of r, which ends with ErrSlow when Least of its bytes take longer than patience. Where the
// connection takes no deadline, as that of a recorder, it never does.
func Reader(w http.ResponseWriter, r *http.Request, patience time.Duration) io.ReadCloser {
	return &reader{ReadCloser: r.Body, control: http.NewResponseController(w), patience: patience, bytes: Least}
}

// Read implements io.Reader.
func (s *reader) Read(p []byte) (int, error) {
	if s.bytes >= Least {
		s.bytes = 0
		if now := time.Now(); now.Sub(s.since) > s.patience/8 {
			s.since = now
			_ = s.control.SetReadDeadline(now.Add(s.patience)) //nolint:errcheck // see Reader
		}
	}
	n, err := s.ReadCloser.Read(p)
	s.bytes += n
	switch {
	case errors.Is(err, io.EOF):
		_ = s.control.SetReadDeadline(time.Time{}) //nolint:errcheck // see Reader
	case errors.Is(err, os.ErrDeadlineExceeded):
		err = errors.Join(ErrSlow, err)
	}
	return n, err
}
