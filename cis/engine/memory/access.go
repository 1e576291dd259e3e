package memory

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"time"

	"k8s.io/utils/exec"

	"cumulet.io/cis"
	"cumulet.io/internal/problem"
)

// container finds a container by name; "" is the first one. It is called under mu.
func (i *instance) container(name string) (*container, error) {
	if name == "" {
		return i.mains[0], nil
	}
	for _, c := range i.all() {
		if c.spec.Name == name {
			return c, nil
		}
	}
	return nil, problem.New(problem.ErrNotFound, "instance %s has no container %q", i.id, name)
}

// Exec implements engine.Execer. An empty command attaches: it follows the container's output to its end.
func (e *Engine) Exec(ctx context.Context, id string, req cis.ExecRequest) error {
	if len(req.Command) == 0 {
		out := req.Stdout
		if out == nil {
			out = io.Discard
		}
		return e.Logs(ctx, id, cis.LogRequest{Container: req.Container, Follow: true, Tail: new(int64)}, out)
	}
	i, err := e.world.find(id)
	if err != nil {
		return err
	}
	i.mu.Lock()
	c, err := i.container(req.Container)
	if err == nil && !c.running() {
		err = problem.New(problem.ErrConflict, "container %s is not running", c.spec.Name)
	}
	if err != nil {
		i.mu.Unlock()
		return err
	}
	if len(req.Command) == 1 && req.Command[0] == "cat" && req.Stdin != nil && req.Stdout != nil {
		i.mu.Unlock()
		return copyUntil(ctx, req.Stdout, req.Stdin)
	}
	s := &session{inst: i, notify: make(chan struct{}, 1), tty: req.TTY}
	p, err := c.newProcess(req.Command)
	if err != nil {
		i.mu.Unlock()
		return exec.CodeExitError{Err: err, Code: 126}
	}
	p.stdout = func(text string) { s.put(&s.out, text) }
	p.stderr = func(text string) { s.put(&s.errOut, text) }
	if req.TTY {
		p.stderr = p.stdout
		p.terminal = func() (uint16, uint16, bool) { return s.size.Height, s.size.Width, true }
	}
	p.exited = s.wake
	p.run()
	i.mu.Unlock()
	return s.follow(ctx, p, &req)
}

// copyUntil copies until the input ends or ctx does.
func copyUntil(ctx context.Context, w io.Writer, r io.Reader) error {
	done := make(chan error, 1)
	go func() {
		_, err := io.Copy(w, r)
		done <- err
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// session is the output of an exec on its way; inst.mu guards it.
type session struct {
	inst        *instance
	notify      chan struct{}
	tty         bool
	out, errOut []byte
	size        cis.TerminalSize
}

func (s *session) wake() {
	select {
	case s.notify <- struct{}{}:
	default:
	}
}

func (s *session) put(to *[]byte, text string) {
	if len(*to)+len(text) > maxDisk {
		return
	}
	for i := range len(text) {
		if text[i] == '\n' && s.tty {
			*to = append(*to, '\r')
		}
		*to = append(*to, text[i])
	}
	s.wake()
}

// follow hands output over until the process ends or ctx does.
func (s *session) follow(ctx context.Context, p *process, req *cis.ExecRequest) error {
	resize := req.Resize
	for {
		s.inst.mu.Lock()
		out, errOut, done, code := s.out, s.errOut, p.done || !p.c.running(), p.code
		s.out, s.errOut = nil, nil
		s.inst.mu.Unlock()
		if err := errors.Join(put(req.Stdout, out), put(req.Stderr, errOut)); err != nil {
			s.kill(p)
			return fmt.Errorf("exec output: %w", err)
		}
		if done {
			if !p.done {
				code = 137
				s.kill(p)
			}
			if code != 0 {
				return exec.CodeExitError{Err: fmt.Errorf("command terminated with exit code %d", code), Code: code}
			}
			return nil
		}
		select {
		case <-s.notify:
		case size, ok := <-resize:
			if !ok {
				resize = nil
				continue
			}
			s.inst.mu.Lock()
			s.size = size
			s.inst.mu.Unlock()
		case <-ctx.Done():
			s.kill(p)
			return ctx.Err()
		}
	}
}

func (s *session) kill(p *process) {
	s.inst.mu.Lock()
	defer s.inst.mu.Unlock()
	p.kill()
}

func put(w io.Writer, data []byte) error {
	if w == nil || len(data) == 0 {
		return nil
	}
	_, err := w.Write(data)
	return err
}

// Logs implements engine.LogReader.
func (e *Engine) Logs(ctx context.Context, id string, req cis.LogRequest, w io.Writer) error {
	i, err := e.world.find(id)
	if err != nil {
		return err
	}
	i.mu.Lock()
	c, err := i.container(req.Container)
	var b *logBuffer
	if err == nil {
		if b = c.log; req.Previous {
			b = c.old
		}
		if b == nil {
			err = problem.New(problem.ErrNotFound, "container %s has no such log yet", c.spec.Name)
		}
	}
	if err != nil {
		i.mu.Unlock()
		return err
	}
	next := b.dropped // the number of the next line, counted from the container's first
	if req.Tail != nil {
		next = max(next, b.dropped+len(b.lines)-int(min(*req.Tail, int64(len(b.lines)))))
	}
	i.mu.Unlock()

	left := req.LimitBytes
	for {
		i.mu.Lock()
		next = max(next, b.dropped)
		batch := slices.Clone(b.lines[min(next-b.dropped, len(b.lines)):])
		if n := len(batch); n > 0 && !b.closed && batch[n-1].text[len(batch[n-1].text)-1] != '\n' {
			batch = batch[:n-1] // not whole yet
		}
		closed, changed := b.closed || !req.Follow, b.wait()
		i.mu.Unlock()
		next += len(batch)
		for _, line := range batch {
			if line.at.Before(req.Since) {
				continue
			}
			text := line.text
			if req.Timestamps {
				text = line.at.UTC().Format(time.RFC3339Nano) + " " + text
			}
			if req.LimitBytes > 0 {
				text = text[:min(int64(len(text)), left)]
				left -= int64(len(text))
			}
			if _, err := io.WriteString(w, text); err != nil {
				return fmt.Errorf("copy log: %w", err)
			}
			if req.LimitBytes > 0 && left == 0 {
				return nil
			}
		}
		if closed {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// PortForward implements engine.PortForwarder. Every port that a running container declares, or that nc listens on,
// answers with what it is sent.
func (e *Engine) PortForward(_ context.Context, id string, port uint16) (io.ReadWriteCloser, error) {
	i, err := e.world.find(id)
	if err != nil {
		return nil, err
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	if !slices.ContainsFunc(i.all(), func(c *container) bool { return c.listening(port) }) {
		return nil, problem.New(problem.ErrUnavailable, "connection to port %d of instance %s refused", port, id)
	}
	near, far := net.Pipe()
	go func() {
		defer far.Close()
		_, _ = io.Copy(far, far) //nolint:errcheck // the peer closes when it is done
	}()
	return near, nil
}

// Stats implements engine.StatsReader. CPU and memory are made up: a thousandth of a CPU and 1 MiB for each container.
func (e *Engine) Stats(_ context.Context, ids []string) ([]cis.Stats, error) {
	var list []*instance
	for _, id := range ids {
		if i, err := e.world.find(id); err == nil {
			list = append(list, i)
		}
	}
	now := time.Now()
	var out []cis.Stats
	for _, i := range list {
		i.mu.Lock()
		if i.ip != "" && !i.phase.Final() {
			s := cis.Stats{Instance: i.id, Time: now, StartTime: i.startedAt, Containers: []cis.ContainerStats{}}
			for _, c := range i.all() {
				if c.running() {
					s.Containers = append(s.Containers, cis.ContainerStats{
						Name: c.spec.Name, StartTime: c.started, MemoryBytes: 1 << 20, DiskBytes: uint64(i.disk), //nolint:gosec // not negative
						CPUNanoseconds: uint64(max(now.Sub(c.started)/1000, 0)), //nolint:gosec // not negative
					})
				}
			}
			out = append(out, s)
		}
		i.mu.Unlock()
	}
	return out, nil
}

// UpdateVolume implements engine.VolumeUpdater.
func (e *Engine) UpdateVolume(_ context.Context, id, name string, files cis.FilesVolume) error {
	i, err := e.world.find(id)
	if err != nil {
		return err
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.phase.Final() || i.volumes == nil {
		return problem.New(problem.ErrConflict, "instance %s is not running", id)
	}
	v := i.volumes[name]
	if v == nil || !v.given {
		return problem.New(problem.ErrNotFound, "instance %s has no files volume %q", id, name)
	}
	v.fill(&files)
	return nil
}
