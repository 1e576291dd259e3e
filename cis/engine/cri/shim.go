package cri

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	taskv2 "github.com/containerd/containerd/api/runtime/task/v2"
	taskv3 "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/api/types/task"
	"github.com/containerd/ttrpc"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// shimDialTimeout bounds connecting to a shim's socket, which is on this machine, and a question after its state.
const shimDialTimeout = 5 * time.Second

// maxBundleFile bounds what is read of a file of a container's bundle, bytes.
const maxBundleFile = 4 << 20

// shim is a connection to the shim of a container: containerd's task API, versions 3 and 2, over ttrpc.
type shim struct {
	conn *ttrpc.Client
	id   string
	v3   taskv3.TTRPCTaskService
	v2   taskv2.TTRPCTaskService
	old  bool // it speaks version 2 alone
}

// shimAddress is what a shim told containerd at its start about how to be reached.
type shimAddress struct {
	Version  int    `json:"version"`
	Address  string `json:"address"`
	Protocol string `json:"protocol"`
}

// bundleDir is where containerd keeps the bundle of a container of CRI.
func bundleDir(taskDir, id string) string { return filepath.Join(taskDir, criNamespace, id) }

// readBundle reads a file of a bundle.
func readBundle(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxBundleFile+1))
	if err == nil && len(b) > maxBundleFile {
		err = fmt.Errorf("%s is too large", path)
	}
	return b, err
}

// decodeShimAddress understands what containerd keeps in bootstrap.json: JSON, or an old shim's plain address.
func decodeShimAddress(b []byte) (socket string, version int, err error) {
	s := shimAddress{}
	if json.Unmarshal(b, &s) != nil || s.Version < 2 {
		s = shimAddress{Version: 2, Address: strings.TrimSpace(string(b)), Protocol: "ttrpc"}
	}
	socket, unix := strings.CutPrefix(s.Address, "unix://")
	if !strings.EqualFold(s.Protocol, "ttrpc") || !unix || !filepath.IsAbs(socket) {
		return "", 0, errors.New("the shim does not listen with ttrpc on a unix socket")
	}
	return socket, s.Version, nil
}

// openShim connects to the shim of a container.
func openShim(ctx context.Context, taskDir, id string) (*shim, error) {
	dir := bundleDir(taskDir, id)
	b, err := readBundle(filepath.Join(dir, "bootstrap.json"))
	if errors.Is(err, os.ErrNotExist) {
		b, err = readBundle(filepath.Join(dir, "address"))
	}
	if err != nil {
		return nil, fmt.Errorf("read shim address: %w", err)
	}
	socket, version, err := decodeShimAddress(b)
	if err != nil {
		return nil, fmt.Errorf("read shim address: %w", err)
	}
	d := net.Dialer{Timeout: shimDialTimeout}
	conn, err := d.DialContext(ctx, "unix", socket)
	if err != nil {
		return nil, fmt.Errorf("connect to shim: %w", err)
	}
	c := ttrpc.NewClient(conn)
	return &shim{conn: c, id: id, v3: taskv3.NewTTRPCTaskClient(c), v2: taskv2.NewTTRPCTaskClient(c), old: version < 3}, nil
}

func (s *shim) close() error { return s.conn.Close() }

// wait blocks until the container's process has ended.
func (s *shim) wait(ctx context.Context) (*exitRecord, error) {
	if !s.old {
		r, err := s.v3.Wait(ctx, &taskv3.WaitRequest{ID: s.id})
		if status.Code(err) != codes.Unimplemented {
			return s.exit(r, err)
		}
		s.old = true
	}
	r, err := s.v2.Wait(ctx, &taskv2.WaitRequest{ID: s.id})
	return s.exit(r, err)
}

// ended tells how the container's process ended, nil while it has not. It takes the state only for whether, for
// gVisor's shim says that a container has stopped a moment before it knows how.
func (s *shim) ended(ctx context.Context) (*exitRecord, error) {
	st, err := s.state(ctx)
	if err != nil {
		return nil, fmt.Errorf("ask shim: %w", err)
	}
	if st != task.Status_STOPPED {
		return nil, nil
	}
	return s.wait(ctx)
}

// gone tells whether a container is known not to run: it has no bundle, nobody is at its shim's socket, or the shim says so.
func gone(ctx context.Context, taskDir, id string) bool {
	if taskDir == "" {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, shimDialTimeout)
	defer cancel()
	s, err := openShim(ctx, taskDir, id)
	if err != nil {
		return errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ECONNREFUSED)
	}
	defer s.close() //nolint:errcheck // nothing was written
	st, err := s.state(ctx)
	return status.Code(err) == codes.NotFound || err == nil && st == task.Status_STOPPED
}

func (s *shim) state(ctx context.Context) (task.Status, error) {
	if !s.old {
		r, err := s.v3.State(ctx, &taskv3.StateRequest{ID: s.id})
		if status.Code(err) != codes.Unimplemented {
			return r.GetStatus(), err
		}
		s.old = true
	}
	r, err := s.v2.State(ctx, &taskv2.StateRequest{ID: s.id})
	return r.GetStatus(), err
}

// waited is a shim's answer to Wait, in either version.
type waited interface {
	GetExitStatus() uint32
	GetExitedAt() *timestamppb.Timestamp
}

func (s *shim) exit(r waited, err error) (*exitRecord, error) {
	if err != nil {
		return nil, fmt.Errorf("wait at shim: %w", err)
	}
	at := r.GetExitedAt().AsTime()
	if at.Unix() <= 0 {
		return nil, errors.New("wait at shim: it does not say when the container ended")
	}
	return &exitRecord{ID: s.id, Status: r.GetExitStatus(), At: at}, nil
}

// waitShim waits at a container's shim until its process has ended.
func waitShim(ctx context.Context, taskDir, id string) (exit *exitRecord, err error) {
	s, err := openShim(ctx, taskDir, id)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	return s.wait(ctx)
}

// runscTimeout bounds asking gVisor for the end of a container.
const runscTimeout = 5 * time.Second

// ended asks gVisor's sandbox how a container ended, for its shim dies of an end that it cannot tell containerd. The
// sandbox does not say when; the record has the time of asking. It is an error when the container has not ended.
func (r Runsc) ended(ctx context.Context, id string) (*exitRecord, error) {
	if r.Binary == "" || r.Root == "" {
		return nil, errors.New("ask gVisor: not configured")
	}
	at := time.Now().UTC()
	ctx, cancel := context.WithTimeout(ctx, runscTimeout)
	defer cancel()
	out, err := exec.CommandContext(ctx, r.Binary, "--root", filepath.Join(r.Root, criNamespace), "wait", id).Output()
	if err != nil {
		return nil, fmt.Errorf("ask gVisor: %w", err)
	}
	var answer struct {
		ID         string  `json:"id"`
		ExitStatus *uint32 `json:"exitStatus"`
	}
	if err := json.Unmarshal(out, &answer); err != nil || answer.ID != id || answer.ExitStatus == nil {
		return nil, errors.New("ask gVisor: its answer is not understood")
	}
	return &exitRecord{ID: id, Status: *answer.ExitStatus, At: at}, nil
}

// isGVisor tells whether a bundle is of gVisor's runtime.
func isGVisor(taskDir, id string) bool {
	b, err := readBundle(filepath.Join(bundleDir(taskDir, id), "shim-binary-path"))
	return err == nil && strings.Contains(filepath.Base(strings.TrimSpace(string(b))), "runsc")
}

// shimProcess is a shim that runs.
type shimProcess struct {
	pid     int
	id      string // of the sandbox
	address string // containerd's socket
}

// shims finds the shims that run on this machine, whoever's they are.
func shims() ([]shimProcess, error) {
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return nil, err
	}
	var all []shimProcess
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			continue // it has ended
		}
		args := strings.Split(string(b), "\x00")
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(f)))
		if err != nil || !strings.HasPrefix(filepath.Base(args[0]), "containerd-shim-") {
			continue
		}
		all = append(all, shimProcess{pid: pid, id: argument(args, "-id"), address: argument(args, "-address")})
	}
	return all, nil
}

// argument is what follows a flag.
func argument(args []string, flag string) string {
	if i := slices.Index(args, flag); i >= 0 && i+1 < len(args) {
		return args[i+1]
	}
	return ""
}

// signalShim sends a signal to the shim of a sandbox. None is fine. When it dies, containerd removes what it has left.
func signalShim(id string, signal unix.Signal) error {
	all, err := shims()
	if err != nil {
		return err
	}
	for _, s := range all {
		if s.id != id {
			continue
		}
		if err := unix.Kill(s.pid, signal); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("signal shim %d: %w", s.pid, err)
		}
	}
	return nil
}

// shimSockets is where shims have their sockets, whoever's containerd starts them (containerd's defaults.DefaultStateDir).
const shimSockets = "/run/containerd/s"

// shimSocket is the path of a sandbox's, as containerd's package shim makes it.
func shimSocket(containerd, sandbox string) string {
	sum := sha256.Sum256([]byte(filepath.Join(containerd, criNamespace, sandbox)))
	return filepath.Join(shimSockets, hex.EncodeToString(sum[:]))
}

// removeShimSocket removes what is left of the socket of a removed sandbox: Kata's shim never does, and a shim that was
// killed cannot.
func (e *Engine) removeShimSocket(sandbox string) error {
	if e.cfg.TaskDir == "" {
		return nil // that containerd is its operator's
	}
	if err := os.Remove(shimSocket(e.cfg.Socket, sandbox)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove shim's socket: %w", err)
	}
	return nil
}
