package containerd

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"cumulet.io/cis/sandbox"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// valid is a complete configuration on a machine without systemd.
func valid(dir string) Config {
	return Config{
		Dir:       dir,
		CNIBinDir: "/opt/cni/bin",
		Host:      &Host{},
		Handlers: []Handler{
			{Name: HandlerRunc, Type: typeRunc, Binary: "/usr/sbin/runc"},
			{Name: HandlerGVisor, Type: typeGVisor, Binary: "/usr/bin/runsc"},
			{Name: HandlerKata, Type: typeKata, ConfigPath: kataConfig()},
		},
		SandboxImage: "example.test/pause:1",
		Network:      Network{Bridge: "br0", Subnet: netip.MustParsePrefix("10.1.2.0/24"), MTU: 1400},
		Registries:   []Registry{{Host: "127.0.0.1:5000", PlainHTTP: true}, {Host: "hub.example.test", CAFile: "/etc/ca.pem"}},
	}
}

func kataConfig() string {
	p, err := filepath.Abs("testdata/kata/configuration.toml")
	if err != nil {
		panic(err) // there is a working directory
	}
	return p
}

func TestBadConfiguration(t *testing.T) {
	long := "/" + strings.Repeat("x", MaxRunDir)
	for want, change := range map[string]func(*Config){
		"Dir":                    func(c *Config) { c.Dir = "relative" },
		"RunDir":                 func(c *Config) { c.RunDir = long },
		"CNIBinDir":              func(c *Config) { c.CNIBinDir = "" },
		"SandboxImage":           func(c *Config) { c.SandboxImage = "" },
		"SandboxArchive":         func(c *Config) { c.SandboxArchive = "pause.tar" },
		"LogLevel":               func(c *Config) { c.LogLevel = "loud" },
		"Handlers is empty":      func(c *Config) { c.Handlers = nil },
		"given twice":            func(c *Config) { c.Handlers = append(c.Handlers, c.Handlers[0]) },
		"DNS label":              func(c *Config) { c.Handlers[0].Name = "a\nb" },
		"io.containerd":          func(c *Config) { c.Handlers[0].Type = "runc" },
		`binary "runc"`:          func(c *Config) { c.Handlers[0].Binary = "runc" },
		`ConfigPath "x.toml"`:    func(c *Config) { c.Handlers[2].ConfigPath = "x.toml" },
		"platform":               func(c *Config) { c.Handlers[1].Platform = "a b" },
		"bridge":                 func(c *Config) { c.Network.Bridge = strings.Repeat("b", 16) },
		"10.1.2.0/30":            func(c *Config) { c.Network.Subnet = netip.MustParsePrefix("10.1.2.0/30") },
		"10.1.2.1/24":            func(c *Config) { c.Network.Subnet = netip.MustParsePrefix("10.1.2.1/24") },
		"fd00::/64":              func(c *Config) { c.Network.Subnet = netip.MustParsePrefix("fd00::/64") },
		"MTU":                    func(c *Config) { c.Network.MTU = 100 },
		`registry "../../etc"`:   func(c *Config) { c.Registries[0].Host = "../../etc" },
		`registry "a..b"`:        func(c *Config) { c.Registries[0].Host = "a..b" },
		`registry "host/path"`:   func(c *Config) { c.Registries[0].Host = "host/path" },
		`CAFile "ca.pem" is not`: func(c *Config) { c.Registries[1].CAFile = "ca.pem" },
	} {
		c := valid("/var/lib/x")
		change(&c)
		if _, err := c.normalize(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want one with %q", err, want)
		}
	}
}

func TestEveryFaultIsReported(t *testing.T) {
	_, err := Config{Dir: "relative", Host: &Host{}}.normalize()
	if err == nil {
		t.Fatal("no error")
	}
	for _, want := range []string{"Dir", "CNIBinDir", "SandboxImage", "Handlers"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%v\nlacks %s", err, want)
		}
	}
}

func TestDefaults(t *testing.T) {
	c := valid("/var/lib/x")
	c.Network, c.Host = Network{}, nil
	c, err := c.normalize()
	if err != nil {
		t.Fatal(err)
	}
	got := fmt.Sprint(c.RunDir, " ", c.LogLevel, " ", c.Network.Bridge, " ", c.Network.Subnet)
	if want := "/var/lib/x/run info cumulet0 10.214.0.0/16"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	if c.Host == nil || c.Log == nil || c.Network.MTU < 576 {
		t.Errorf("host %v, log %v, MTU %d", c.Host, c.Log, c.Network.MTU)
	}
}

// However long the directory, no socket's path is longer than the kernel allows.
func TestSocketPathsFit(t *testing.T) {
	for n := 2; n < 300; n++ {
		c, err := valid("/" + strings.Repeat("x", n-1)).normalize()
		if err != nil {
			t.Fatalf("directory of %d bytes: %v", n, err)
		}
		for _, s := range []string{c.socket(), c.socket() + ".ttrpc", c.shimSockets() + "/" + strings.Repeat("0", 64)} {
			if len(s) > maxSocketPath {
				t.Errorf("directory of %d bytes: socket of %d: %s", n, len(s), s)
			}
		}
	}
}

func TestConfigurationFiles(t *testing.T) {
	c := valid(filepath.Join(t.TempDir(), "d"))
	c.Host = &Host{Systemd: true, LowerOOMScore: true}
	c, err := c.normalize()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.write(); err != nil {
		t.Fatal(err)
	}
	has := func(path string, wants ...string) {
		t.Helper()
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range wants {
			if !strings.Contains(string(b), want) {
				t.Errorf("%s lacks %q:\n%s", path, want, b)
			}
		}
	}
	has(c.configFile(), "SystemdCgroup = true", "restrict_oom_score_adj = false", `ConfigPath = "`+filepath.Join(c.kataDir("kata"), "configuration.toml")+`"`, `default_runtime_name = "runc"`)
	has(c.handlerFile("runsc"), `binary_name = "/usr/bin/runsc"`, `platform = "systrap"`, `systemd-cgroup = "true"`)
	has(filepath.Join(c.cniDir(), "10-cumulet.conflist"), `"bridge": "br0"`, `"subnet": "10.1.2.0/24"`, `"mtu": 1400`, `"ipMasqBackend": "nftables"`)
	has(filepath.Join(c.certsDir(), "127.0.0.1:5000", "hosts.toml"), `server = "http://127.0.0.1:5000"`)
	has(filepath.Join(c.certsDir(), "hub.example.test", "hosts.toml"), `server = "https://hub.example.test"`, `ca = "/etc/ca.pem"`)

	// Kata's configuration is the operator's, and a drop-in more.
	has(filepath.Join(c.kataDir("kata"), "configuration.toml"), "# The operator's file", "default_memory = 2048")
	has(filepath.Join(c.kataDir("kata"), "config.d", "10-own.toml"), "/opt/own/vmlinux")
	own := filepath.Join(c.kataDir("kata"), "config.d", "zz-cumulet.toml")
	has(own, "[hypervisor.qemu]", "enable_annotations = ['enable_iommu', 'kernel_params', 'default_memory', 'default_vcpus']", "static_sandbox_resource_mgmt = true")
	if read, err := sandbox.ReadKataConfig(filepath.Join(c.kataDir("kata"), "configuration.toml")); err != nil || read.Hypervisor != "qemu" ||
		read.Files["guest kernel"] != "/opt/own/vmlinux" || read.Files["virtiofsd"] == "" || len(read.Annotations) != 4 {
		t.Errorf("what Kata's shim reads is %+v, %v", read, err)
	}
	c.Handlers[2].Kata = sandbox.KataOptions{Cache: 3}
	if err := c.write(); err != nil {
		t.Fatal(err)
	}
	has(own, "vm_cache_number = 3", "enable_template = false")

	// A registry that is configured no more is talked to as any other.
	c.Registries, c.Host = nil, &Host{}
	if err := c.write(); err != nil {
		t.Fatal(err)
	}
	has(c.configFile(), "SystemdCgroup = false", "restrict_oom_score_adj = true")
	if left, err := os.ReadDir(c.certsDir()); err != nil || len(left) != 0 {
		t.Errorf("registries %v, %v", left, err)
	}
}

// What ends with the machine's uptime does not outlive it in RunDir; within one
// uptime it stays.
func TestRunDirIsClearedAfterAReboot(t *testing.T) {
	c, err := valid(filepath.Join(t.TempDir(), "d")).normalize()
	if err != nil {
		t.Fatal(err)
	}
	mark := filepath.Join(c.RunDir, "state", "x")
	if err := c.write(); err != nil {
		t.Fatal(err)
	}
	if err := writeFile(mark, nil); err != nil {
		t.Fatal(err)
	}
	if err := c.write(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(mark); err != nil {
		t.Errorf("a restart cleared RunDir: %v", err)
	}
	if err := writeFile(filepath.Join(c.RunDir, "boot_id"), []byte("another\n")); err != nil {
		t.Fatal(err)
	}
	if err := c.write(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(mark); !os.IsNotExist(err) {
		t.Errorf("a reboot left RunDir: %v", err)
	}
}

// containerd itself reads the configuration and has what it says.
func TestContainerdReadsTheConfiguration(t *testing.T) {
	binary := tool(t, "containerd", "containerd")
	// Text that would end a string in TOML, were it not quoted.
	c, err := valid(filepath.Join(t.TempDir(), `a"b\c`)).normalize()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.write(); err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), binary, "--config", c.configFile(), "config", "dump").CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, want := range []string{
		`a"b\c/root'`, "runtime_type = 'io.containerd.kata.v2'", "sandbox = 'example.test/pause:1'",
		"pod_annotations = ['dev.gvisor.*']", "privileged_without_host_devices = true", "socket_dir = '" + c.shimSockets(),
	} {
		if !strings.Contains(string(out), want) {
			t.Errorf("the configuration as read lacks %q", want)
		}
	}
	for _, line := range strings.Split(string(out), "\n") {
		if strings.Contains(line, "level=warning") || strings.Contains(line, "unknown key") {
			t.Errorf("containerd warns: %s", line)
		}
	}
}

// cacheDir is testenv's, which an internal test cannot import.
func cacheDir(t *testing.T) string {
	for _, v := range []string{"CUMULET_CACHE", "XDG_CACHE_HOME", "HOME"} {
		if dir := os.Getenv(v); dir != "" {
			return filepath.Join(dir, map[string]string{"CUMULET_CACHE": "", "XDG_CACHE_HOME": "cumulet", "HOME": ".cache/cumulet"}[v])
		}
	}
	t.Skip("no cache directory")
	return ""
}

func TestHasCapability(t *testing.T) {
	for _, c := range []struct {
		status string
		want   bool
		bad    bool
	}{
		{"Name:\tx\nCapEff:\t0000000001000000\nCapBnd:\t0\n", true, false},
		{"CapEff:\t000001fffeffffff\n", false, false},
		{"CapBnd:\t0000000001000000\n", false, true},
		{"CapEff:\tnumber\n", false, true},
	} {
		got, err := hasCapability([]byte(c.status), unix.CAP_SYS_RESOURCE)
		if got != c.want || (err != nil) != c.bad {
			t.Errorf("%q: %v, %v", c.status, got, err)
		}
	}
}

func TestDetectHandlers(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	dir := t.TempDir()
	names := func() string {
		var n []string
		for _, h := range DetectHandlers([]string{dir}, "/etc/kata.toml") {
			if h.Binary == "/usr/sbin/runc" { // of the machine that runs this test
				continue
			}
			n = append(n, h.Name)
		}
		return strings.Join(n, " ")
	}
	for _, c := range []struct{ add, want string }{
		{"runsc", ""},
		{"containerd-shim-runsc-v1", "runsc"},
		{"containerd-shim-kata-v2", "runsc kata"},
		{"runc", "runsc kata"},
		{"containerd-shim-runc-v2", "runc runsc kata"},
	} {
		if err := os.WriteFile(filepath.Join(dir, c.add), []byte("#!/bin/sh\n"), 0o755); err != nil {
			t.Fatal(err)
		}
		if got := names(); got != c.want {
			t.Errorf("with %s: %q, want %q", c.add, got, c.want)
		}
	}
}
