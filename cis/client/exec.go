package client

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"

	"github.com/go-logr/logr"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/transport/spdy"
	clientexec "k8s.io/client-go/util/exec"
	"k8s.io/klog/v2"
	"k8s.io/streaming/pkg/httpstream"
	utilexec "k8s.io/utils/exec"

	"cumulet.io/cis"
	"cumulet.io/internal/problem"
)

// Exec implements cis.Execer: over WebSocket, or SPDY where something on the way does not let WebSockets through.
func (c *Client) Exec(ctx context.Context, org, id string, req cis.ExecRequest) error {
	const op = "exec"
	if req.TTY && req.Stderr != nil {
		return fmt.Errorf("%s: %w", op, problem.Invalid("stderr", "must not be asked for with a terminal", true))
	}
	if req.Stdin == nil && req.Stdout == nil && req.Stderr == nil {
		return fmt.Errorf("%s: %w", op, problem.New(problem.ErrInvalid, "ask for at least one of stdin, stdout and stderr"))
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()

	q := url.Values{}
	for name, on := range map[string]bool{"stdin": req.Stdin != nil, "stdout": req.Stdout != nil, "stderr": req.Stderr != nil, "tty": req.TTY} {
		if on {
			q.Set(name, "true")
		}
	}
	verb := "attach"
	if len(req.Command) > 0 {
		verb = "exec"
		q["command"] = req.Command
	}
	u := c.orgURL(q, org, "instances", id, "containers", req.Container, verb)
	answer := &answerKeeper{}
	executor, err := c.executor(u, answer)
	if err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	opts := remotecommand.StreamOptions{Stdin: req.Stdin, Stdout: req.Stdout, Stderr: req.Stderr, Tty: req.TTY}
	if req.TTY && req.Resize != nil {
		opts.TerminalSizeQueue = &sizes{ctx: ctx, ch: req.Resize}
	}
	// The library logs what it also returns.
	err = executor.StreamWithContext(klog.NewContext(ctx, logr.Discard()), opts)
	var exit clientexec.ExitError // of client-go: not the type that cis.Execer promises
	switch {
	case err == nil:
		return nil
	case errors.As(err, &exit) && exit.Exited():
		return utilexec.CodeExitError{Err: err, Code: exit.ExitStatus()}
	case answer.err != nil:
		return fmt.Errorf("%s: %w", op, answer.err)
	case ctx.Err() != nil:
		return fmt.Errorf("%s: %w", op, ctx.Err())
	default:
		return fmt.Errorf("%s: %w", op, err)
	}
}

func (c *Client) executor(u *url.URL, answer *answerKeeper) (remotecommand.Executor, error) {
	cfg := &rest.Config{
		Host:            c.base.Host,
		TLSClientConfig: rest.TLSClientConfig{CAData: c.caPEM},
		WrapTransport: func(next http.RoundTripper) http.RoundTripper {
			return &bearer{source: c.source.Token, next: next}
		},
	}
	ws, err := remotecommand.NewWebSocketExecutor(cfg, http.MethodGet, u.String())
	if err != nil {
		return nil, err
	}
	rt, upgrader, err := spdy.RoundTripperFor(cfg)
	if err != nil {
		return nil, err
	}
	answer.next = rt
	sp, err := remotecommand.NewSPDYExecutorForTransports(answer, upgrader, http.MethodPost, u)
	if err != nil {
		return nil, err
	}
	return remotecommand.NewFallbackExecutor(ws, sp, func(err error) bool {
		return httpstream.IsUpgradeFailure(err) || httpstream.IsHTTPSProxyError(err)
	})
}

// bearer puts a fresh token on each request.
type bearer struct {
	source func(context.Context) (string, error)
	next   http.RoundTripper
}

func (b *bearer) RoundTrip(req *http.Request) (*http.Response, error) {
	token, err := b.source(req.Context())
	if err != nil {
		return nil, fmt.Errorf("token: %w", err)
	}
	req = req.Clone(req.Context())
	req.Header.Set("Authorization", "Bearer "+token)
	return b.next.RoundTrip(req)
}

// answerKeeper keeps the problem that a refused upgrade was answered with: the stream libraries make text of it. The
// fallback makes sure that a refusal by the service comes by here.
type answerKeeper struct {
	next http.RoundTripper
	err  error
}

func (a *answerKeeper) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := a.next.RoundTrip(req)
	if err != nil || resp.StatusCode < http.StatusBadRequest {
		return resp, err
	}
	defer resp.Body.Close() //nolint:errcheck // read as far as it matters
	resp.Request = req
	a.err = problem.Read(resp)
	return nil, a.err
}

// sizes gives terminal sizes to client-go until the channel or the context ends.
type sizes struct {
	ctx context.Context
	ch  <-chan cis.TerminalSize
}

func (s *sizes) Next() *remotecommand.TerminalSize {
	select {
	case size, ok := <-s.ch:
		if !ok {
			return nil
		}
		return &remotecommand.TerminalSize{Width: size.Width, Height: size.Height}
	case <-s.ctx.Done():
		return nil
	}
}
