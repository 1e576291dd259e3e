package agent

import (
	"context"
	"errors"
	"os"
	"path"
	"path/filepath"
	"strings"

	pb "github.com/kata-containers/kata-containers/src/runtime/virtcontainers/pkg/agent/protocols/grpc"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"

	"cumulet.io/hack/kata/agent/inside"
	"cumulet.io/hack/kata/sharing"
)

// copiedDir is where the shim has the files of volumes put, each container's
// under names that begin with its id.
const copiedDir = "/run/kata-containers/shared/containers"

// container is one that was created and not removed. Its processes are guarded
// by the agent's lock.
type container struct {
	id     string
	cgroup *cgroup
	init   *process
	procs  map[string]*process // by exec id; the first one has the container's
	shared bool                // its files come from the host
	spec   *pb.Process         // of the first process
}

// find returns a container and its process; no process for an empty id.
func (a *Agent) find(id, exec string) (*container, *process, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	c := a.containers[id]
	if c == nil {
		return nil, nil, status.Errorf(codes.NotFound, "no container %q", id)
	}
	if exec == "" {
		return c, nil, nil
	}
	p := c.procs[exec]
	if p == nil {
		return nil, nil, status.Errorf(codes.NotFound, "container %q has no process %q", id, exec)
	}
	return c, p, nil
}

// CreateContainer makes a container with its first process, which waits for
// StartContainer.
func (a *Agent) CreateContainer(_ context.Context, r *pb.CreateContainerRequest) (*emptypb.Empty, error) {
	if r.OCI == nil || r.OCI.Process == nil || r.OCI.Root == nil || r.OCI.Linux == nil || !isID(r.ContainerId) {
		return nil, status.Errorf(codes.InvalidArgument, "container %q: no id, process, root or linux section", r.ContainerId)
	}
	a.mu.Lock()
	_, exists := a.containers[r.ContainerId]
	a.mu.Unlock()
	if exists {
		return nil, status.Errorf(codes.AlreadyExists, "container %q exists", r.ContainerId)
	}
	if err := mountStorages(r.Storages); err != nil {
		return nil, err
	}
	c := &container{id: r.ContainerId, procs: map[string]*process{}, spec: r.OCI.Process}
	if err := a.create(c, r); err != nil {
		if c.cgroup != nil {
			err = errors.Join(err, c.cgroup.remove())
		}
		return nil, errors.Join(err, a.release(c))
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.containers[c.id] = c
	if a.sandbox == "" {
		a.sandbox = c.id
	}
	return done(), nil
}

// isID is whether an id can be the name of a file.
func isID(id string) bool {
	return id != "" && id != "." && id != ".." && len(id) < 256 && !strings.ContainsAny(id, "/\x00")
}

func (a *Agent) create(c *container, r *pb.CreateContainerRequest) error {
	if err := a.useShare(c, r.OCI); err != nil {
		return err
	}
	var err error
	if c.cgroup, err = a.cgroups.create(c.id, r.OCI.Linux.Resources); err != nil {
		return err
	}
	if err := c.cgroup.watch(func() { a.oom.add(c.id) }); err != nil {
		return err
	}
	start := starter{job: inside.Job{Spec: r.OCI, Process: r.OCI.Process}, cgroup: c.cgroup}
	start.flags = unix.CLONE_NEWNS | unix.CLONE_NEWPID
	if r.SandboxPidns {
		ns, err := a.sandboxPID()
		if err != nil {
			return err
		}
		defer ns.Close()
		start.pidNS, start.flags = ns, unix.CLONE_NEWNS
	}
	if c.init, err = start.start(); err != nil {
		return err
	}
	c.procs[r.ExecId] = c.init
	return nil
}

// sandboxPID opens the PID namespace of the pod's first container.
func (a *Agent) sandboxPID() (*os.File, error) {
	_, p, err := a.find(a.sandboxID(), a.sandboxID())
	if err != nil {
		return nil, err
	}
	return p.namespace("pid")
}

func (a *Agent) sandboxID() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.sandbox
}

// useShare has the host share the container's files and points the specification
// at them, in place of the copies and of the root that the shim speaks of.
func (a *Agent) useShare(c *container, spec *pb.Spec) error {
	if a.files == nil {
		return nil
	}
	resp, err := a.files.Call(sharing.Request{Container: c.id})
	if err != nil {
		return err
	}
	c.shared = true
	if _, err := os.Stat(spec.Root.Path); err != nil {
		spec.Root.Path = filepath.Join(a.share, filepath.Clean("/"+resp.Root))
	}
	for _, m := range spec.Mounts {
		from, ok := resp.Mounts[path.Clean(m.Destination)]
		if ok && m.Type == "bind" && strings.HasPrefix(m.Source, copiedDir+"/"+c.id+"-") {
			m.Source = filepath.Join(a.share, filepath.Clean("/"+from))
		}
	}
	return nil
}

// release gives the container's files back.
func (a *Agent) release(c *container) error {
	var err error
	if c.shared {
		_, err = a.files.Call(sharing.Request{Container: c.id, Release: true})
	}
	copied, globErr := filepath.Glob(filepath.Join(copiedDir, c.id+"-*"))
	err = errors.Join(err, globErr)
	for _, f := range copied {
		err = errors.Join(err, os.RemoveAll(f))
	}
	return err
}

// StartContainer lets the first process become the container's program.
func (a *Agent) StartContainer(_ context.Context, r *pb.StartContainerRequest) (*emptypb.Empty, error) {
	_, p, err := a.find(r.ContainerId, r.ContainerId)
	if err != nil {
		return nil, err
	}
	return done(), p.begin()
}

// RemoveContainer kills what is left of a container and removes it.
func (a *Agent) RemoveContainer(ctx context.Context, r *pb.RemoveContainerRequest) (*emptypb.Empty, error) {
	c, _, err := a.find(r.ContainerId, "")
	if err != nil {
		return nil, err
	}
	return done(), a.remove(ctx, c)
}

func (a *Agent) remove(ctx context.Context, c *container) error {
	if err := c.cgroup.kill(); err != nil {
		return err
	}
	a.mu.Lock()
	procs := make([]*process, 0, len(c.procs))
	for _, p := range c.procs {
		procs = append(procs, p)
	}
	a.mu.Unlock()
	for _, p := range procs {
		select {
		case <-p.exited:
			p.close()
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	err := errors.Join(c.cgroup.remove(), a.release(c))
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.containers, c.id)
	return err
}

// UpdateContainer changes a container's limits.
func (a *Agent) UpdateContainer(_ context.Context, r *pb.UpdateContainerRequest) (*emptypb.Empty, error) {
	c, _, err := a.find(r.ContainerId, "")
	if err != nil {
		return nil, err
	}
	return done(), c.cgroup.limit(r.Resources)
}

// PauseContainer freezes a container.
func (a *Agent) PauseContainer(_ context.Context, r *pb.PauseContainerRequest) (*emptypb.Empty, error) {
	c, _, err := a.find(r.ContainerId, "")
	if err != nil {
		return nil, err
	}
	return done(), c.cgroup.write("cgroup.freeze", "1")
}

// ResumeContainer thaws a container.
func (a *Agent) ResumeContainer(_ context.Context, r *pb.ResumeContainerRequest) (*emptypb.Empty, error) {
	c, _, err := a.find(r.ContainerId, "")
	if err != nil {
		return nil, err
	}
	return done(), c.cgroup.write("cgroup.freeze", "0")
}
