package containerd_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"cumulet.io/cis/engine/cri/containerd"
	"cumulet.io/internal/testenv"
)

type cri struct {
	runtimev1.RuntimeServiceClient
	images runtimev1.ImageServiceClient
	env    *testenv.ContainerdEnv
}

func dial(t *testing.T, env *testenv.ContainerdEnv) cri {
	t.Helper()
	conn, err := grpc.NewClient("unix://"+env.Socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return cri{runtimev1.NewRuntimeServiceClient(conn), runtimev1.NewImageServiceClient(conn), env}
}

// sandbox starts a sandbox and returns its id, its configuration and its IP.
func (c cri) sandbox(t *testing.T, handler string) (string, *runtimev1.PodSandboxConfig, string) {
	t.Helper()
	name := "pod-" + handler
	config := &runtimev1.PodSandboxConfig{
		Metadata:     &runtimev1.PodSandboxMetadata{Name: name, Namespace: "test", Uid: name},
		Hostname:     name,
		LogDirectory: filepath.Join(c.env.Dir, "pods", name),
		Linux:        &runtimev1.LinuxPodSandboxConfig{CgroupParent: c.env.CgroupParent + "/" + name},
	}
	if err := os.MkdirAll(config.LogDirectory, 0o755); err != nil {
		t.Fatal(err)
	}
	run, err := c.RunPodSandbox(t.Context(), &runtimev1.RunPodSandboxRequest{Config: config, RuntimeHandler: handler})
	if err != nil {
		t.Fatal(err)
	}
	status, err := c.PodSandboxStatus(t.Context(), &runtimev1.PodSandboxStatusRequest{PodSandboxId: run.PodSandboxId})
	if err != nil {
		t.Fatal(err)
	}
	return run.PodSandboxId, config, status.GetStatus().GetNetwork().GetIp()
}

// container starts a container of the image and returns its id and log file.
func (c cri) container(t *testing.T, sandbox string, config *runtimev1.PodSandboxConfig, image string, command ...string) (string, string) {
	t.Helper()
	created, err := c.CreateContainer(t.Context(), &runtimev1.CreateContainerRequest{
		PodSandboxId: sandbox, SandboxConfig: config,
		Config: &runtimev1.ContainerConfig{
			Metadata: &runtimev1.ContainerMetadata{Name: "main"},
			Image:    &runtimev1.ImageSpec{Image: image},
			Command:  command, LogPath: "main.log",
			Linux: &runtimev1.LinuxContainerConfig{},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.StartContainer(t.Context(), &runtimev1.StartContainerRequest{ContainerId: created.ContainerId}); err != nil {
		t.Fatal(err)
	}
	return created.ContainerId, filepath.Join(config.LogDirectory, "main.log")
}

func (c cri) waitFor(t *testing.T, container string, state runtimev1.ContainerState) *runtimev1.ContainerStatus {
	t.Helper()
	var status *runtimev1.ContainerStatus
	testenv.Eventually(t, 30*time.Second, func() error {
		r, err := c.ContainerStatus(t.Context(), &runtimev1.ContainerStatusRequest{ContainerId: container})
		if err != nil {
			return err
		}
		if status = r.GetStatus(); status.GetState() != state {
			return fmt.Errorf("container is %v", status.GetState())
		}
		return nil
	})
	return status
}

// An image from a local archive runs in a sandbox of each kind, with a network
// of its own, and leaves when told to.
func TestSandboxes(t *testing.T) {
	env := testenv.Containerd(t)
	c := dial(t, env)
	for _, handler := range env.Runtimes {
		t.Run(handler, func(t *testing.T) {
			id, config, ip := c.sandbox(t, handler)
			if ip == "" {
				t.Error("the sandbox has no address")
			}
			container, log := c.container(t, id, config, testenv.BusyboxImage, "sh", "-c", "uname -v; hostname; exit 7")
			status := c.waitFor(t, container, runtimev1.ContainerState_CONTAINER_EXITED)
			if status.GetExitCode() != 7 {
				t.Errorf("exit code %d, want 7", status.GetExitCode())
			}
			out, err := os.ReadFile(log)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Contains(out, []byte("pod-"+handler+"\n")) {
				t.Errorf("log %q lacks the host name", out)
			}
			host, err := os.ReadFile("/proc/sys/kernel/version")
			if err != nil {
				t.Fatal(err)
			}
			if own := !bytes.Contains(out, bytes.TrimSpace(host)); own != (handler != "runc") {
				t.Errorf("a kernel of its own: %v; log %q", own, out)
			}
			if _, err := c.StopPodSandbox(t.Context(), &runtimev1.StopPodSandboxRequest{PodSandboxId: id}); err != nil {
				t.Error(err)
			}
			if _, err := c.RemovePodSandbox(t.Context(), &runtimev1.RemovePodSandboxRequest{PodSandboxId: id}); err != nil {
				t.Error(err)
			}
		})
	}
}

// A container goes on while containerd is killed and comes back.
func TestInstancesOutliveTheDaemon(t *testing.T) {
	env := testenv.Containerd(t)
	c := dial(t, env)
	id, config, ip := c.sandbox(t, env.Runtimes[0])
	container, _ := c.container(t, id, config, testenv.BusyboxImage, "sleep", "1000")
	before := c.waitFor(t, container, runtimev1.ContainerState_CONTAINER_RUNNING)
	env.Kill()
	env.Ready()
	after := c.waitFor(t, container, runtimev1.ContainerState_CONTAINER_RUNNING)
	if before.GetStartedAt() != after.GetStartedAt() {
		t.Errorf("started at %d, then at %d", before.GetStartedAt(), after.GetStartedAt())
	}
	status, err := c.PodSandboxStatus(t.Context(), &runtimev1.PodSandboxStatusRequest{PodSandboxId: id})
	if err != nil || status.GetStatus().GetNetwork().GetIp() != ip {
		t.Errorf("address %s, then %v, %v", ip, status.GetStatus().GetNetwork(), err)
	}
}

// CRI protects the sandbox image, and only it, from removal as garbage.
func TestSandboxImageIsPinned(t *testing.T) {
	env := testenv.Containerd(t)
	c := dial(t, env)
	for image, want := range map[string]bool{testenv.PauseImage: true, testenv.BusyboxImage: false} {
		r, err := c.images.ImageStatus(t.Context(), &runtimev1.ImageStatusRequest{Image: &runtimev1.ImageSpec{Image: image}})
		if err != nil || r.GetImage() == nil || r.GetImage().GetPinned() != want {
			t.Errorf("%s: %v, %v; want pinned %v", image, r.GetImage(), err, want)
		}
	}
}

// Host and sandbox reach each other, and a sandbox its machine's network.
func TestNetwork(t *testing.T) {
	env := testenv.Containerd(t)
	c := dial(t, env)
	for _, handler := range env.Runtimes {
		t.Run(handler, func(t *testing.T) {
			id, config, ip := c.sandbox(t, handler)
			web, _ := c.container(t, id, config, testenv.BusyboxImage, "sh", "-c", "echo pod-says > /tmp/index.html; exec httpd -f -p 8080 -h /tmp")
			c.waitFor(t, web, runtimev1.ContainerState_CONTAINER_RUNNING)
			testenv.Eventually(t, 20*time.Second, func() error {
				got, err := get(t, "http://"+ip+":8080/")
				if err == nil && got != "pod-says\n" {
					err = fmt.Errorf("got %q", got)
				}
				return err
			})

			// The sandbox's first hop is this machine.
			hop := env.Subnet.Addr().Next().String()
			l, err := net.Listen("tcp", net.JoinHostPort(hop, "0"))
			if err != nil {
				t.Fatal(err)
			}
			server := &http.Server{ReadHeaderTimeout: time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				fmt.Fprint(w, "host-says")
			})}
			go func() { _ = server.Serve(l) }() // ends with Close
			t.Cleanup(func() { server.Close() })
			out, err := c.ExecSync(t.Context(), &runtimev1.ExecSyncRequest{ContainerId: web, Cmd: []string{"wget", "-q", "-O", "-", "http://" + l.Addr().String()}, Timeout: 20})
			if err != nil || string(out.GetStdout()) != "host-says" {
				t.Errorf("%q, %v", out, err)
			}
		})
	}
}

func get(t *testing.T, url string) (string, error) {
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	resp, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 5 * time.Second}).Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return string(b), err
}

// An image is pulled from a registry that speaks plain HTTP.
func TestPullsFromPlainHTTP(t *testing.T) {
	hub := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	defer hub.Close()
	host := hub.Listener.Addr().String()
	env := testenv.Containerd(t, func(c *containerd.Config) {
		c.Registries = []containerd.Registry{{Host: host, PlainHTTP: true}}
	})
	ref, err := name.ParseReference(host+"/org/app:v1", name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	image, err := tarball.ImageFromPath(testenv.Image(t, "busybox"), nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(ref, image, remote.WithContext(t.Context())); err != nil {
		t.Fatal(err)
	}
	c := dial(t, env)
	if _, err := c.images.PullImage(t.Context(), &runtimev1.PullImageRequest{Image: &runtimev1.ImageSpec{Image: ref.Name()}}); err != nil {
		t.Fatal(err)
	}
}

// What cannot be imported is an error that says what, and Ready does not wait
// for a sandbox image that will never be there.
func TestImportOfWhatIsNoImage(t *testing.T) {
	env := testenv.Containerd(t)
	junk := filepath.Join(t.TempDir(), "junk.tar")
	if err := os.WriteFile(junk, []byte("no archive"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, archive := range []string{junk, junk + ".missing"} {
		refs, err := env.Daemon.ImportImages(t.Context(), archive, false)
		if err == nil || !strings.Contains(err.Error(), archive) {
			t.Errorf("%s: images %q, error %v", archive, refs, err)
		}
	}
}

func TestReadyFailsAtOnceWithoutItsImage(t *testing.T) {
	for archive, want := range map[string]error{"busybox": containerd.ErrNoImage, "missing": fs.ErrNotExist} {
		env := testenv.Containerd(t)
		path := filepath.Join(env.Dir, "missing.tar")
		if archive != "missing" {
			path = testenv.Image(t, archive)
		}
		// Another view of the same daemon, with a sandbox image that is nowhere.
		bin := filepath.Dir(testenv.Tool(t, "containerd"))
		d, err := containerd.New(containerd.Config{
			Dir: env.Dir, BinDirs: []string{bin}, CNIBinDir: bin,
			Handlers:     containerd.DetectHandlers([]string{bin}, ""),
			SandboxImage: "example.test/none:v1", SandboxArchive: path,
		})
		if err != nil {
			t.Fatal(err)
		}
		if err := d.Ready(t.Context()); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", archive, err, want)
		}
		if err := containerd.Answers(t.Context(), env.Socket); err != nil {
			t.Error(err)
		}
		if err := containerd.Answers(t.Context(), env.Socket+".gone"); err == nil {
			t.Error("a socket that is not there answers")
		}
	}
}
