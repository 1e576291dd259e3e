package containerd

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"cumulet.io/cis/sandbox"
)

// Kata itself reads the configurations of a release as they are completed for each hypervisor, and has what they say.
func TestKataReadsTheConfiguration(t *testing.T) {
	program := tool(t, "kata-config", "kata-shim")
	const initrd = "image = ''\ninitrd = '/opt/kata/share/kata-containers/kata-containers-initrd.img'\n"
	type result struct {
		Hypervisor, Path, Kernel, Image, Initrd string
		MemoryMiB                               int
		CPUs                                    float64
		Annotations                             []string
		StaticSize, SandboxCgroup, Template     bool
		Cache                                   int
	}
	for _, c := range []struct {
		name, driver, program string
		dropIn                string // of the operator's own, to the driver's section
		options               sandbox.KataOptions
		refused               string
	}{
		{name: "qemu", driver: "qemu", program: "qemu-system-x86_64"},
		{name: "clh", driver: "clh", program: "cloud-hypervisor"},
		{name: "fc", driver: "firecracker", program: "firecracker"},
		{name: "qemu", driver: "qemu", program: "qemu-system-x86_64", dropIn: initrd, options: sandbox.KataOptions{Template: true}},
		{name: "qemu", driver: "qemu", program: "qemu-system-x86_64", options: sandbox.KataOptions{Cache: 3}},
		// What the host check says of them, too.
		{name: "qemu", driver: "qemu", options: sandbox.KataOptions{Template: true}, refused: "enable_template requires an initrd"},
		{name: "clh", driver: "clh", options: sandbox.KataOptions{Cache: 3}, refused: "VM cache just support qemu"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			from := release(t, dir, c.name, c.driver, c.dropIn)
			read, err := sandbox.ReadKataConfig(from)
			if err != nil {
				t.Fatal(err)
			}
			for what, file := range read.Files { // Kata wants them to be there, and to have content
				write(t, file, what)
			}
			d := valid(filepath.Join(dir, "d"))
			d.Handlers = []Handler{KataHandler(sandbox.KataHandler(c.name), from, c.options)}
			if d, err = d.normalize(); err != nil {
				t.Fatal(err)
			}
			if err := d.write(); err != nil {
				t.Fatal(err)
			}
			cmd := exec.CommandContext(t.Context(), program, filepath.Join(d.kataDir(d.Handlers[0].Name), kataFile))
			var said strings.Builder
			cmd.Stderr = &said
			out, err := cmd.Output()
			if c.refused != "" {
				if err == nil || !strings.Contains(said.String(), c.refused) {
					t.Errorf("%v, want %q: %s", err, c.refused, said.String())
				}
				return
			}
			var got result
			if err != nil || json.Unmarshal(out, &got) != nil {
				t.Fatalf("%v: %s%s", err, out, said.String())
			}
			if got.Hypervisor != c.driver || got.Path != filepath.Join(dir, "opt/kata/bin", c.program) || got.Path != read.Files["hypervisor"] ||
				got.Kernel != read.Files["guest kernel"] || got.Image != read.Files["guest image"] || got.Initrd != read.Files["guest initrd"] {
				t.Errorf("the shim has %+v of %+v", got, read)
			}
			if int64(got.MemoryMiB) != read.MemoryMiB || got.CPUs != read.CPUs {
				t.Errorf("virtual machines have %d MiB and %v processors of %+v", got.MemoryMiB, got.CPUs, read)
			}
			for _, a := range append(read.Annotations, "default_memory", "default_vcpus") {
				if !slices.Contains(got.Annotations, a) {
					t.Errorf("annotation %s is not allowed: %q", a, got.Annotations)
				}
			}
			if !got.StaticSize || !got.SandboxCgroup || got.Template != c.options.Template || got.Cache != c.options.Cache {
				t.Errorf("%+v", got)
			}
		})
	}
}

// release puts the configuration that a release of Kata has for a hypervisor to dir/opt/kata, and gives its path.
func release(t *testing.T, dir, name, driver, dropIn string) string {
	t.Helper()
	file := "configuration-" + name + ".toml"
	text, err := os.ReadFile(filepath.Join(cacheDir(t), "kata", "configurations", file))
	if err != nil {
		t.Fatal(err)
	}
	moved := func(s string) string { return strings.ReplaceAll(s, "/opt/kata", filepath.Join(dir, "opt/kata")) }
	defaults := filepath.Join(dir, "opt/kata/share/defaults/kata-containers")
	write(t, filepath.Join(defaults, file), moved(string(text)))
	if dropIn != "" {
		write(t, filepath.Join(defaults, "config.d", "10-own.toml"), "[hypervisor."+driver+"]\n"+moved(dropIn))
	}
	return filepath.Join(defaults, file)
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
}

// tool finds a program that hack/tools.sh builds.
func tool(t *testing.T, program, by string) string {
	t.Helper()
	path, err := lookup([]string{filepath.Join(cacheDir(t), "bin")}, program)
	switch {
	case err == nil:
	case os.Getenv("CUMULET_REQUIRE_TOOLS") == "1":
		t.Fatalf("%v: run hack/tools.sh %s", err, by)
	default:
		t.Skipf("%v: run hack/tools.sh %s", err, by)
	}
	return path
}
