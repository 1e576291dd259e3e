package sandbox

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"cumulet.io/cis"
)

// Options say where to look. The zero value looks at this machine.
type Options struct {
	// BinDirs are searched before PATH.
	BinDirs []string
	// KataConfig is Kata's configuration file; "" means the shim's own default places.
	KataConfig string
	// KataConfigs are configuration files by hypervisor, instead of KataConfig; Hypervisor names the one that instances get.
	KataConfigs map[string]string
	Hypervisor  string
	// Kata are the operator's choices beside them.
	Kata KataOptions
	// OwnContainerd tells that the server's own containerd runs the instances.
	OwnContainerd bool
	// AllowRuncDefault lets runc be the default where nothing stronger is available.
	AllowRuncDefault bool
	// Root is where /proc and /dev are looked for; default "/".
	Root string
	// Run starts a program and gives its output; nil means to do so. Tests replace it.
	Run func(ctx context.Context, path string, args ...string) (string, error)
}

// versionTimeout bounds a runtime's version command.
const versionTimeout = 10 * time.Second

// Host looks at the machine. A device file alone proves nothing: /dev/kvm is there also on virtual machines whose CPU
// cannot virtualise, so the CPU's flags count.
func Host(ctx context.Context, o Options) Report {
	if o.Root == "" {
		o.Root = "/"
	}
	if o.Run == nil {
		o.Run = run
	}
	r := Report{Findings: append(o.kata(ctx),
		Finding{Class: cis.GVisor, Handler: Handler(cis.GVisor), Checks: []Check{o.runs(ctx, "runsc", "install gVisor, or hack/tools.sh gvisor"),
			o.program("containerd-shim-runsc-v1", "install gVisor's containerd shim, or hack/tools.sh gvisor")}},
		Finding{Class: cis.Runc, Handler: Handler(cis.Runc), Checks: []Check{o.runs(ctx, "runc", "apt-get install runc"),
			o.program("containerd-shim-runc-v2", "install containerd, or hack/tools.sh containerd")}},
	)}
	have, _ := r.Handlers()
	for _, c := range Classes() {
		if have[c] != "" && (c != cis.Runc || o.AllowRuncDefault) {
			r.Default = c
			break
		}
	}
	return r
}

func (o Options) cpu() Check {
	c := Check{Name: "hardware virtualisation", Found: "no vmx or svm flag in /proc/cpuinfo",
		Fix: "enable it in the firmware, or nested virtualisation in the hypervisor below"}
	data, err := os.ReadFile(filepath.Join(o.Root, "proc/cpuinfo"))
	if err != nil {
		c.Found = err.Error()
		return c
	}
	for line := range strings.Lines(string(data)) {
		name, flags, ok := strings.Cut(line, ":")
		if !ok || strings.TrimSpace(name) != "flags" {
			continue
		}
		for _, f := range strings.Fields(flags) {
			if f == "vmx" || f == "svm" {
				return Check{Name: c.Name, OK: true, Found: "CPU flag " + f}
			}
		}
	}
	return c
}

func (o Options) device(path, fix string) Check {
	c := Check{Name: "/" + path, Found: "missing", Fix: fix}
	if st, err := os.Stat(filepath.Join(o.Root, path)); err == nil {
		if st.Mode()&fs.ModeCharDevice != 0 {
			return Check{Name: c.Name, OK: true, Found: "present"}
		}
		c.Found = "not a device"
	}
	return c
}

func (o Options) find(name string) (string, error) {
	for _, d := range o.BinDirs {
		if p, err := exec.LookPath(filepath.Join(d, name)); err == nil {
			return p, nil
		}
	}
	if o.Root != "/" {
		return "", fmt.Errorf("%s: %w", name, exec.ErrNotFound)
	}
	return exec.LookPath(name)
}

func (o Options) program(name, fix string) Check {
	p, err := o.find(name)
	if err != nil {
		return Check{Name: name, Found: "not found", Fix: fix}
	}
	return Check{Name: name, OK: true, Found: p}
}

// runs checks that a runtime not only lies there but starts.
func (o Options) runs(ctx context.Context, name, fix string) Check {
	c := o.program(name, fix)
	if !c.OK {
		return c
	}
	ctx, cancel := context.WithTimeout(ctx, versionTimeout)
	defer cancel()
	out, err := o.Run(ctx, c.Found, "--version")
	if err != nil {
		return Check{Name: name, Found: fmt.Sprintf("%s --version: %v", c.Found, err), Fix: fix}
	}
	version, _, _ := strings.Cut(out, "\n")
	if _, v, ok := strings.Cut(version, ", version: "); ok { // Kata's shim says much else on the line
		version, _, _ = strings.Cut("version "+v, ",")
	}
	c.Found += " (" + strings.TrimSpace(version) + ")"
	return c
}

func run(ctx context.Context, path string, args ...string) (string, error) {
	out, err := exec.CommandContext(ctx, path, args...).Output()
	return string(out), err
}
