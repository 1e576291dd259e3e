// Package guest makes a booted kernel ready for the agent, its first process.
package guest

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"cumulet.io/hack/kata/initrd"
	"cumulet.io/hack/kata/sharing"
)

// ShareDir is where the guest has the directory that the host shares.
const ShareDir = "/run/share"

// CgroupRoot is where the guest has its cgroups, of version 2.
const CgroupRoot = "/sys/fs/cgroup"

type mount struct {
	source, target, fstype string
	flags                  uintptr
	data                   string
}

const plain = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC

var kernelMounts = []mount{
	{"proc", "/proc", "proc", plain, ""},
	{"sysfs", "/sys", "sysfs", plain, ""},
	{"dev", "/dev", "devtmpfs", unix.MS_NOSUID, "mode=0755"},
	{"devpts", "/dev/pts", "devpts", unix.MS_NOSUID | unix.MS_NOEXEC, "mode=0620,ptmxmode=0666"},
	{"shm", "/dev/shm", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=1777"},
	{"run", "/run", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=0755"},
	{"tmp", "/tmp", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=1777"},
	{"cgroup2", CgroupRoot, "cgroup2", plain, ""},
}

// Boot mounts what a kernel offers, loads the modules, mounts the shared
// directory and raises the loopback interface.
func Boot() error {
	if err := newRoot(); err != nil {
		return err
	}
	for _, m := range kernelMounts {
		if err := m.do(); err != nil {
			return err
		}
	}
	if err := openConsole(); err != nil {
		return err
	}
	if err := loadModules(); err != nil {
		return err
	}
	// No flags: containers have their root file systems here.
	if err := (mount{sharing.Tag, ShareDir, "virtiofs", 0, ""}).do(); err != nil {
		return err
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find lo: %w", err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return fmt.Errorf("raise lo: %w", err)
	}
	return nil
}

func (m mount) do() error {
	if err := os.MkdirAll(m.target, 0o755); err != nil {
		return err
	}
	if err := unix.Mount(m.source, m.target, m.fstype, m.flags, m.data); err != nil {
		return fmt.Errorf("mount %s at %s: %w", m.fstype, m.target, err)
	}
	return nil
}

// newRoot puts a bind mount of the root over itself: the kernel's own first
// root cannot be left by pivot_root(2), which containers need.
func newRoot() error {
	const at = "/run"
	if err := unix.Mount("/", at, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind root: %w", err)
	}
	if err := unix.Chdir(at); err != nil {
		return err
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("move root: %w", err)
	}
	if err := unix.Chroot("."); err != nil {
		return err
	}
	return unix.Chdir("/")
}

// openConsole makes the serial line, which the host keeps in a file, the output
// of this process, and /dev/null its input.
func openConsole() error {
	null, err := unix.Open("/dev/null", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open /dev/null: %w", err)
	}
	out, err := unix.Open("/dev/console", unix.O_WRONLY|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		out = null
	}
	for fd, from := range []int{null, out, out} {
		if err := unix.Dup3(from, fd, 0); err != nil && !errors.Is(err, unix.EINVAL) { // the same one
			return fmt.Errorf("set file descriptor %d: %w", fd, err)
		}
	}
	return nil
}

// loadModules loads what the initrd lists.
func loadModules() error {
	list, err := os.Open(initrd.ModuleList)
	if err != nil {
		return err
	}
	defer list.Close()
	scan := bufio.NewScanner(list)
	for scan.Scan() {
		if err := loadModule(strings.TrimSpace(scan.Text())); err != nil {
			return err
		}
	}
	return scan.Err()
}

func loadModule(file string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.FinitModule(int(f.Fd()), "", 0); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("load module %s: %w", file, err)
	}
	// What is loaded is in the kernel's memory; the file need not be in ours, too.
	return os.Remove(file)
}

// PowerOff ends the virtual machine.
func PowerOff() error { return unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART) }
