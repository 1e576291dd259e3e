package cri

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/google/uuid"
	utilexec "k8s.io/utils/exec"

	"cumulet.io/cis"
	"cumulet.io/internal/problem"
)

// criNamespace is where containerd's CRI service keeps its containers.
const criNamespace = "k8s.io"

// Bounds of ending a command.
const (
	killTimeout  = 10 * time.Second // until a killed command must be gone
	drainTimeout = 5 * time.Second  // for output after the command's end, when a child of it holds the pipe
)

// execProcess runs a command by containerd's own task API. CRI's streaming server would do it, too, but it neither
// tells nor kills the command when the client has gone, and a terminal without input loses its output there.
func (e *Engine) execProcess(ctx context.Context, id string, req cis.ExecRequest) error {
	// The command is ended by Kill, not by cutting off the calls that watch it.
	call, cancel := context.WithCancel(namespaces.WithNamespace(context.WithoutCancel(ctx), criNamespace))
	defer cancel()
	p, pipes, err := e.newProcess(call, id, req)
	if err != nil {
		return err
	}
	defer func() {
		done, cancel := context.WithTimeout(call, killTimeout)
		defer cancel()
		if _, err := p.Delete(done, client.WithProcessKill); err != nil && !errdefs.IsNotFound(err) {
			e.log.Warn("exec process not deleted", "container", id, "error", err)
		}
	}()
	exit, err := p.Wait(call)
	if err != nil {
		return fmt.Errorf("wait for command: %w", err)
	}
	output := pipes.copy(call, p, req)
	if err := p.Start(call); err != nil {
		drain(ctx, output) // nobody writes to what is the caller's when this returns; Start has closed the pipes
		return problem.New(problem.ErrInvalid, "the command could not be started: %s", message(err))
	}
	if req.Resize != nil && req.TTY {
		go resize(call, p, req.Resize)
	}
	select {
	case s := <-exit:
		drain(ctx, output)
		return exitError(s)
	case <-ctx.Done():
		kill, done := context.WithTimeout(call, killTimeout)
		defer done()
		if err := p.Kill(kill, syscall.SIGKILL); err != nil && !errdefs.IsNotFound(err) {
			e.log.Warn("exec process not killed", "container", id, "error", err)
		}
		select {
		case <-exit:
		case <-kill.Done():
		}
		return ctx.Err()
	}
}

func exitError(s client.ExitStatus) error {
	code, _, err := s.Result()
	if err != nil {
		return fmt.Errorf("wait for command: %w", err)
	}
	if code != 0 {
		return utilexec.CodeExitError{Err: fmt.Errorf("command terminated with exit code %d", code), Code: int(code)}
	}
	return nil
}

func (e *Engine) newProcess(ctx context.Context, id string, req cis.ExecRequest) (client.Process, *pipes, error) {
	container, err := e.ctrd.LoadContainer(ctx, id)
	if err != nil {
		return nil, nil, lookUpError(err)
	}
	spec, err := container.Spec(ctx)
	if err != nil {
		return nil, nil, fmt.Errorf("container spec: %w", err)
	}
	task, err := container.Task(ctx, nil)
	if err != nil {
		return nil, nil, lookUpError(err)
	}
	ps := *spec.Process
	ps.Args, ps.CommandLine, ps.Terminal = req.Command, "", req.TTY
	if req.TTY {
		ps.Env = append(append([]string(nil), ps.Env...), "TERM=xterm")
	}
	execID := uuid.NewString()
	pp, err := openPipes(e.ioDir(), execID, req)
	if err != nil {
		return nil, nil, err
	}
	p, err := task.Exec(ctx, execID, &ps, func(string) (cio.IO, error) { return pp.io, nil })
	if err != nil {
		return nil, nil, lookUpError(err) // Exec has closed the pipes
	}
	return p, pp, nil
}

func lookUpError(err error) error {
	if errdefs.IsNotFound(err) || errdefs.IsFailedPrecondition(err) {
		return problem.New(problem.ErrConflict, "the container is not running")
	}
	return fmt.Errorf("containerd: %w", err)
}

// ioDir holds the pipes of commands that run; New empties it.
func (e *Engine) ioDir() string { return filepath.Join(e.cfg.Root, "io") }

// pipes are the named pipes to a command.
type pipes struct{ io *cio.DirectIO }

func openPipes(dir, execID string, req cis.ExecRequest) (*pipes, error) {
	set, err := cio.NewFIFOSetInDir(dir, execID, req.TTY)
	if err != nil {
		return nil, fmt.Errorf("make pipes: %w", err)
	}
	if req.Stdin == nil {
		set.Stdin = ""
	}
	if req.TTY {
		set.Stderr = "" // the shims want both outputs otherwise, asked for or not
	}
	d, err := cio.NewDirectIO(context.Background(), set)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open pipes: %w", err), os.RemoveAll(filepath.Dir(set.Stdout)))
	}
	return &pipes{d}, nil
}

// copy moves the bytes; the channel is closed at the end of all output.
func (p *pipes) copy(ctx context.Context, proc client.Process, req cis.ExecRequest) <-chan struct{} {
	if p.io.Stdin != nil {
		go func() {
			_, err := io.Copy(p.io.Stdin, req.Stdin)
			if req.TTY && err == nil {
				return // a terminal has no end of input: the pipe is closed with the command
			}
			// First the pipe, then the shim's end of it.
			if p.io.Stdin.Close() == nil && ctx.Err() == nil {
				proc.CloseIO(ctx, client.WithStdinCloser) //nolint:errcheck,gosec // the command may have ended
			}
		}()
	}
	var wg sync.WaitGroup
	take := func(w io.Writer, r io.ReadCloser) {
		if r == nil {
			return
		}
		if w == nil {
			w = io.Discard
		}
		wg.Go(func() {
			if _, err := io.Copy(w, r); err != nil {
				// The reader has gone; the command goes on into nothing until ctx ends.
				io.Copy(io.Discard, r) //nolint:errcheck,gosec // ends with the pipe
			}
		})
	}
	take(req.Stdout, p.io.Stdout)
	take(req.Stderr, p.io.Stderr)
	done := make(chan struct{})
	go func() {
		wg.Wait()
		close(done)
	}()
	return done
}

func drain(ctx context.Context, output <-chan struct{}) {
	t := time.NewTimer(drainTimeout)
	defer t.Stop()
	select {
	case <-output:
	case <-ctx.Done():
	case <-t.C:
	}
}

func resize(ctx context.Context, p client.Process, sizes <-chan cis.TerminalSize) {
	for {
		select {
		case <-ctx.Done():
			return
		case s, ok := <-sizes:
			if !ok {
				return
			}
			// gVisor refuses it until the command has its terminal.
			for try := 0; try < 20 && p.Resize(ctx, uint32(s.Width), uint32(s.Height)) != nil && ctx.Err() == nil; try++ {
				sleep(ctx, 50*time.Millisecond)
			}
		}
	}
}
