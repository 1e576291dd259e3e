package client_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"
	"time"

	utilexec "k8s.io/utils/exec"

	"cumulet.io/cis"
	"cumulet.io/cis/engine"
	"cumulet.io/internal/problem"
)

// loop is an engine whose containers answer by simple rules, so that what crosses the wire can be seen at both ends.
type loop struct {
	sink engine.Sink

	mu      sync.Mutex
	port    string // where port 80 of every instance is
	killed  chan struct{}
	logs    string
	volumes map[string]cis.FilesVolume
}

func newLoop() *loop {
	return &loop{killed: make(chan struct{}, 8), volumes: map[string]cis.FilesVolume{}}
}

func (e *loop) make(s engine.Sink) (engine.Engine, error) { e.sink = s; return e, nil }

func (e *loop) Run(ctx context.Context) error { <-ctx.Done(); return nil }

func (e *loop) Sync(ctx context.Context, all []*cis.Instance) error {
	for _, in := range all {
		if err := e.Ensure(ctx, in); err != nil {
			return err
		}
	}
	return nil
}

func (e *loop) Ensure(ctx context.Context, in *cis.Instance) error {
	st := cis.Status{Phase: cis.Running, Incarnation: 1, IPs: []string{"10.0.0.1"}, Size: cis.SizeOf(&in.Spec), SandboxClass: cis.Runc,
		StartedAt: in.CreatedAt, Initialized: true, Ready: true}
	if in.Desired.Stop {
		st.Phase, st.EndedAt = cis.Succeeded, in.Desired.StopAt
	} else if in.Status.Phase == cis.Pending {
		if err := e.sink.Record(ctx, cis.Event{Instance: in.ID, Type: cis.Normal, Reason: "Started", Message: "it runs", Container: "main"}); err != nil {
			return err
		}
	}
	return e.sink.Report(ctx, in.ID, st)
}

func (e *loop) Classes(context.Context) ([]cis.SandboxClass, map[cis.SandboxClass]string) {
	return []cis.SandboxClass{cis.Runc}, map[cis.SandboxClass]string{cis.Kata: "no KVM", cis.GVisor: "no runsc"}
}

func (e *loop) Capacity(context.Context) (engine.Capacity, error) { return engine.Capacity{}, nil }

// Exec knows: cat, both, flood N, sizes N, exit N, hang, fail; and attach.
func (e *loop) Exec(ctx context.Context, _ string, req cis.ExecRequest) error {
	if len(req.Command) == 0 {
		_, err := io.WriteString(req.Stdout, "attached")
		return err
	}
	n := 0
	if len(req.Command) > 1 {
		n, _ = strconv.Atoi(req.Command[1])
	}
	switch req.Command[0] {
	case "cat":
		_, err := io.Copy(req.Stdout, req.Stdin)
		return err
	case "both":
		_, err := io.WriteString(req.Stdout, "to stdout")
		_, err2 := io.WriteString(req.Stderr, "to stderr")
		return errors.Join(err, err2)
	case "flood":
		_, err := io.CopyN(req.Stdout, zeros{}, int64(n))
		return err
	case "sizes":
		for range n {
			select {
			case s := <-req.Resize:
				if _, err := fmt.Fprintf(req.Stdout, "%dx%d;", s.Width, s.Height); err != nil {
					return err
				}
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		return nil
	case "exit":
		return fmt.Errorf("command: %w", utilexec.CodeExitError{Err: fmt.Errorf("exit status %d", n), Code: n})
	case "hang":
		if _, err := io.WriteString(req.Stdout, "hanging"); err != nil {
			return err
		}
		<-ctx.Done()
		e.killed <- struct{}{}
		return ctx.Err()
	case "fail":
		return errors.New("secret path /var/lib/x")
	default:
		return problem.New(problem.ErrInvalid, "%s: not found in the image", req.Command[0])
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func (e *loop) Logs(ctx context.Context, _ string, req cis.LogRequest, w io.Writer) error {
	e.mu.Lock()
	text := e.logs
	e.mu.Unlock()
	if req.Tail != nil || req.Previous || req.Timestamps || !req.Since.IsZero() || req.LimitBytes > 0 {
		_, err := fmt.Fprintf(w, "tail=%d previous=%v timestamps=%v since=%s limit=%d", *req.Tail, req.Previous, req.Timestamps, req.Since.Format(time.RFC3339Nano), req.LimitBytes)
		return err
	}
	_, err := io.WriteString(w, strings.TrimSuffix(text, "!"))
	if strings.HasSuffix(text, "!") {
		return errors.New("disk error")
	}
	if req.Follow {
		<-ctx.Done()
	}
	return err
}

func (e *loop) PortForward(ctx context.Context, _ string, port uint16) (io.ReadWriteCloser, error) {
	if port != 80 {
		return nil, problem.New(problem.ErrUnavailable, "nothing listens on port %d", port)
	}
	return new(net.Dialer).DialContext(ctx, "tcp", e.port)
}

func (e *loop) Stats(_ context.Context, ids []string) ([]cis.Stats, error) {
	var out []cis.Stats
	for _, id := range ids {
		out = append(out, cis.Stats{Instance: id, Time: time.Unix(1e9, 5).UTC(), Containers: []cis.ContainerStats{{Name: "main", CPUNanoseconds: 7}}})
	}
	return out, nil
}

func (e *loop) UpdateVolume(_ context.Context, id, volume string, files cis.FilesVolume) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.volumes[id+"/"+volume] = files
	return nil
}
