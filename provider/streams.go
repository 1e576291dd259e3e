package provider

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/virtual-kubelet/virtual-kubelet/node/api"

	"cumulet.io/cis"
	"cumulet.io/internal/problem"
)

// running gives the instance of the pod that has a name now.
func (p *Provider) running(namespace, name string) (org, id string, err error) {
	v, err := p.named(namespace, name)
	if err != nil {
		return "", "", err
	}
	if v.instance == nil {
		return "", "", problem.New(problem.ErrNotFound, "pod %s/%s has no instance", namespace, name)
	}
	return v.org, v.instance.ID, nil
}

// GetContainerLogs gives a container's log, as nodeutil.Provider describes it. It ends with ctx.
func (p *Provider) GetContainerLogs(ctx context.Context, namespace, pod, container string, opts api.ContainerLogOpts) (io.ReadCloser, error) {
	org, id, err := p.running(namespace, pod)
	if err != nil {
		return nil, asErrdefs(err)
	}
	req := cis.LogRequest{Container: container, Previous: opts.Previous, Follow: opts.Follow, Timestamps: opts.Timestamps,
		LimitBytes: int64(opts.LimitBytes), Since: opts.SinceTime}
	if opts.SinceSeconds > 0 {
		req.Since = time.Now().Add(-time.Duration(opts.SinceSeconds) * time.Second)
	}
	if opts.Tail > 0 || wantsNone(ctx) {
		tail := int64(opts.Tail)
		req.Tail = &tail
	}
	r, err := p.cfg.Services.LogReader.Logs(ctx, org, id, req)
	if err != nil {
		return nil, asErrdefs(fmt.Errorf("logs of container %s: %w", container, err))
	}
	return r, nil
}

type noLinesKey struct{}

// WithNoLines marks a request of logs that asks for none of the lines that are there (tailLines=0): the library gives the same
// options for that as for all of them.
func WithNoLines(ctx context.Context) context.Context {
	return context.WithValue(ctx, noLinesKey{}, true)
}

func wantsNone(ctx context.Context) bool {
	none, _ := ctx.Value(noLinesKey{}).(bool) //nolint:errcheck // absent is false
	return none
}

// RunInContainer runs a command, as nodeutil.Provider describes it.
func (p *Provider) RunInContainer(ctx context.Context, namespace, pod, container string, cmd []string, attach api.AttachIO) error {
	if len(cmd) == 0 {
		return asErrdefs(problem.Invalid("command", "must not be empty", cmd))
	}
	return p.exec(ctx, namespace, pod, container, cmd, attach)
}

// AttachToContainer attaches to a container's main process, as nodeutil.Provider describes it.
func (p *Provider) AttachToContainer(ctx context.Context, namespace, pod, container string, attach api.AttachIO) error {
	return p.exec(ctx, namespace, pod, container, nil, attach)
}

func (p *Provider) exec(ctx context.Context, namespace, pod, container string, cmd []string, attach api.AttachIO) error {
	org, id, err := p.running(namespace, pod)
	if err != nil {
		return asErrdefs(err)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	req := cis.ExecRequest{Container: container, Command: cmd, TTY: attach.TTY(), Stdin: attach.Stdin()}
	if w := attach.Stdout(); w != nil {
		req.Stdout = w
	}
	if w := attach.Stderr(); w != nil && !req.TTY {
		req.Stderr = w
	}
	if sizes := attach.Resize(); sizes != nil {
		resize := make(chan cis.TerminalSize)
		req.Resize = resize
		done := make(chan struct{})
		go func() {
			defer close(done)
			passSizes(ctx, sizes, resize)
		}()
		defer func() { cancel(); <-done }()
	}
	return asErrdefs(p.cfg.Services.Execer.Exec(ctx, org, id, req))
}

func passSizes(ctx context.Context, from <-chan api.TermSize, to chan<- cis.TerminalSize) {
	defer close(to)
	for {
		select {
		case s, ok := <-from:
			if !ok {
				return
			}
			select {
			case to <- cis.TerminalSize{Width: s.Width, Height: s.Height}:
			case <-ctx.Done():
				return
			}
		case <-ctx.Done():
			return
		}
	}
}

// PortForward connects a stream to a port of a pod, as nodeutil.Provider describes it. It returns when both directions have ended,
// or ctx has, and closes both ends.
func (p *Provider) PortForward(ctx context.Context, namespace, pod string, port int32, stream io.ReadWriteCloser) error {
	if port < 1 || port > 65535 {
		return asErrdefs(problem.Invalid("port", "must be from 1 to 65535", port))
	}
	org, id, err := p.running(namespace, pod)
	if err != nil {
		return asErrdefs(err)
	}
	conn, err := p.cfg.Services.PortForwarder.PortForward(ctx, org, id, uint16(port)) //nolint:gosec // checked above
	if err != nil {
		return asErrdefs(fmt.Errorf("port %d: %w", port, err))
	}
	return asErrdefs(join(ctx, stream, conn))
}

type closeWriter interface{ CloseWrite() error }

// join copies both ways until the pod's side has said all, the client has gone, or ctx ends.
func join(ctx context.Context, client, pod io.ReadWriteCloser) error {
	defer client.Close() //nolint:errcheck // both ends are done with
	defer pod.Close()    //nolint:errcheck // both ends are done with
	stop := context.AfterFunc(ctx, func() {
		_ = client.Close() //nolint:errcheck // ends the copying
		_ = pod.Close()    //nolint:errcheck // ends the copying
	})
	defer stop()
	up := make(chan error, 1)
	go func() {
		_, err := io.Copy(pod, client)
		if c, ok := pod.(closeWriter); ok && err == nil {
			err = c.CloseWrite() // the client said all; the pod may still answer
		} else {
			_ = pod.Close() //nolint:errcheck // ends the other direction
		}
		up <- err
	}()
	_, err := io.Copy(client, pod)
	_ = client.Close() //nolint:errcheck // ends the other direction
	_ = pod.Close()    //nolint:errcheck // both directions are done
	if upErr := <-up; err == nil && ctx.Err() == nil && upErr != nil {
		return nil //nolint:nilerr // the pod closed first: what the client still sent went nowhere, as on a TCP connection
	}
	if ctx.Err() != nil {
		return nil
	}
	return err
}
