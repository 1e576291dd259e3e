package control

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"cumulet.io/cis"
	"cumulet.io/cis/engine"
	"cumulet.io/internal/problem"
)

// target gives a live instance that has the container.
func (c *Control) target(ctx context.Context, org, id, container string) (*cis.Instance, error) {
	in, err := c.instance(ctx, org, id)
	if err != nil {
		return nil, err
	}
	if err := hasContainer(in, container); err != nil {
		return nil, err
	}
	if in.Status.Phase.Final() {
		return nil, ended(in)
	}
	return in, nil
}

func hasContainer(in *cis.Instance, container string) error {
	named := func(c cis.Container) bool { return c.Name == container }
	if !slices.ContainsFunc(in.Spec.Containers, named) && !slices.ContainsFunc(in.Spec.InitContainers, named) {
		return problem.New(problem.ErrNotFound, "instance %s has no container %.64q", in.ID, container)
	}
	return nil
}

// Exec implements cis.Execer.
func (c *Control) Exec(ctx context.Context, org, id string, req cis.ExecRequest) error {
	if _, err := c.target(ctx, org, id, req.Container); err != nil {
		return err
	}
	execer, ok := c.engine.(engine.Execer)
	if !ok {
		return problem.New(problem.ErrUnsupported, "commands cannot be run in instances here")
	}
	return execer.Exec(ctx, id, req)
}

// PortForward implements cis.PortForwarder.
func (c *Control) PortForward(ctx context.Context, org, id string, port uint16) (io.ReadWriteCloser, error) {
	if port == 0 {
		return nil, problem.Invalid("port", "must be 1 to 65535", port)
	}
	in, err := c.instance(ctx, org, id)
	if err != nil {
		return nil, err
	}
	if in.Status.Phase.Final() {
		return nil, ended(in)
	}
	forwarder, ok := c.engine.(engine.PortForwarder)
	if !ok {
		return nil, problem.New(problem.ErrUnsupported, "ports of instances cannot be reached here")
	}
	return forwarder.PortForward(ctx, id, port)
}

// maxStatIDs bounds one request for stats.
const maxStatIDs = 1000

// Stats implements cis.StatsReader. Ids of other orgs, and of instances that do not run, are left out.
func (c *Control) Stats(ctx context.Context, org string, ids []string) ([]cis.Stats, error) {
	if err := cis.ValidateOrg(org); err != nil {
		return nil, err
	}
	if len(ids) > maxStatIDs {
		return nil, problem.Invalid("id", "must be at most 1000", len(ids))
	}
	reader, ok := c.engine.(engine.StatsReader)
	if !ok {
		return nil, problem.New(problem.ErrUnsupported, "usage of instances cannot be told here")
	}
	var own []string
	if len(ids) == 0 {
		for _, in := range c.store.All() {
			if in.Org == org {
				own = append(own, in.ID)
			}
		}
	}
	for _, id := range ids {
		if in := c.store.Live(id); in != nil && in.Org == org {
			own = append(own, id)
		}
	}
	if len(own) == 0 {
		return []cis.Stats{}, nil
	}
	stats, err := reader.Stats(ctx, own)
	if err != nil {
		return nil, fmt.Errorf("stats: %w", err)
	}
	return stats, nil
}

// logWait is how long Logs waits for the first byte, or an error, before it answers: an error that comes at once becomes the
// answer, a quiet container makes nobody wait.
const logWait = 500 * time.Millisecond

// Logs implements cis.LogReader: the engine's files first, the log store when they are gone or the instance is.
func (c *Control) Logs(ctx context.Context, org, id string, req cis.LogRequest) (io.ReadCloser, error) {
	in, err := c.instance(ctx, org, id)
	switch {
	case errors.Is(err, problem.ErrNotFound) && cis.ValidID(id):
		return c.storedLogs(ctx, org, id, req, err)
	case err != nil:
		return nil, err
	}
	// A virtual machine's own log is read as if a container had that name.
	if err := hasContainer(in, req.Container); err != nil && (req.Container != cis.GuestLog || in.Status.SandboxClass != cis.Kata) {
		return nil, err
	}
	reader, ok := c.engine.(engine.LogReader)
	if !ok {
		return c.storedLogs(ctx, org, id, req, problem.New(problem.ErrUnsupported, "logs of instances cannot be read here"))
	}
	rctx, cancel := context.WithCancel(ctx)
	pr, pw := io.Pipe()
	w := &firstWrite{w: pw, begun: make(chan struct{})}
	result := make(chan error, 1)
	go func() {
		err := reader.Logs(rctx, id, req, w)
		if errors.Is(err, problem.ErrNotFound) && !w.wrote {
			err = c.copyStored(rctx, org, id, req, w, err)
		}
		pw.CloseWithError(err) //nolint:errcheck // always nil
		result <- err
	}()
	timer := time.NewTimer(logWait)
	defer timer.Stop()
	select {
	case err := <-result:
		if err != nil {
			cancel()
			return nil, err
		}
	case <-w.begun:
	case <-timer.C:
	case <-ctx.Done():
	}
	return &logStream{PipeReader: pr, cancel: cancel}, nil
}

// storedLogs asks the log store; missing is the answer when there is none.
func (c *Control) storedLogs(ctx context.Context, org, id string, req cis.LogRequest, missing error) (io.ReadCloser, error) {
	if c.cfg.Logs == nil {
		return nil, missing
	}
	return c.cfg.Logs(ctx, org, id, req)
}

func (c *Control) copyStored(ctx context.Context, org, id string, req cis.LogRequest, w io.Writer, missing error) error {
	rc, err := c.storedLogs(ctx, org, id, req, missing)
	if err != nil {
		return err
	}
	_, err = io.Copy(w, rc)
	return errors.Join(err, rc.Close())
}

// firstWrite tells when the first byte comes. Used by one goroutine.
type firstWrite struct {
	w     io.Writer
	wrote bool
	begun chan struct{}
}

func (f *firstWrite) Write(p []byte) (int, error) {
	if !f.wrote && len(p) > 0 {
		f.wrote = true
		close(f.begun)
	}
	return f.w.Write(p)
}

// logStream ends its writer when it is closed.
type logStream struct {
	*io.PipeReader
	cancel context.CancelFunc
}

func (l *logStream) Close() error {
	l.cancel()
	return l.PipeReader.Close()
}
