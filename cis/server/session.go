package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	remote "k8s.io/apimachinery/pkg/util/remotecommand"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"
	"k8s.io/streaming/pkg/httpstream/wsstream"
	utilexec "k8s.io/utils/exec"

	"cumulet.io/cis"
	"cumulet.io/internal/problem"
)

const (
	// streamsWithin is how long an SPDY client has to open its streams.
	streamsWithin = 30 * time.Second
	// statusWithin bounds the writing of the last word.
	statusWithin = 10 * time.Second
)

// session is one command, or attachment, of one client. It speaks Kubernetes' remote command protocol through
// Kubernetes' stream libraries; the server of k8s.io/cri-streaming does not serve, since it has no version 5 for WebSocket
// (the one in which stdin can be ended) and lets a command run on when its client has left.
type session struct {
	command                    []string
	stdin, stdout, stderr, tty bool
	run                        func(context.Context, cis.ExecRequest) error
	log                        *slog.Logger
}

// wires are a session's streams; those that were not asked for are nil.
type wires struct {
	stdin, resize  io.Reader
	stdout, stderr io.Writer
	status         io.Writer
}

// serve runs the session to its end and says how it went.
func (se *session) serve(ctx context.Context, w wires) {
	req := cis.ExecRequest{Command: se.command, TTY: se.tty, Stdin: w.stdin, Stdout: w.stdout, Stderr: w.stderr}
	if w.resize != nil {
		sizes := make(chan cis.TerminalSize)
		req.Resize = sizes
		go readSizes(ctx, w.resize, sizes)
	}
	err := se.run(ctx, req)
	if d := problem.Of(err); err != nil && d.Status == http.StatusInternalServerError && !isExit(err) && ctx.Err() == nil {
		se.log.ErrorContext(ctx, "session failed", "error", err)
	}
	body, err := json.Marshal(sessionStatus(err))
	if err != nil {
		se.log.ErrorContext(ctx, "session status cannot be encoded", "error", err)
		return
	}
	_, _ = w.status.Write(body) //nolint:errcheck // the client has gone
}

func isExit(err error) bool {
	var exit utilexec.CodeExitError
	return errors.As(err, &exit)
}

// readSizes gives terminal sizes until the stream or ctx ends.
func readSizes(ctx context.Context, r io.Reader, sizes chan<- cis.TerminalSize) {
	defer close(sizes)
	dec := json.NewDecoder(r)
	for {
		var size cis.TerminalSize // the protocol's names are Width and Height too
		if dec.Decode(&size) != nil {
			return
		}
		select {
		case sizes <- size:
		case <-ctx.Done():
			return
		}
	}
}

// sessionStatus is what the error stream carries at the end: the exit code, or what a client may know of a fault.
func sessionStatus(err error) *metav1.Status {
	var exit utilexec.CodeExitError
	switch {
	case err == nil:
		return &metav1.Status{Status: metav1.StatusSuccess}
	case errors.As(err, &exit):
		return &metav1.Status{Status: metav1.StatusFailure, Reason: remote.NonZeroExitCodeReason,
			Message: fmt.Sprintf("command terminated with non-zero exit code: %d", exit.Code),
			Details: &metav1.StatusDetails{Causes: []metav1.StatusCause{{Type: remote.ExitCodeCauseType, Message: fmt.Sprint(exit.Code)}}}}
	default:
		d := problem.Of(err)
		return &metav1.Status{Status: metav1.StatusFailure, Reason: metav1.StatusReasonInternalError, Code: int32(d.Status), Message: d.Detail} //nolint:gosec // an HTTP status
	}
}

// overWebSocket serves the session with version 5 of the protocol. What goes wrong before the upgrade, the library has
// answered.
func (se *session) overWebSocket(w http.ResponseWriter, r *http.Request) {
	channel := func(on bool, t wsstream.ChannelType) wsstream.ChannelType {
		if on {
			return t
		}
		return wsstream.IgnoreChannel
	}
	conn := wsstream.NewConn(map[string]wsstream.ChannelProtocolConfig{remote.StreamProtocolV5Name: {Binary: true, Channels: []wsstream.ChannelType{
		remote.StreamStdIn:  channel(se.stdin, wsstream.ReadChannel),
		remote.StreamStdOut: channel(se.stdout, wsstream.WriteChannel),
		remote.StreamStdErr: channel(se.stderr, wsstream.WriteChannel),
		remote.StreamErr:    wsstream.WriteChannel,
		remote.StreamResize: channel(se.tty, wsstream.ReadChannel),
	}}})
	conn.SetIdleTimeout(execIdle)
	_, streams, err := conn.Open(w, r)
	if err != nil {
		se.log.DebugContext(r.Context(), "WebSocket was not opened", "error", err)
		return
	}
	defer conn.Close() //nolint:errcheck // the session is over
	// An empty message tells the client that the session is on.
	if _, err := streams[remote.StreamErr].Write(nil); err != nil {
		return
	}
	ws := wires{status: &lastWord{conn, streams[remote.StreamErr]}}
	if se.stdin {
		ws.stdin = streams[remote.StreamStdIn]
	}
	if se.stdout {
		ws.stdout = streams[remote.StreamStdOut]
	}
	if se.stderr {
		ws.stderr = streams[remote.StreamStdErr]
	}
	if se.tty {
		ws.resize = streams[remote.StreamResize]
	}
	se.serve(r.Context(), ws)
}

// lastWord bounds the writing of the status.
type lastWord struct {
	conn *wsstream.Conn
	w    io.Writer
}

func (l *lastWord) Write(p []byte) (int, error) {
	l.conn.SetWriteDeadline(statusWithin)
	return l.w.Write(p)
}

// overSPDY serves the session with version 4 of the protocol. cancel is called when the client leaves.
func (se *session) overSPDY(ctx context.Context, cancel context.CancelFunc, w http.ResponseWriter, r *http.Request) error {
	if len(r.Header.Values(httpstream.HeaderProtocolVersion)) == 0 {
		return problem.Invalid(httpstream.HeaderProtocolVersion, "must offer "+remote.StreamProtocolV4Name, "")
	}
	if _, err := httpstream.Handshake(r, w, []string{remote.StreamProtocolV4Name}); err != nil {
		return nil // the library has answered
	}
	want := map[string]bool{corev1.StreamTypeError: true, corev1.StreamTypeStdin: se.stdin, corev1.StreamTypeStdout: se.stdout,
		corev1.StreamTypeStderr: se.stderr, corev1.StreamTypeResize: se.tty}
	type opened struct {
		httpstream.Stream
		replied <-chan struct{}
	}
	arriving := make(chan opened, len(want))
	conn := spdy.NewResponseUpgrader().UpgradeResponse(w, r, func(s httpstream.Stream, replied <-chan struct{}) error {
		if !want[s.Headers().Get(corev1.StreamType)] {
			return errors.New("not a stream of this session")
		}
		select {
		case arriving <- opened{s, replied}:
			return nil
		default:
			return errors.New("too many streams")
		}
	})
	if conn == nil {
		return nil // the library has answered
	}
	defer conn.Close() //nolint:errcheck // the session is over
	conn.SetIdleTimeout(execIdle)
	// The connection may say good-bye and stay open: then only this tells.
	go func() {
		select {
		case <-conn.CloseChan():
			cancel()
		case <-ctx.Done():
		}
	}()
	late := time.NewTimer(streamsWithin)
	defer late.Stop()
	var ws wires
	for missing := len(want) - count(want, false); missing > 0; missing-- {
		select {
		case s := <-arriving:
			switch s.Headers().Get(corev1.StreamType) {
			case corev1.StreamTypeError:
				ws.status = s
			case corev1.StreamTypeStdin:
				ws.stdin = s
			case corev1.StreamTypeStdout:
				ws.stdout = s
			case corev1.StreamTypeStderr:
				ws.stderr = s
			case corev1.StreamTypeResize:
				ws.resize = s
			}
			select {
			case <-s.replied:
			case <-ctx.Done():
				return nil
			}
		case <-late.C:
			return nil
		case <-ctx.Done():
			return nil
		}
	}
	if ws.status == nil { // a stream came twice, and this one not at all
		return nil
	}
	se.serve(ctx, ws)
	return nil
}

func count[K comparable, V comparable](m map[K]V, value V) int {
	n := 0
	for _, v := range m {
		if v == value {
			n++
		}
	}
	return n
}
