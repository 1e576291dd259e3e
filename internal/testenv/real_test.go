package testenv

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// A test leaves nothing behind that fails with a container running, nor one
// whose process was killed: its containerd is gone, its sandbox is not.
func TestContainerdRemovesEveryTrace(t *testing.T) {
	RequireRoot(t)
	for _, c := range []struct {
		runtime string
		killed  bool
	}{{"runc", false}, {"runc", true}, {"runsc", true}} {
		killed := c.killed
		var env *ContainerdEnv
		var name, sandbox string
		r := record(t, func(t testing.TB) {
			env = Containerd(t)
			if !env.Has(c.runtime) {
				t.Skipf("no %s here", c.runtime)
			}
			name = strings.TrimPrefix(strings.TrimSuffix(env.CgroupParent, ".slice"), "/")
			sandbox = runSandbox(t, env, c.runtime)
			for what, found := range traces(t, env.Dir, name, sandbox) {
				if !found {
					t.Fatalf("the test is blind to %s", what)
				}
			}
			if killed {
				if err := env.stop(); err != nil {
					t.Fatal(err)
				}
			}
			t.Fatal("on purpose")
		})
		if r.skipped != "" {
			t.Skip(r.skipped)
		}
		if !strings.HasPrefix(r.failed, "on purpose") || !killed && r.failed != "on purpose" {
			t.Errorf("failed with %q", r.failed)
		}
		for what, found := range traces(t, env.Dir, name, sandbox) {
			if found {
				t.Errorf("%+v: left behind: %s", c, what)
			}
		}
	}
}

func runSandbox(t testing.TB, env *ContainerdEnv, runtime string) (id string) {
	conn, err := grpc.NewClient("unix://"+env.Socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	config := &runtimev1.PodSandboxConfig{
		Metadata:     &runtimev1.PodSandboxMetadata{Name: "left", Namespace: "test", Uid: "left"},
		PortMappings: []*runtimev1.PortMapping{{Protocol: runtimev1.Protocol_TCP, ContainerPort: 80, HostPort: int32(FreePort(t)), HostIp: "127.0.0.1"}},
		Linux:        &runtimev1.LinuxPodSandboxConfig{CgroupParent: env.CgroupParent + "/left"},
	}
	r, err := runtimev1.NewRuntimeServiceClient(conn).RunPodSandbox(t.Context(), &runtimev1.RunPodSandboxRequest{Config: config, RuntimeHandler: runtime})
	if err != nil {
		t.Fatal(err)
	}
	return r.PodSandboxId
}

// traces tells what a containerd and its sandbox have on the machine.
func traces(t testing.TB, dir, name, sandbox string) map[string]bool {
	found := map[string]bool{}
	_, err := os.Stat(dir)
	found["the directory"] = err == nil
	_, err = net.InterfaceByName(name)
	found["the bridge"] = err == nil
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	found["mounts"] = strings.Contains(string(mounts), dir+"/")
	for _, pattern := range []string{"", "*"} {
		for _, group := range []string{name, name + ".slice"} {
			left, _ := filepath.Glob(filepath.Join("/sys/fs/cgroup", pattern, group))
			found["cgroups"] = found["cgroups"] || len(left) > 0
		}
	}
	found["processes"] = false
	cmdlines, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, f := range cmdlines {
		if b, err := os.ReadFile(f); err == nil && strings.Contains(string(b), dir+"/") {
			found["processes"] = true
		}
	}
	rules, err := exec.CommandContext(t.Context(), Tool(t, "nft"), "list", "ruleset").CombinedOutput()
	if err != nil {
		t.Fatalf("nft: %v: %s", err, rules)
	}
	found["rules of the network"] = strings.Contains(string(rules), "id: "+sandbox[:12])
	found["rules of the port"] = strings.Contains(string(rules), `comment "`+sandbox)
	return found
}

func TestCluster(t *testing.T) {
	c := Cluster(t)
	kubectl := func(kubeconfig string, args ...string) (string, error) {
		cmd := exec.CommandContext(t.Context(), Tool(t, "kubectl"), args...)
		cmd.Env = []string{"KUBECONFIG=" + kubeconfig, "HOME=" + t.TempDir()}
		out, err := cmd.CombinedOutput()
		return strings.TrimSpace(string(out)), err
	}
	out, err := kubectl(c.Kubeconfig, "version", "-o", "json")
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	var v struct {
		ClientVersion, ServerVersion struct{ GitVersion string }
	}
	if err := json.Unmarshal([]byte(out), &v); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if got := v.ServerVersion.GitVersion; !strings.HasPrefix(got, "v1.") || got != v.ClientVersion.GitVersion {
		t.Errorf("versions %+v", v)
	}
	// A Deployment's pods are made and wait for a node.
	if out, err := kubectl(c.Kubeconfig, "create", "deployment", "d", "--image=x", "--replicas=2"); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	Eventually(t, 30*time.Second, func() error {
		out, err := kubectl(c.Kubeconfig, "get", "pods", "-o", "jsonpath={.items[*].status.conditions[0].reason}")
		if err != nil || out != "Unschedulable Unschedulable" {
			return fmt.Errorf("pods: %q, %v", out, err)
		}
		return nil
	})
	for what, want := range map[string]string{
		"list secrets": "yes", "create nodes": "yes", "update pods/status": "yes", "create serviceaccounts/token": "yes",
		"create pods": "no", "update secrets": "no", "create clusterrolebindings": "no",
	} {
		verb, resource, _ := strings.Cut(what, " ")
		resource, sub, _ := strings.Cut(resource, "/")
		out, _ := kubectl(c.KubeletKubeconfig, "auth", "can-i", verb, resource, "--subresource="+sub, "-A")
		if got := out[strings.LastIndexByte(out, '\n')+1:]; got != want {
			t.Errorf("the virtual node may %s: %q, want %s", what, out, want)
		}
	}
}

func TestPostgres(t *testing.T) {
	var dir string
	r := record(t, func(t testing.TB) {
		dsn := Postgres(t)
		conn, err := pgx.Connect(t.Context(), dsn)
		if err != nil {
			t.Fatal(err)
		}
		// Left open: a client does not hold the server up.
		dir = conn.Config().Host
		if _, err := conn.Exec(t.Context(), "create table t (n int)"); err != nil {
			t.Fatal(err)
		}
	})
	if dir == "" {
		t.Skipf("no PostgreSQL: %s%s", r.skipped, r.failed)
	}
	if r.failed != "" {
		t.Error(r.failed)
	}
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("%s: %v", dir, err)
	}
}
