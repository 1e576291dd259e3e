package cri

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	rt "k8s.io/cri-api/pkg/apis/runtime/v1"

	"cumulet.io/cis"
	"cumulet.io/internal/testenv"
)

// TestStartAgainstRawCRI measures, when CUMULET_BENCH is set, the time from Ensure to a running container against the
// three calls that make one, in turns on the same containerd.
func TestStartAgainstRawCRI(t *testing.T) {
	if os.Getenv("CUMULET_BENCH") == "" {
		t.Skip("a measurement: set CUMULET_BENCH=1 to run it")
	}
	b := newBench(t)
	for class, handler := range b.cfg.Handlers {
		var ours, raw time.Duration
		const n = 5
		for i := range n {
			in := instance(class, shell("main", "sleep 1000"))
			began := time.Now()
			b.ensure(in)
			b.sink.waitPhase(t, in.ID, cis.Running)
			ours += time.Since(began)
			b.delete(in)
			b.sink.wait(t, in.ID, "end", func(st cis.Status) bool { return st.Phase.Final() })
			began = time.Now()
			id := rawStart(t, b, handler, i)
			raw += time.Since(began)
			if err := b.removeSandbox(t.Context(), id); err != nil {
				t.Fatal(err)
			}
		}
		t.Logf("%s: engine %v, raw CRI %v, ratio %.3f", class, ours/n, raw/n, float64(ours)/float64(raw))
	}
}

func rawStart(t *testing.T, b *bench, handler string, i int) string {
	t.Helper()
	name := fmt.Sprintf("raw-%s-%d", handler, i)
	cfg := &rt.PodSandboxConfig{Metadata: &rt.PodSandboxMetadata{Name: name, Namespace: "raw", Uid: name}, Hostname: name,
		LogDirectory: filepath.Join(b.cfg.LogRoot, name), Linux: &rt.LinuxPodSandboxConfig{CgroupParent: b.cgroup.root + "/pod-" + name,
			SecurityContext: &rt.LinuxSandboxSecurityContext{NamespaceOptions: &rt.NamespaceOption{Pid: rt.NamespaceMode_CONTAINER}}}}
	if err := os.MkdirAll(cfg.LogDirectory, 0o755); err != nil {
		t.Fatal(err)
	}
	s, err := b.rt.RunPodSandbox(t.Context(), &rt.RunPodSandboxRequest{Config: cfg, RuntimeHandler: handler})
	if err != nil {
		t.Fatal(err)
	}
	c, err := b.rt.CreateContainer(t.Context(), &rt.CreateContainerRequest{PodSandboxId: s.PodSandboxId, SandboxConfig: cfg, Config: &rt.ContainerConfig{
		Metadata: &rt.ContainerMetadata{Name: "main"}, Image: &rt.ImageSpec{Image: testenv.BusyboxImage}, Command: []string{"sleep", "1000"}, LogPath: "main.log",
		Linux: &rt.LinuxContainerConfig{SecurityContext: &rt.LinuxContainerSecurityContext{NamespaceOptions: &rt.NamespaceOption{Pid: rt.NamespaceMode_CONTAINER}}}}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.rt.StartContainer(t.Context(), &rt.StartContainerRequest{ContainerId: c.ContainerId}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.cgroup.remove(name); err != nil {
			t.Error(err)
		}
	})
	return s.PodSandboxId
}
