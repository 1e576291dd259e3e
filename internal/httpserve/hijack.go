package httpserve

import (
	"bufio"
	"io"
	"net"
	"net/http"
)

// Hijack is here for libraries that assert http.Hijacker: the stream protocols take over the connection.
func (w *statusWriter) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	if w.status == 0 {
		w.status = http.StatusSwitchingProtocols
	}
	return http.NewResponseController(w.ResponseWriter).Hijack() //nolint:wrapcheck // a pass-through
}

func copyTo(w http.ResponseWriter, r io.Reader) (int64, error) {
	if rf, ok := w.(io.ReaderFrom); ok {
		return rf.ReadFrom(r) //nolint:wrapcheck // a pass-through
	}
	return io.Copy(struct{ io.Writer }{w}, r) //nolint:wrapcheck // a pass-through
}
