package server

import (
	"context"
	"net/http"
	"strings"
	"time"

	"github.com/go-logr/logr"
	remote "k8s.io/apimachinery/pkg/util/remotecommand"
	"k8s.io/klog/v2"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/wsstream"

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
	q := query(r, names...)
	se := &session{stdin: q.Flag("stdin"), stdout: q.Flag("stdout"), stderr: q.Flag("stderr"), tty: q.Flag("tty")}
	if !attach {
		se.command = q.List("command", maxCommand)
	}
	switch {
	case q.Err() != nil:
		return q.Err()
	case !attach && (len(se.command) == 0 || se.command[0] == ""):
		return problem.Invalid("command", "must be given, once for each argument", "")
	case !se.stdin && !se.stdout && !se.stderr:
		return problem.New(problem.ErrInvalid, "ask for at least one of stdin, stdout and stderr")
	case se.tty && se.stderr:
		return problem.Invalid("stderr", "must not be asked for with tty: a terminal has one output", true)
	}
	org, id, container := r.PathValue("org"), r.PathValue("id"), r.PathValue("container")
	if err := s.execTarget(r.Context(), org, id, container); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	r = r.WithContext(klog.NewContext(ctx, logr.Discard())) // the libraries log every session's end as an error
	w = &hijackWatch{ResponseWriter: w, gone: cancel}
	se.run = func(ctx context.Context, req cis.ExecRequest) error {
		req.Container = container
		return s.svc.Exec(ctx, org, id, req)
	}
	se.log = s.log.With("instance", id, "org", org, "container", container)
	switch {
	case wsstream.IsWebSocketRequestWithStreamCloseProtocol(r):
		se.overWebSocket(w, r)
	case r.Method == http.MethodPost && httpstream.IsUpgradeRequest(r) && strings.EqualFold(r.Header.Get("Upgrade"), "SPDY/3.1"):
		return se.overSPDY(ctx, cancel, w, r)
	default:
		return problem.New(problem.ErrInvalid, "this call needs an upgrade to WebSocket with the protocol %s, or by POST to SPDY/3.1 with %s",
			remote.StreamProtocolV5Name, remote.StreamProtocolV4Name)
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
