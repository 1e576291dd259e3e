// Package bench measures the platform against the bare mechanism below it, both in one run, and reports ratios: start
// and mass start against raw CRI, the virtual node against a bare client of the API server.
//
// `make bench` runs it and docs/benchmarks.md has what it printed. It tests nothing: numbers of a busy machine are no
// reason to fail.
package bench

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	rt "k8s.io/cri-api/pkg/apis/runtime/v1"

	"cumulet.io/cis/engine/cri"
)

// rawCRI is the peer: the calls that any client of containerd has to make, and nothing else. Its containers are as safe as the
// platform's, and kubelet's.
type rawCRI struct {
	conn    *grpc.ClientConn
	runtime rt.RuntimeServiceClient
	images  rt.ImageServiceClient
	logs    string
	auth    *rt.AuthConfig
}

func openCRI(socket, logs string, auth *rt.AuthConfig) (*rawCRI, error) {
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", socket, err)
	}
	return &rawCRI{conn: conn, runtime: rt.NewRuntimeServiceClient(conn), images: rt.NewImageServiceClient(conn), logs: logs, auth: auth}, nil
}

// rawPod is a sandbox with one container.
type rawPod struct{ id, log string }

// start pulls when asked to, makes the sandbox and the container and starts it.
func (c *rawCRI) start(ctx context.Context, name, handler, image string, pull bool, args ...string) (*rawPod, error) {
	dir := filepath.Join(c.logs, name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	if pull {
		if _, err := c.images.PullImage(ctx, &rt.PullImageRequest{Image: &rt.ImageSpec{Image: image}, Auth: c.auth}); err != nil {
			return nil, fmt.Errorf("pull: %w", err)
		}
	}
	cfg := &rt.PodSandboxConfig{
		Metadata: &rt.PodSandboxMetadata{Name: name, Namespace: "bench", Uid: name}, Hostname: name, LogDirectory: dir,
		Linux: &rt.LinuxPodSandboxConfig{CgroupParent: "/" + groupRaw + "/pod" + name, SecurityContext: &rt.LinuxSandboxSecurityContext{NamespaceOptions: &rt.NamespaceOption{},
			Seccomp: &rt.SecurityProfile{ProfileType: rt.SecurityProfile_RuntimeDefault}}},
	}
	sandbox, err := c.runtime.RunPodSandbox(ctx, &rt.RunPodSandboxRequest{Config: cfg, RuntimeHandler: handler})
	if err != nil {
		return nil, fmt.Errorf("sandbox: %w", err)
	}
	made, err := c.runtime.CreateContainer(ctx, &rt.CreateContainerRequest{PodSandboxId: sandbox.PodSandboxId, SandboxConfig: cfg, Config: &rt.ContainerConfig{
		Metadata: &rt.ContainerMetadata{Name: "app"}, Image: &rt.ImageSpec{Image: image}, Args: args, LogPath: "app.log",
		Linux: &rt.LinuxContainerConfig{Resources: &rt.LinuxContainerResources{MemoryLimitInBytes: 128 << 20, CpuShares: 256},
			SecurityContext: &rt.LinuxContainerSecurityContext{NamespaceOptions: &rt.NamespaceOption{Pid: rt.NamespaceMode_CONTAINER},
				// A filter costs its compilation, a path that is hidden a mount.
				MaskedPaths: cri.MaskedPaths(), ReadonlyPaths: cri.ReadonlyPaths(),
				Seccomp: &rt.SecurityProfile{ProfileType: rt.SecurityProfile_RuntimeDefault}}}}})
	if err != nil {
		return nil, fmt.Errorf("create: %w", err)
	}
	if _, err := c.runtime.StartContainer(ctx, &rt.StartContainerRequest{ContainerId: made.ContainerId}); err != nil {
		return nil, fmt.Errorf("start: %w", err)
	}
	return &rawPod{id: sandbox.PodSandboxId, log: filepath.Join(dir, "app.log")}, nil
}

func (c *rawCRI) remove(ctx context.Context, p *rawPod) error {
	_, err := c.runtime.StopPodSandbox(ctx, &rt.StopPodSandboxRequest{PodSandboxId: p.id})
	_, rerr := c.runtime.RemovePodSandbox(ctx, &rt.RemovePodSandboxRequest{PodSandboxId: p.id})
	return errors.Join(err, rerr)
}

// forget removes every image of the repository, so that the next pull is cold.
func (c *rawCRI) forget(ctx context.Context, repository string) error {
	list, err := c.images.ListImages(ctx, &rt.ListImagesRequest{})
	if err != nil {
		return err
	}
	for _, i := range list.Images {
		if strings.HasPrefix(strings.Join(append(i.RepoTags, i.RepoDigests...), " "), repository) {
			if _, err := c.images.RemoveImage(ctx, &rt.RemoveImageRequest{Image: &rt.ImageSpec{Image: i.Id}}); err != nil {
				return err
			}
		}
	}
	return nil
}

// look is how often a log file is looked for. What is measured does not depend on it, for the process in the container
// writes when it began; but looking costs processor time, which is counted.
const look = 25 * time.Millisecond

// stamp waits for the first line of a CRI log file, the demo workload's own nanosecond of its beginning.
func stamp(ctx context.Context, log string) (time.Time, error) {
	for {
		if f, err := os.Open(log); err == nil {
			line, err := bufio.NewReader(f).ReadString('\n')
			f.Close()
			if fields := strings.Fields(line); err == nil && len(fields) > 0 {
				ns, err := strconv.ParseInt(fields[len(fields)-1], 10, 64)
				return time.Unix(0, ns), err
			}
		}
		select {
		case <-ctx.Done():
			return time.Time{}, fmt.Errorf("%s: no line: %w", log, ctx.Err())
		case <-time.After(look):
		}
	}
}

// median of durations in milliseconds.
func median(ds []time.Duration) float64 { return middle(milliseconds(ds)) }

func milliseconds(ds []time.Duration) []float64 {
	all := make([]float64, len(ds))
	for i, d := range ds {
		all[i] = float64(d.Microseconds()) / 1000
	}
	return all
}

// middle is the median, of an even number of values between the two in the middle; 0 of none.
func middle(values []float64) float64 {
	n := len(values)
	if n == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(values))
	return (sorted[(n-1)/2] + sorted[n/2]) / 2
}

// turns has both sides take their turns n times, each the first in every other round: a machine gets slower, or faster, from one
// turn to the next, and so does containerd with what it has done. An even n gives neither side more of that.
func turns(n int, ours, peer func(round int) error) error {
	for round := range n {
		first, second := ours, peer
		if round%2 == 1 {
			first, second = peer, ours
		}
		if err := first(round); err != nil {
			return err
		}
		if err := second(round); err != nil {
			return err
		}
	}
	return nil
}

// ratio is the median of those of each round: what the machine does from round to round is in both sides of one.
func ratio(ours, peer []float64) float64 {
	all := make([]float64, len(ours))
	for i := range ours {
		all[i] = ours[i] / peer[i]
	}
	return middle(all)
}
