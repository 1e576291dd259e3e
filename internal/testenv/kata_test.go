package testenv

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	rt "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// kataPod is a sandbox of class kata, driven by CRI.
type kataPod struct {
	t      testing.TB
	rt     rt.RuntimeServiceClient
	id     string
	config *rt.PodSandboxConfig
	dir    string
}

func newKataPod(t testing.TB, env *ContainerdEnv, name string) *kataPod {
	t.Helper()
	conn, err := grpc.NewClient("unix://"+env.Socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	p := &kataPod{t: t, rt: rt.NewRuntimeServiceClient(conn), dir: filepath.Join(env.Dir, "pods", name)}
	if err := os.MkdirAll(p.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	p.config = &rt.PodSandboxConfig{
		Metadata: &rt.PodSandboxMetadata{Name: name, Namespace: "test", Uid: name}, Hostname: name, LogDirectory: p.dir,
		Linux: &rt.LinuxPodSandboxConfig{CgroupParent: env.CgroupParent + "/" + name},
	}
	began := time.Now()
	r, err := p.rt.RunPodSandbox(t.Context(), &rt.RunPodSandboxRequest{Config: p.config, RuntimeHandler: KataHandler})
	if err != nil {
		t.Fatal(err)
	}
	p.id = r.PodSandboxId
	t.Logf("sandbox %s ran after %v", name, time.Since(began).Round(time.Millisecond))
	return p
}

// run starts a container.
func (p *kataPod) run(name string, mounts []*rt.Mount, command ...string) string {
	p.t.Helper()
	return p.runWith(&rt.ContainerConfig{Metadata: &rt.ContainerMetadata{Name: name}, Mounts: mounts, Command: command})
}

func (p *kataPod) runWith(c *rt.ContainerConfig) string {
	p.t.Helper()
	c.Image = &rt.ImageSpec{Image: BusyboxImage}
	if c.LogPath == "" {
		c.LogPath = c.Metadata.Name + ".log"
	}
	r, err := p.rt.CreateContainer(p.t.Context(), &rt.CreateContainerRequest{PodSandboxId: p.id, Config: c, SandboxConfig: p.config})
	if err != nil {
		p.t.Fatal(err)
	}
	if _, err := p.rt.StartContainer(p.t.Context(), &rt.StartContainerRequest{ContainerId: r.ContainerId}); err != nil {
		p.t.Fatal(err)
	}
	return r.ContainerId
}

// exec runs a command in a container and returns what it printed.
func (p *kataPod) exec(container string, command ...string) string {
	p.t.Helper()
	r, err := p.rt.ExecSync(p.t.Context(), &rt.ExecSyncRequest{ContainerId: container, Cmd: command, Timeout: 60})
	if err != nil {
		p.t.Fatalf("exec %q: %v", command, err)
	}
	if r.ExitCode != 0 {
		p.t.Fatalf("exec %q: code %d: %s%s", command, r.ExitCode, r.Stdout, r.Stderr)
	}
	return strings.TrimSpace(string(r.Stdout))
}

// ended waits for a container's end.
func (p *kataPod) ended(container string, timeout time.Duration) *rt.ContainerStatus {
	p.t.Helper()
	var st *rt.ContainerStatus
	Eventually(p.t, timeout, func() error {
		r, err := p.rt.ContainerStatus(p.t.Context(), &rt.ContainerStatusRequest{ContainerId: container})
		if err != nil {
			return err
		}
		if st = r.Status; st.State != rt.ContainerState_CONTAINER_EXITED {
			return fmt.Errorf("container is %v", st.State)
		}
		return nil
	})
	return st
}

func (p *kataPod) log(name string) []byte {
	p.t.Helper()
	b, err := os.ReadFile(filepath.Join(p.dir, name+".log"))
	if err != nil {
		p.t.Fatal(err)
	}
	return b
}

func (p *kataPod) remove() {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if _, err := p.rt.StopPodSandbox(ctx, &rt.StopPodSandboxRequest{PodSandboxId: p.id}); err != nil {
		p.t.Fatal(err)
	}
	if _, err := p.rt.RemovePodSandbox(ctx, &rt.RemovePodSandboxRequest{PodSandboxId: p.id}); err != nil {
		p.t.Fatal(err)
	}
}

func TestKata(t *testing.T) {
	kata := Kata(t)
	env := Containerd(t, kata.Configure)
	p := newKataPod(t, env, "one")
	c := p.run("main", nil, "sh", "-c", "echo hello; exec sleep 1000")
	host, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		t.Fatal(err)
	}
	if guest := p.exec(c, "uname", "-r"); guest == strings.TrimSpace(string(host)) || !strings.Contains(guest, "cloud") {
		t.Errorf("the container's kernel is %s, the host's %s", guest, host)
	}
	st, err := p.rt.PodSandboxStatus(t.Context(), &rt.PodSandboxStatusRequest{PodSandboxId: p.id})
	if err != nil {
		t.Fatal(err)
	}
	ip, err := netip.ParseAddr(st.Status.Network.Ip)
	if err != nil {
		t.Fatal(err)
	}
	if out := p.exec(c, "ip", "-4", "addr", "show", "eth0"); !strings.Contains(out, ip.String()+"/22") {
		t.Errorf("the guest's eth0 has not %s:\n%s", ip, out)
	}
	// Both ways: from the guest to its gateway, from the host to the guest.
	p.exec(c, "ping", "-c", "1", "-W", "30", env.Subnet.Addr().Next().String())
	ping(t, ip)
	if name := p.exec(c, "hostname"); name != "one" {
		t.Errorf("hostname %q", name)
	}
	if !bytes.Contains(p.log("main"), []byte("hello")) {
		t.Errorf("log %q", p.log("main"))
	}
	p.remove()
}

func ping(t *testing.T, ip netip.Addr) {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "/bin/busybox", "ping", "-c", "1", "-W", "30", ip.String()).CombinedOutput()
	if err != nil {
		t.Errorf("ping %s: %v: %s", ip, err, out)
	}
}
