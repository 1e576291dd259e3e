package vmservice

import (
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"cumulet.io/hack/kata/sharing"
)

// kernelParams trim the boot: no probing for what the machine does not have, no
// mitigations between programs of one tenant. When the kernel fails, the machine
// ends: it is run with -no-reboot.
var kernelParams = []string{
	"console=ttyS0", "quiet", "oops=panic", "panic=-1", "reboot=t",
	"mitigations=off", "nokaslr", "cryptomgr.notests", "no_timer_check", "tsc=reliable", "rcupdate.rcu_expedited=1",
	"random.trust_cpu=on", "i8042.noaux", "i8042.nokbd", "pci=lastbus=0", "noreplace-smp",
	// Whatever happens to a container, the agent goes on.
	"cgroup_no_v1=all",
}

// qemuArgs is QEMU's command line. taps are the machine's interfaces, whose file
// descriptors begin with firstTap.
func (v *vm) qemuArgs(taps []tap, firstTap int) []string {
	c := &v.service.config
	memory := strconv.Itoa(v.memory)
	// What is translated is kept in as many MiB of the sandbox's memory.
	cpu, accel := "max", "tcg,tb-size=64"
	if c.Accel == "kvm" {
		cpu, accel = "host", c.Accel
	}
	args := []string{
		c.QEMU, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-name", "cumulet-" + dirName(v.id),
		"-machine", "q35,sata=off,smbus=off,usb=off,graphics=off,hpet=off,memory-backend=ram", "-accel", accel,
		"-cpu", cpu, "-smp", strconv.Itoa(v.cpus), "-m", memory + "M",
		// virtiofsd and the socket device work in the machine's memory.
		"-object", "memory-backend-memfd,id=ram,share=on,size=" + memory + "M",
		"-kernel", c.Kernel, "-initrd", c.Initrd, "-append", strings.Join(kernelParams, " "),
		"-chardev", "socket,id=console,path=" + v.path(consoleSocket), "-serial", "chardev:console",
		"-chardev", "socket,id=vsock,path=" + v.path(vsockSocket), "-device", "vhost-user-vsock-pci,chardev=vsock",
		"-chardev", "socket,id=fs,path=" + v.path(fsSocket), "-device", "vhost-user-fs-pci,chardev=fs,tag=" + sharing.Tag + ",queue-size=1024",
		"-device", "virtio-rng-pci",
	}
	for i, t := range taps {
		args = append(args,
			"-netdev", fmt.Sprintf("tap,id=net%d,fd=%d,vhost=off", i, firstTap+i),
			"-device", fmt.Sprintf("virtio-net-pci,netdev=net%d,mac=%s,romfile=", i, t.mac))
	}
	return args
}

func (v *vm) startQEMU() error {
	var files []*os.File
	for _, t := range v.network.taps {
		files = append(files, t.file)
	}
	return v.run("qemu", qemuLog, v.qemuArgs(v.network.taps, 3), files)
}

// startVirtiofsd starts the server of the shared directory. It gets the socket
// that QEMU connects to, so that nobody has to wait for one.
func (v *vm) startVirtiofsd() error {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: v.path(fsSocket), Net: "unix"})
	if err != nil {
		return err
	}
	defer l.Close()
	l.SetUnlinkOnClose(false)
	f, err := l.File()
	if err != nil {
		return err
	}
	defer f.Close()
	// It holds a file open for each that the guest knows of.
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return err
	}
	return v.run("virtiofsd", fsLog, []string{
		v.service.config.Virtiofsd, "-f", "--fd=3", "-o", "source=" + v.path(shareDir), "-o", "sandbox=chroot",
		// Not announce_submounts: Linux 6.1 fails when it ends such a mount with
		// inodes in use ("Busy inodes after unmount").
		"-o", "cache=auto", "-o", "xattr", "--thread-pool-size=1",
		"--rlimit-nofile=" + strconv.FormatUint(limit.Max, 10), "-o", "log_level=warn",
	}, []*os.File{f})
}
