package sandbox

import (
	"context"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/kata-containers/kata-containers/src/runtime/virtcontainers/pkg/annotations"
	"golang.org/x/sys/unix"

	"cumulet.io/cis"
)

const kataShim = "containerd-shim-kata-v2"

// kataConfigs are where the shim looks for its configuration (kata-containers, utils/config).
func kataConfigs() []string {
	return []string{"/etc/kata-containers/configuration.toml", "/opt/kata/share/defaults/kata-containers/configuration.toml",
		"/usr/share/defaults/kata-containers/configuration.toml"}
}

// kata gives a finding for each configuration, the one of Hypervisor first.
func (o Options) kata(ctx context.Context) []Finding {
	if len(o.KataConfigs) == 0 {
		return []Finding{o.kataFinding(ctx, Handler(cis.Kata), o.kataPlace())}
	}
	names := slices.Sorted(maps.Keys(o.KataConfigs))
	slices.SortStableFunc(names, func(a, b string) int {
		switch {
		case a == b:
			return 0
		case a == o.Hypervisor:
			return -1
		case b == o.Hypervisor:
			return 1
		}
		return 0
	})
	var all []Finding
	for _, name := range names {
		all = append(all, o.kataFinding(ctx, KataHandler(name), o.KataConfigs[name]))
	}
	return all
}

// kataPlace is the configuration file that is there, or "".
func (o Options) kataPlace() string {
	if o.KataConfig != "" {
		return o.KataConfig
	}
	for _, p := range kataConfigs() {
		if _, err := os.Stat(filepath.Join(o.Root, p)); err == nil {
			return p
		}
	}
	return ""
}

// kataFinding checks what a configuration needs: each hypervisor has needs of its own. What cannot be read is taken for
// QEMU's, which needs most.
func (o Options) kataFinding(ctx context.Context, handler, config string) Finding {
	f := Finding{Class: cis.Kata, Handler: handler, KataConfig: config}
	read, configured := o.readKata(config)
	f.Copying = read.Hypervisor == "firecracker" || read.SharedFS == "none"
	if read.Hypervisor == "remote" {
		f.Checks = append(f.Checks, o.dial(ctx, "VM service", "unix", read.Socket, "start the service that remote_hypervisor_socket names"))
	} else {
		f.Checks = append(f.Checks, o.cpu(), o.kvm())
		if read.Hypervisor == "" || read.Hypervisor == "qemu" { // the others bring such devices of their own
			f.Checks = append(f.Checks, o.device("dev/vhost-vsock", "modprobe vhost_vsock"))
			if !read.WithoutVhostNet {
				f.Checks = append(f.Checks, o.device("dev/vhost-net", "modprobe vhost_net, or disable_vhost_net = true in Kata's configuration"))
			}
		}
	}
	f.Checks = append(f.Checks, o.runs(ctx, kataShim, "install Kata Containers"), configured)
	for _, what := range slices.Sorted(maps.Keys(read.Files)) {
		f.Checks = append(f.Checks, o.file(what, read.Files[what]))
	}
	if read.Hypervisor == "firecracker" && o.OwnContainerd {
		f.Checks = append(f.Checks, Check{Name: "block snapshotter", Found: "Firecracker shares no directory with its guest, and the server's own containerd has overlayfs alone",
			Fix: "use a containerd with the devmapper snapshotter: control.cri.socket"})
	}
	if configured.OK {
		f.Checks = append(f.Checks, o.factory(ctx, config, read)...)
	}
	f.Checks = append(f.Checks, o.dial(ctx, "syslog", "unixgram", "/dev/log", "run a syslog daemon or systemd-journald: Kata's shim does not start without"))
	return f
}

// factory checks what copies of a booted virtual machine, or those kept ready, need. Without it Kata either refuses every
// sandbox or makes a machine from scratch each time and says so in its log alone.
func (o Options) factory(ctx context.Context, config string, read KataConfig) []Check {
	var all []Check
	check := func(what, found, fix string) { all = append(all, Check{Name: what, Found: found, Fix: fix}) }
	smallest := Annotations(cis.Kata, cis.Sizes()[0], 1)[annotations.DefaultMemory]
	made := func(what, setting string) {
		if read.Hypervisor != "qemu" {
			check(what, "the driver "+read.Hypervisor+" makes none", "set it in the [factory] of QEMU's configuration, and not by "+setting)
		}
		if least, err := strconv.ParseInt(smallest, 10, 64); err == nil && read.MemoryMiB > least || read.CPUs > 1 {
			check(what, fmt.Sprintf("its virtual machines have %d MiB and %v processors, more than the smallest instance", read.MemoryMiB, read.CPUs),
				"default_memory = "+smallest+" and default_vcpus = 1 in Kata's configuration: a virtual machine can gain some, and lose none")
		}
	}
	if o.Kata.Template {
		const what = "VM template"
		made(what, "control.cri.kata.template")
		if read.Files["guest initrd"] == "" || read.Files["guest image"] != "" {
			check(what, "the guest boots from an image", "initrd in the place of image in Kata's configuration")
		}
		if read.SharedFS == "virtio-fs" {
			check(what, "shared_fs is virtio-fs", "another shared_fs in Kata's configuration, as virtio-9p")
		}
	}
	if o.Kata.Cache > 0 {
		const what = "VM cache"
		made(what, "control.cri.kata.cache")
		if m := missing(read.Annotations); len(m) > 0 {
			check(what, "its virtual machines have another configuration", strings.Join(m, " and ")+" in enable_annotations of Kata's configuration")
		}
		all = append(all, o.dial(ctx, what, "unix", read.CacheSocket, "kata-runtime --config "+config+" factory init, with vm_cache_number in the [factory] of that file"))
	}
	return all
}

func (o Options) readKata(config string) (KataConfig, Check) {
	c := Check{Name: "Kata configuration", Fix: "install Kata Containers, or set control.cri.kataConfig"}
	if config == "" {
		c.Found = "none of " + strings.Join(kataConfigs(), ", ")
		return KataConfig{}, c
	}
	read, err := ReadKataConfig(filepath.Join(o.Root, config))
	if err != nil {
		c.Found = err.Error()
		return KataConfig{}, c
	}
	return read, Check{Name: c.Name, OK: true, Found: config + " (" + read.Hypervisor + ")"}
}

// kvm checks that virtual machines can be made, and not only that the device is there.
func (o Options) kvm() Check {
	const fix = "load the kvm_intel or kvm_amd module, and give this process /dev/kvm"
	c := o.device("dev/kvm", fix)
	if !c.OK || o.Root != "/" {
		return c
	}
	fd, err := unix.Open("/dev/kvm", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return Check{Name: c.Name, Found: fmt.Sprintf("cannot be opened: %v", err), Fix: fix}
	}
	defer unix.Close(fd)
	const getAPIVersion, stable = 0xAE00, 12 // KVM_GET_API_VERSION; the kernel's api.rst: refuse all others
	if v, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), getAPIVersion, 0); e != 0 || v != stable {
		return Check{Name: c.Name, Found: fmt.Sprintf("KVM's version is %d (%v), not %d", v, e, stable), Fix: fix}
	}
	return c
}

func (o Options) file(what, path string) Check {
	c := Check{Name: what, Found: "missing: " + path, Fix: "install it, or mend its path in Kata's configuration"}
	if st, err := os.Stat(filepath.Join(o.Root, path)); err == nil && st.Mode()&fs.ModeType == 0 {
		return Check{Name: what, OK: true, Found: path}
	}
	return c
}

// dial checks that somebody listens.
func (o Options) dial(ctx context.Context, what, network, path, fix string) Check {
	d := net.Dialer{Timeout: time.Second}
	conn, err := d.DialContext(ctx, network, filepath.Join(o.Root, path))
	if err != nil {
		return Check{Name: what, Found: fmt.Sprintf("nobody listens at %s", path), Fix: fix}
	}
	conn.Close() // nothing was sent
	return Check{Name: what, OK: true, Found: path}
}
