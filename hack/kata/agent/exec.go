package agent

import (
	"context"
	"errors"
	"io"
	"os"
	"time"

	pb "github.com/kata-containers/kata-containers/src/runtime/virtcontainers/pkg/agent/protocols/grpc"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"

	"cumulet.io/hack/kata/agent/inside"
)

// maxRead bounds what one ReadStdout returns.
const maxRead = 1 << 20

// ExecProcess starts a further process in a container.
func (a *Agent) ExecProcess(_ context.Context, r *pb.ExecProcessRequest) (*emptypb.Empty, error) {
	c, _, err := a.find(r.ContainerId, "")
	if err != nil {
		return nil, err
	}
	if r.Process == nil || r.ExecId == "" {
		return nil, status.Error(codes.InvalidArgument, "no process or exec id")
	}
	s := starter{job: inside.Job{Process: c.complete(r.Process)}, cgroup: c.cgroup}
	for _, name := range []string{"pid", "cgroup", "mnt"} {
		ns, err := c.init.namespace(name)
		if err != nil {
			return nil, status.Errorf(codes.FailedPrecondition, "container %q is not running: %v", c.id, err)
		}
		defer ns.Close()
		if name == "pid" {
			s.pidNS = ns
		} else {
			s.join = append(s.join, ns)
		}
	}
	p, err := s.start()
	if err != nil {
		return nil, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	c.procs[r.ExecId] = p
	return done(), nil
}

// complete gives a further process what the shim does not say of one: it may do
// no more, and no less, than the container's first.
func (c *container) complete(p *pb.Process) *pb.Process {
	if p.Capabilities == nil {
		p.Capabilities = c.spec.Capabilities
	}
	if len(p.Rlimits) == 0 {
		p.Rlimits = c.spec.Rlimits
	}
	if p.OOMScoreAdj == 0 {
		p.OOMScoreAdj = c.spec.OOMScoreAdj
	}
	p.NoNewPrivileges = p.NoNewPrivileges || c.spec.NoNewPrivileges
	return p
}

// SignalProcess signals a process, or all of a container's for an empty exec id.
func (a *Agent) SignalProcess(_ context.Context, r *pb.SignalProcessRequest) (*emptypb.Empty, error) {
	c, p, err := a.find(r.ContainerId, r.ExecId)
	if err != nil {
		return nil, err
	}
	if p == nil {
		return done(), c.cgroup.signal(unix.Signal(r.Signal))
	}
	select {
	case <-p.exited: // its pid may be another's
		return done(), nil
	default:
	}
	if err := unix.Kill(p.pid, unix.Signal(r.Signal)); err != nil && !errors.Is(err, unix.ESRCH) {
		return nil, err
	}
	return done(), nil
}

// WaitProcess waits for a process's end. Had the kernel killed something in the
// container for want of memory, the shim hears of that first.
func (a *Agent) WaitProcess(ctx context.Context, r *pb.WaitProcessRequest) (*pb.WaitProcessResponse, error) {
	c, p, err := a.find(r.ContainerId, r.ExecId)
	if err != nil {
		return nil, err
	}
	if p == nil {
		p = c.init
	}
	select {
	case <-p.exited:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	c.cgroup.checkOOM()
	a.oom.delivered(ctx, c.id)
	if p != c.init {
		a.mu.Lock()
		delete(c.procs, r.ExecId)
		a.mu.Unlock()
		p.close()
	}
	return &pb.WaitProcessResponse{Status: p.code}, nil
}

// WriteStdin writes to a process's input.
func (a *Agent) WriteStdin(_ context.Context, r *pb.WriteStreamRequest) (*pb.WriteStreamResponse, error) {
	_, p, err := a.find(r.ContainerId, r.ExecId)
	if err != nil {
		return nil, err
	}
	n, err := p.stdin.Write(r.Data)
	if err != nil {
		return nil, status.Errorf(codes.FailedPrecondition, "write to process: %v", err)
	}
	return &pb.WriteStreamResponse{Len: uint32(n)}, nil
}

// CloseStdin ends a process's input. A terminal's input has no end of its own.
func (a *Agent) CloseStdin(_ context.Context, r *pb.CloseStdinRequest) (*emptypb.Empty, error) {
	_, p, err := a.find(r.ContainerId, r.ExecId)
	if err != nil {
		return nil, err
	}
	if !p.terminal {
		p.stdin.Close()
	}
	return done(), nil
}

// ReadStdout waits for output of a process.
func (a *Agent) ReadStdout(_ context.Context, r *pb.ReadStreamRequest) (*pb.ReadStreamResponse, error) {
	_, p, err := a.find(r.ContainerId, r.ExecId)
	if err != nil {
		return nil, err
	}
	return p.read(p.stdout, r.Len)
}

// ReadStderr waits for a process's error output.
func (a *Agent) ReadStderr(_ context.Context, r *pb.ReadStreamRequest) (*pb.ReadStreamResponse, error) {
	_, p, err := a.find(r.ContainerId, r.ExecId)
	if err != nil {
		return nil, err
	}
	return p.read(p.stderr, r.Len)
}

// read reads from a stream; its end is an error with the code OutOfRange.
func (p *process) read(f *os.File, most uint32) (*pb.ReadStreamResponse, error) {
	if f == nil {
		return nil, errEOF()
	}
	select {
	case <-p.exited:
		if err := f.SetReadDeadline(time.Now().Add(drain)); err != nil {
			return nil, errEOF() // closed
		}
	default:
	}
	b := make([]byte, min(most, maxRead))
	n, err := f.Read(b)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		// On a busy machine the time may have passed before anybody looked.
		n, err = readAvailable(f, b)
	}
	if n > 0 {
		return &pb.ReadStreamResponse{Data: b[:n]}, nil
	}
	// EIO is a terminal whose last process is gone.
	if err == nil || errors.Is(err, io.EOF) || errors.Is(err, unix.EIO) || errors.Is(err, unix.EAGAIN) || errors.Is(err, os.ErrClosed) {
		return nil, errEOF()
	}
	return nil, err
}

// readAvailable reads what is there, whatever the deadline; EAGAIN where nothing is.
func readAvailable(f *os.File, b []byte) (n int, err error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return 0, err
	}
	controlErr := raw.Control(func(fd uintptr) {
		for {
			if n, err = unix.Read(int(fd), b); !errors.Is(err, unix.EINTR) {
				return
			}
		}
	})
	return max(n, 0), errors.Join(controlErr, err)
}

func errEOF() error { return status.Error(codes.OutOfRange, "EOF") }

// TtyWinResize sets the size of a process's terminal.
func (a *Agent) TtyWinResize(_ context.Context, r *pb.TtyWinResizeRequest) (*emptypb.Empty, error) {
	_, p, err := a.find(r.ContainerId, r.ExecId)
	if err != nil {
		return nil, err
	}
	if !p.terminal {
		return nil, status.Errorf(codes.FailedPrecondition, "process %q has no terminal", r.ExecId)
	}
	raw, err := p.stdin.SyscallConn()
	if err != nil {
		return nil, err
	}
	var set error
	err = raw.Control(func(fd uintptr) {
		set = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: uint16(r.Row), Col: uint16(r.Column)})
	})
	return done(), errors.Join(err, set)
}
