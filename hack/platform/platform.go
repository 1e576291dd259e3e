// Package platform starts the whole product for end-to-end tests and benchmarks: every role as a process of its own, on
// free ports of loopback, with the real containerd, Filebeat and, when asked for, a Kubernetes control plane.
//
// Processes can be killed and started again one by one, which is what the crash test does. Nothing here is a fake.
package platform

import (
	"bytes"
	"context"
	"fmt"
	"hash/crc32"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"cumulet.io/internal/testenv"
)

// Roles are the server's roles, in the order of a start.
func Roles() []string { return []string{"registry", "logs", "control", "billing", "kubelet"} }

// Options change what is started.
type Options struct {
	// Kubernetes starts a control plane and the kubelet role.
	Kubernetes bool
	// Engine is control.engine; default cri.
	Engine string
	// Set are more overrides of the configuration, key=value.
	Set []string
}

// Platform is a running product.
type Platform struct {
	// Dir holds everything; StateDir is the server's.
	Dir, StateDir string
	// Registry is host:port of the registry; URLs of the other services by role.
	Registry string
	URL      map[string]string
	// Kubeconfig is an administrator's, "" without Kubernetes.
	Kubeconfig string
	// Bin has cis and cisd.
	Bin string
	// Cgroup is the name of the cgroup of all instances, with the engine cri.
	Cgroup string

	t    testing.TB
	args []string
	mu   sync.Mutex
	proc map[string]*process
}

type process struct {
	cmd  *exec.Cmd
	done chan struct{}
}

// build is shared by the tests of one binary.
var build struct {
	once sync.Once
	dir  string
	err  error
}

// Build builds cis and cisd once for the test binary and gives their directory.
func Build(t testing.TB) string {
	t.Helper()
	build.once.Do(func() {
		root, err := exec.Command("go", "env", "GOMOD").Output() //nolint:noctx // ends by itself
		if err != nil {
			build.err = fmt.Errorf("find module: %w", err)
			return
		}
		build.dir = filepath.Join(os.TempDir(), fmt.Sprintf("cumulet-e2e-%d-%08x", os.Getuid(), crc32.ChecksumIEEE(root)))
		cmd := exec.Command("go", "build", "-trimpath", "-o", build.dir+"/", "cumulet.io/cmd/cis", "cumulet.io/cmd/cisd", "cumulet.io/hack/image", "cumulet.io/hack/demo/app") //nolint:noctx // a build ends by itself
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			build.err = fmt.Errorf("build: %w\n%s", err, out)
		}
	})
	if build.err != nil {
		t.Fatal(build.err)
	}
	return build.dir
}

// Start starts the platform and waits until every role is ready. The test's end stops and removes all of it.
func Start(t testing.TB, o Options) *Platform {
	t.Helper()
	testenv.RequireRoot(t)
	dir, err := os.MkdirTemp("/tmp", "cum") // short: sockets live below it
	if err != nil {
		t.Fatal(err)
	}
	p := &Platform{Dir: dir, StateDir: filepath.Join(dir, "s"), URL: map[string]string{}, Bin: Build(t), t: t, proc: map[string]*process{}}
	listen := map[string]string{}
	for _, l := range []string{"registry", "logs", "control", "billing", "kubelet", "health", "bulk"} {
		listen[l] = fmt.Sprintf("127.0.0.1:%d", testenv.FreePort(t))
		p.URL[l] = "http://" + listen[l]
	}
	p.Registry = listen["registry"]
	set := []string{"stateDir=" + p.StateDir, "logs.bulkListen=" + listen["bulk"], "kubelet.healthListen=" + listen["health"], "log.level=debug"}
	for _, r := range Roles() {
		set = append(set, r+".listen="+listen[r])
	}
	if o.Engine == "" {
		o.Engine = "cri"
	}
	set = append(set, "control.engine="+o.Engine)
	if o.Engine == "cri" {
		network := testenv.Network(t)
		p.Cgroup = "cumulet-" + network.Bridge
		set = append(set, "control.cri.binDir="+filepath.Dir(testenv.Tool(t, "containerd")), "control.cri.pauseImage="+testenv.Image(t, "pause"),
			"control.cri.bridge="+network.Bridge, "control.cri.subnet="+network.Subnet.String(), "control.cri.allowRuncDefault=true", "control.cri.cpu=1000", "control.cri.memoryGiB=1000")
		testenv.Tool(t, "filebeat")
	}
	if o.Kubernetes {
		c := testenv.Cluster(t)
		p.Kubeconfig = c.Kubeconfig
		set = append(set, "kubelet.kubeconfig="+c.KubeletKubeconfig, "kubelet.certFile="+c.NodeCertFile, "kubelet.keyFile="+c.NodeKeyFile,
			"kubelet.clientCAFile="+c.NodeCAFile, "kubelet.nodeName="+c.NodeName, "node.name="+c.NodeName)
	}
	for _, kv := range append(set, o.Set...) {
		p.args = append(p.args, "--set", kv)
	}
	t.Cleanup(func() { p.stop(o) })
	for _, r := range Roles() {
		if r == "kubelet" && !o.Kubernetes {
			continue
		}
		p.Run(r)
	}
	for _, r := range Roles() {
		if r != "kubelet" || o.Kubernetes {
			p.Ready(r)
		}
	}
	return p
}

// Run starts a role's process.
func (p *Platform) Run(role string) {
	p.t.Helper()
	log, err := os.OpenFile(p.LogFile(role), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		p.t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command(filepath.Join(p.Bin, "cisd"), append([]string{role}, p.args...)...) //nolint:noctx // killed by Kill
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	pr := &process{cmd: cmd, done: make(chan struct{})}
	go func() { _ = cmd.Wait(); close(pr.done) }() //nolint:errcheck // killed is what it is meant to be
	p.mu.Lock()
	p.proc[role] = pr
	p.mu.Unlock()
}

// LogFile is where a role's process writes.
func (p *Platform) LogFile(role string) string { return filepath.Join(p.Dir, role+".log") }

// HealthURL is where a role tells how it is.
func (p *Platform) HealthURL(role string) string {
	if role == "kubelet" {
		return p.URL["health"] // the other is the kubelet API
	}
	return p.URL[role]
}

// Ready waits until a role answers that it is ready.
func (p *Platform) Ready(role string) {
	p.t.Helper()
	testenv.Eventually(p.t, 90*time.Second, func() error {
		req, err := http.NewRequestWithContext(p.t.Context(), http.MethodGet, p.HealthURL(role)+"/readyz", nil)
		if err != nil {
			return err
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return fmt.Errorf("%s: %w; its log ends: %s", role, err, p.tail(role))
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			body, _ := io.ReadAll(io.LimitReader(resp.Body, 4096)) //nolint:errcheck // what there is
			return fmt.Errorf("%s: %s: %s", role, resp.Status, body)
		}
		return nil
	})
}

func (p *Platform) tail(role string) string {
	data, err := os.ReadFile(p.LogFile(role))
	if err != nil {
		return err.Error()
	}
	return string(data[max(0, len(data)-1500):])
}

// Kill sends SIGKILL to a role's process, or, for "containerd" and "filebeat", to the child of that name, and waits for
// its end. It says whether there was one.
func (p *Platform) Kill(name string) bool {
	p.mu.Lock()
	pr := p.proc[name]
	p.mu.Unlock()
	if pr != nil {
		_ = pr.cmd.Process.Kill() //nolint:errcheck // gone already is as good
		<-pr.done
		return true
	}
	pid := p.child(name)
	return pid != 0 && syscall.Kill(pid, syscall.SIGKILL) == nil
}

// child finds the process of that program which works in this platform's state directory.
func (p *Platform) child(name string) int {
	cmdlines, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return 0
	}
	for _, c := range cmdlines {
		data, err := os.ReadFile(c)
		if err != nil {
			continue
		}
		program, args, _ := bytes.Cut(data, []byte{0})
		if filepath.Base(string(program)) != name || !bytes.Contains(args, []byte(p.StateDir+"/")) {
			continue
		}
		if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(c))); err == nil {
			return pid
		}
	}
	return 0
}

// Password is the administrator's.
func (p *Platform) Password() string {
	p.t.Helper()
	data, err := os.ReadFile(filepath.Join(p.StateDir, "credentials", "admin"))
	if err != nil {
		p.t.Fatal(err)
	}
	return strings.TrimSpace(string(data))
}

// Login logs the command line in.
func (p *Platform) Login() {
	p.t.Helper()
	cmd := p.cis("login", p.URL["control"], "-u", "admin", "--org", "demo", "--password-stdin")
	cmd.Stdin = strings.NewReader(p.Password())
	if out, err := cmd.CombinedOutput(); err != nil {
		p.t.Fatalf("cis login: %v\n%s", err, out)
	}
}

func (p *Platform) cis(args ...string) *exec.Cmd {
	return exec.CommandContext(p.t.Context(), filepath.Join(p.Bin, "cis"), append([]string{"--session", filepath.Join(p.Dir, "session.json")}, args...)...)
}

// Cis runs the command line and gives what it printed.
func (p *Platform) Cis(args ...string) (string, error) {
	var out, errs bytes.Buffer
	cmd := p.cis(args...)
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("cis %s: %w\n%s%s", strings.Join(args, " "), err, out.String(), errs.String())
	}
	return out.String(), nil
}

// Kubectl runs kubectl as the administrator and gives what it printed on both outputs.
func (p *Platform) Kubectl(stdin string, args ...string) (string, error) {
	cmd := exec.CommandContext(p.t.Context(), testenv.Tool(p.t, "kubectl"), append([]string{"--kubeconfig", p.Kubeconfig}, args...)...)
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return string(out), fmt.Errorf("kubectl %s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return string(out), nil
}

// Push packs the demo workload into an image, pushes it with skopeo as repository:tag and gives its reference.
func (p *Platform) Push(repository string) string {
	p.t.Helper()
	ref := p.Registry + "/" + repository
	tar, auth := filepath.Join(p.Dir, "image.tar"), filepath.Join(p.Dir, "auth.json")
	p.must("", filepath.Join(p.Bin, "image"), "-o", tar, "-tag", "cumulet.io/demo:1", "-entrypoint", "/app", filepath.Join(p.Bin, "app")+":/app")
	skopeo := testenv.Tool(p.t, "skopeo")
	p.must(p.Password(), skopeo, "login", "--tls-verify=false", "--authfile", auth, "-u", "admin", "--password-stdin", p.Registry)
	p.must("", skopeo, "copy", "--quiet", "--dest-tls-verify=false", "--authfile", auth, "docker-archive:"+tar, "docker://"+ref)
	return ref
}

func (p *Platform) must(stdin, name string, args ...string) {
	p.t.Helper()
	cmd := exec.CommandContext(p.t.Context(), name, args...)
	cmd.Stdin = strings.NewReader(stdin)
	if out, err := cmd.CombinedOutput(); err != nil {
		p.t.Fatalf("%s %s: %v\n%s", filepath.Base(name), strings.Join(args, " "), err, out)
	}
}

// stop ends every process, then removes what they left on the machine.
func (p *Platform) stop(o Options) {
	p.mu.Lock()
	procs := p.proc
	p.mu.Unlock()
	for _, pr := range procs {
		_ = pr.cmd.Process.Signal(syscall.SIGTERM) //nolint:errcheck // gone already is as good
	}
	for role, pr := range procs {
		select {
		case <-pr.done:
		case <-time.After(40 * time.Second):
			p.t.Errorf("%s did not stop in 40 s; its log ends: %s", role, p.tail(role))
			_ = pr.cmd.Process.Kill() //nolint:errcheck // gone already is as good
		}
	}
	if p.t.Failed() {
		for role := range procs {
			p.t.Logf("log of %s ends:\n%s", role, p.tail(role))
		}
	}
	if o.Engine == "cri" {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
		defer cancel()
		if out, err := exec.CommandContext(ctx, filepath.Join(p.Bin, "cisd"), append([]string{"purge"}, p.args...)...).CombinedOutput(); err != nil {
			p.t.Errorf("purge: %v\n%s", err, out)
		}
	}
	if p.t.Failed() && os.Getenv("CUMULET_KEEP") != "" {
		p.t.Logf("kept: %s", p.Dir)
		return
	}
	if err := os.RemoveAll(p.Dir); err != nil {
		p.t.Errorf("remove %s: %v", p.Dir, err)
	}
}
