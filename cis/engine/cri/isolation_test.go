package cri

import (
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"cumulet.io/cis"
	"cumulet.io/cis/engine/cri/fence"
	"cumulet.io/hack/probe/attempt"
	"cumulet.io/internal/testenv"
)

var update = flag.Bool("update", false, "write the table of docs/isolation.md from this run")

const (
	probeImage    = "cumulet.io/probe:v1"
	isolationPage = "../../../docs/isolation.md"
	// privileged is the column of the control: what the probe reaches where nothing holds it.
	privileged = "control"
)

// TestIsolation runs the probe in every class that can be had here. In none may it reach what is not the instance's own;
// a class that shares the machine's kernel says so. The control is privileged and has no fence: it shows that what is
// reached for is there, and can be reached.
func TestIsolation(t *testing.T) {
	b := newBench(t)
	s := newOutside(t, b)
	results := map[string]map[string]string{}
	for class := range b.cfg.Handlers {
		t.Run(string(class), func(t *testing.T) { results[string(class)] = s.holds(t, class) })
	}
	t.Run("control", func(t *testing.T) {
		b.cfg.Fence = nil
		if err := fence.Remove(b.env.Bridge); err != nil {
			t.Fatal(err)
		}
		b.restart(s.other, s.same, s.peer)
		testenv.Eventually(t, time.Minute, func() error { // it is found again
			return b.Logs(t.Context(), s.other.ID, cis.LogRequest{Container: "main"}, io.Discard)
		})
		got := s.probe(t, cis.Runc, true)
		results[privileged] = got
		for _, name := range []string{"read the machine's disk by a device file", "write kernel.core_pattern, to run a program outside",
			"become root of a new user namespace", "mount a fresh /proc", "read the kernel's log, syslog(2)", "watch the processor, perf_event_open",
			"read root's keyring of the machine", "reach a port of the machine", "reach the machine's loopback by a frame of its own making",
			"reach the node's metadata service", "reach another org's instance", "send a datagram to another org's instance",
			"the same, under the address of another of that org", "the same, by way of the machine"} {
			if got[name] != attempt.Reached {
				t.Errorf("%s: %s, where nothing holds it", name, got[name])
			}
		}
	})
	s.unharmed(t)
	checkPage(t, results)
}

// The same for Kata. Its neighbours are runc's: a class does not matter to the network.
func TestKataIsolation(t *testing.T) {
	s := newOutside(t, newKataBench(t))
	got := s.holds(t, cis.Kata)
	s.unharmed(t)
	checkPage(t, map[string]map[string]string{string(cis.Kata): got})
}

// holds runs the probe in a class and judges what it got.
func (s *outside) holds(t *testing.T, class cis.SandboxClass) map[string]string {
	t.Helper()
	got := s.probe(t, class, false)
	for _, a := range attempt.All() {
		reached := got[a.Name] == attempt.Reached
		switch {
		case a.Name == "run on the machine's kernel (uname)":
			if reached != (class == cis.Runc) {
				t.Errorf("%s: %s", a.Name, got[a.Name])
			}
		case strings.HasSuffix(a.Name, "(allowed)"):
			if !reached {
				t.Errorf("%s: %s", a.Name, got[a.Name])
			}
		case reached && a.OwnKernel && class != cis.Runc:
			got[a.Name] = "its own kernel's"
		case reached:
			t.Errorf("REACHED: %s", a.Name)
		case got[a.Name] == "":
			t.Errorf("no result: %s", a.Name)
		}
	}
	return got
}

// outside is what the probe reaches for, all of it real.
type outside struct {
	b       *bench
	targets attempt.Targets
	other   *cis.Instance // the neighbour of another org
	peer    *cis.Instance // and another of that org
	same    *cis.Instance
	inbox   *inbox // datagrams to the machine's loopback
	pattern string
}

func newOutside(t *testing.T, b *bench) *outside {
	t.Helper()
	program := buildProbe(t)
	b.env.Import(probeArchive(t, program))
	dir := t.TempDir()
	s := &outside{b: b}
	write := func(path string) string {
		t.Helper()
		if err := os.WriteFile(path, []byte("secret\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	neighbour := func(org string) *cis.Instance {
		in := instance(cis.Runc, cis.Container{Name: "main", Image: probeImage, Args: []string{"listen", "7000"},
			Mounts: []cis.Mount{{Volume: "data", Path: "/data"}}})
		in.Org = org
		in.Spec.Volumes = []cis.Volume{{Name: "data", EmptyDir: &cis.EmptyDir{}}}
		b.ensure(in)
		return in
	}
	s.other, s.same, s.peer = neighbour("bank"), neighbour("acme"), neighbour("bank")
	at := func(in *cis.Instance) string { return b.sink.waitPhase(t, in.ID, cis.Running).IPs[0] + ":7000" }
	s.targets = attempt.Targets{
		Secret: write(filepath.Join(dir, "secret")), Other: at(s.other), Same: at(s.same), Peer: at(s.peer), Socket: b.env.Socket,
		Volume:   write(filepath.Join(b.instanceDir(s.other.ID), "volumes", "data", "secret")),
		Log:      filepath.Join(b.cfg.LogRoot, "bank", s.other.ID, "main", "0.log"),
		Abstract: fmt.Sprintf("@cumulet-isolation-%d", os.Getpid()), Key: fmt.Sprintf("cumulet-isolation-%d", os.Getpid()),
		Container: strings.TrimPrefix(b.sink.last(s.other.ID).Containers[0].ContainerID, "containerd://"),
		Node:      b.env.Subnet.Addr().Next().String(), Kernel: release(t), Device: disk(t),
	}
	b.listening(t, s.other, s.same)
	s.listen(t)
	s.metadata(t, program)
	key, err := unix.AddKey("user", s.targets.Key, []byte("secret"), unix.KEY_SPEC_USER_KEYRING)
	if err != nil {
		t.Fatalf("put a key into root's keyring: %v", err)
	}
	t.Cleanup(func() {
		if _, err := unix.KeyctlInt(unix.KEYCTL_UNLINK, key, unix.KEY_SPEC_USER_KEYRING, 0, 0); err != nil {
			t.Error(err)
		}
	})
	s.pattern = corePattern(t)
	return s
}

// listening waits until neighbours listen.
func (b *bench) listening(t *testing.T, all ...*cis.Instance) {
	t.Helper()
	for _, in := range all {
		testenv.Eventually(t, 30*time.Second, func() error {
			if !strings.Contains(b.logText(in.ID, "main"), "listening") {
				return fmt.Errorf("%s does not listen yet", in.ID)
			}
			return nil
		})
	}
}

// listen opens ports of the machine, and lets it take packets to its loopback from the bridge, as the port mapper does.
func (s *outside) listen(t *testing.T) {
	t.Helper()
	tcp := func(addr string) string {
		l, err := net.Listen("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		_, port, err := net.SplitHostPort(l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		return port
	}
	s.targets.NodePort = tcp(":0")
	s.targets.LoopbackPort = tcp("127.0.0.1:0")
	s.inbox = newInbox(t, "127.0.0.1:"+s.targets.LoopbackPort)
	l, err := net.Listen("unix", s.targets.Abstract)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	if err := os.WriteFile("/proc/sys/net/ipv4/conf/"+s.b.env.Bridge+"/route_localnet", []byte("1"), 0); err != nil {
		t.Fatal(err)
	}
	bridge, err := net.InterfaceByName(s.b.env.Bridge)
	if err != nil {
		t.Fatal(err)
	}
	addrs, err := bridge.Addrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok && n.IP.To4() == nil && n.IP.IsLinkLocalUnicast() {
			s.targets.Node6 = n.IP.String()
		}
	}
}

// metadata makes a link-local service that the machine reaches, as a cloud's metadata service: in a network namespace
// with a cable to the machine.
func (s *outside) metadata(t *testing.T, program string) {
	t.Helper()
	ip := testenv.Tool(t, "ip")
	ns := "md-" + s.b.env.Bridge
	n := s.b.env.Subnet.Addr().As4()[2]
	here, there := fmt.Sprintf("169.254.%d.1", n), fmt.Sprintf("169.254.%d.2", n)
	run := func(args ...string) {
		t.Helper()
		if out, err := exec.Command(ip, args...).CombinedOutput(); err != nil {
			t.Fatalf("ip %v: %v: %s", args, err, out)
		}
	}
	_ = exec.Command(ip, "netns", "del", ns).Run() // of a killed run
	run("netns", "add", ns)
	t.Cleanup(func() { run("netns", "del", ns) })
	run("link", "add", "md"+fmt.Sprint(n), "type", "veth", "peer", "name", "eth0", "netns", ns)
	run("addr", "add", here+"/30", "dev", "md"+fmt.Sprint(n))
	run("link", "set", "md"+fmt.Sprint(n), "up")
	run("-n", ns, "addr", "add", there+"/30", "dev", "eth0")
	run("-n", ns, "link", "set", "eth0", "up")
	run("-n", ns, "route", "add", "default", "via", here)
	c := exec.Command(ip, "netns", "exec", ns, program, "listen", "80")
	c.Stderr = t.Output()
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Process.Kill(); err != nil {
			t.Error(err)
		}
		_ = c.Wait() // it was killed
	})
	s.targets.Metadata = there + ":80"
	testenv.Eventually(t, 30*time.Second, func() error {
		conn, err := net.DialTimeout("tcp", s.targets.Metadata, time.Second)
		if err != nil {
			return err
		}
		return conn.Close()
	})
}

// probe makes all attempts in an instance, and completes the outcomes that only the receivers know.
func (s *outside) probe(t *testing.T, class cis.SandboxClass, privileged bool) map[string]string {
	t.Helper()
	env, err := json.Marshal(s.targets)
	if err != nil {
		t.Fatal(err)
	}
	in := instance(class, cis.Container{Name: "main", Image: probeImage, Args: []string{"attempts"}, Env: []cis.EnvVar{{Name: "PROBE", Value: string(env)}}})
	in.Spec.RestartPolicy = corev1.RestartPolicyNever
	if privileged {
		in.Spec.Containers[0].SecurityContext = &corev1.SecurityContext{Privileged: &privileged}
	}
	before := len(s.b.logText(s.other.ID, "main"))
	s.b.ensure(in)
	st := s.b.sink.waitPhase(t, in.ID, cis.Succeeded)
	out := map[string]string{}
	for line := range strings.Lines(s.b.logText(in.ID, "main")) {
		var r attempt.Result
		if err := json.Unmarshal([]byte(line), &r); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		out[r.Name] = r.Outcome
	}
	// The datagram within the org was the last: when it is there, the others would be, too.
	hello := "datagram " + fmt.Sprintf("%q", attempt.SaysHello) + " from " + st.IPs[0]
	allowed := "send a datagram within the org (allowed)"
	testenv.Eventually(t, 30*time.Second, func() error {
		if !strings.Contains(s.b.logText(s.same.ID, "main"), hello) {
			return fmt.Errorf("%s: %s; the neighbour has only %q", allowed, out[allowed], s.b.logText(s.same.ID, "main"))
		}
		return nil
	})
	out[allowed] = attempt.Reached
	came := s.b.logText(s.other.ID, "main")[before:]
	for name, payload := range map[string]string{"send a datagram to another org's instance": attempt.SaysHello,
		"the same, under the address of another of that org": attempt.SaysSpoofed, "the same, by way of the machine": attempt.SaysRouted} {
		if out[name] == attempt.Sent {
			out[name] = "dropped"
			if strings.Contains(came, fmt.Sprintf("%q", payload)) {
				out[name] = attempt.Reached
			}
		}
	}
	loopback := "reach the machine's loopback by a frame of its own making"
	if out[loopback] == attempt.Sent {
		out[loopback] = "dropped"
		if s.inbox.has(attempt.SaysLoopback) {
			out[loopback] = attempt.Reached
		}
	}
	return out
}

// unharmed checks that the machine is as it was.
func (s *outside) unharmed(t *testing.T) {
	t.Helper()
	if got := corePattern(t); got != s.pattern {
		t.Errorf("kernel.core_pattern of the machine is %q, was %q", got, s.pattern)
	}
	if _, err := os.Stat("/probe-disk"); err == nil {
		t.Error("the probe has made a file of the machine's")
	}
}

func buildProbe(t *testing.T) string {
	t.Helper()
	out := filepath.Join(t.TempDir(), "probe")
	c := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-o", out, "cumulet.io/hack/probe")
	c.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=")
	if text, err := c.CombinedOutput(); err != nil {
		t.Fatalf("build the probe: %v\n%s", err, text)
	}
	return out
}

// probeArchive makes an image of the program alone.
func probeArchive(t *testing.T, program string) string {
	t.Helper()
	dir := t.TempDir()
	layer := filepath.Join(dir, "layer.tar")
	if text, err := exec.Command("tar", "-C", filepath.Dir(program), "-cf", layer, filepath.Base(program)).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	l, err := tarball.LayerFromFile(layer)
	if err != nil {
		t.Fatal(err)
	}
	img, err := mutate.AppendLayers(empty.Image, l)
	if err != nil {
		t.Fatal(err)
	}
	file, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	file = file.DeepCopy()
	file.OS, file.Architecture, file.Config = "linux", goarch(t), v1.Config{Entrypoint: []string{"/probe"}}
	if img, err = mutate.ConfigFile(img, file); err != nil {
		t.Fatal(err)
	}
	tag, err := name.NewTag(probeImage)
	if err != nil {
		t.Fatal(err)
	}
	archive := filepath.Join(dir, "probe.tar")
	if err := tarball.WriteToFile(archive, tag, img); err != nil {
		t.Fatal(err)
	}
	return archive
}

func goarch(t *testing.T) string {
	t.Helper()
	out, err := exec.Command("go", "env", "GOARCH").Output()
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(out))
}

func release(t *testing.T) string {
	t.Helper()
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		t.Fatal(err)
	}
	return unix.ByteSliceToString(u.Release[:])
}

func corePattern(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile("/proc/sys/kernel/core_pattern")
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// disk makes a block device of the machine with something on it, and gives its number.
func disk(t *testing.T) string {
	t.Helper()
	losetup := testenv.Tool(t, "losetup")
	file := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(file, []byte(strings.Repeat("secret\n", 4096)), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(losetup, "--find", "--show", file).Output()
	if err != nil {
		t.Fatalf("make a block device: %v", err)
	}
	device := strings.TrimSpace(string(out))
	t.Cleanup(func() {
		if err := exec.Command(losetup, "--detach", device).Run(); err != nil {
			t.Errorf("remove %s: %v", device, err)
		}
	})
	var st unix.Stat_t
	if err := unix.Stat(device, &st); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))
}
