package containerd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"cumulet.io/internal/proc"
)

// The bound of containerd's log: one file in use and three old ones.
const (
	logFileBytes = 16 << 20
	logFilesKept = 3
	trimEvery    = 30 * time.Second
)

// lockTimeout is how long Run waits for a process that is just ending.
const lockTimeout = 10 * time.Second

// Daemon is a containerd to be run by this process. Its methods may be called
// at any time and from several goroutines, but Run at most once at a time.
type Daemon struct {
	config Config
	binary string
	pid    atomic.Int64
}

// New checks the configuration and finds containerd. It changes nothing.
func New(config Config) (*Daemon, error) {
	config, err := config.normalize()
	if err != nil {
		return nil, err
	}
	binary, err := lookup(config.BinDirs, "containerd")
	if err != nil {
		return nil, err
	}
	return &Daemon{config: config, binary: binary}, nil
}

// Socket is the path of the CRI and containerd API socket.
func (d *Daemon) Socket() string { return d.config.socket() }

// TaskDir is where containerd keeps the bundles of its tasks, one directory per
// namespace; by a bundle its shim is found when containerd is down.
func (d *Daemon) TaskDir() string { return d.config.taskDir() }

// Runsc is gVisor's command and the directory where it keeps the containers of
// namespaces; empty when there is no handler of gVisor.
func (d *Daemon) Runsc() (binary, root string) {
	for _, h := range d.config.Handlers {
		if h.Type == typeGVisor {
			return h.Binary, filepath.Join(d.config.RunDir, h.Name)
		}
	}
	return "", ""
}

// Host is what the machine allows, as the daemon is configured for it.
func (d *Daemon) Host() Host { return *d.config.Host }

// PID is the process id of the last containerd that Run started, 0 before the
// first.
func (d *Daemon) PID() int { return int(d.pid.Load()) }

// Handlers are the names of the runtime handlers, the default one first.
func (d *Daemon) Handlers() []string {
	names := make([]string, len(d.config.Handlers))
	for i, h := range d.config.Handlers {
		names[i] = h.Name
	}
	return names
}

// Run writes the configuration and keeps containerd running until ctx ends.
// Instances go on without it. A containerd that a killed process has left goes
// on, if its program and configuration are still the same. It returns nil once
// containerd is gone, or an error when the configuration cannot be written,
// containerd not be run, or another process runs it.
func (d *Daemon) Run(ctx context.Context) (err error) {
	unlock, err := d.lock(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unlock()) }()
	if err := d.config.write(); err != nil {
		return fmt.Errorf("write the configuration of containerd: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(d.config.logFile()), 0o755); err != nil {
		return fmt.Errorf("open the log of containerd: %w", err)
	}
	log, err := os.OpenFile(d.config.logFile(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("open the log of containerd: %w", err)
	}
	child, err := d.child()
	if err != nil {
		return errors.Join(err, log.Close())
	}
	child.Output = log
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	trimmed := make(chan struct{})
	go func() {
		defer close(trimmed)
		d.trimLog(ctx)
	}()
	err = child.Run(ctx)
	cancel()
	<-trimmed
	return errors.Join(err, log.Close())
}

func (d *Daemon) child() (proc.Child, error) {
	version, err := d.config.version()
	return proc.Child{
		Name:        "containerd",
		Path:        d.binary,
		Args:        []string{"--config", d.config.configFile()},
		Env:         d.config.environment(),
		Dir:         d.config.Dir,
		Log:         d.config.Log,
		Adopt:       true,
		Version:     version,
		BeforeStart: d.config.BeforeStart,
		Started:     func(pid int) { d.pid.Store(int64(pid)) },
	}, err
}

// lock excludes another process that would run the same containerd, or purge it.
func (d *Daemon) lock(ctx context.Context) (unlock func() error, err error) {
	if err := os.MkdirAll(d.config.Dir, 0o711); err != nil {
		return nil, fmt.Errorf("lock containerd: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(d.config.Dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock containerd: %w", err)
	}
	// A killed process's lock ends with it, or with the child that it was just starting.
	for end := time.Now().Add(lockTimeout); ; {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return f.Close, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) || time.Now().After(end) || ctx.Err() != nil {
			return nil, errors.Join(fmt.Errorf("lock containerd: another process runs it, or removes it: %s: %w", f.Name(), err), f.Close())
		}
		select {
		case <-ctx.Done():
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// trimLog bounds the log until ctx ends. containerd writes it itself, for it may
// outlive this process.
func (d *Daemon) trimLog(ctx context.Context) {
	tick := time.NewTicker(trimEvery)
	defer tick.Stop()
	for {
		if err := proc.Trim(d.config.logFile(), logFileBytes, logFilesKept); err != nil {
			d.config.Log.Warn("the log of containerd is not bounded", "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// environment is what containerd and so the shims get: where the programs are
// and how to reach registries, and nothing of this process's secrets.
func (c Config) environment() []string {
	path := append([]string{}, c.BinDirs...)
	path = append(path, c.CNIBinDir)
	if p := os.Getenv("PATH"); p != "" {
		path = append(path, p)
	}
	path = append(path, "/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")
	env := []string{"PATH=" + strings.Join(path, ":")}
	for _, name := range []string{"HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy", "SSL_CERT_FILE", "SSL_CERT_DIR", "TZ"} {
		if v, ok := os.LookupEnv(name); ok {
			env = append(env, name+"="+v)
		}
	}
	return env
}

// Ready waits until containerd can run a sandbox: it answers, its runtime and
// network are ready, and the sandbox image is there. After ctx it returns an
// error that says what was missing; at once, when SandboxArchive cannot be read
// or lacks the image.
func (d *Daemon) Ready(ctx context.Context) error {
	conn, err := grpc.NewClient("unix://"+d.Socket(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return fmt.Errorf("containerd: %w", err)
	}
	defer conn.Close() // nothing is in flight
	for {
		err := check(ctx, conn)
		if err == nil {
			err = d.ensureSandboxImage(ctx, runtimev1.NewImageServiceClient(conn))
		}
		if err == nil {
			return nil
		}
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) || errors.Is(err, ErrNoImage) {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("containerd is not ready: %w (last: %w)", ctx.Err(), err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// Answers asks the containerd at a socket, which is somebody else's, whether its runtime and its network are ready.
func Answers(ctx context.Context, socket string) error {
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return fmt.Errorf("containerd: %w", err)
	}
	defer conn.Close() // nothing is in flight
	if err := check(ctx, conn); err != nil {
		return fmt.Errorf("containerd at %s is not ready: %w", socket, err)
	}
	return nil
}

// check asks once whether the runtime and the network are ready.
func check(ctx context.Context, conn *grpc.ClientConn) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	status, err := runtimev1.NewRuntimeServiceClient(conn).Status(ctx, &runtimev1.StatusRequest{})
	if err != nil {
		return err
	}
	missing := map[string]bool{runtimev1.RuntimeReady: true, runtimev1.NetworkReady: true}
	var errs []error
	for _, c := range status.GetStatus().GetConditions() {
		if !missing[c.GetType()] {
			continue
		}
		delete(missing, c.GetType())
		if !c.GetStatus() {
			errs = append(errs, fmt.Errorf("%s is false: %s: %s", c.GetType(), c.GetReason(), c.GetMessage()))
		}
	}
	for name := range missing {
		errs = append(errs, fmt.Errorf("%s is not reported", name))
	}
	return errors.Join(errs...)
}
