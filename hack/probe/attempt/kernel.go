package attempt

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

func kernel() []Attempt {
	return []Attempt{
		{Name: "run on the machine's kernel (uname)", Try: func(t Targets) error {
			var u unix.Utsname
			if err := unix.Uname(&u); err != nil {
				return err
			}
			if got := unix.ByteSliceToString(u.Release[:]); got == t.Kernel {
				return nil
			}
			return errors.New("another kernel")
		}},
		{Name: "read the kernel's memory, /proc/kcore", OwnKernel: true, Try: func(Targets) error { return readSome("/proc/kcore") }},
		{Name: "read physical memory, /dev/mem", OwnKernel: true, Try: func(Targets) error { return readNode("/dev/mem", unix.S_IFCHR, unix.Mkdev(1, 1)) }},
		{Name: "read the kernel's log, syslog(2)", OwnKernel: true, Try: func(Targets) error {
			n, err := unix.Klogctl(unix.SYSLOG_ACTION_READ_ALL, make([]byte, 4096))
			if err == nil && n == 0 {
				err = errors.New("empty")
			}
			return err
		}},
		{Name: "read the kernel's log, /dev/kmsg", OwnKernel: true, Try: func(Targets) error { return readNode("/dev/kmsg", unix.S_IFCHR, unix.Mkdev(1, 11)) }},
		{Name: "read the machine's disk by a device file", Try: func(t Targets) error {
			var major, minor uint32
			if _, err := fmt.Sscanf(t.Device, "%d:%d", &major, &minor); err != nil {
				return err
			}
			return readNode("/probe-disk", unix.S_IFBLK, unix.Mkdev(major, minor))
		}},
		{Name: "write kernel.core_pattern, to run a program outside", OwnKernel: true, Try: func(Targets) error { return open("/proc/sys/kernel/core_pattern", os.O_WRONLY) }},
		{Name: "write kernel.modprobe", OwnKernel: true, Try: func(Targets) error { return open("/proc/sys/kernel/modprobe", os.O_WRONLY) }},
		{Name: "write /proc/sysrq-trigger", OwnKernel: true, Try: func(Targets) error { return open("/proc/sysrq-trigger", os.O_WRONLY) }},
		{Name: "write /sys/kernel/uevent_helper", OwnKernel: true, Try: func(Targets) error { return open("/sys/kernel/uevent_helper", os.O_WRONLY) }},
		{Name: "write a setting of /sys", OwnKernel: true, Try: func(Targets) error { return open("/sys/kernel/mm/transparent_hugepage/enabled", os.O_WRONLY) }},
		{Name: "mount a control group hierarchy", OwnKernel: true, Try: func(Targets) error {
			if err := os.MkdirAll("/probe-mount", 0o755); err != nil {
				return err
			}
			return unix.Mount("none", "/probe-mount", "cgroup2", 0, "")
		}},
		{Name: "mount a fresh /proc", OwnKernel: true, Try: func(Targets) error {
			if err := os.MkdirAll("/probe-proc", 0o755); err != nil {
				return err
			}
			return unix.Mount("none", "/probe-proc", "proc", 0, "")
		}},
		{Name: "become root of a new user namespace", OwnKernel: true, Try: func(Targets) error {
			c := exec.CommandContext(context.Background(), "/proc/self/exe")
			c.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWUSER}
			if err := c.Start(); err != nil {
				return err
			}
			_ = c.Wait() // it says how it is to be called, and ends
			return nil
		}},
		{Name: "load a kernel module", OwnKernel: true, Try: func(Targets) error { return unix.InitModule(nil, "") }},
		{Name: "load another kernel, kexec", OwnKernel: true, Try: func(Targets) error { return call(unix.SYS_KEXEC_LOAD, 0, 0, 0) }},
		{Name: "load a BPF program", OwnKernel: true, Try: func(Targets) error {
			attr := [16]uint64{}
			return call(unix.SYS_BPF, unix.BPF_PROG_GET_NEXT_ID, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr))
		}},
		{Name: "watch the processor, perf_event_open", OwnKernel: true, Try: func(Targets) error {
			attr := unix.PerfEventAttr{Type: unix.PERF_TYPE_SOFTWARE, Size: uint32(unsafe.Sizeof(unix.PerfEventAttr{}))}
			_, err := unix.PerfEventOpen(&attr, -1, 0, -1, 0)
			return err
		}},
		{Name: "set the machine's clock", OwnKernel: true, Try: func(Targets) error {
			_, err := unix.Adjtimex(&unix.Timex{Modes: unix.ADJ_SETOFFSET}) // by nothing
			return err
		}},
		{Name: "read root's keyring of the machine", Try: func(t Targets) error {
			_, err := unix.KeyctlSearch(unix.KEY_SPEC_USER_KEYRING, "user", t.Key, 0)
			return err
		}},
		{Name: "list keys, /proc/keys", Try: func(t Targets) error {
			b, err := os.ReadFile("/proc/keys")
			if err != nil {
				return err
			}
			if strings.Contains(string(b), t.Key) {
				return nil
			}
			return errors.New("the key is not there")
		}},
		{Name: "trace process 1 of the machine", Try: func(t Targets) error { return readSome("/proc/1/root" + t.Secret) }},
		{Name: "see processes of others", Try: func(Targets) error {
			all, err := os.ReadDir("/proc")
			if err != nil {
				return err
			}
			for _, e := range all {
				if e.Name()[0] >= '1' && e.Name()[0] <= '9' && e.Name() != fmt.Sprint(os.Getpid()) {
					return nil
				}
			}
			return errors.New("none")
		}},
	}
}

func call(number, a, b, c uintptr) error {
	if _, _, e := unix.Syscall(number, a, b, c); e != 0 {
		return e
	}
	return nil
}

// readNode reads a device by a device file of its own making.
func readNode(path string, kind uint32, dev uint64) error {
	if err := unix.Mknod(path, kind|0o600, int(dev)); err != nil && !errors.Is(err, unix.EEXIST) {
		return err
	}
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	n, err := unix.Read(fd, make([]byte, 512))
	if err == nil && n == 0 {
		err = errors.New("empty")
	}
	return err
}
