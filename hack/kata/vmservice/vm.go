package vmservice

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"sync"
	"time"

	pb "github.com/kata-containers/kata-containers/src/runtime/protocols/hypervisor"
	"golang.org/x/sys/unix"

	"cumulet.io/hack/kata/sharing"
	"cumulet.io/hack/kata/vsock"
)

// Files of a machine in its directory. The console's is the guest kernel's log.
const (
	agentSocket   = "agent.sock"
	vsockSocket   = "vsock.sock"
	fsSocket      = "fs.sock"
	consoleSocket = "con.sock"
	consoleLog    = "console.log"
	qemuLog       = "qemu.log"
	fsLog         = "virtiofsd.log"
	shareDir      = "share"
)

const (
	minMemoryMiB = 128
	maxMemoryMiB = 1 << 20
	maxCPUs      = 64
	idLen        = 16 // what of an id names the directory
)

// Annotations of CreateVM, by which the shim tells the sizes: Kata's
// virtcontainers/pkg/annotations has them.
const (
	annotationMemory = "io.katacontainers.config.hypervisor.default_memory"
	annotationCPUs   = "io.katacontainers.config.hypervisor.default_vcpus"
)

var validID = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}$`)

// vm is a sandbox's virtual machine. It is started once and stopped once.
type vm struct {
	service      *Service
	log          *slog.Logger
	id           string
	dir          string
	netns        string
	shim         int
	shimFD       *os.File // a pidfd, readable when the shim has ended; closed when the machine is removed
	bundles      string   // containerd's directory of the namespace's bundles
	memory, cpus int

	startOnce, stopOnce sync.Once
	stopped             chan struct{} // closed when stop has begun

	// All below is made by start, and guarded by mu against stop.
	mu      sync.Mutex
	ended   bool
	space   *space
	procs   []*child
	vsock   *vsock.Device
	agent   net.Listener
	network *network
	shares  *shares
	tasks   sync.WaitGroup
}

func dirName(id string) string { return id[:min(idLen, len(id))] }

func newVM(s *Service, shim int, r *pb.CreateVMRequest) (*vm, error) {
	if !validID.MatchString(r.Id) {
		return nil, fmt.Errorf("VM id %q", r.Id)
	}
	v := &vm{
		service: s, log: s.log.With("vm", dirName(r.Id)), id: r.Id, dir: filepath.Join(s.config.StateDir, dirName(r.Id)),
		netns: r.NetworkNamespacePath, shim: shim, memory: s.config.MemoryMiB, cpus: 1, stopped: make(chan struct{}),
	}
	for name, at := range map[string]*int{annotationMemory: &v.memory, annotationCPUs: &v.cpus} {
		text := r.Annotations[name]
		if text == "" || text == "0" {
			continue
		}
		n, err := strconv.Atoi(text)
		if err != nil {
			return nil, fmt.Errorf("annotation %s: %q is not a number", name, text)
		}
		*at = n
	}
	if v.memory < minMemoryMiB || v.memory > maxMemoryMiB {
		return nil, fmt.Errorf("a VM of %d MiB: want %d to %d", v.memory, minMemoryMiB, maxMemoryMiB)
	}
	if v.cpus < 1 || v.cpus > maxCPUs {
		return nil, fmt.Errorf("a VM of %d processors: want 1 to %d", v.cpus, maxCPUs)
	}
	return v, nil
}

func (v *vm) path(file string) string { return filepath.Join(v.dir, file) }

// makeDir makes the directory and takes hold of the shim.
func (v *vm) makeDir() error {
	fd, err := unix.PidfdOpen(v.shim, unix.PIDFD_NONBLOCK)
	if err != nil {
		return fmt.Errorf("watch the shim %d: %w", v.shim, err)
	}
	v.shimFD = os.NewFile(uintptr(fd), "shim")
	// The shim's working directory is its sandbox's bundle.
	bundle, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", v.shim))
	if err == nil {
		v.bundles = filepath.Dir(bundle)
		err = os.Mkdir(v.dir, 0o700)
	}
	if err == nil {
		err = os.Mkdir(v.path(shareDir), 0o755)
	}
	if err != nil {
		v.shimFD.Close()
		return fmt.Errorf("make the machine's directory: %w", err)
	}
	return nil
}

// start starts everything, and returns when the agent has its network.
func (v *vm) start(ctx context.Context) error {
	err := errors.New("it has been started already")
	v.startOnce.Do(func() { err = v.startOnceOnly(ctx) })
	return err
}

func (v *vm) startOnceOnly(ctx context.Context) error {
	began := time.Now()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() { // a machine that ends need not be waited for
		select {
		case <-v.stopped:
			cancel()
		case <-ctx.Done():
		}
	}()
	if err := v.assemble(); err != nil {
		return err
	}
	if err := v.greet(ctx); err != nil {
		return fmt.Errorf("%w (the end of %s: %s)", err, consoleLog, tail(v.path(consoleLog)))
	}
	v.log.Info("started", "after", time.Since(began).Round(time.Millisecond))
	return nil
}

// assemble starts the parts.
func (v *vm) assemble() error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.ended {
		return errors.New("it has been stopped")
	}
	var err error
	if v.space, err = enterSpace(v.shim); err != nil {
		return err
	}
	v.shares = &shares{vm: v.id, dir: v.path(shareDir), bundles: v.bundles, space: v.space}
	if err := v.startVirtiofsd(); err != nil {
		return err
	}
	if err := v.startVsock(); err != nil {
		return err
	}
	if err := v.startConsole(); err != nil {
		return err
	}
	if v.network, err = joinNetwork(v.netns); err != nil {
		return fmt.Errorf("network of %s: %w", v.netns, err)
	}
	if err := v.startQEMU(); err != nil {
		return err
	}
	return v.serveAgent()
}

// run starts a child that the machine cannot be without.
func (v *vm) run(name, logFile string, args []string, files []*os.File) error {
	c, err := v.space.start(args, files, v.path(logFile))
	if err != nil {
		return fmt.Errorf("start %s: %w", name, err)
	}
	v.procs = append(v.procs, c)
	v.tasks.Go(func() {
		<-c.done
		v.log.Info("process ended", "name", name, "state", c.state.String())
		go v.stop(name + " has ended")
	})
	return nil
}

// watchShim waits for the shim's end, which is the machine's, whatever of it there is by then; or until it is removed.
func (v *vm) watchShim() {
	raw, err := v.shimFD.SyscallConn()
	if err != nil {
		return // closed: the machine has been removed
	}
	// A pidfd is readable when its process has ended.
	ended := false
	err = raw.Read(func(fd uintptr) bool {
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(p, 0)
		ended = err == nil && n == 1
		return ended
	})
	if err != nil || !ended {
		return
	}
	v.stop("its shim has ended")
	if err := v.service.remove(v); err != nil {
		v.log.Error("remove failed", "error", err)
	}
	v.service.sweep(v)
}

// startVsock listens for QEMU to connect for the socket device.
func (v *vm) startVsock() error {
	v.vsock = vsock.NewDevice()
	v.vsock.Handle(sharing.Port, v.shares.serve)
	return v.expectQEMU(vsockSocket, func(c *net.UnixConn) {
		if err := v.vsock.Serve(c); err != nil {
			v.log.Error("socket device failed", "error", err)
			go v.stop("its socket device failed")
		}
	})
}

// maxConsole bounds what is kept of a guest's console: it can print for ever.
const maxConsole = 16 << 20

// startConsole keeps what the guest prints on its serial line.
func (v *vm) startConsole() error {
	return v.expectQEMU(consoleSocket, func(c *net.UnixConn) {
		defer c.Close()
		if err := keepConsole(v.path(consoleLog), c); err != nil {
			v.log.Warn("console is not kept", "error", err)
		}
		// The guest waits for a line that nobody reads: what is too much is read, too.
		_, _ = io.Copy(io.Discard, c) // until QEMU has ended
	})
}

func keepConsole(path string, c io.Reader) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.CopyN(f, c, maxConsole)
	if errors.Is(err, io.EOF) {
		return nil
	}
	if err == nil {
		_, err = fmt.Fprintf(f, "\n[%d bytes: no more is kept]\n", maxConsole)
	}
	return err
}

// expectQEMU makes a socket to which QEMU connects once.
func (v *vm) expectQEMU(socket string, serve func(*net.UnixConn)) error {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: v.path(socket), Net: "unix"})
	if err != nil {
		return err
	}
	stop := context.AfterFunc(stoppedContext{v.stopped}, func() { l.Close() })
	v.tasks.Go(func() {
		defer stop()
		c, err := l.AcceptUnix()
		l.Close()
		if err != nil {
			return // the machine was stopped before
		}
		serve(c)
	})
	return nil
}

// stoppedContext is a context that ends with a channel.
type stoppedContext struct{ done <-chan struct{} }

func (c stoppedContext) Deadline() (time.Time, bool) { return time.Time{}, false }
func (c stoppedContext) Done() <-chan struct{}       { return c.done }
func (c stoppedContext) Value(any) any               { return nil }
func (c stoppedContext) Err() error {
	select {
	case <-c.done:
		return context.Canceled
	default:
		return nil
	}
}

// stop ends the machine and everything of it but its directory. It returns when
// that is done, by whomever.
func (v *vm) stop(why string) {
	v.stopOnce.Do(func() {
		v.log.Info("stopping", "because", why)
		close(v.stopped)
		v.mu.Lock()
		defer v.mu.Unlock()
		v.ended = true
		for _, c := range v.procs {
			c.kill()
		}
		// Whoever talks with the agent hears at once that it is gone.
		if v.agent != nil {
			v.agent.Close()
		}
		if v.vsock != nil {
			v.vsock.Close()
		}
		v.tasks.Wait()
		if err := errors.Join(v.network.leave(), v.shares.releaseAll(), v.space.leave()); err != nil {
			v.log.Error("stop left something", "error", err)
		}
	})
}

func tail(path string) string {
	const most = 2 << 10
	b, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	return string(b[max(0, len(b)-most):])
}
