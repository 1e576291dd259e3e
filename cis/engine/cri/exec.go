package cri

import (
	"context"
	"fmt"
	"net/http"
	"net/url"

	"k8s.io/apimachinery/pkg/util/httpstream"
	restclient "k8s.io/client-go/rest"
	"k8s.io/client-go/tools/remotecommand"
	rt "k8s.io/cri-api/pkg/apis/runtime/v1"

	"cumulet.io/cis"
	"cumulet.io/internal/problem"
)

// Exec implements engine.Execer. A command that is still running when ctx ends gets its streams closed.
func (e *Engine) Exec(ctx context.Context, id string, req cis.ExecRequest) error {
	c, err := e.runningContainer(id, req.Container)
	if err != nil {
		return fmt.Errorf("exec: %w", err)
	}
	if req.TTY && req.Stderr != nil {
		return fmt.Errorf("exec: %w", problem.Invalid("stderr", "must not be asked for together with tty", "true"))
	}
	if req.Stdin == nil && req.Stdout == nil && req.Stderr == nil {
		return fmt.Errorf("exec: %w", problem.Invalid("stdin", "at least one of stdin, stdout and stderr is needed", "none"))
	}
	tty := req.TTY
	var target string
	if len(req.Command) == 0 {
		tty = c.tty // an attach has the terminal that the container has
		r, err := e.rt.Attach(ctx, &rt.AttachRequest{ContainerId: c.id, Tty: tty, Stdin: req.Stdin != nil && c.stdin,
			Stdout: req.Stdout != nil, Stderr: req.Stderr != nil && !tty})
		if err != nil {
			return fmt.Errorf("attach: %w", callError(err))
		}
		target = r.Url
		if !c.stdin {
			req.Stdin = nil
		}
		if tty {
			req.Stderr = nil
		}
	} else {
		r, err := e.rt.Exec(ctx, &rt.ExecRequest{ContainerId: c.id, Cmd: req.Command, Tty: tty, Stdin: req.Stdin != nil,
			Stdout: req.Stdout != nil, Stderr: req.Stderr != nil})
		if err != nil {
			return fmt.Errorf("exec: %w", callError(err))
		}
		target = r.Url
	}
	x, err := executor(target)
	if err != nil {
		return fmt.Errorf("exec: %w", err)
	}
	opts := remotecommand.StreamOptions{Stdin: req.Stdin, Stdout: req.Stdout, Stderr: req.Stderr, Tty: tty}
	if req.Resize != nil && tty {
		opts.TerminalSizeQueue = sizes{ctx: ctx, ch: req.Resize}
	}
	// The error keeps its type: a k8s.io/utils/exec.CodeExitError carries the exit code.
	return x.StreamWithContext(ctx, opts)
}

// executor speaks WebSocket to containerd's streaming server, and SPDY to one that has none.
func executor(target string) (remotecommand.Executor, error) {
	u, err := url.Parse(target)
	if err != nil {
		return nil, fmt.Errorf("streaming URL: %w", err)
	}
	ws, err := remotecommand.NewWebSocketExecutor(&restclient.Config{}, http.MethodGet, target)
	if err != nil {
		return nil, fmt.Errorf("streaming client: %w", err)
	}
	spdy, err := remotecommand.NewSPDYExecutor(&restclient.Config{}, http.MethodPost, u)
	if err != nil {
		return nil, fmt.Errorf("streaming client: %w", err)
	}
	return remotecommand.NewFallbackExecutor(ws, spdy, func(err error) bool {
		return httpstream.IsUpgradeFailure(err) || httpstream.IsHTTPSProxyError(err)
	})
}

// sizes hands terminal sizes on until the channel is closed or ctx ends.
type sizes struct {
	ctx context.Context
	ch  <-chan cis.TerminalSize
}

func (s sizes) Next() *remotecommand.TerminalSize {
	select {
	case <-s.ctx.Done():
		return nil
	case sz, ok := <-s.ch:
		if !ok {
			return nil
		}
		return &remotecommand.TerminalSize{Width: sz.Width, Height: sz.Height}
	}
}

// runningContainer finds a running container; "" means the first of an instance with one.
func (e *Engine) runningContainer(id, name string) (containerView, error) {
	a, err := e.actor(id)
	if err != nil {
		return containerView{}, err
	}
	if name == "" && len(a.spec.Containers) == 1 {
		name = a.spec.Containers[0].Name
	}
	v := a.view.Load()
	if v == nil {
		return containerView{}, problem.New(problem.ErrUnavailable, "instance %s is being looked up", id)
	}
	c, ok := v.containers[name]
	switch {
	case !ok:
		return c, problem.New(problem.ErrNotFound, "instance %s has no container %q", id, name)
	case !c.running:
		return c, problem.New(problem.ErrConflict, "container %q of instance %s is not running", name, id)
	}
	return c, nil
}

// callError gives a CRI error its class.
func callError(err error) error {
	if isNotFound(err) {
		return problem.New(problem.ErrConflict, "the container is not running: %s", message(err))
	}
	return err
}
