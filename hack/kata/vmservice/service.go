// Package vmservice is a hypervisor for Kata Containers on machines whose kernel
// has none: it runs each sandbox's virtual machine in a QEMU of its own, by
// default with emulation of the processor (TCG).
//
// Kata's shim, configured with the hypervisor type "remote", asks a service for
// its machines by four ttrpc calls (Kata's protocols/hypervisor): CreateVM, which
// answers with the Unix socket by which the shim will reach the agent, StartVM,
// StopVM and Version. Around them this package does what the shim does itself for
// the hypervisors that it knows:
//
//   - the pod's network: each interface of its network namespace is joined to the
//     machine's own by a tap and two traffic control redirects (netns.go);
//   - the socket device to the agent, by package vsock;
//   - the directory shared with the guest, by virtiofsd, and what is in it: the
//     containers' root file systems and volumes (share.go);
//   - the end: a machine lives no longer than its QEMU, its virtiofsd, the shim
//     that asked for it, and this service (vm.go).
//
// It is for tests and for trying things out. Emulation is slow, and the socket
// gives whoever may open it the means to run programs here as root.
package vmservice

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"

	"github.com/containerd/ttrpc"
	pb "github.com/kata-containers/kata-containers/src/runtime/protocols/hypervisor"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Config is what the machines are made of.
type Config struct {
	Socket    string // where to serve; absolute, made by Run
	StateDir  string // of the machines: sockets, logs; absolute, emptied by Run
	QEMU      string // qemu-system-x86_64
	Virtiofsd string // QEMU's own, of version 7.2
	Kernel    string // vmlinuz, or vmlinux with a PVH entry
	Initrd    string // with kata-agent as /init
	Accel     string // "tcg" or "kvm"
	MemoryMiB int    // of a machine, where its request says none
	Log       *slog.Logger
}

func (c *Config) check() error {
	for name, path := range map[string]string{
		"socket": c.Socket, "state directory": c.StateDir, "qemu": c.QEMU, "virtiofsd": c.Virtiofsd, "kernel": c.Kernel, "initrd": c.Initrd,
	} {
		if !filepath.IsAbs(path) {
			return fmt.Errorf("%s: %q is not an absolute path", name, path)
		}
	}
	for _, file := range []string{c.QEMU, c.Virtiofsd, c.Kernel, c.Initrd} {
		if _, err := os.Stat(file); err != nil {
			return err
		}
	}
	if c.Accel != "tcg" && c.Accel != "kvm" {
		return fmt.Errorf("accelerator %q: want tcg or kvm", c.Accel)
	}
	if c.MemoryMiB < minMemoryMiB {
		return fmt.Errorf("memory of %d MiB: want %d at least", c.MemoryMiB, minMemoryMiB)
	}
	// sun_path has 108 bytes; a machine's sockets are below the state directory.
	if n := len(filepath.Join(c.StateDir, dirName("x"), agentSocket)) + idLen; n > 107 {
		return fmt.Errorf("state directory %s: its path is %d bytes too long for sockets in it", c.StateDir, n-107)
	}
	return nil
}

// Service implements Kata's hypervisor service.
type Service struct {
	config Config
	log    *slog.Logger
	ctx    context.Context // of Run
	// watches are those for shims' ends, and what is to be done after one.
	watches sync.WaitGroup

	mu   sync.Mutex
	vms  map[string]*vm
	down bool
}

// Run serves until ctx ends, then stops every machine.
func Run(ctx context.Context, c Config) error {
	if err := c.check(); err != nil {
		return err
	}
	if err := os.MkdirAll(c.StateDir, 0o711); err != nil {
		return err
	}
	lock, err := lockDir(c.StateDir)
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := clean(c.StateDir); err != nil {
		return fmt.Errorf("clean %s: %w", c.StateDir, err)
	}
	if err := os.MkdirAll(filepath.Dir(c.Socket), 0o711); err != nil {
		return err
	}
	if err := os.Remove(c.Socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "unix", c.Socket)
	if err != nil {
		return err
	}
	if err := os.Chmod(c.Socket, 0o600); err != nil {
		l.Close()
		return err
	}
	s := &Service{config: c, log: c.Log, ctx: ctx, vms: map[string]*vm{}}
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	s.log.Info("serving", "socket", c.Socket)
	err = s.accept(ctx, l)
	s.stopAll()
	s.watches.Wait()
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// lockDir keeps another service off the directory while this one lives.
func lockDir(dir string) (*os.File, error) {
	f, err := os.OpenFile(dir+".lock", os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("%s is another service's: %w", dir, err)
	}
	return f, nil
}

func (s *Service) accept(ctx context.Context, l net.Listener) error {
	var conns sync.WaitGroup
	defer conns.Wait()
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		conns.Go(func() {
			if err := s.serve(ctx, c.(*net.UnixConn)); err != nil {
				s.log.Warn("connection failed", "error", err)
			}
		})
	}
}

// serve serves one connection. Each has a server of its own, because who is at
// its other end matters: the shim, in whose mount namespace the container's
// files are.
func (s *Service) serve(ctx context.Context, c *net.UnixConn) error {
	defer c.Close()
	pid, err := peerPID(c)
	if err != nil {
		return err
	}
	srv, err := ttrpc.NewServer()
	if err != nil {
		return err
	}
	pb.RegisterHypervisorService(srv, &peer{s, pid})
	one := &listener{conn: &closer{UnixConn: c, closed: make(chan struct{})}}
	stop := context.AfterFunc(ctx, func() { one.conn.Close() })
	defer stop()
	if err := srv.Serve(ctx, one); err != nil && !errors.Is(err, net.ErrClosed) {
		return err
	}
	return nil
}

func peerPID(c *net.UnixConn) (int, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *unix.Ucred
	var credErr error
	if err := raw.Control(func(fd uintptr) { cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); err != nil {
		return 0, err
	}
	if credErr != nil {
		return 0, fmt.Errorf("who is the peer: %w", credErr)
	}
	return int(cred.Pid), nil
}

// listener has one connection to accept, and none more until that is closed.
type listener struct {
	conn *closer
	once bool
}

func (l *listener) Accept() (net.Conn, error) {
	if !l.once {
		l.once = true
		return l.conn, nil
	}
	<-l.conn.closed
	return nil, net.ErrClosed
}

func (l *listener) Close() error   { return l.conn.Close() }
func (l *listener) Addr() net.Addr { return l.conn.LocalAddr() }

type closer struct {
	*net.UnixConn
	once   sync.Once
	closed chan struct{}
}

func (c *closer) Close() error {
	c.once.Do(func() { close(c.closed) })
	return c.UnixConn.Close()
}

// peer is the service for one process.
type peer struct {
	*Service
	pid int
}

var _ pb.HypervisorService = (*peer)(nil)

// Version implements Kata's hypervisor service.
func (p *peer) Version(context.Context, *pb.VersionRequest) (*pb.VersionResponse, error) {
	return &pb.VersionResponse{Version: "cumulet"}, nil
}

// CreateVM notes a machine that is to be started.
func (p *peer) CreateVM(_ context.Context, r *pb.CreateVMRequest) (*pb.CreateVMResponse, error) {
	v, err := newVM(p.Service, p.pid, r)
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.down {
		return nil, status.Error(codes.Unavailable, "the VM service is shutting down")
	}
	if _, ok := p.vms[r.Id]; ok {
		return nil, status.Errorf(codes.AlreadyExists, "VM %s exists", r.Id)
	}
	if err := v.makeDir(); err != nil {
		return nil, err
	}
	p.vms[r.Id] = v
	p.watches.Go(v.watchShim)
	v.log.Info("created", "shim", v.shim, "netns", v.netns, "memoryMiB", v.memory, "cpus", v.cpus)
	return &pb.CreateVMResponse{AgentSocketPath: v.path(agentSocket)}, nil
}

// StartVM starts a machine and returns when its agent answers.
func (p *peer) StartVM(ctx context.Context, r *pb.StartVMRequest) (*pb.StartVMResponse, error) {
	v := p.vm(r.Id)
	if v == nil {
		return nil, status.Errorf(codes.NotFound, "no VM %s", r.Id)
	}
	if err := v.start(ctx); err != nil {
		v.log.Error("start failed", "error", err)
		v.stop("its start failed")
		return nil, fmt.Errorf("start VM %s: %w", r.Id, err)
	}
	return &pb.StartVMResponse{}, nil
}

// StopVM ends a machine and removes all of it. One that is not there is stopped.
func (p *peer) StopVM(_ context.Context, r *pb.StopVMRequest) (*pb.StopVMResponse, error) {
	if v := p.vm(r.Id); v != nil {
		v.stop("it was asked for")
		if err := p.remove(v); err != nil {
			return nil, err
		}
	}
	return &pb.StopVMResponse{}, nil
}

func (s *Service) vm(id string) *vm {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.vms[id]
}

// remove forgets a machine that has been stopped.
func (s *Service) remove(v *vm) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.vms[v.id] != v {
		return nil
	}
	delete(s.vms, v.id)
	v.shimFD.Close()
	return removeDir(v.dir)
}

func (s *Service) stopAll() {
	s.mu.Lock()
	s.down = true
	var all []*vm
	for _, v := range s.vms {
		all = append(all, v)
	}
	s.mu.Unlock()
	var wg sync.WaitGroup
	for _, v := range all {
		wg.Go(func() {
			v.stop("the service is shutting down")
			if err := s.remove(v); err != nil {
				v.log.Error("remove failed", "error", err)
			}
		})
	}
	wg.Wait()
}
