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

// A test that fails with a container running leaves nothing behind.
func TestContainerdRemovesEveryTrace(t *testing.T) {
	RequireRoot(t)
	var env *ContainerdEnv
	var bridge string
	r := record(t, func(t testing.TB) {
		env = Containerd(t)
		conn, err := grpc.NewClient("unix://"+env.Socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		config := &runtimev1.PodSandboxConfig{
			Metadata: &runtimev1.PodSandboxMetadata{Name: "left", Namespace: "test", Uid: "left"},
			Linux:    &runtimev1.LinuxPodSandboxConfig{CgroupParent: env.CgroupParent + "/left"},
		}
		if _, err := runtimev1.NewRuntimeServiceClient(conn).RunPodSandbox(t.Context(), &runtimev1.RunPodSandboxRequest{Config: config}); err != nil {
			t.Fatal(err)
		}
		bridge = strings.TrimPrefix(strings.TrimSuffix(env.CgroupParent, ".slice"), "/")
		if _, err := net.InterfaceByName(bridge); err != nil {
			t.Fatalf("the bridge %s: %v", bridge, err)
		}
		t.Fatal("on purpose")
	})
	if env == nil {
		t.Skipf("no containerd: %s%s", r.skipped, r.failed)
	}
	if r.failed != "on purpose" {
		t.Errorf("failed with %q", r.failed)
	}
	if _, err := os.Stat(env.Dir); !os.IsNotExist(err) {
		t.Errorf("%s: %v", env.Dir, err)
	}
	if _, err := net.InterfaceByName(bridge); err == nil {
		t.Errorf("the bridge %s is there", bridge)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(mounts), env.Dir+"/") {
		t.Errorf("mounts are left in %s", env.Dir)
	}
	for _, pattern := range []string{"", "*"} {
		if left, _ := filepath.Glob(filepath.Join("/sys/fs/cgroup", pattern, bridge+"*")); len(left) > 0 {
			t.Errorf("cgroups are left: %q", left)
		}
	}
	cmdlines, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, f := range cmdlines {
		if b, err := os.ReadFile(f); err == nil && strings.Contains(string(b), env.Dir+"/") {
			t.Errorf("a process is left: %q", b)
		}
	}
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
