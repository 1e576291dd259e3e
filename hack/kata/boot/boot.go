// Package boot is what the first process of a virtual machine has to do before
// it can be of use: file systems, modules, the console.
package boot

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"cumulet.io/hack/kata/initrd"
)

// Mount is one to be made; its target is made, too.
type Mount struct {
	Source, Target, FSType string
	Flags                  uintptr
	Data                   string
}

// Do makes the mount.
func (m Mount) Do() error {
	if err := os.MkdirAll(m.Target, 0o755); err != nil {
		return err
	}
	if err := unix.Mount(m.Source, m.Target, m.FSType, m.Flags, m.Data); err != nil {
		return fmt.Errorf("mount %s at %s: %w", m.FSType, m.Target, err)
	}
	return nil
}

// All makes mounts one after the other.
func All(mounts []Mount) error {
	for _, m := range mounts {
		if err := m.Do(); err != nil {
			return err
		}
	}
	return nil
}

// Kernel are the mounts of what a kernel offers, below the directory root.
func Kernel(root string) []Mount {
	const plain = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	return []Mount{
		{"proc", root + "/proc", "proc", plain, ""},
		{"sysfs", root + "/sys", "sysfs", plain, ""},
		{"cgroup2", root + "/sys/fs/cgroup", "cgroup2", plain, ""},
		{"dev", root + "/dev", "devtmpfs", unix.MS_NOSUID, "mode=0755"},
		{"devpts", root + "/dev/pts", "devpts", unix.MS_NOSUID | unix.MS_NOEXEC, "mode=0620,ptmxmode=0666"},
		{"shm", root + "/dev/shm", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=1777"},
		{"run", root + "/run", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=0755"},
	}
}

// Enter makes the mount at dir the root of this process and of what it starts.
// The kernel's first root cannot be left by pivot_root(2): it is covered.
func Enter(dir string) error {
	if err := unix.Chdir(dir); err != nil {
		return fmt.Errorf("enter %s: %w", dir, err)
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("move %s to /: %w", dir, err)
	}
	if err := unix.Chroot("."); err != nil {
		return fmt.Errorf("enter %s: %w", dir, err)
	}
	return unix.Chdir("/")
}

// consoleWait is how long after its module was loaded a console may need to be there.
const consoleWait = 2 * time.Second

// Output makes the console this process's output, and nothing its input.
func Output() error {
	null, err := unix.Open("/dev/null", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open /dev/null: %w", err)
	}
	open := func() (int, error) { return unix.Open("/dev/console", unix.O_WRONLY|unix.O_NOCTTY|unix.O_CLOEXEC, 0) }
	out, err := open()
	for until := time.Now().Add(consoleWait); errors.Is(err, unix.ENODEV) && time.Now().Before(until); out, err = open() {
		time.Sleep(10 * time.Millisecond)
	}
	if err != nil {
		out = null // a machine without one
	}
	for fd, from := range []int{null, out, out} {
		if err := unix.Dup3(from, fd, 0); err != nil && !errors.Is(err, unix.EINVAL) { // the same one
			return fmt.Errorf("set file descriptor %d: %w", fd, err)
		}
	}
	return nil
}

// Modules loads the modules that the initial ramdisk lists.
func Modules() error {
	list, err := os.Open(initrd.ModuleList)
	if err != nil {
		return err
	}
	defer list.Close()
	scan := bufio.NewScanner(list)
	for scan.Scan() {
		if err := module(strings.TrimSpace(scan.Text())); err != nil {
			return err
		}
	}
	return scan.Err()
}

func module(file string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.FinitModule(int(f.Fd()), "", 0); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("load module %s: %w", file, err)
	}
	return os.Remove(file) // it is in the kernel's memory now
}

// Off ends the machine, as a restart: QEMU is run with -no-reboot. What is not
// on its disks yet is lost.
func Off() error { return unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART) }
