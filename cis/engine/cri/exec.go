package cri

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"

	restclient "k8s.io/client-go/rest"
	"k8s.io/client-go/tools/remotecommand"
	clientexec "k8s.io/client-go/util/exec"
	rt "k8s.io/cri-api/pkg/apis/runtime/v1"
	utilexec "k8s.io/utils/exec"

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
	err = x.StreamWithContext(ctx, opts)
	var code clientexec.CodeExitError
	if errors.As(err, &code) {
		return utilexec.CodeExitError{Err: code.Err, Code: code.Code}
	}
	return err
}

// executor speaks SPDY to containerd's streaming server: every CRI runtime has it, and it needs no fallback. What a
// user's client speaks is the API server's affair.
func executor(target string) (remotecommand.Executor, error) {
	u, err := url.Parse(target)
	if err != nil {
		return nil, fmt.Errorf("streaming URL: %w", err)
	}
	x, err := remotecommand.NewSPDYExecutor(&restclient.Config{}, http.MethodPost, u)
	if err != nil {
		return nil, fmt.Errorf("streaming client: %w", err)
	}
	return x, nil
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
