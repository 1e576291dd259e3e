package sandbox

import (
	"cmp"
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
	// Files are what the driver needs, by what they are: hypervisor, kernel, image, initrd, firmware, virtiofsd, jailer.
	Files map[string]string
	// Socket is where the remote driver's service listens.
	Socket string
	// WithoutVhostNet has the QEMU driver do without the kernel's network back end, which it needs otherwise.
	WithoutVhostNet bool
	// Annotations are the patterns of annotations that the file lets a pod set.
	Annotations []string
	// SharedFS is how files are shared with the guest.
	SharedFS string
	// MemoryMiB and CPUs are what a virtual machine has for which nothing else is said.
	MemoryMiB int64
	CPUs      float64
	// CacheSocket is where the cache of virtual machines is served.
	CacheSocket string
}

// kataDriver is the hypervisor's section. What a file does not name is nil: a drop-in may well make a setting empty, as the
// image of who has an initrd.
type kataDriver struct {
	Path        *string  `toml:"path"`
	Kernel      *string  `toml:"kernel"`
	Image       *string  `toml:"image"`
	Initrd      *string  `toml:"initrd"`
	Firmware    *string  `toml:"firmware"`
	Jailer      *string  `toml:"jailer_path"`
	SharedFS    *string  `toml:"shared_fs"`
	Virtiofsd   *string  `toml:"virtio_fs_daemon"`
	Socket      *string  `toml:"remote_hypervisor_socket"`
	NoVhostNet  *bool    `toml:"disable_vhost_net"`
	Memory      *int64   `toml:"default_memory"`
	CPUs        *float64 `toml:"default_vcpus"`
	Annotations []string `toml:"enable_annotations"`
}

// What Kata takes for what a configuration does not say (kata-containers, pkg/katautils/config-settings.go.in).
const (
	kataMemoryMiB   = 2048
	kataCPUs        = 1
	kataCacheSocket = "/var/run/kata-containers/cache.sock"
)

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
		Factory    struct {
			Socket string `toml:"vm_cache_endpoint"`
		} `toml:"factory"`
	}
	all.Factory.Socket = kataCacheSocket
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
		c = KataConfig{Hypervisor: name, Socket: value(d.Socket, ""), Annotations: d.Annotations, Files: map[string]string{},
			WithoutVhostNet: value(d.NoVhostNet, false), SharedFS: value(d.SharedFS, ""), MemoryMiB: value(d.Memory, kataMemoryMiB),
			CPUs: value(d.CPUs, kataCPUs), CacheSocket: all.Factory.Socket}
		files := map[string]*string{"hypervisor": d.Path, "guest kernel": d.Kernel, "guest image": d.Image, "guest initrd": d.Initrd, "guest firmware": d.Firmware, "jailer": d.Jailer}
		if c.SharedFS != "none" {
			files["virtiofsd"] = d.Virtiofsd
		}
		for what, file := range files {
			if value(file, "") != "" {
				c.Files[what] = *file
			}
		}
	}
	return c, nil
}

// merge gives a with what b says.
func merge(a, b kataDriver) kataDriver {
	for _, f := range []struct{ to, from **string }{{&a.Path, &b.Path}, {&a.Kernel, &b.Kernel}, {&a.Image, &b.Image}, {&a.Initrd, &b.Initrd},
		{&a.Firmware, &b.Firmware}, {&a.Jailer, &b.Jailer}, {&a.SharedFS, &b.SharedFS}, {&a.Virtiofsd, &b.Virtiofsd}, {&a.Socket, &b.Socket}} {
		*f.to = cmp.Or(*f.from, *f.to)
	}
	a.NoVhostNet, a.Memory, a.CPUs = cmp.Or(b.NoVhostNet, a.NoVhostNet), cmp.Or(b.Memory, a.Memory), cmp.Or(b.CPUs, a.CPUs)
	if b.Annotations != nil {
		a.Annotations = b.Annotations
	}
	return a
}

// value is what p points to, or otherwise what nil stands for.
func value[T any](p *T, otherwise T) T {
	if p == nil {
		return otherwise
	}
	return *p
}

// KataOptions are the operator's choices beside a configuration file.
type KataOptions struct {
	// Template makes virtual machines as copies of one that has booted, Cache keeps so many ready.
	Template bool
	Cache    int
}

// missing are the annotations that an instance must be let set, and is not.
func missing(allowed []string) []string {
	return slices.DeleteFunc([]string{"default_memory", "default_vcpus"}, func(a string) bool { return slices.Contains(allowed, a) })
}

// KataDropIn is the drop-in that makes a configuration fit for instances: it lets them set the size of their virtual
// machine, which they have from its start, and has all of the sandbox's processes in the sandbox's cgroup.
func KataDropIn(c KataConfig, o KataOptions) ([]byte, error) {
	type section = map[string]any
	allowed := append(slices.Clone(c.Annotations), missing(c.Annotations)...)
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
