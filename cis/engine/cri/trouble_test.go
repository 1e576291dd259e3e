package cri

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	corev1 "k8s.io/api/core/v1"
	rt "k8s.io/cri-api/pkg/apis/runtime/v1"

	"cumulet.io/cis"
	"cumulet.io/cis/engine/cri/capture"
	"cumulet.io/internal/mounts"
	"cumulet.io/internal/testenv"
)

// containerd is killed at random moments while instances start: each of them comes up once, none fails, none is doubled, and
// nothing is left of what was cut short. CUMULET_TEST_SEED repeats a run's choices.
func TestKillDuringStart(t *testing.T) {
	b := newBench(t)
	random := testenv.Random(t)
	classes := slices.Sorted(maps.Keys(b.cfg.Handlers))
	before := b.leftovers(t)
	for range 3 {
		var all []*cis.Instance
		for i := range 6 {
			in := instance(classes[i%len(classes)], shell("main", "trap 'exit 0' TERM; while :; do sleep 0.1; done"))
			in.Spec.RestartPolicy = corev1.RestartPolicyNever
			all = append(all, b.ensure(in))
		}
		time.Sleep(time.Duration(random.IntN(1500)) * time.Millisecond) // the moment, and not a wait for anything
		b.env.Kill()
		b.env.Ready()
		for _, in := range all {
			st := b.sink.waitPhase(t, in.ID, cis.Running)
			if st.Incarnation != 1 || st.Containers[0].RestartCount != 0 {
				t.Errorf("%+v", st)
			}
			if _, err := b.run(in.ID, "main", "true"); err != nil {
				t.Error(err)
			}
		}
		list, err := b.listContainers(t.Context(), "")
		if err != nil || len(list) != len(all) {
			t.Errorf("%d containers, want %d: %v", len(list), len(all), err)
		}
		for _, in := range all {
			b.delete(in)
		}
		for _, in := range all {
			b.sink.waitPhase(t, in.ID, cis.Succeeded)
		}
		testenv.Eventually(t, 3*sweepEvery, func() error {
			if left := beyond(b.leftovers(t), before); len(left) > 0 {
				return fmt.Errorf("left:\n%s", strings.Join(left, "\n"))
			}
			return nil
		})
	}
}

// The engine ends while containerd makes a sandbox or starts a container: that goes on without it, and the container runs once.
func TestEngineEndsDuringStart(t *testing.T) {
	b := newBench(t)
	for class := range b.cfg.Handlers {
		for _, call := range []string{"RunPodSandbox", "StartContainer"} {
			t.Run(string(class)+"/"+call, func(t *testing.T) {
				begun := make(chan string, 100)
				announce := func(id string) { begun <- id }
				b.start = announced{b.start, call, announce}
				var all []*cis.Instance
				for n := range 5 {
					in := instance(class, shell("main", "echo began; sleep 1; echo done"))
					in.Spec.RestartPolicy = corev1.RestartPolicyNever
					all = append(all, b.ensure(in))
					for id := ""; id != in.ID; { // those of before are started, too
						select {
						case id = <-begun:
						case <-time.After(time.Minute):
							t.Fatalf("no %s for %s", call, in.ID)
						}
					}
					time.Sleep(time.Duration(n) * 20 * time.Millisecond) // at another moment of it each time
					b.stop()
					live := slices.DeleteFunc(slices.Clone(all), func(in *cis.Instance) bool { return b.sink.last(in.ID).Phase.Final() })
					b.up()
					b.start = announced{b.start, call, announce}
					if err := b.Sync(t.Context(), live); err != nil {
						t.Fatal(err)
					}
				}
				for _, in := range all {
					st := b.sink.waitPhase(t, in.ID, cis.Succeeded)
					if st.Incarnation != 1 || st.Containers[0].RestartCount != 0 {
						t.Errorf("%+v", st)
					}
					if got := b.logText(in.ID, "main"); got != "began\ndone\n" {
						t.Errorf("log %q", got)
					}
				}
			})
		}
	}
}

// A sandbox has gone when its first container is to start, and containerd has not heard of it: the instance gets another one, and
// has not failed. When that goes, too, its user is told.
func TestSandboxGoneBeforeStart(t *testing.T) {
	b := newBench(t)
	if !b.env.Has("runsc") {
		t.Skip("no gVisor")
	}
	b.cfg.StopBound = 2 * time.Second
	b.restart()
	left := 2
	lose := func(id string) {
		if left--; left < 0 {
			return
		}
		sandbox, err := b.onlySandbox(id)
		if err == nil {
			err = os.Remove(b.gvisorRecord(sandbox)) // as it is while containerd cleans up after a shim that has died
		}
		if err != nil {
			t.Error(err)
		}
	}
	b.start = announced{b.start, "StartContainer", lose}
	in := instance(cis.GVisor, shell("main", "sleep 1000"))
	in.Spec.RestartPolicy = corev1.RestartPolicyNever
	b.ensure(in)
	if st := b.sink.waitPhase(t, in.ID, cis.Running); st.Incarnation != 1 || st.Containers[0].RestartCount != 0 {
		t.Errorf("%+v", st)
	}
	if _, err := b.run(in.ID, "main", "true"); err != nil {
		t.Error(err)
	}
	if !b.sink.hasEvent(in.ID, "SandboxChanged") {
		t.Error("the second loss is not told")
	}
}

// containerd is killed when a container has just begun, before it has said so, and comes back when the container has ended: that has
// run from its start to its end, and the meter is told so.
func TestLostAnswer(t *testing.T) {
	const away = 3 * time.Second
	b := newBench(t)
	for class := range b.cfg.Handlers {
		t.Run(string(class), func(t *testing.T) {
			in := instance(class, shell("main", "echo begun; sleep 1"))
			in.Spec.RestartPolicy = corev1.RestartPolicyNever
			b.ensure(in)
			output := filepath.Join(b.instanceDir(in.ID), "output", "main", "0")
			for deadline := time.Now().Add(time.Minute); !capture.Written(output); time.Sleep(100 * time.Microsecond) {
				if time.Now().After(deadline) {
					t.Fatal("the container has not begun")
				}
			}
			b.env.Down()
			time.Sleep(away)
			b.env.Up()
			b.sink.waitPhase(t, in.ID, cis.Succeeded)
			b.meter.mu.Lock()
			defer b.meter.mu.Unlock()
			if began, end := b.meter.markAt[in.ID], b.meter.stopAt[in.ID]; end.Sub(began) < 900*time.Millisecond || end.Sub(began) > away {
				t.Errorf("ran for %v: marked at %v, stopped at %v", end.Sub(began), began, end)
			}
		})
	}
}

// gvisorRecord is the file in which gVisor's runtime has noted what it knows of a sandbox.
func (b *bench) gvisorRecord(sandbox string) string {
	return filepath.Join(b.cfg.Runsc.Root, criNamespace, sandbox+"_sandbox:"+sandbox+".state")
}

// announced is the service, which says of each call of one kind for which instance it is, just before it is made.
type announced struct {
	rt.RuntimeServiceClient
	call  string
	begin func(instance string)
}

func (a announced) RunPodSandbox(ctx context.Context, r *rt.RunPodSandboxRequest, opts ...grpc.CallOption) (*rt.RunPodSandboxResponse, error) {
	if a.call == "RunPodSandbox" {
		a.begin(r.Config.Metadata.Uid)
	}
	return a.RuntimeServiceClient.RunPodSandbox(ctx, r, opts...)
}

func (a announced) StartContainer(ctx context.Context, r *rt.StartContainerRequest, opts ...grpc.CallOption) (*rt.StartContainerResponse, error) {
	if a.call == "StartContainer" {
		st, err := a.ContainerStatus(ctx, &rt.ContainerStatusRequest{ContainerId: r.ContainerId})
		if err != nil {
			return nil, err
		}
		a.begin(st.Status.Labels[labelInstance])
	}
	return a.RuntimeServiceClient.StartContainer(ctx, r, opts...)
}

// A server on the loopback interface of a runc sandbox can be reached; a port where nobody listens is an error.
func TestPortForwardLoopback(t *testing.T) {
	b := newBench(t)
	in := instance(cis.Runc, shell("main", "echo hi > /tmp/index.html; exec httpd -f -p 127.0.0.1:8081 -h /tmp"))
	in.Spec.Containers[0].ReadinessProbe = &corev1.Probe{PeriodSeconds: 1, ProbeHandler: corev1.ProbeHandler{
		Exec: &corev1.ExecAction{Command: []string{"wget", "-q", "-O", "/dev/null", "http://127.0.0.1:8081/"}}}}
	b.ensure(in)
	b.sink.wait(t, in.ID, "ready", func(st cis.Status) bool { return st.Ready })
	conn, err := b.PortForward(t.Context(), in.ID, 8081)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "GET / HTTP/1.0\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(conn)
	if err != nil || !strings.HasSuffix(string(got), "hi\n") {
		t.Errorf("%q %v", got, err)
	}
	if _, err := b.PortForward(t.Context(), in.ID, 8082); err == nil || !strings.Contains(err.Error(), "nothing listens") {
		t.Errorf("%v", err)
	}
}

// Attaching to a container reads its output from now on and writes to its input.
func TestAttach(t *testing.T) {
	b := newBench(t)
	for class := range b.cfg.Handlers {
		t.Run(string(class), func(t *testing.T) { b.attaches(t, class) })
	}
}

func (b *bench) attaches(t *testing.T, class cis.SandboxClass) {
	t.Helper()
	in := instance(class, shell("main", "read line; echo got $line; sleep 1; exit 0"))
	in.Spec.RestartPolicy = corev1.RestartPolicyNever
	in.Spec.Containers[0].Stdin, in.Spec.Containers[0].StdinOnce = true, true
	b.ensure(in)
	b.sink.waitPhase(t, in.ID, cis.Running)
	var out bytes.Buffer
	if err := b.Exec(t.Context(), in.ID, cis.ExecRequest{Container: "main", Stdin: strings.NewReader("word\n"), Stdout: &out}); err != nil {
		t.Error(err)
	}
	if out.String() != "got word\n" {
		t.Errorf("%q", out.String())
	}
	b.sink.waitPhase(t, in.ID, cis.Succeeded)
}

// A shim that answers no more, as one whose containerd was killed while it made its sandbox, does not keep the sandbox.
func TestStuckShim(t *testing.T) {
	b := newBench(t)
	b.cfg.StopBound = 2 * time.Second
	b.restart()
	b.removed(t, cis.Runc, func(sandbox string) error { return signalShim(sandbox, unix.SIGSTOP) })
}

// gVisor's record of a sandbox, cut short by a kill of containerd while it was written, does not keep the sandbox.
func TestBrokenRecord(t *testing.T) {
	b := newBench(t)
	if !b.env.Has("runsc") {
		t.Skip("no gVisor")
	}
	b.removed(t, cis.GVisor, func(sandbox string) error { return os.Truncate(b.gvisorRecord(sandbox), 0) })
}

// removed spoils the sandbox of a running instance: it can be removed all the same, and the instance has failed.
func (b *bench) removed(t *testing.T, class cis.SandboxClass, spoil func(sandbox string) error) {
	t.Helper()
	in := instance(class, shell("main", "sleep 1000"))
	in.Spec.RestartPolicy = corev1.RestartPolicyNever
	b.ensure(in)
	b.sink.waitPhase(t, in.ID, cis.Running)
	sandbox, err := b.onlySandbox(in.ID)
	if err == nil {
		err = spoil(sandbox)
	}
	if err != nil {
		t.Fatal(err)
	}
	// The first try may find containerd still busy with the shim's end; the engine tries it, too.
	testenv.Eventually(t, 30*time.Second, func() error { return b.removeSandbox(t.Context(), sandbox) })
	b.sink.waitPhase(t, in.ID, cis.Failed)
}

// onlySandbox is the one of an instance that has one.
func (b *bench) onlySandbox(id string) (string, error) {
	list, err := b.listSandboxes(b.t.Context(), id)
	if err == nil && len(list) != 1 {
		err = fmt.Errorf("%s has %d sandboxes", id, len(list))
	}
	if err != nil {
		return "", err
	}
	return list[0].Id, nil
}

// Shims, bundles and network namespaces that containerd has forgotten go, others do not.
func TestSweep(t *testing.T) {
	b := newBench(t)
	in := b.ensure(instance(cis.Runc, shell("main", "sleep 1000")))
	before := b.sink.waitPhase(t, in.ID, cis.Running)
	stray := exec.Command("sh", "-c", "sleep 1000; :", "-address", b.cfg.Socket, "-id", "0123456789abcdef")
	stray.Args[0] = "containerd-shim-test"
	stray.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := stray.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { syscall.Kill(-stray.Process.Pid, syscall.SIGKILL) }) // with its sleep
	var left []string
	for _, name := range []string{"fedcba9876543210", ".fedcba9876543211"} {
		dir := bundleDir(b.cfg.TaskDir, name)
		left = append(left, dir)
		rootfs := filepath.Join(dir, "rootfs")
		if err := os.MkdirAll(rootfs, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mount("tmpfs", rootfs, "tmpfs", 0, ""); err != nil {
			t.Fatal(err)
		}
	}
	network := filepath.Join(b.networkDir(), "cni-test")
	left = append(left, network)
	if err := errors.Join(os.WriteFile(network, nil, 0o600), unix.Mount("/proc/self/ns/net", network, "", unix.MS_BIND, "")); err != nil {
		t.Fatal(err)
	}
	found := b.sweep(t.Context(), nil)
	kinds := map[string]int{}
	for s := range found {
		kinds[s.kind]++
	}
	if want := map[string]int{"shim": 1, "bundle": 2, "network namespace": 1}; !maps.Equal(kinds, want) {
		t.Errorf("%v", found)
	}
	if found = b.sweep(t.Context(), found); len(found) != 0 {
		t.Errorf("%v", found)
	}
	for _, path := range left {
		if points, err := mounts.In(path); err != nil || len(points) != 0 {
			t.Error(points, err)
		}
		if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
			t.Error(path, err)
		}
	}
	if points, err := mounts.In(filepath.Dir(network)); err != nil || len(points) != 1 {
		t.Errorf("the living one's network: %v %v", points, err)
	}
	if err := stray.Wait(); err == nil || stray.ProcessState.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Errorf("%v", err)
	}
	if _, err := b.run(in.ID, "main", "true"); err != nil || b.sink.last(in.ID).Incarnation != before.Incarnation {
		t.Errorf("the living one: %v", err)
	}
}

// Of instances that are deleted while they start nothing stays, and nothing has to be looked for.
func TestDeletedWhileStarting(t *testing.T) {
	b := newBench(t)
	random := testenv.Random(t)
	classes := slices.Sorted(maps.Keys(b.cfg.Handlers))
	var all []*cis.Instance
	for i := range 40 {
		in := b.ensure(instance(classes[i%len(classes)], shell("main", "sleep 1000")))
		all = append(all, in)
		time.Sleep(time.Duration(random.IntN(500)) * time.Millisecond) // the moment, and not a wait for anything
		b.delete(in)
	}
	for _, in := range all {
		b.sink.wait(t, in.ID, "the end", func(st cis.Status) bool { return st.Phase.Final() })
	}
	testenv.Eventually(t, sweepEvery/2, func() error {
		left := b.cgroupsLeft()
		list, err := b.listSandboxes(t.Context(), "")
		for _, s := range list {
			left = append(left, "sandbox "+s.Id)
		}
		running, serr := shims()
		for _, s := range running {
			if s.address == b.env.Socket {
				left = append(left, "shim of "+s.id)
			}
		}
		if err := errors.Join(err, serr); err != nil {
			return err
		}
		if len(left) > 0 {
			return fmt.Errorf("left: %q", left)
		}
		return nil
	})
}

// A process that a start which was cut short has left in the instance's cgroup goes with the instance.
func TestStrayProcess(t *testing.T) {
	b := newBench(t)
	in := b.ensure(instance(cis.Runc, shell("main", "sleep 1000")))
	b.sink.waitPhase(t, in.ID, cis.Running)
	stray := exec.Command("sleep", "1000")
	if err := stray.Start(); err != nil {
		t.Fatal(err)
	}
	for _, dir := range b.cgroup.dirs(in.ID) {
		if strings.Contains(dir, "cpuset") {
			continue // takes none before it has CPUs
		}
		inner := filepath.Join(dir, "stray") // v2 has processes in leaves alone
		if err := errors.Join(os.MkdirAll(inner, 0o755), writeControl(inner, "cgroup.procs", strconv.Itoa(stray.Process.Pid))); err != nil {
			t.Error(err)
		}
	}
	b.delete(in)
	b.sink.waitPhase(t, in.ID, cis.Failed)
	if err := stray.Wait(); err == nil || stray.ProcessState.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Errorf("%v", err)
	}
}

// The sink is away while an instance runs and ends: its end is told when it is back, and what it left is removed then.
func TestSinkAway(t *testing.T) {
	b := newBench(t)
	in := instance(cis.Runc, shell("main", "exit 4"))
	in.Spec.RestartPolicy = corev1.RestartPolicyNever
	b.sink.setDown(true)
	b.ensure(in)
	time.AfterFunc(2*time.Second, func() { b.sink.setDown(false) })
	st := b.sink.waitPhase(t, in.ID, cis.Failed)
	if e := ended(st.Containers[0]); e == nil || e.ExitCode != 4 {
		t.Errorf("%+v", st)
	}
}
