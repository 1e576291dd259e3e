// Package proc keeps a child process of the server running: it starts it,
// starts it again when it dies, stops it in good order, and bounds what it
// writes. It is for the few long-running programs that Cumulet brings along,
// such as containerd and Filebeat. It is not for one-shot commands, and not an
// init system: a child's own children are the child's affair.
package proc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"syscall"
	"time"
)

// Defaults of Child's fields.
const (
	DefaultMinBackoff = 200 * time.Millisecond
	DefaultMaxBackoff = 30 * time.Second
	DefaultStopBound  = 10 * time.Second
)

// Child is a program to keep running. It is a description: Run does not change
// it, and several Runs of one Child run several processes.
type Child struct {
	Name string   // for logs and errors
	Path string   // the program; looked up in PATH when it has no slash
	Args []string // without the program's name
	Env  []string // KEY=VALUE; nil is this process's environment
	Dir  string   // working directory; empty is this process's

	// Log gets the child's starts and ends. Required.
	Log *slog.Logger
	// Output gets what the child writes on stdout and stderr; nil sends it to
	// Log, a record per line. An *os.File is handed to the child itself, which
	// a child that outlives this process needs: a pipe breaks with its reader.
	Output io.Writer

	// Credential is the user to run as; nil is this process's. Another one needs
	// root.
	Credential *syscall.Credential

	// DieWithParent has the kernel kill the child when this process dies, even
	// by SIGKILL. Without it the child lives on, and the next start of this
	// process has to find and own it, as with Adopt.
	DieWithParent bool
	// Adopt has Run go on with a child that a Run of a killed process has left,
	// when it was started with the same program, Args, Env, Dir, Credential and
	// Version, and stop it first when not. It is found by its name and Args, so
	// these must be no other process's. It excludes DieWithParent, and needs an
	// Output that is an *os.File.
	Adopt bool
	// Version is of what the child reads at its start and Args do not show, as
	// its configuration.
	Version string

	// BeforeStart, if set, is called before each start, and the start waits for
	// it; not when a child is adopted.
	BeforeStart func(ctx context.Context)

	// A child that dies is started again after MinBackoff, doubled each time up
	// to MaxBackoff. Having lived for MaxBackoff starts the count anew.
	MinBackoff, MaxBackoff time.Duration
	// StopSignal asks the child to end. Default: SIGTERM.
	StopSignal syscall.Signal
	// StopBound is how long the child has between StopSignal and SIGKILL, and how
	// long a grandchild may hold a dead child's output before it is cut off.
	StopBound time.Duration

	// Started, if set, is called with the pid after each start.
	Started func(pid int)
}

// Run starts the child and keeps it running until ctx ends, then stops it and
// returns nil: no process it started is left. It returns an error only when the
// program cannot be run at all at first: it is missing or not executable.
func (c Child) Run(ctx context.Context) error {
	c = c.withDefaults()
	log := c.Log.With("child", c.Name)
	backoff, ever := c.MinBackoff, false
	if c.Adopt {
		if _, ok := c.Output.(*os.File); !ok || c.DieWithParent {
			return fmt.Errorf("run %s: a child to be adopted needs a file for its output, and must not die with its parent", c.Name)
		}
		if err := c.adopt(ctx, log); err != nil && !errors.Is(err, errNoOrphan) {
			if isUnrunnable(err) {
				return fmt.Errorf("run %s: %w", c.Name, err)
			}
			log.Error("child of an earlier start not found out", "error", err)
		}
	}
	for ctx.Err() == nil {
		began := time.Now()
		if c.BeforeStart != nil {
			c.BeforeStart(ctx)
		}
		err := c.once(ctx, log)
		if ctx.Err() != nil {
			return nil //nolint:nilerr // how it ended when told to is of no interest
		}
		// Later, a missing program may be an upgrade that is under way.
		if !ever && isUnrunnable(err) {
			return fmt.Errorf("run %s: %w", c.Name, err)
		}
		ever = true
		if time.Since(began) >= c.MaxBackoff {
			backoff = c.MinBackoff
		}
		log.Warn("child ended; it will be started again", "error", err, "lived", time.Since(began), "backoff", backoff)
		select {
		case <-ctx.Done():
		case <-time.After(backoff):
		}
		backoff = min(2*backoff, c.MaxBackoff)
	}
	return nil
}

func (c Child) withDefaults() Child {
	if c.MinBackoff <= 0 {
		c.MinBackoff = DefaultMinBackoff
	}
	if c.MaxBackoff <= 0 {
		c.MaxBackoff = DefaultMaxBackoff
	}
	c.MaxBackoff = max(c.MinBackoff, c.MaxBackoff)
	if c.StopSignal == 0 {
		c.StopSignal = syscall.SIGTERM
	}
	if c.StopBound <= 0 {
		c.StopBound = DefaultStopBound
	}
	return c
}

// errEnded is a child's end with exit code 0, which nobody asked for.
var errEnded = errors.New("ended with exit code 0")

// once runs the child to its end. It never returns nil.
func (c Child) once(ctx context.Context, log *slog.Logger) error {
	cmd := exec.CommandContext(ctx, c.Path, c.Args...)
	cmd.Env, cmd.Dir = c.Env, c.Dir
	if c.Adopt {
		mark, err := c.mark()
		if err != nil {
			return err
		}
		cmd.Env = slices.Concat(c.environ(), []string{mark})
	}
	// A group of its own: Ctrl-C at a terminal is for this process, which then
	// stops its children in its own order.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Credential: c.Credential}
	if c.DieWithParent {
		cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	}
	cmd.Cancel = func() error { return cmd.Process.Signal(c.StopSignal) }
	cmd.WaitDelay = c.StopBound

	out := c.Output
	if out == nil {
		lines := &lineLog{log: log, max: maxLine}
		defer lines.flush()
		out = lines
	}
	cmd.Stdout, cmd.Stderr = out, out

	// The kernel sends the parent-death signal when the starting thread ends,
	// not the process, so that thread waits for the child.
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		done <- c.startAndWait(cmd, log)
	}()
	if err := <-done; err != nil {
		return err
	}
	return errEnded
}

func (c Child) startAndWait(cmd *exec.Cmd, log *slog.Logger) error {
	if err := cmd.Start(); err != nil {
		return err
	}
	pid := cmd.Process.Pid
	log.Info("child started", "pid", pid)
	if c.Started != nil {
		c.Started(pid)
	}
	err := cmd.Wait()
	log.Info("child ended", "pid", pid, "state", cmd.ProcessState.String())
	return err
}

func isUnrunnable(err error) bool {
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return false
	}
	return errors.Is(err, exec.ErrNotFound) || errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission)
}
