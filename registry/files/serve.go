package files

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"time"

	"github.com/opencontainers/go-digest"

	"cumulet.io/internal/problem"
)

// ServeBlob answers GET and HEAD with content, or with the ranges of it that are asked for. Headers that describe it are
// set before. Content that cannot be read to its end breaks the connection off.
func ServeBlob(w http.ResponseWriter, r *http.Request, blobs Blobs, d digest.Digest, size int64, modified time.Time, log *slog.Logger) error {
	body := &lazySeeker{ctx: r.Context(), blobs: blobs, digest: d, size: size}
	defer body.Close() //nolint:errcheck // only read
	sending := &slowWriter{ResponseWriter: w, control: http.NewResponseController(w)}
	http.ServeContent(sending, r, "", modified, body)
	_ = sending.control.SetWriteDeadline(time.Time{}) //nolint:errcheck // the connection's next answer has a time of its own
	if body.err != nil {
		if r.Context().Err() == nil {
			log.ErrorContext(r.Context(), "content is broken off", "digest", d, "error", body.err)
		}
		// The client must not take what it has for the whole.
		panic(http.ErrAbortHandler)
	}
	return nil
}

// IsSlow tells whether err is that of a client which has sent nothing for too long.
func IsSlow(err error) bool { return errors.Is(err, errSlow) }

// stall is how long a client may send or take nothing.
const stall = time.Minute

var errSlow = errors.New("the client has sent nothing for a minute")

// SlowBody is a request's body whose client must go on sending, so that none holds a connection for ever.
func SlowBody(w http.ResponseWriter, r *http.Request) io.Reader {
	return &slowReader{r.Body, http.NewResponseController(w)}
}

type slowReader struct {
	r       io.Reader
	control *http.ResponseController
}

// Read implements io.Reader.
func (s *slowReader) Read(p []byte) (int, error) {
	_ = s.control.SetReadDeadline(time.Now().Add(stall)) //nolint:errcheck // where it is not to be had, the server's own holds
	n, err := s.r.Read(p)
	var timeout interface{ Timeout() bool }
	if errors.As(err, &timeout) && timeout.Timeout() {
		err = errSlow
	}
	if errors.Is(err, io.EOF) {
		_ = s.control.SetReadDeadline(time.Time{}) //nolint:errcheck // as above
	}
	return n, err
}

type slowWriter struct {
	http.ResponseWriter
	control *http.ResponseController
	refused bool
}

// WriteHeader implements http.ResponseWriter. The refusal of a range is a problem here too.
func (s *slowWriter) WriteHeader(status int) {
	if status != http.StatusRequestedRangeNotSatisfiable {
		s.ResponseWriter.WriteHeader(status)
		return
	}
	s.refused = true
	s.Header().Set("Content-Type", "application/problem+json")
	s.Header().Del("Content-Length")
	s.ResponseWriter.WriteHeader(status)
	d := problem.Document{Type: "about:blank", Title: "Range not satisfiable", Status: status, Detail: "the file has no such range; Content-Range has its size", Field: "Range"}
	_ = json.NewEncoder(s.ResponseWriter).Encode(d) //nolint:errcheck // the client has gone
}

// Write implements io.Writer.
func (s *slowWriter) Write(p []byte) (int, error) {
	if s.refused {
		return len(p), nil
	}
	_ = s.control.SetWriteDeadline(time.Now().Add(stall)) //nolint:errcheck // as above
	return s.ResponseWriter.Write(p)
}

// lazySeeker opens content where it is first read, so that a range costs what it holds.
type lazySeeker struct {
	//nolint:containedctx // a reader takes none
	ctx    context.Context
	blobs  Blobs
	digest digest.Digest
	size   int64
	at     int64
	open   io.ReadCloser
	err    error
}

// Seek implements io.Seeker.
func (s *lazySeeker) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		offset += s.at
	case io.SeekEnd:
		offset += s.size
	}
	if offset < 0 || offset > s.size {
		return 0, errors.New("seek outside of the content")
	}
	if offset != s.at {
		if err := s.Close(); err != nil {
			return 0, err
		}
	}
	s.at = offset
	return offset, nil
}

// Read implements io.Reader.
func (s *lazySeeker) Read(p []byte) (int, error) {
	if s.at >= s.size {
		return 0, io.EOF
	}
	if s.open == nil {
		if s.open, s.err = s.blobs.Open(s.ctx, s.digest, s.at); s.err != nil {
			return 0, s.err
		}
	}
	n, err := s.open.Read(p)
	s.at += int64(n)
	if errors.Is(err, io.EOF) && s.at < s.size {
		err = io.ErrUnexpectedEOF
	}
	if err != nil && !errors.Is(err, io.EOF) {
		s.err = err
	}
	return n, err
}

// Close implements io.Closer.
func (s *lazySeeker) Close() error {
	if s.open == nil {
		return nil
	}
	err := s.open.Close()
	s.open = nil
	return err
}
