package sandbox

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"cumulet.io/billing"
	"cumulet.io/cis"
)

// host makes a root with the given files; a path in bin/ is executable, one in dev/ is a character device.
func host(t *testing.T, files map[string]string) Options {
	t.Helper()
	root := t.TempDir()
	for name, text := range files {
		p := filepath.Join(root, name)
		if text == "socket" {
			listen(t, root, name)
			continue
		}
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if strings.HasPrefix(name, "dev/") && text == "device" {
			if err := unix.Mknod(p, unix.S_IFCHR|0o600, int(unix.Mkdev(1, 3))); err != nil {
				t.Skipf("no device can be made here: %v", err)
			}
			continue
		}
		if err := os.WriteFile(p, []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return Options{Root: root, BinDirs: []string{filepath.Join(root, "bin")}, KataConfig: "kata.toml",
		Run: func(_ context.Context, path string, _ ...string) (string, error) {
			if data, err := os.ReadFile(path); err != nil || string(data) == "broken" {
				return "", errors.New("exec format error")
			}
			return filepath.Base(path) + " version 1\n", nil
		}}
}

const qemuConfig = "[hypervisor.qemu]\npath = '/opt/qemu'\nkernel = '/opt/vmlinux'\n"

// listen makes a socket of datagrams, or of a stream where its name says so.
func listen(t *testing.T, root, name string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Join(root, filepath.Dir(name)), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Chdir(root) // for the path is short then
	if strings.HasSuffix(name, ".stream") {
		l, err := net.Listen("unix", name)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		return
	}
	c, err := net.ListenPacket("unixgram", name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
}

// A report travels as JSON: what a program needs of it must be there.
func TestReportJSON(t *testing.T) {
	data, err := json.Marshal(Host(t.Context(), host(t, map[string]string{"bin/runc": "", "bin/containerd-shim-runc-v2": ""})))
	if err != nil {
		t.Fatal(err)
	}
	var got Report
	if err := json.Unmarshal(data, &got); err != nil {
		t.Fatal(err)
	}
	have, why := got.Handlers()
	if have[cis.Runc] != "runc" || len(have) != 1 || !strings.Contains(why[cis.Kata], "/dev/kvm: missing (load") || why[cis.GVisor] == "" || got.Default != "" {
		t.Errorf("%s", data)
	}
}

func TestHost(t *testing.T) {
	const vmx = "processor: 0\nflags\t\t: fpu vmx sse\n"
	kata := map[string]string{"proc/cpuinfo": vmx, "dev/kvm": "device", "dev/vhost-vsock": "device", "dev/vhost-net": "device", "bin/containerd-shim-kata-v2": "", "kata.toml": qemuConfig,
		"opt/qemu": "", "opt/vmlinux": "", "dev/log": "socket"}
	gvisor := map[string]string{"bin/runsc": "", "bin/containerd-shim-runsc-v1": ""}
	runc := map[string]string{"bin/runc": "", "bin/containerd-shim-runc-v2": ""}
	all := func(ms ...map[string]string) map[string]string {
		out := map[string]string{}
		for _, m := range ms {
			for k, v := range m {
				out[k] = v
			}
		}
		return out
	}
	noCPU := all(kata, gvisor, runc, map[string]string{"proc/cpuinfo": "flags : fpu sse\n"})
	for _, tc := range []struct {
		name      string
		files     map[string]string
		allowRunc bool
		want      cis.SandboxClass // the default
		also      cis.SandboxClass // another that is to be had
		lacks     cis.SandboxClass // one that is not, and why
		why       string
	}{
		{name: "kata is the strongest", files: all(kata, gvisor, runc), want: cis.Kata},
		{name: "a weaker class may be asked for", files: all(kata, gvisor, runc), want: cis.Kata, also: cis.Runc},
		{name: "/dev/kvm without the CPU's flag", files: noCPU, want: cis.GVisor, lacks: cis.Kata, why: "no vmx or svm flag in /proc/cpuinfo (enable it"},
		{name: "runc is no default", files: runc, also: cis.Runc, lacks: cis.GVisor, why: "runsc: not found (install gVisor"},
		{name: "nothing at all", lacks: cis.Runc, why: "runc: not found"},
		{name: "unless allowed", files: runc, allowRunc: true, want: cis.Runc},
		{name: "a runtime that does not start", files: all(runc, gvisor, map[string]string{"bin/runsc": "broken"}), lacks: cis.GVisor, why: "exec format error"},
		{name: "a shim is missing", files: map[string]string{"bin/runsc": ""}, lacks: cis.GVisor, why: "containerd-shim-runsc-v1: not found"},
		{name: "no device", files: all(kata, map[string]string{"dev/kvm": "a file"}), lacks: cis.Kata, why: "/dev/kvm: not a device"},
		{name: "what Kata's configuration names is not there", files: all(kata, map[string]string{"kata.toml": strings.Replace(qemuConfig, "vmlinux", "gone", 1)}),
			lacks: cis.Kata, why: "guest kernel: missing: /opt/gone"},
		{name: "a drop-in makes a setting empty", files: all(kata, map[string]string{"kata.toml": qemuConfig + "image = '/opt/none'\n",
			"config.d/own.toml": "[hypervisor.qemu]\nimage = ''\n"}), want: cis.Kata},
		{name: "no network back end", files: without(kata, "dev/vhost-net"), lacks: cis.Kata, why: "/dev/vhost-net: missing (modprobe vhost_net"},
		{name: "a configuration that does without", files: all(without(kata, "dev/vhost-net"), map[string]string{"kata.toml": qemuConfig + "disable_vhost_net = true\n"}), want: cis.Kata},
		{name: "a configuration that is none", files: all(kata, map[string]string{"kata.toml": "[hypervisor"}), lacks: cis.Kata, why: "Kata configuration: read Kata's configuration"},
		{name: "a VM service needs no KVM", files: map[string]string{"bin/containerd-shim-kata-v2": "", "dev/log": "socket", "vm.stream": "socket",
			"kata.toml": "[hypervisor.remote]\nremote_hypervisor_socket = '/vm.stream'\n"}, want: cis.Kata},
		{name: "a VM service that is down", files: map[string]string{"bin/containerd-shim-kata-v2": "", "dev/log": "socket",
			"kata.toml": "[hypervisor.remote]\nremote_hypervisor_socket = '/vm.stream'\n"}, lacks: cis.Kata, why: "VM service: nobody listens at /vm.stream"},
		{name: "no syslog", files: without(kata, "dev/log"), lacks: cis.Kata, why: "syslog: nobody listens"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			o := host(t, tc.files)
			o.AllowRuncDefault = tc.allowRunc
			r := Host(t.Context(), o)
			have, why := r.Handlers()
			if r.Default != tc.want {
				t.Errorf("the default is %q, want %q", r.Default, tc.want)
			}
			for _, c := range []cis.SandboxClass{tc.want, tc.also} {
				if c != "" && have[c] != Handler(c) {
					t.Errorf("the handler of %s is %q: %s", c, have[c], why[c])
				}
			}
			if tc.lacks != "" && (have[tc.lacks] != "" || !strings.Contains(why[tc.lacks], tc.why)) {
				t.Errorf("%s is to be had as %q, or lacks %q; want %q", tc.lacks, have[tc.lacks], why[tc.lacks], tc.why)
			}
			var b strings.Builder
			if err := r.Write(&b); err != nil || strings.Contains(b.String(), "(default)") != (tc.want != "") {
				t.Errorf("%v\n%s", err, b.String())
			}
		})
	}
}

func without(files map[string]string, name string) map[string]string {
	m := maps.Clone(files)
	delete(m, name)
	return m
}

// Each org's hypervisor has its own configuration and handler; the first finding is what the class means to the others.
func TestHypervisors(t *testing.T) {
	o := host(t, map[string]string{"proc/cpuinfo": "flags : vmx\n", "dev/kvm": "device", "dev/vhost-vsock": "device", "dev/vhost-net": "device", "dev/log": "socket",
		"bin/containerd-shim-kata-v2": "", "opt/qemu": "", "opt/vmlinux": "", "opt/clh": "",
		"qemu.toml": qemuConfig, "clh.toml": "[hypervisor.clh]\npath = '/opt/clh'\n", "fc.toml": "[hypervisor.firecracker]\npath = '/opt/fc'\njailer_path = '/opt/jailer'\n"})
	o.KataConfigs, o.Hypervisor, o.OwnContainerd = map[string]string{"qemu": "qemu.toml", "clh": "clh.toml", "fc": "fc.toml"}, "qemu", true
	r := Host(t.Context(), o)
	if have, why := r.Handlers(); have[cis.Kata] != "kata-qemu" || why[cis.Kata] != "" || r.Default != cis.Kata {
		t.Errorf("%v %v %s", have, why, r.Default)
	}
	if f := r.Finding("kata-clh"); f == nil || !f.Available() || f.KataConfig != "clh.toml" {
		t.Errorf("clh %+v", f)
	}
	f := r.Finding("kata-fc")
	if r.Finding("kata-clh").Copying || r.Finding("kata-qemu").Copying || f == nil || !f.Copying {
		t.Errorf("who shares a directory: %+v", r.Findings)
	}
	if f == nil || !strings.Contains(f.Why(), "hypervisor: missing: /opt/fc") || !strings.Contains(f.Why(), "jailer: missing: /opt/jailer") || !strings.Contains(f.Why(), "devmapper") {
		t.Errorf("fc %+v", f)
	}
	o.Hypervisor = "fc" // of which the host has not everything: the class is not to be had, whatever the others
	if have, why := Host(t.Context(), o).Handlers(); have[cis.Kata] != "" || why[cis.Kata] == "" {
		t.Errorf("%v %v", have, why)
	}
}

// Templates and caches that Kata would refuse, or do without and tell nobody, make the class unavailable.
func TestFactory(t *testing.T) {
	const fit = qemuConfig + "initrd = '/opt/initrd'\nshared_fs = 'virtio-9p'\ndefault_memory = 648\ndefault_vcpus = 1\nenable_annotations = ['default_memory', 'default_vcpus']\n"
	const cache = "[factory]\nvm_cache_endpoint = '/cache.stream'\n"
	template, two := KataOptions{Template: true}, KataOptions{Cache: 2}
	for name, tc := range map[string]struct {
		config  string
		options KataOptions
		want    string
	}{
		"neither":            {qemuConfig, KataOptions{}, ""},
		"a template":         {fit, template, ""},
		"by another driver":  {"[hypervisor.clh]\npath = '/opt/qemu'\ninitrd = '/opt/initrd'\ndefault_memory = 648\n", template, "VM template: the driver clh makes none"},
		"of an image":        {fit + "image = '/opt/vmlinux'\n", template, "VM template: the guest boots from an image"},
		"with virtio-fs":     {strings.Replace(fit, "virtio-9p", "virtio-fs", 1), template, "VM template: shared_fs is virtio-fs"},
		"larger than needed": {strings.Replace(fit, "default_memory = 648\n", "", 1), template, "VM template: its virtual machines have 2048 MiB and 1 processors"},
		"with more CPUs":     {strings.Replace(fit, "default_vcpus = 1\n", "default_vcpus = 2\n", 1), two, "VM cache: its virtual machines have 648 MiB and 2 processors"},
		"a cache":            {fit + cache, two, ""},
		"that nobody serves": {fit, two, "VM cache: nobody listens at /var/run/kata-containers/cache.sock (kata-runtime --config kata.toml factory init"},
		"of another driver":  {"[hypervisor.clh]\npath = '/opt/qemu'\ndefault_memory = 648\n" + cache, two, "VM cache: the driver clh makes none"},
		"of another set-up":  {strings.Replace(fit, "'default_memory', ", "", 1) + cache, two, "(default_memory in enable_annotations"},
	} {
		t.Run(name, func(t *testing.T) {
			o := host(t, map[string]string{"proc/cpuinfo": "flags : vmx\n", "dev/kvm": "device", "dev/vhost-vsock": "device", "dev/vhost-net": "device", "dev/log": "socket",
				"bin/containerd-shim-kata-v2": "", "opt/qemu": "", "opt/vmlinux": "", "opt/initrd": "", "cache.stream": "socket", "kata.toml": tc.config})
			o.Kata = tc.options
			if why := Host(t.Context(), o).Finding("kata").Why(); tc.want == "" && why != "" || !strings.Contains(why, tc.want) {
				t.Errorf("%q, want %q", why, tc.want)
			}
		})
	}
}

func TestKataDropIn(t *testing.T) {
	text, err := KataDropIn(KataConfig{Hypervisor: "clh", Annotations: []string{"default_vcpus", "x"}}, KataOptions{Template: true})
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"[hypervisor.clh]", "['default_vcpus', 'x', 'default_memory']", "enable_template = true", "sandbox_cgroup_only = true"} {
		if !strings.Contains(string(text), want) {
			t.Errorf("the drop-in lacks %q:\n%s", want, text)
		}
	}
	for _, tc := range []struct {
		size        billing.Size
		cpus        int
		vcpus, want string
	}{
		{billing.Size{MilliCPU: 250, MemoryMiB: 512}, 8, "1", "648"},
		{billing.Size{MilliCPU: 4000, MemoryMiB: 8192}, 8, "4", "8448"},
		{billing.Size{MilliCPU: 64000, MemoryMiB: 131072}, 8, "8", "133248"},
	} {
		a := Annotations(cis.Kata, tc.size, tc.cpus)
		if a["io.katacontainers.config.hypervisor.default_vcpus"] != tc.vcpus || a["io.katacontainers.config.hypervisor.default_memory"] != tc.want || len(a) != 2 {
			t.Errorf("%v: %v", tc.size, a)
		}
	}
	if a := Annotations(cis.Runc, billing.Size{}, 1); a != nil {
		t.Errorf("runc: %v", a)
	}
}
