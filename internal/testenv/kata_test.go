package testenv

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	restclient "k8s.io/client-go/rest"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/util/exec"
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
	r := p.try(container, command...)
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
	main := p.run("main", nil, "sh", "-c", "trap 'echo bye; exit 3' TERM; echo hello; while :; do sleep 0.1; done")

	t.Run("kernel", func(t *testing.T) {
		host, err := os.ReadFile("/proc/sys/kernel/osrelease")
		if err != nil {
			t.Fatal(err)
		}
		guest := p.exec(main, "uname", "-r")
		t.Logf("the guest's kernel is %s, the host's %s", guest, bytes.TrimSpace(host))
		if guest == strings.TrimSpace(string(host)) || !strings.Contains(guest, "cloud") {
			t.Error("that is not a kernel of its own")
		}
		if name := p.exec(main, "hostname"); name != "one" {
			t.Errorf("hostname %q", name)
		}
		// Nothing of the agent's: its own streams and the directory it lists.
		if fds := p.exec(main, "ls", "/proc/self/fd"); fds != "0\n1\n2\n3" {
			t.Errorf("a process has the file descriptors %q", fds)
		}
	})
	t.Run("cgroup", func(t *testing.T) {
		want := memoryCgroup(t, kata.process(t, "containerd-shim-kata-v2", p.id))
		if want == "" {
			t.Skip("control groups of version 2 have no hierarchy of memory alone: the machine is not in its pod's")
		}
		for _, name := range []string{"qemu-system", "virtiofsd"} {
			if got := memoryCgroup(t, kata.process(t, name, p.id)); got != want || !strings.Contains(got, p.id) {
				t.Errorf("the memory of %s is counted in %s, the shim's in %s", name, got, want)
			}
		}
	})
	t.Run("network", func(t *testing.T) { p.network(t, env, main) })
	t.Run("volumes", func(t *testing.T) { p.volumes(t) })
	t.Run("terminal", func(t *testing.T) { p.terminal(t, main) })
	t.Run("input", func(t *testing.T) { p.input(t, main) })
	t.Run("log", func(t *testing.T) { p.bigLog(t) })
	t.Run("memory", func(t *testing.T) { p.outOfMemory(t) })
	t.Run("user", func(t *testing.T) { p.user(t) })
	t.Run("errors", func(t *testing.T) { p.errors(t) })
	t.Run("stats", func(t *testing.T) { p.stats(t, main) })
	t.Run("console", func(t *testing.T) {
		if log, err := kata.Console(p.id); err != nil || !strings.Contains(log, "Killed process") {
			t.Errorf("the guest's kernel does not tell of its OOM kill: %v\n%s", err, log)
		}
	})
	t.Run("stop", func(t *testing.T) {
		if _, err := p.rt.StopContainer(t.Context(), &rt.StopContainerRequest{ContainerId: main, Timeout: 60}); err != nil {
			t.Fatal(err)
		}
		if st := p.ended(main, time.Minute); st.ExitCode != 3 || !bytes.Contains(p.log("main"), []byte("bye")) {
			t.Errorf("after SIGTERM: code %d, reason %s, log %q", st.ExitCode, st.Reason, p.log("main"))
		}
	})
	p.remove()
	if left := kata.leftovers(t, p.id); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
}

// network has the guest and the host reach each other.
func (p *kataPod) network(t *testing.T, env *ContainerdEnv, main string) {
	st, err := p.rt.PodSandboxStatus(t.Context(), &rt.PodSandboxStatusRequest{PodSandboxId: p.id})
	if err != nil {
		t.Fatal(err)
	}
	ip := st.Status.Network.Ip
	if out := p.exec(main, "ip", "-4", "addr", "show", "eth0"); !strings.Contains(out, ip+"/22") {
		t.Errorf("the guest's eth0 has not %s:\n%s", ip, out)
	}
	p.exec(main, "ping", "-c", "1", "-W", "30", env.Subnet.Addr().Next().String())
	p.exec(main, "sh", "-c", "mkdir -p /tmp/www && head -c 1000000 /dev/zero > /tmp/www/f && httpd -p 80 -h /tmp/www")
	resp, err := http.Get("http://" + ip + "/f")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil || len(b) != 1000000 {
		t.Errorf("%d bytes from the guest's server, want 1000000: %v", len(b), err)
	}
}

// volumes shares directories and files between host and containers.
func (p *kataPod) volumes(t *testing.T) {
	vol := filepath.Join(p.dir, "vol")
	write := func(name, content string) {
		if err := os.WriteFile(filepath.Join(p.dir, name), []byte(content), 0o666); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.MkdirAll(filepath.Join(vol, "deep", "er"), 0o777); err != nil {
		t.Fatal(err)
	}
	write("vol/deep/er/f", "from the host")
	write("message", "")
	mounts := []*rt.Mount{
		{HostPath: vol, ContainerPath: "/data"},
		{HostPath: vol, ContainerPath: "/readonly", Readonly: true},
		{HostPath: filepath.Join(p.dir, "message"), ContainerPath: "/dev/termination-log"},
	}
	a := p.run("a", mounts, "sleep", "1000")
	b := p.run("b", mounts, "sleep", "1000")
	if got := p.exec(a, "cat", "/data/deep/er/f"); got != "from the host" {
		t.Errorf("the container reads %q", got)
	}
	p.exec(a, "sh", "-c", "echo -n shared > /data/x; echo -n the end > /dev/termination-log; echo more >> /dev/shm/m")
	Eventually(t, 10*time.Second, func() error {
		if got := p.exec(b, "cat", "/readonly/x"); got != "shared" {
			return fmt.Errorf("the other container reads %q", got)
		}
		return nil
	})
	if got := p.exec(b, "cat", "/dev/shm/m"); got != "more" {
		t.Errorf("shared memory has %q", got)
	}
	for file, want := range map[string]string{"vol/x": "shared", "message": "the end"} {
		if got, err := os.ReadFile(filepath.Join(p.dir, file)); err != nil || string(got) != want {
			t.Errorf("the host reads %q from %s, %v", got, file, err)
		}
	}
	if r := p.try(b, "sh", "-c", "echo no > /readonly/x"); r.ExitCode == 0 {
		t.Error("the read-only mount could be written to")
	}
	// An update as a kubelet makes it: a link that changes at once.
	for i, content := range []string{"old", "new"} {
		write("vol/v"+content, content)
		if err := os.Symlink("v"+content, filepath.Join(vol, ".tmp")); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(filepath.Join(vol, ".tmp"), filepath.Join(vol, "current")); err != nil {
			t.Fatal(err)
		}
		Eventually(t, 30*time.Second, func() error {
			if r := p.try(a, "cat", "/data/current"); string(r.Stdout) != content {
				return fmt.Errorf("update %d: the container reads %q", i, r.Stdout)
			}
			return nil
		})
	}
	for _, c := range []string{a, b} {
		if _, err := p.rt.RemoveContainer(t.Context(), &rt.RemoveContainerRequest{ContainerId: c}); err != nil {
			t.Error(err)
		}
	}
	if _, err := os.Stat(filepath.Join(vol, "x")); err != nil {
		t.Errorf("the volume's content: %v", err)
	}
}

// stream runs a command by CRI's streaming server.
func (p *kataPod) stream(t *testing.T, o remotecommand.StreamOptions, container string, command ...string) error {
	t.Helper()
	r, err := p.rt.Exec(t.Context(), &rt.ExecRequest{
		ContainerId: container, Cmd: command, Tty: o.Tty, Stdin: o.Stdin != nil, Stdout: o.Stdout != nil, Stderr: o.Stderr != nil,
	})
	if err != nil {
		t.Fatal(err)
	}
	u, err := url.Parse(r.Url)
	if err != nil {
		t.Fatal(err)
	}
	x, err := remotecommand.NewSPDYExecutor(&restclient.Config{}, http.MethodPost, u)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	return x.StreamWithContext(ctx, o)
}

type oneSize chan *remotecommand.TerminalSize

func (s oneSize) Next() *remotecommand.TerminalSize { return <-s }

func (p *kataPod) terminal(t *testing.T, main string) {
	var out bytes.Buffer
	size := make(oneSize, 1)
	size <- &remotecommand.TerminalSize{Width: 97, Height: 31}
	in, typed := io.Pipe()
	go func() {
		// The shell asks until the size has come.
		fmt.Fprint(typed, "tty; until stty size | grep '31 97'; do sleep 0.1; done; exit 7\n")
	}()
	defer typed.Close()
	defer close(size)
	err := p.stream(t, remotecommand.StreamOptions{Stdin: in, Stdout: &out, Tty: true, TerminalSizeQueue: size}, main, "sh")
	var exit exec.CodeExitError
	if !errors.As(err, &exit) || exit.Code != 7 || !strings.Contains(out.String(), "31 97") || !strings.Contains(out.String(), "/dev/pts/") {
		t.Errorf("%v, output %q", err, out.String())
	}
}

// input is megabytes in and out of a command, whose end follows that of its input.
func (p *kataPod) input(t *testing.T, main string) {
	in := bytes.Repeat([]byte("0123456789abcde\n"), 1<<16)
	var out, stderr bytes.Buffer
	o := remotecommand.StreamOptions{Stdin: bytes.NewReader(in), Stdout: &out, Stderr: &stderr}
	if err := p.stream(t, o, main, "sh", "-c", "cat; echo done >&2"); err != nil || !bytes.Equal(out.Bytes(), in) || stderr.String() != "done\n" {
		t.Errorf("%v, %d bytes of output for %d of input, errors %q", err, out.Len(), len(in), stderr.String())
	}
}

// bigLog is what a container prints as fast as it can.
func (p *kataPod) bigLog(t *testing.T) {
	const lines = 20_000
	c := p.run("log", nil, "sh", "-c", fmt.Sprintf("yes $(printf %%0999d 0) | head -n %d; echo the end >&2", lines))
	began := time.Now()
	if st := p.ended(c, 5*time.Minute); st.ExitCode != 0 {
		t.Errorf("code %d", st.ExitCode)
	}
	t.Logf("%d MB in %v", lines/1000, time.Since(began).Round(time.Millisecond))
	log := p.log("log")
	if n := bytes.Count(log, []byte(" stdout F ")); n != lines || !bytes.Contains(log, []byte(" stderr F the end\n")) {
		t.Errorf("%d lines, want %d; the end is %q", n, lines, log[max(0, len(log)-100):])
	}
}

func (p *kataPod) outOfMemory(t *testing.T) {
	c := p.runWith(&rt.ContainerConfig{
		Metadata: &rt.ContainerMetadata{Name: "oom"}, Command: []string{"sh", "-c", "exec tail /dev/zero"},
		Linux: &rt.LinuxContainerConfig{Resources: &rt.LinuxContainerResources{MemoryLimitInBytes: 32 << 20}},
	})
	if st := p.ended(c, 2*time.Minute); st.Reason != "OOMKilled" {
		t.Errorf("reason %q, code %d, log %q", st.Reason, st.ExitCode, p.log("oom"))
	}
}

func (p *kataPod) user(t *testing.T) {
	c := p.runWith(&rt.ContainerConfig{
		Metadata: &rt.ContainerMetadata{Name: "user"}, Command: []string{"sh", "-c", "id; cat /proc/self/status; touch /x 2>&1; sleep 1000"},
		Linux: &rt.LinuxContainerConfig{SecurityContext: &rt.LinuxContainerSecurityContext{
			RunAsUser: &rt.Int64Value{Value: 1000}, RunAsGroup: &rt.Int64Value{Value: 2000}, SupplementalGroups: []int64{3000},
			ReadonlyRootfs: true, NoNewPrivs: true, Capabilities: &rt.Capability{DropCapabilities: []string{"ALL"}},
		}},
	})
	want := func(where, got string) {
		for _, w := range []string{"uid=1000", "gid=2000", "3000", "CapBnd:\t0000000000000000", "CapEff:\t0000000000000000", "NoNewPrivs:\t1"} {
			if !strings.Contains(got, w) {
				t.Errorf("%s lacks %q: %s", where, w, got)
			}
		}
	}
	Eventually(t, time.Minute, func() error {
		if !bytes.Contains(p.log("user"), []byte("Read-only file system")) {
			return fmt.Errorf("log %q", p.log("user"))
		}
		return nil
	})
	want("the container", string(p.log("user")))
	want("a further process", p.exec(c, "sh", "-c", "id; cat /proc/self/status"))
}

// errors are those of programs that are not there.
func (p *kataPod) errors(t *testing.T) {
	r, err := p.rt.CreateContainer(t.Context(), &rt.CreateContainerRequest{PodSandboxId: p.id, SandboxConfig: p.config, Config: &rt.ContainerConfig{
		Metadata: &rt.ContainerMetadata{Name: "none"}, Image: &rt.ImageSpec{Image: BusyboxImage}, Command: []string{"no-such-program"},
	}})
	if err != nil {
		t.Fatal(err)
	}
	_, err = p.rt.StartContainer(t.Context(), &rt.StartContainerRequest{ContainerId: r.ContainerId})
	if err == nil || !strings.Contains(err.Error(), `"no-such-program": executable file not found in $PATH`) {
		t.Errorf("start of a program that is not there: %v", err)
	}
}

func (p *kataPod) stats(t *testing.T, main string) {
	r, err := p.rt.ContainerStats(t.Context(), &rt.ContainerStatsRequest{ContainerId: main})
	if err != nil {
		t.Fatal(err)
	}
	if s := r.Stats; s.Cpu.GetUsageCoreNanoSeconds().GetValue() == 0 || s.Memory.GetWorkingSetBytes().GetValue() == 0 {
		t.Errorf("stats %v", s)
	}
}

// try runs a command, whatever its exit code.
func (p *kataPod) try(container string, command ...string) *rt.ExecSyncResponse {
	p.t.Helper()
	r, err := p.rt.ExecSync(p.t.Context(), &rt.ExecSyncRequest{ContainerId: container, Cmd: command, Timeout: 60})
	if err != nil {
		p.t.Fatalf("exec %q: %v", command, err)
	}
	return r
}

// leftovers tells what is left of a sandbox's machine.
func (e *KataEnv) leftovers(t testing.TB, sandbox string) []string {
	t.Helper()
	var left []string
	for _, pattern := range []string{
		filepath.Join(e.StateDir, sandbox[:16]), "/run/kata-containers/shared/sandboxes/" + sandbox, "/run/vc/sbs/" + sandbox,
	} {
		if _, err := os.Lstat(pattern); err == nil {
			left = append(left, pattern)
		}
	}
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if b, err := os.ReadFile(f); err == nil && (strings.Contains(string(b), sandbox[:16]) || strings.Contains(string(b), e.StateDir+"/"+sandbox[:16])) {
			left = append(left, strings.ReplaceAll(string(b), "\x00", " "))
		}
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, sandbox) {
			left = append(left, line)
		}
	}
	return left
}

// Whatever of a machine is killed: its containers have ended within moments, and
// nothing of it stays.
func TestKataKills(t *testing.T) {
	kata := Kata(t)
	env := Containerd(t, kata.Configure)
	for _, victim := range []string{"qemu-system", "virtiofsd", "containerd-shim-kata-v2", "kata-vmservice"} {
		t.Run(victim, func(t *testing.T) {
			p := newKataPod(t, env, victim)
			c := p.run("main", nil, "sleep", "1000")
			before := cgroupsOf(t, p.id)
			if len(before) == 0 {
				t.Error("the test is blind to the sandbox's cgroup")
			}
			pid := kata.PID()
			if victim != "kata-vmservice" {
				pid = kata.process(t, victim, p.id)
			}
			if err := unix.Kill(pid, unix.SIGKILL); err != nil {
				t.Fatal(err)
			}
			began := time.Now()
			st := p.ended(c, time.Minute)
			t.Logf("seen after %v: code %d, reason %s %s", time.Since(began).Round(time.Millisecond), st.ExitCode, st.Reason, st.Message)
			if st.ExitCode == 0 {
				t.Error("a container that was lost has succeeded")
			}
			Eventually(t, time.Minute, func() error {
				r, err := p.rt.PodSandboxStatus(t.Context(), &rt.PodSandboxStatusRequest{PodSandboxId: p.id})
				if err != nil {
					return err
				}
				if r.Status.State != rt.PodSandboxState_SANDBOX_NOTREADY {
					return fmt.Errorf("sandbox is %v", r.Status.State)
				}
				return nil
			})
			t.Logf("the sandbox's end seen after %v", time.Since(began).Round(time.Millisecond))
			kata.Ready()
			p.remove()
			Eventually(t, 30*time.Second, func() error {
				left := kata.leftovers(t, p.id)
				for _, dir := range cgroupsOf(t, p.id) {
					// The shim tries once, while QEMU may be ending. Whoever made the cgroup above removes the rest, as the
					// platform does; only one that is in use cannot be.
					if err := unix.Rmdir(dir); err != nil && !errors.Is(err, unix.ENOENT) {
						left = append(left, dir)
					}
				}
				if len(left) > 0 {
					return fmt.Errorf("left behind: %q", left)
				}
				return nil
			})
		})
	}
}

// process returns the pid of a sandbox's process.
func (e *KataEnv) process(t testing.TB, name, sandbox string) int {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			continue // ended
		}
		if program, args, _ := strings.Cut(string(b), "\x00"); strings.HasPrefix(filepath.Base(program), name) && strings.Contains(args, sandbox[:16]) {
			pid, err := strconv.Atoi(filepath.Base(filepath.Dir(f)))
			if err != nil {
				t.Fatal(err)
			}
			return pid
		}
	}
	t.Fatalf("no process %s of sandbox %s", name, sandbox)
	return 0
}

// memoryCgroup is a process's cgroup of memory, with version 1.
func memoryCgroup(t testing.TB, pid int) string {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if _, path, ok := strings.Cut(line, ":memory:"); ok {
			return strings.TrimSpace(path)
		}
	}
	return ""
}

func cgroupsOf(t testing.TB, sandbox string) []string {
	t.Helper()
	var found []string
	err := filepath.WalkDir("/sys/fs/cgroup", func(path string, _ fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err == nil && strings.Contains(filepath.Base(path), sandbox) {
			found = append(found, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}
