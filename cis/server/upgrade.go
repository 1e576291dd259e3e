package server

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"cumulet.io/internal/problem"
)

// hijackWatch is a ResponseWriter whose connection, once it is taken over, ends a context when the client goes: net/http
// watches no connection that was taken over, and a command must not outlive the one who asked for it.
type hijackWatch struct {
	http.ResponseWriter
	gone context.CancelFunc
}

// Unwrap serves http.ResponseController.
func (h *hijackWatch) Unwrap() http.ResponseWriter { return h.ResponseWriter }

// Hijack implements http.Hijacker. What net/http has read ahead stays readable.
func (h *hijackWatch) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, rw, err := http.NewResponseController(h.ResponseWriter).Hijack()
	if err != nil {
		return nil, nil, err
	}
	// The server's deadlines are for requests, not for what the connection becomes.
	if err := conn.SetDeadline(time.Time{}); err != nil {
		return nil, nil, err
	}
	watched := &watchedConn{Conn: conn, gone: h.gone}
	var r io.Reader = watched
	if n := rw.Reader.Buffered(); n > 0 {
		ahead, err := rw.Reader.Peek(n)
		if err != nil {
			return nil, nil, err
		}
		r = io.MultiReader(bytes.NewReader(bytes.Clone(ahead)), watched)
	}
	return watched, bufio.NewReadWriter(bufio.NewReader(r), bufio.NewWriter(watched)), nil
}

type watchedConn struct {
	net.Conn
	gone context.CancelFunc
}

// CloseWrite ends the direction to the client.
func (c *watchedConn) CloseWrite() error {
	if cw, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return cw.CloseWrite()
	}
	return errors.ErrUnsupported
}

func (c *watchedConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if err != nil {
		c.gone()
	}
	return n, err
}

// halfClosed is how long a forwarded connection of which one direction has ended may be silent in the other.
const halfClosed = time.Minute

// portForward turns the connection into one to a port of the instance: HTTP/1.1 Upgrade to "tcp", then bytes.
func (s *server) portForward(w http.ResponseWriter, r *http.Request) error {
	q := query(r, "port")
	port := q.Number("port", 1, 65535)
	switch {
	case q.Err() != nil:
		return q.Err()
	case port == nil:
		return problem.Invalid("port", "must be given", "")
	case r.ProtoMajor != 1 || !strings.EqualFold(r.Header.Get("Upgrade"), "tcp") || !hasToken(r.Header["Connection"], "upgrade"):
		return problem.New(problem.ErrInvalid, `this call needs HTTP/1.1 and the header fields "Connection: Upgrade" and "Upgrade: tcp"`)
	}
	target, err := s.svc.PortForward(r.Context(), r.PathValue("org"), r.PathValue("id"), uint16(*port)) //nolint:gosec // bounded above
	if err != nil {
		return err
	}
	defer target.Close() //nolint:errcheck // nothing is left to be told
	// Not net/http's own reader: it ends the request's context when the client has ended its direction.
	conn, rw, err := (&hijackWatch{ResponseWriter: w, gone: func() {}}).Hijack()
	if err != nil {
		return problem.New(problem.ErrInvalid, "this connection cannot be upgraded")
	}
	defer conn.Close() //nolint:errcheck // nothing is left to be told
	if _, err := io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: tcp\r\nX-Request-Id: "+
		w.Header().Get("X-Request-Id")+"\r\n\r\n"); err != nil {
		return nil
	}
	// The reader may hold what the client sent right behind its request.
	join(r.Context(), conn, rw.Reader, target)
	return nil
}

func hasToken(fields []string, token string) bool {
	for _, f := range fields {
		for t := range strings.SplitSeq(f, ",") {
			if strings.EqualFold(strings.TrimSpace(t), token) {
				return true
			}
		}
	}
	return false
}

// join copies both ways until both directions have ended, one is in error, ctx ends, or one has ended and the other is
// silent for long: a peer that has closed its end for good looks just so.
func join(ctx context.Context, conn net.Conn, fromConn io.Reader, target io.ReadWriteCloser) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() {
		conn.Close()   //nolint:errcheck // it ends the copying
		target.Close() //nolint:errcheck // likewise
	})
	defer stop()
	var half atomic.Pointer[time.Timer]
	copyOne := func(dst io.Writer, src io.Reader, done chan<- struct{}) {
		defer func() { done <- struct{}{} }()
		buf := make([]byte, 32<<10)
		for {
			n, err := src.Read(buf)
			if n > 0 {
				if t := half.Load(); t != nil {
					t.Reset(halfClosed)
				}
				if _, werr := dst.Write(buf[:n]); werr != nil {
					cancel()
					return
				}
			}
			if err == nil {
				continue
			}
			cw, ok := dst.(interface{ CloseWrite() error })
			if err != io.EOF || !ok || cw.CloseWrite() != nil { //nolint:errorlint // readers return it bare
				cancel()
			}
			return
		}
	}
	done := make(chan struct{}, 2)
	go copyOne(target, fromConn, done)
	go copyOne(conn, target, done)
	<-done
	t := time.AfterFunc(halfClosed, cancel)
	half.Store(t)
	<-done
	t.Stop()
}
