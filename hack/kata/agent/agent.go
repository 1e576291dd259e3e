// Package agent is a guest agent for Kata Containers: the server, inside the
// virtual machine, of Kata's ttrpc services grpc.AgentService and grpc.Health,
// by which the shim on the host creates containers, starts further processes in
// them, reads their output and so on. Kata's own agent, in Rust, serves the same.
//
// All containers of the machine belong to one pod. They share the machine's
// network, IPC and UTS namespaces; each has its own mounts, cgroup and, unless
// the pod shares it, PID namespace. What a container's process does before it
// is the container's program is in package inside.
//
// What it does not do, it says by the code Unimplemented: seccomp and SELinux,
// block devices, hot-plugged memory, swap, iptables, image pulls in the guest.
package agent

import (
	"context"
	"log/slog"
	"os"
	"runtime/debug"
	"sync"
	"time"

	"github.com/containerd/ttrpc"
	pb "github.com/kata-containers/kata-containers/src/runtime/virtcontainers/pkg/agent/protocols/grpc"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"

	"cumulet.io/hack/kata/sharing"
)

// version is what the agent calls itself.
const version = "cumulet"

// Files gives a container its files from the host, or takes them back.
type Files interface {
	Call(sharing.Request) (sharing.Response, error)
}

// Agent implements both services. Its methods may be called by any goroutine.
type Agent struct {
	unimplemented
	files   Files // nil where volumes are copied, as without a shared directory
	share   string
	cgroups cgroups
	oom     *oomQueue
	log     *slog.Logger

	mu         sync.Mutex
	containers map[string]*container
	sandbox    string // the container whose PID namespace may be shared
}

// New returns an agent whose containers get their files by files, from the
// directory share, and have their cgroups below the directory cgroupRoot.
func New(files Files, share, cgroupRoot string, log *slog.Logger) (*Agent, error) {
	cg, err := newCgroups(cgroupRoot)
	if err != nil {
		return nil, err
	}
	return &Agent{files: files, share: share, cgroups: cg, oom: newOOMQueue(), log: log, containers: map[string]*container{}}, nil
}

// Register adds the services to a server.
func (a *Agent) Register(s *ttrpc.Server) {
	pb.RegisterAgentServiceService(s, a)
	pb.RegisterHealthService(s, a)
}

// Recover is a ttrpc interceptor that makes a panic an error: the agent is its
// machine's first process, which the kernel does not survive.
func (a *Agent) Recover(ctx context.Context, u ttrpc.Unmarshaler, info *ttrpc.UnaryServerInfo, m ttrpc.Method) (resp any, err error) {
	defer func() {
		if p := recover(); p != nil {
			a.log.Error("panic", "method", info.FullMethod, "value", p, "stack", string(debug.Stack()))
			err = status.Errorf(codes.Internal, "%s: panic: %v", info.FullMethod, p)
		}
	}()
	resp, err = m(ctx, u)
	// The end of a stream, and of an input, are no failures.
	if c := status.Code(err); err != nil && c != codes.OutOfRange && c != codes.Aborted {
		a.log.Warn("request failed", "method", info.FullMethod, "error", err)
	}
	return resp, err
}

func done() *emptypb.Empty { return &emptypb.Empty{} }

// Check implements grpc.Health.
func (a *Agent) Check(context.Context, *pb.CheckRequest) (*pb.HealthCheckResponse, error) {
	return &pb.HealthCheckResponse{Status: pb.HealthCheckResponse_SERVING}, nil
}

// Version implements grpc.Health.
func (a *Agent) Version(context.Context, *pb.CheckRequest) (*pb.VersionCheckResponse, error) {
	return &pb.VersionCheckResponse{GrpcVersion: pb.APIVersion, AgentVersion: version}, nil
}

// CreateSandbox prepares the machine for the pod.
func (a *Agent) CreateSandbox(_ context.Context, r *pb.CreateSandboxRequest) (*emptypb.Empty, error) {
	if r.Hostname != "" {
		if err := unix.Sethostname([]byte(r.Hostname)); err != nil {
			return nil, err
		}
	}
	return done(), mountStorages(r.Storages)
}

// DestroySandbox ends what still runs; the machine is stopped next.
func (a *Agent) DestroySandbox(ctx context.Context, _ *pb.DestroySandboxRequest) (*emptypb.Empty, error) {
	a.mu.Lock()
	var all []*container
	for _, c := range a.containers {
		all = append(all, c)
	}
	a.mu.Unlock()
	for _, c := range all {
		if err := a.remove(ctx, c); err != nil {
			return nil, err
		}
	}
	unix.Sync()
	return done(), nil
}

// GetGuestDetails tells what the shim may count on.
func (a *Agent) GetGuestDetails(context.Context, *pb.GuestDetailsRequest) (*pb.GuestDetailsResponse, error) {
	return &pb.GuestDetailsResponse{
		AgentDetails:           &pb.AgentDetails{Version: version, InitDaemon: os.Getpid() == 1, SupportsSeccomp: false},
		SupportMemHotplugProbe: false,
		MemBlockSizeBytes:      128 << 20,
	}, nil
}

// SetGuestDateTime sets the machine's clock.
func (a *Agent) SetGuestDateTime(_ context.Context, r *pb.SetGuestDateTimeRequest) (*emptypb.Empty, error) {
	tv := unix.NsecToTimeval(time.Unix(r.Sec, r.Usec*1000).UnixNano())
	return done(), unix.Settimeofday(&tv)
}

// ReseedRandomDev adds to the kernel's entropy.
func (a *Agent) ReseedRandomDev(_ context.Context, r *pb.ReseedRandomDevRequest) (*emptypb.Empty, error) {
	return done(), os.WriteFile("/dev/urandom", r.Data, 0)
}

// OnlineCPUMem has nothing to do: the machine has its size from its start.
func (a *Agent) OnlineCPUMem(context.Context, *pb.OnlineCPUMemRequest) (*emptypb.Empty, error) {
	return done(), nil
}

// RemoveStaleVirtiofsShareMounts has nothing to do: no mount outlives its
// container.
func (a *Agent) RemoveStaleVirtiofsShareMounts(context.Context, *pb.RemoveStaleVirtiofsShareMountsRequest) (*emptypb.Empty, error) {
	return done(), nil
}

// GetMetrics has none beyond those of the containers.
func (a *Agent) GetMetrics(context.Context, *pb.GetMetricsRequest) (*pb.Metrics, error) {
	return &pb.Metrics{}, nil
}

// GetOOMEvent waits until the kernel has killed a container's process for want
// of memory.
func (a *Agent) GetOOMEvent(ctx context.Context, _ *pb.GetOOMEventRequest) (*pb.OOMEvent, error) {
	id, err := a.oom.next(ctx)
	if err != nil {
		return nil, err
	}
	return &pb.OOMEvent{ContainerId: id}, nil
}
