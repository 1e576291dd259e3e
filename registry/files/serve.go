package files

import (
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"time"

	"github.com/opencontainers/go-digest"

	"cumulet.io/internal/lazyread"
	"cumulet.io/internal/problem"
	"cumulet.io/internal/slowbody"
)

// ServeBlob answers GET and HEAD with content, or with the ranges of it that are asked for. Headers that describe it are
// set before. Content that cannot be read to its end breaks the connection off.
func ServeBlob(w http.ResponseWriter, r *http.Request, blobs Blobs, d digest.Digest, size int64, modified time.Time, log *slog.Logger) error {
	body := &lazyread.Seeker{Size: size, Open: func(offset int64) (io.ReadCloser, error) { return blobs.Open(r.Context(), d, offset) }}
	defer body.Close() //nolint:errcheck // only read
	sending := &slowWriter{ResponseWriter: w, control: http.NewResponseController(w)}
	http.ServeContent(sending, r, "", modified, body)
	_ = sending.control.SetWriteDeadline(time.Time{}) //nolint:errcheck // the connection's next answer has a time of its own
	if body.Err() != nil {
		if r.Context().Err() == nil {
			log.ErrorContext(r.Context(), "content is broken off", "digest", d, "error", body.Err())
		}
		// The client must not take what it has for the whole.
		panic(http.ErrAbortHandler)
	}
	return nil
}

// stall is how long a client may take nothing, and how long the slowest may send slowbody.Least.
const stall = time.Minute

// SlowBody is a request's body whose client must go on sending, so that none holds a connection for ever.
func SlowBody(w http.ResponseWriter, r *http.Request) io.Reader {
	return slowbody.Reader(w, r, stall)
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
