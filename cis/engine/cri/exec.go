package cri

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"

	"golang.org/x/sync/errgroup"
	restclient "k8s.io/client-go/rest"
	"k8s.io/client-go/tools/remotecommand"
	rt "k8s.io/cri-api/pkg/apis/runtime/v1"

	"cumulet.io/cis"
	"cumulet.io/cis/engine/cri/capture"
	"cumulet.io/internal/problem"
	"cumulet.io/logs"
)

// Exec implements engine.Execer.
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
	if len(req.Command) > 0 {
		// The error keeps its type: a k8s.io/utils/exec.CodeExitError carries the exit code.
		return e.execProcess(ctx, c.id, req)
	}
	return e.attach(ctx, c, req)
}

// attach connects to a container's main process: to its output where that is captured, to the rest by CRI's streaming
// server.
func (e *Engine) attach(ctx context.Context, c containerView, req cis.ExecRequest) error {
	if !c.stdin {
		req.Stdin = nil
	}
	if c.tty {
		req.Stderr = nil // a container's terminal has one output
	}
	if c.output == "" {
		return e.attachStreams(ctx, c, req)
	}
	group, ctx := errgroup.WithContext(ctx)
	for stream, w := range map[logs.Stream]io.Writer{logs.Stdout: req.Stdout, logs.Stderr: req.Stderr} {
		if w != nil {
			group.Go(func() error { return capture.Tail(ctx, c.output, stream, c.ended, w) })
		}
	}
	if req.Stdin != nil {
		// Its end is not the session's while there is output to see.
		in, cancel := context.WithCancel(ctx)
		defer cancel()
		stdin := req
		stdin.Stdout, stdin.Stderr = nil, nil
		group.Go(func() error {
			select {
			case <-c.ended:
				cancel()
			case <-in.Done():
			}
			return nil
		})
		group.Go(func() error {
			defer cancel()
			err := e.attachStreams(in, c, stdin)
			if in.Err() != nil && ctx.Err() == nil {
				return nil // the container has ended
			}
			return err
		})
	}
	return group.Wait()
}

func (e *Engine) attachStreams(ctx context.Context, c containerView, req cis.ExecRequest) error {
	r, err := e.rt.Attach(ctx, &rt.AttachRequest{ContainerId: c.id, Tty: c.tty, Stdin: req.Stdin != nil, Stdout: req.Stdout != nil, Stderr: req.Stderr != nil})
	if err != nil {
		return fmt.Errorf("attach: %w", callError(err))
	}
	x, err := executor(r.Url)
	if err != nil {
		return fmt.Errorf("attach: %w", err)
	}
	opts := remotecommand.StreamOptions{Stdin: req.Stdin, Stdout: req.Stdout, Stderr: req.Stderr, Tty: c.tty}
	if req.Resize != nil && c.tty {
		opts.TerminalSizeQueue = sizes{ctx: ctx, ch: req.Resize}
	}
	return x.StreamWithContext(ctx, opts)
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
