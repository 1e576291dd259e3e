package sandbox

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"github.com/kata-containers/kata-containers/src/runtime/virtcontainers/pkg/annotations"
	"github.com/pelletier/go-toml/v2"

	"cumulet.io/billing"
	"cumulet.io/cis"
)

// KataConfig is what a Kata configuration file says that matters here.
type KataConfig struct {
	// Hypervisor is the driver's name: qemu, clh, firecracker, remote and so on.
	Hypervisor string
	// Files are what the driver needs, by what they are: hypervisor, kernel, image, initrd, virtiofsd.
	Files map[string]string
	// Socket is where the remote driver's service listens.
	Socket string
	// WithoutVhostNet has the QEMU driver do without the kernel's network back end, which it needs otherwise.
	WithoutVhostNet bool
	// Annotations are the patterns of annotations that the file lets a pod set.
	Annotations []string
}

// kataDriver is the hypervisor's section. What a file does not name is nil: a drop-in may well make a setting empty, as the
// image of who has an initrd.
type kataDriver struct {
	Path        *string  `toml:"path"`
	Kernel      *string  `toml:"kernel"`
	Image       *string  `toml:"image"`
	Initrd      *string  `toml:"initrd"`
	SharedFS    *string  `toml:"shared_fs"`
	Virtiofsd   *string  `toml:"virtio_fs_daemon"`
	Socket      *string  `toml:"remote_hypervisor_socket"`
	NoVhostNet  *bool    `toml:"disable_vhost_net"`
	Annotations []string `toml:"enable_annotations"`
}

// ReadKataConfig reads a configuration file with the drop-ins in config.d beside it, as Kata's shim does.
func ReadKataConfig(path string) (KataConfig, error) {
	files := []string{path}
	entries, err := os.ReadDir(filepath.Join(filepath.Dir(path), "config.d"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return KataConfig{}, fmt.Errorf("read Kata's configuration: %w", err)
	}
	for _, e := range entries {
		files = append(files, filepath.Join(filepath.Dir(path), "config.d", e.Name()))
	}
	var all struct {
		Hypervisor map[string]kataDriver `toml:"hypervisor"`
	}
	drivers := map[string]kataDriver{}
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			return KataConfig{}, fmt.Errorf("read Kata's configuration: %w", err)
		}
		all.Hypervisor = nil
		if err := toml.Unmarshal(text, &all); err != nil {
			return KataConfig{}, fmt.Errorf("read Kata's configuration %s: %w", f, err)
		}
		for name, d := range all.Hypervisor {
			drivers[name] = merge(drivers[name], d)
		}
	}
	if len(drivers) != 1 {
		return KataConfig{}, fmt.Errorf("read Kata's configuration %s: want one section [hypervisor.NAME], not %d", path, len(drivers))
	}
	var c KataConfig
	for name, d := range drivers {
		c = KataConfig{Hypervisor: name, Socket: value(d.Socket), Annotations: d.Annotations, Files: map[string]string{},
			WithoutVhostNet: d.NoVhostNet != nil && *d.NoVhostNet}
		files := map[string]*string{"hypervisor": d.Path, "guest kernel": d.Kernel, "guest image": d.Image, "guest initrd": d.Initrd}
		if value(d.SharedFS) != "none" {
			files["virtiofsd"] = d.Virtiofsd
		}
		for what, file := range files {
			if value(file) != "" {
				c.Files[what] = *file
			}
		}
	}
	return c, nil
}

func merge(a, b kataDriver) kataDriver {
	for _, f := range []struct{ to, from **string }{{&a.Path, &b.Path}, {&a.Kernel, &b.Kernel}, {&a.Image, &b.Image}, {&a.Initrd, &b.Initrd},
		{&a.SharedFS, &b.SharedFS}, {&a.Virtiofsd, &b.Virtiofsd}, {&a.Socket, &b.Socket}} {
		if *f.from != nil {
			*f.to = *f.from
		}
	}
	if b.NoVhostNet != nil {
		a.NoVhostNet = b.NoVhostNet
	}
	if b.Annotations != nil {
		a.Annotations = b.Annotations
	}
	return a
}

func value(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}

// KataOptions are the operator's choices beside a configuration file.
type KataOptions struct {
	// Template makes virtual machines as copies of one that has booted, Cache keeps so many ready.
	Template bool
	Cache    int
}

// KataDropIn is the drop-in that makes a configuration fit for instances: it lets them set the size of their virtual
// machine, which they have from its start, and has all of the sandbox's processes in the sandbox's cgroup.
func KataDropIn(c KataConfig, o KataOptions) ([]byte, error) {
	type section = map[string]any
	allowed := slices.Clone(c.Annotations)
	for _, a := range []string{"default_memory", "default_vcpus"} {
		if !slices.Contains(allowed, a) {
			allowed = append(allowed, a)
		}
	}
	all := section{
		"hypervisor": section{c.Hypervisor: section{"enable_annotations": allowed}},
		"runtime":    section{"static_sandbox_resource_mgmt": true, "sandbox_cgroup_only": true},
	}
	if o.Template || o.Cache > 0 {
		all["factory"] = section{"enable_template": o.Template, "vm_cache_number": o.Cache}
	}
	return toml.Marshal(all)
}

// Annotations are what a sandbox of a class is told by its pod's annotations: of a virtual machine its size, which is
// that of the instance and what the guest needs for itself, with no more CPUs than the machine has.
func Annotations(class cis.SandboxClass, s billing.Size, cpus int) map[string]string {
	if class != cis.Kata {
		return nil
	}
	n := min(max(1, (s.MilliCPU+999)/1000), int64(max(1, cpus)))
	return map[string]string{
		annotations.DefaultMemory: strconv.FormatInt(s.MemoryMiB+OverheadOf(class, s).GuestMiB, 10),
		annotations.DefaultVCPUs:  strconv.FormatInt(n, 10),
	}
}
