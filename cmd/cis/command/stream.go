package command

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"cumulet.io/cis"
	"cumulet.io/cis/client"
	"cumulet.io/cmd/cis/output"
)

func (a *app) logs() *cobra.Command {
	var req cis.LogRequest
	var tail int64
	var since time.Duration
	cmd := &cobra.Command{
		Use:   "logs INSTANCE",
		Short: "Print a container's output, of ended and deleted instances too",
		Args:  usage(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, in, err := a.instance(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			if req.Container == "" {
				if n := len(in.Spec.Containers); n > 1 {
					return &usageError{fmt.Errorf("instance %s has %d containers; name one with -c", in.ID, n)}
				}
				req.Container = in.Spec.Containers[0].Name
			}
			if tail >= 0 {
				req.Tail = &tail
			}
			if since > 0 {
				req.Since = time.Now().Add(-since)
			}
			return a.copyLogs(cmd.Context(), c, in.Org, in.ID, req)
		},
	}
	fl := cmd.Flags()
	fl.StringVarP(&req.Container, "container", "c", "", "container; default the only one")
	fl.BoolVarP(&req.Follow, "follow", "f", false, "go on until the container ends")
	fl.BoolVarP(&req.Previous, "previous", "p", false, "the attempt before the last restart")
	fl.BoolVar(&req.Timestamps, "timestamps", false, "put the time before each line")
	fl.Int64Var(&tail, "tail", -1, "only the last lines")
	fl.DurationVar(&since, "since", 0, "only lines younger than this, as 5m")
	return cmd
}

func (a *app) copyLogs(ctx context.Context, c *client.Client, org, id string, req cis.LogRequest) error {
	r, err := c.Logs(ctx, org, id, req)
	if err != nil {
		return err
	}
	_, err = io.Copy(a.env.Out, r)
	if cerr := r.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return fmt.Errorf("read log: %w", err)
	}
	return nil
}

func (a *app) exec() *cobra.Command {
	var container string
	var stdin, tty bool
	cmd := &cobra.Command{
		Use:     "exec INSTANCE [flags] -- COMMAND [ARG...]",
		Short:   "Run a command in a container; the exit code is the command's",
		Example: "  cis exec web -- ls /\n  cis exec -it web -- sh",
		Args:    usage(cobra.MinimumNArgs(2)),
		RunE: func(cmd *cobra.Command, args []string) error {
			if dash := cmd.ArgsLenAtDash(); dash >= 0 && dash != 1 {
				return &usageError{errors.New("write the instance before -- and the command behind it: cis exec INSTANCE -- COMMAND")}
			}
			c, in, err := a.instance(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			if container == "" {
				container = in.Spec.Containers[0].Name
			}
			req := cis.ExecRequest{Container: container, Command: args[1:], TTY: tty, Stdout: a.env.Out}
			if stdin {
				req.Stdin = a.env.In
			}
			if !tty {
				req.Stderr = a.env.Err
				return c.Exec(cmd.Context(), in.Org, in.ID, req)
			}
			return a.withTerminal(cmd.Context(), &req, func(ctx context.Context) error { return c.Exec(ctx, in.Org, in.ID, req) })
		},
	}
	fl := cmd.Flags()
	fl.StringVarP(&container, "container", "c", "", "container; default the first")
	fl.BoolVarP(&stdin, "stdin", "i", false, "pass standard input on")
	fl.BoolVarP(&tty, "tty", "t", false, "give the command a terminal")
	return cmd
}

// withTerminal puts the user's terminal into raw mode while f runs and passes its size on.
func (a *app) withTerminal(ctx context.Context, req *cis.ExecRequest, f func(context.Context) error) error {
	in, ok := a.env.In.(*os.File)
	if !ok || !term.IsTerminal(int(in.Fd())) {
		return &usageError{errors.New("--tty needs a terminal as standard input")}
	}
	old, err := term.MakeRaw(int(in.Fd()))
	if err != nil {
		return fmt.Errorf("set up terminal: %w", err)
	}
	defer func() { _ = term.Restore(int(in.Fd()), old) }() //nolint:errcheck // nothing is left to do about it
	resize := make(chan cis.TerminalSize, 1)
	changed := make(chan os.Signal, 1)
	signal.Notify(changed, syscall.SIGWINCH)
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer close(resize)
		for {
			if w, h, err := term.GetSize(int(in.Fd())); err == nil {
				select {
				case resize <- cis.TerminalSize{Width: uint16(w), Height: uint16(h)}: //nolint:gosec // a terminal is not that wide
				case <-ctx.Done():
					return
				}
			}
			select {
			case <-changed:
			case <-ctx.Done():
				return
			}
		}
	}()
	req.Resize = resize
	err = f(ctx)
	signal.Stop(changed)
	cancel()
	<-done
	return err
}

func (a *app) rm() *cobra.Command {
	var grace int64
	cmd := &cobra.Command{
		Use:   "rm INSTANCE...",
		Short: "End instances gracefully",
		Args:  usage(cobra.MinimumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, s, err := a.service()
			if err != nil {
				return err
			}
			var failed []error
			for _, ref := range args {
				in, err := find(cmd.Context(), c, s.Org, ref)
				if err == nil {
					var g *int64
					if grace >= 0 {
						g = &grace
					}
					_, err = c.Delete(cmd.Context(), s.Org, in.ID, g)
				}
				if err != nil {
					failed = append(failed, fmt.Errorf("%s: %w", ref, err))
					continue
				}
				fmt.Fprintln(a.env.Out, output.Clean(in.ID))
			}
			return errors.Join(failed...)
		},
	}
	cmd.Flags().Int64Var(&grace, "grace", -1, "seconds between TERM and KILL; default the instance's")
	return cmd
}
