// Package qemuagent is the agent of package agent as Kata's QEMU driver wants it.
//
// The driver shares one directory with the machine, has it mounted where the
// other agent keeps the copies of volumes, and names files in it. What is at
// that place the other agent removes with the container, as is right for copies
// and would be wrong for the host's own files: so the share is mounted at
// another place, and what the driver says of the one is taken to mean the other.
package qemuagent

import (
	"context"
	"log/slog"
	"strings"

	"github.com/containerd/ttrpc"
	pb "github.com/kata-containers/kata-containers/src/runtime/virtcontainers/pkg/agent/protocols/grpc"
	"google.golang.org/protobuf/types/known/emptypb"

	"cumulet.io/hack/kata/agent"
)

const (
	// driverShare is where the driver believes its directory to be mounted.
	driverShare = "/run/kata-containers/shared/containers"
	// share is where it is.
	share = "/run/share"
)

// Agent is an agent.Agent with a shared directory.
type Agent struct{ *agent.Agent }

// New returns an agent whose containers have their cgroups below cgroupRoot.
func New(cgroupRoot string, log *slog.Logger) (*Agent, error) {
	a, err := agent.New(nil, "", cgroupRoot, log)
	if err != nil {
		return nil, err
	}
	return &Agent{a}, nil
}

// Register adds the services to a server.
func (a *Agent) Register(s *ttrpc.Server) {
	pb.RegisterAgentServiceService(s, a)
	pb.RegisterHealthService(s, a)
}

// CreateSandbox mounts the shared directory, among other things.
func (a *Agent) CreateSandbox(ctx context.Context, r *pb.CreateSandboxRequest) (*emptypb.Empty, error) {
	moveStorages(r.Storages)
	return a.Agent.CreateSandbox(ctx, r)
}

// CreateContainer makes a container of files in the shared directory.
func (a *Agent) CreateContainer(ctx context.Context, r *pb.CreateContainerRequest) (*emptypb.Empty, error) {
	moveStorages(r.Storages)
	if r.OCI != nil {
		if r.OCI.Root != nil {
			r.OCI.Root.Path = moved(r.OCI.Root.Path)
		}
		for _, m := range r.OCI.Mounts {
			m.Source = moved(m.Source)
		}
	}
	return a.Agent.CreateContainer(ctx, r)
}

func moveStorages(storages []*pb.Storage) {
	for _, s := range storages {
		s.Source, s.MountPoint = moved(s.Source), moved(s.MountPoint)
	}
}

// moved is where a path that the driver names is.
func moved(path string) string {
	if rest, ok := strings.CutPrefix(path, driverShare); ok && (rest == "" || rest[0] == '/') {
		return share + rest
	}
	return path
}
