package bench

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	rt "k8s.io/cri-api/pkg/apis/runtime/v1"

	"cumulet.io/cis"
	"cumulet.io/cis/engine/cri"
	"cumulet.io/cis/engine/cri/containerd"
	"cumulet.io/cis/engine/enginetest"
	"cumulet.io/internal/testenv"
)

// rounds is how often each side starts a sandbox; in a virtual machine by emulation each takes seconds.
func rounds(class cis.SandboxClass) int {
	if class == cis.Kata {
		return 3
	}
	return 7
}

// sandboxes is an engine and a raw client on one containerd.
type sandboxes struct {
	env    *testenv.ContainerdEnv
	kata   *testenv.KataEnv
	engine *cri.Engine
	sink   *enginetest.Sink
	raw    *rawCRI
}

func openSandboxes(b *testing.B) *sandboxes {
	b.Helper()
	kata := testenv.Kata(b)
	env := testenv.Containerd(b, kata.Configure, func(c *containerd.Config) {
		h, err := containerd.DetectHost()
		if err != nil {
			b.Fatal(err)
		}
		h.Systemd, c.Host = false, &h
	})
	s := &sandboxes{env: env, kata: kata, sink: &enginetest.Sink{}}
	handlers := map[cis.SandboxClass]string{cis.Runc: "runc", cis.Kata: testenv.KataHandler}
	if env.Has("runsc") {
		handlers[cis.GVisor] = "runsc"
	}
	var err error
	s.engine, err = cri.New(cri.Config{Socket: env.Socket, TaskDir: env.Daemon.TaskDir(), Root: filepath.Join(env.Dir, "engine"), LogRoot: filepath.Join(env.Dir, "pods"),
		Node: "bench", Handlers: handlers, Sink: s.sink, CgroupRoot: env.CgroupParent, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		b.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.engine.Run(ctx) }()
	b.Cleanup(func() {
		stop()
		if err := errors.Join(<-done, s.engine.Close()); err != nil {
			b.Error(err)
		}
	})
	if err := s.engine.Sync(ctx, nil); err != nil {
		b.Fatal(err)
	}
	if s.raw, err = openCRI(env.Socket, filepath.Join(env.Dir, "raw"), nil); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { s.raw.conn.Close() })
	return s
}

func (s *sandboxes) instance(class cis.SandboxClass) *cis.Instance {
	now := time.Now().UTC()
	grace := int64(0)
	spec := cis.Spec{Name: "idle", Sandbox: class, GraceSeconds: &grace,
		Containers: []cis.Container{{Name: "main", Image: testenv.BusyboxImage, Command: []string{"sleep", "100000"}}}}
	return &cis.Instance{ID: cis.NewID(now), Org: "acme", CreatedAt: now, Spec: spec.Defaulted()}
}

// ours starts an instance, from the order to the report that it runs.
func (s *sandboxes) ours(b *testing.B, in *cis.Instance) time.Duration {
	b.Helper()
	began := time.Now()
	if err := s.engine.Ensure(b.Context(), in); err != nil {
		b.Fatal(err)
	}
	st := s.sink.Await(b, in.ID, func(st cis.Status) bool { return st.Phase == cis.Running || st.Phase.Final() }, 5*time.Minute)
	if st.Phase != cis.Running {
		b.Fatalf("%s %s: %s", st.Phase, st.Reason, st.Message)
	}
	return time.Since(began)
}

func (s *sandboxes) end(b *testing.B, in *cis.Instance) {
	b.Helper()
	d := *in
	d.Desired = cis.Desired{Stop: true}
	if err := s.engine.Ensure(b.Context(), &d); err != nil {
		b.Fatal(err)
	}
	s.sink.Await(b, in.ID, func(st cis.Status) bool { return st.Phase.Final() }, 5*time.Minute)
}

// theirs starts the same by CRI alone, and removes it.
func (s *sandboxes) theirs(b *testing.B, class cis.SandboxClass, handler, name string) time.Duration {
	b.Helper()
	ctx := b.Context()
	cfg := &rt.PodSandboxConfig{Metadata: &rt.PodSandboxMetadata{Name: name, Namespace: "raw", Uid: name}, LogDirectory: filepath.Join(s.raw.logs, name),
		Linux: &rt.LinuxPodSandboxConfig{CgroupParent: s.env.CgroupParent + "/pod" + name}}
	if err := os.MkdirAll(cfg.LogDirectory, 0o755); err != nil {
		b.Fatal(err)
	}
	began := time.Now()
	r, err := s.raw.runtime.RunPodSandbox(ctx, &rt.RunPodSandboxRequest{Config: cfg, RuntimeHandler: handler})
	if err != nil {
		b.Fatal(err)
	}
	c, err := s.raw.runtime.CreateContainer(ctx, &rt.CreateContainerRequest{PodSandboxId: r.PodSandboxId, SandboxConfig: cfg, Config: &rt.ContainerConfig{
		Metadata: &rt.ContainerMetadata{Name: "main"}, Image: &rt.ImageSpec{Image: testenv.BusyboxImage}, Command: []string{"sleep", "100000"}, LogPath: "main.log",
		Linux: &rt.LinuxContainerConfig{SecurityContext: &rt.LinuxContainerSecurityContext{Seccomp: &rt.SecurityProfile{ProfileType: rt.SecurityProfile_RuntimeDefault}}}}})
	if err != nil {
		b.Fatal(err)
	}
	if _, err := s.raw.runtime.StartContainer(ctx, &rt.StartContainerRequest{ContainerId: c.ContainerId}); err != nil {
		b.Fatal(err)
	}
	took := time.Since(began)
	if _, err := s.raw.runtime.StopPodSandbox(ctx, &rt.StopPodSandboxRequest{PodSandboxId: r.PodSandboxId}); err != nil {
		b.Fatal(err)
	}
	if _, err := s.raw.runtime.RemovePodSandbox(ctx, &rt.RemovePodSandboxRequest{PodSandboxId: r.PodSandboxId}); err != nil {
		b.Fatal(err)
	}
	return took
}

// BenchmarkSandbox measures each class in one run: the start of an instance by the engine beside the bare CRI calls in the
// same handler, in turn; and what an idle instance holds of the machine's memory.
func BenchmarkSandbox(b *testing.B) {
	s := openSandboxes(b)
	for _, class := range []cis.SandboxClass{cis.Runc, cis.GVisor, cis.Kata} {
		handler := map[cis.SandboxClass]string{cis.Runc: "runc", cis.GVisor: "runsc", cis.Kata: testenv.KataHandler}[class]
		if !s.env.Has(handler) {
			continue
		}
		b.Run(string(class), func(b *testing.B) {
			for range b.N {
				var ours, theirs []time.Duration
				for i := range rounds(class) {
					in := s.instance(class)
					ours = append(ours, s.ours(b, in))
					s.end(b, in)
					theirs = append(theirs, s.theirs(b, class, handler, fmt.Sprintf("%s%d", class, i)))
				}
				report(b, median(ours), median(theirs), "ms", median(ours)/median(theirs))
				b.ReportMetric(s.idleMiB(b, class), "idle-MiB")
			}
			b.ReportMetric(0, "ns/op")
		})
	}
}

// idleMiB is what two idle instances hold, each: the proportional set size of all processes of their sandboxes, which
// shares what they share, less what there is without any.
func (s *sandboxes) idleMiB(b *testing.B, class cis.SandboxClass) float64 {
	b.Helper()
	const n = 2
	before := s.pss(b)
	var all []*cis.Instance
	for range n {
		in := s.instance(class)
		s.ours(b, in)
		all = append(all, in)
	}
	held := s.pss(b) - before
	for _, in := range all {
		s.end(b, in)
	}
	return float64(held) / n / 1024
}

// pss is the proportional set size of this containerd's descendants and the VM service's, those included that have left
// them, in KiB.
func (s *sandboxes) pss(b *testing.B) int64 {
	b.Helper()
	var total int64
	for _, pid := range s.processes(b) {
		text, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "smaps_rollup"))
		if err != nil {
			continue // it has ended
		}
		for line := range strings.Lines(string(text)) {
			if f := strings.Fields(line); len(f) >= 2 && f[0] == "Pss:" {
				kib, err := strconv.ParseInt(f[1], 10, 64)
				if err != nil {
					b.Fatal(err)
				}
				total += kib
			}
		}
	}
	return total
}

// processes are those in the cgroups of this containerd's sandboxes, and those that name its directory or the VM service's:
// shims, sandboxes, virtual machines.
func (s *sandboxes) processes(b *testing.B) []int {
	b.Helper()
	dirs, err := os.ReadDir("/proc")
	if err != nil {
		b.Fatal(err)
	}
	skip := []int{os.Getpid(), s.env.Daemon.PID(), s.kata.PID()}
	var pids []int
	for _, d := range dirs {
		pid, err := strconv.Atoi(d.Name())
		if err != nil || slices.Contains(skip, pid) {
			continue
		}
		args, err := os.ReadFile(filepath.Join("/proc", d.Name(), "cmdline"))
		if errors.Is(err, fs.ErrNotExist) || err != nil {
			continue
		}
		groups, err := os.ReadFile(filepath.Join("/proc", d.Name(), "cgroup"))
		if err != nil {
			continue
		}
		if strings.Contains(string(groups), s.env.CgroupParent+"/") || strings.Contains(string(args), s.env.Dir+"/") || strings.Contains(string(args), s.kata.StateDir+"/") {
			pids = append(pids, pid)
		}
	}
	return pids
}
