package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	remote "k8s.io/apimachinery/pkg/util/remotecommand"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	"k8s.io/streaming/pkg/httpstream/wsstream"
	utilexec "k8s.io/utils/exec"

	"cumulet.io/cis"
	"cumulet.io/internal/problem"
)

const (
	// execIdle is how long a session may be without a byte in either direction.
	execIdle = 24 * time.Hour
	// maxCommand bounds the arguments of a command; the query's length bounds their bytes.
	maxCommand = 4096
)

// exec runs a command, or attaches: the last element of the path says which. What can be known before is checked before
// the connection is upgraded, so that it is answered as a problem.
func (s *server) exec(w http.ResponseWriter, r *http.Request) error {
	attach := strings.HasSuffix(r.URL.Path, "/attach")
	names := []string{"stdin", "stdout", "stderr", "tty", "command…"}
	if attach {
		names = names[:4]
	}
	q := newQuery(r, names...)
	opts := remotecommand.Options{Stdin: q.flag("stdin"), Stdout: q.flag("stdout"), Stderr: q.flag("stderr"), TTY: q.flag("tty")}
	var command []string
	if !attach {
		command = q.list("command", maxCommand)
	}
	switch {
	case q.err != nil:
		return q.err
	case !attach && (len(command) == 0 || command[0] == ""):
		return problem.Invalid("command", "must be given, once for each argument", "")
	case !opts.Stdin && !opts.Stdout && !opts.Stderr:
		return problem.New(problem.ErrInvalid, "ask for at least one of stdin, stdout and stderr")
	case opts.TTY && opts.Stderr:
		return problem.Invalid("stderr", "must not be asked for with tty: a terminal has one output", true)
	}
	org, id, container := r.PathValue("org"), r.PathValue("id"), r.PathValue("container")
	if err := s.execTarget(r.Context(), org, id, container); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	r = r.WithContext(ctx)
	w = &hijackWatch{ResponseWriter: w, gone: cancel}
	run := &executor{s: s, org: org, id: id, log: s.log.With("instance", id, "org", org, "container", container)}
	switch {
	case wsstream.IsWebSocketRequest(r):
		if !wsstream.IsWebSocketRequestWithStreamCloseProtocol(r) {
			return problem.New(problem.ErrInvalid, "WebSocket sessions need the protocol %s", remote.StreamProtocolV5Name)
		}
		run.webSocket(w, r, container, command, opts)
	case r.Method == http.MethodPost && r.Header.Get("Upgrade") != "":
		remotecommand.ServeExec(w, r, run, "", "", container, command, &opts, execIdle,
			remotecommand.DefaultStreamCreationTimeout, []string{remotecommand.StreamProtocolV4Name})
	default:
		return problem.New(problem.ErrInvalid, "this call needs an upgrade to WebSocket (%s), or by POST to SPDY/3.1", remote.StreamProtocolV5Name)
	}
	return nil
}

// execTarget checks what a session is asked for.
func (s *server) execTarget(ctx context.Context, org, id, container string) error {
	in, err := s.svc.Get(ctx, org, id)
	if err != nil {
		return err
	}
	if in.Status.Phase.Final() {
		return problem.New(problem.ErrConflict, "instance %s has ended (%s)", in.ID, in.Status.Phase)
	}
	for _, list := range [][]cis.Container{in.Spec.Containers, in.Spec.InitContainers} {
		for i := range list {
			if list[i].Name == container {
				return nil
			}
		}
	}
	return problem.New(problem.ErrNotFound, "instance %s has no container %.64q", in.ID, container)
}

// executor runs one session.
type executor struct {
	s       *server
	org, id string
	log     *slog.Logger
}

// ExecInContainer implements remotecommand.Executor.
func (e *executor) ExecInContainer(ctx context.Context, _, _, container string, cmd []string, in io.Reader, out, errOut io.WriteCloser,
	tty bool, resize <-chan remotecommand.TerminalSize, _ time.Duration) error {
	req := cis.ExecRequest{Container: container, Command: cmd, TTY: tty, Stdin: in}
	if out != nil {
		req.Stdout = out
	}
	if errOut != nil && !tty {
		req.Stderr = errOut
	}
	if resize != nil {
		sizes := make(chan cis.TerminalSize)
		req.Resize = sizes
		go func() {
			defer close(sizes)
			for size := range resize {
				select {
				case sizes <- cis.TerminalSize{Width: size.Width, Height: size.Height}:
				case <-ctx.Done():
					return
				}
			}
		}()
	}
	return e.outcome(ctx, e.s.svc.Exec(ctx, e.org, e.id, req))
}

// outcome is what a client may know of a session's end: the exit code, or the problem.
func (e *executor) outcome(ctx context.Context, err error) error {
	var exit utilexec.CodeExitError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &exit):
		return exit
	}
	d := problem.Of(err)
	if d.Status == http.StatusInternalServerError && ctx.Err() == nil {
		e.log.ErrorContext(ctx, "session failed", "error", err)
	}
	return errors.New(d.Detail)
}

// webSocket serves a session over WebSocket with the protocol's version 5, the one in which stdin can be ended.
func (e *executor) webSocket(w http.ResponseWriter, r *http.Request, container string, command []string, opts remotecommand.Options) {
	channel := func(on bool, t wsstream.ChannelType) wsstream.ChannelType {
		if on {
			return t
		}
		return wsstream.IgnoreChannel
	}
	conn := wsstream.NewConn(map[string]wsstream.ChannelProtocolConfig{remote.StreamProtocolV5Name: {Binary: true, Channels: []wsstream.ChannelType{
		remote.StreamStdIn:  channel(opts.Stdin, wsstream.ReadChannel),
		remote.StreamStdOut: channel(opts.Stdout, wsstream.WriteChannel),
		remote.StreamStdErr: channel(opts.Stderr, wsstream.WriteChannel),
		remote.StreamErr:    wsstream.WriteChannel,
		remote.StreamResize: channel(opts.TTY, wsstream.ReadChannel),
	}}})
	conn.SetIdleTimeout(execIdle)
	_, streams, err := conn.Open(w, r)
	if err != nil {
		e.log.DebugContext(r.Context(), "WebSocket was not opened", "error", err)
		return
	}
	defer conn.Close() //nolint:errcheck // the session is over
	var (
		in        io.Reader
		out, err2 io.WriteCloser
		resize    chan remotecommand.TerminalSize
	)
	if opts.Stdin {
		in = streams[remote.StreamStdIn]
	}
	if opts.Stdout {
		out = streams[remote.StreamStdOut]
	}
	if opts.Stderr {
		err2 = streams[remote.StreamStdErr]
	}
	if opts.TTY {
		resize = make(chan remotecommand.TerminalSize)
		go readSizes(r.Context(), streams[remote.StreamResize], resize)
	}
	// An empty message tells the client that the session is on.
	if _, err := streams[remote.StreamErr].Write(nil); err != nil {
		return
	}
	err = e.ExecInContainer(r.Context(), "", "", container, command, in, out, err2, opts.TTY, resize, 0)
	status, merr := json.Marshal(sessionStatus(err))
	if merr != nil {
		e.log.ErrorContext(r.Context(), "session status cannot be encoded", "error", merr)
		return
	}
	conn.SetWriteDeadline(10 * time.Second)
	_, _ = streams[remote.StreamErr].Write(status) //nolint:errcheck // the client has gone
}

// readSizes gives terminal sizes until the stream or ctx ends.
func readSizes(ctx context.Context, r io.Reader, sizes chan<- remotecommand.TerminalSize) {
	defer close(sizes)
	dec := json.NewDecoder(r)
	for {
		var size remotecommand.TerminalSize
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

// sessionStatus is what the error channel carries at the end (the Status of Kubernetes' remote command protocol).
func sessionStatus(err error) *metav1.Status {
	var exit utilexec.ExitError
	switch {
	case err == nil:
		return &metav1.Status{Status: metav1.StatusSuccess}
	case errors.As(err, &exit):
		return &metav1.Status{Status: metav1.StatusFailure, Reason: remote.NonZeroExitCodeReason,
			Message: fmt.Sprintf("command terminated with non-zero exit code: %d", exit.ExitStatus()),
			Details: &metav1.StatusDetails{Causes: []metav1.StatusCause{{Type: remote.ExitCodeCauseType, Message: fmt.Sprint(exit.ExitStatus())}}}}
	default:
		return &metav1.Status{Status: metav1.StatusFailure, Reason: metav1.StatusReasonInternalError, Code: http.StatusInternalServerError, Message: err.Error()}
	}
}
