package inside

import (
	"context"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"cumulet.io/cis"
	"cumulet.io/cis/engine"
	"cumulet.io/cis/engine/cri"
	"cumulet.io/cis/engine/cri/containerd"
	"cumulet.io/cis/engine/cri/fence"
	"cumulet.io/cis/sandbox"
	"cumulet.io/internal/testenv"
)

// patience is what an emulated machine in an emulated machine may take, on a machine with much else to do.
const patience = 5 * time.Minute

// newContainerd is a containerd with the handlers that cisd gives its own on this host.
func newContainerd(t *testing.T) *testenv.ContainerdEnv {
	t.Helper()
	f := host(t).Finding(handler)
	return testenv.Containerd(t, func(c *containerd.Config) {
		h, err := containerd.DetectHost()
		if err != nil {
			t.Fatal(err)
		}
		h.Systemd = false
		c.Host = &h
		c.Handlers = slices.DeleteFunc(c.Handlers, func(h containerd.Handler) bool { return h.Name != containerd.HandlerRunc })
		c.Handlers = append(c.Handlers, containerd.KataHandler(f.Handler, f.KataConfig, sandbox.KataOptions{}))
	})
}

// newEngine is an engine as cisd makes it, that runs nothing yet.
func newEngine(t *testing.T, env *testenv.ContainerdEnv, sink engine.Sink) *cri.Engine {
	t.Helper()
	wall, err := fence.Open(fence.Config{Bridge: env.Bridge})
	if err != nil {
		t.Fatal(err)
	}
	have, why := host(t).Handlers()
	e, err := cri.New(cri.Config{
		Socket: env.Socket, TaskDir: env.Daemon.TaskDir(), Root: filepath.Join(env.Dir, "engine"), LogRoot: filepath.Join(env.Dir, "pods"),
		Node: "emulated", HostIP: "127.0.0.1", Handlers: have, Unavailable: why, Fence: wall, Sink: sink, Console: "/run/vc/vm/{id}/console.sock",
		CgroupRoot: "/" + strings.Trim(strings.TrimSuffix(env.CgroupParent, ".slice"), "/"), StopBound: patience,
		Logger:       slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn})),
		CrashBackoff: cri.Backoff{Initial: 500 * time.Millisecond, Max: 2 * time.Second}, PullBackoff: cri.Backoff{Initial: 500 * time.Millisecond, Max: 2 * time.Second},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	return e
}

// run runs the engine until the test ends.
func run(t *testing.T, e *cri.Engine) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- e.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	if err := e.Sync(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
}

// instance is one of class c1-m2 that runs a script: of a size that is not what the configuration says by default.
func instance(script string) *cis.Instance {
	grace := int64(30)
	spec := cis.Spec{Name: "demo", Sandbox: cis.Kata, GraceSeconds: &grace, RestartPolicy: corev1.RestartPolicyNever, Containers: []cis.Container{{
		Name: "main", Image: testenv.BusyboxImage, Command: []string{"sh", "-c", script}, ImagePullPolicy: corev1.PullIfNotPresent,
		Resources: corev1.ResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("1"), corev1.ResourceMemory: resource.MustParse("2Gi")}},
	}}}
	now := time.Now().UTC()
	id := cis.NewID(now)
	return &cis.Instance{ID: id, Org: "acme", Key: id, CreatedAt: now, Version: 1, Spec: spec.Defaulted()}
}
