// Command host-init is the first process of the emulated machine that stands in
// for a host with hardware virtualisation. The machine has the file system of
// the machine that emulates it, which it cannot write to: what it writes is in
// its memory. It runs one command, tells how that ended, and ends.
//
// cumulet.run on the kernel's command line is the command's path. The first
// serial line is the kernel's console; the second one has the command's output;
// the third one tells, a line each, "booted RELEASE" and "ended EXITCODE".
package main

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"cumulet.io/hack/kata/boot"
)

const argument = "cumulet.run="

func main() {
	if os.Getpid() != 1 {
		fmt.Fprintln(os.Stderr, "host-init is a virtual machine's first process, not a command to run")
		os.Exit(1)
	}
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "host-init:", err)
	}
	unix.Sync()
	if err := boot.Off(); err != nil { // the kernel would panic without its first process
		fmt.Fprintln(os.Stderr, "host-init:", err)
	}
}

func run() error {
	if err := boot.Modules(); err != nil {
		return err
	}
	if err := root(); err != nil {
		return err
	}
	control, err := serial("/dev/ttyS2")
	if err != nil {
		return err
	}
	output, err := serial("/dev/ttyS1")
	if err != nil {
		return err
	}
	release, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		return err
	}
	fmt.Fprint(control, "booted ", string(release))
	code, err := command(output)
	if err != nil {
		return err
	}
	drain(output)
	fmt.Fprintln(control, "ended", code)
	drain(control)
	return nil
}

// root makes the root of what follows: the other machine's file system below,
// memory above.
func root() error {
	const lower, upper, merged = "/lower", "/upper", "/merged"
	err := boot.All([]boot.Mount{
		{Source: "root", Target: lower, FSType: "virtiofs", Flags: unix.MS_RDONLY},
		{Source: "upper", Target: upper, FSType: "tmpfs", Data: "mode=0755"},
	})
	if err != nil {
		return err
	}
	files, work := upper+"/files", upper+"/work"
	for _, d := range []string{files, work} {
		if err := os.Mkdir(d, 0o755); err != nil {
			return err
		}
	}
	mounts := []boot.Mount{{Source: "root", Target: merged, FSType: "overlay", Data: "lowerdir=" + lower + ",upperdir=" + files + ",workdir=" + work}}
	if err := boot.All(append(mounts, boot.Kernel(merged)...)); err != nil {
		return err
	}
	if err := boot.Enter(merged); err != nil {
		return err
	}
	// As systemd has it: what is mounted here is seen by namespaces made from here.
	return unix.Mount("", "/", "", unix.MS_SHARED|unix.MS_REC, "")
}

// command runs the command to its end and gives its exit code. The ends of all
// other orphans are taken note of meanwhile.
func command(output *os.File) (int, error) {
	line, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return 0, err
	}
	var path string
	for _, a := range strings.Fields(string(line)) {
		if v, ok := strings.CutPrefix(a, argument); ok {
			path = v
		}
	}
	if path == "" {
		return 0, errors.New("the kernel's command line has no " + argument)
	}
	p, err := os.StartProcess(path, []string{path}, &os.ProcAttr{
		Dir: "/", Files: []*os.File{os.Stdin, output, output},
		Env: []string{"HOME=/root", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "TERM=dumb"},
	})
	if err != nil {
		return 0, err
	}
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, 0, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return 0, fmt.Errorf("wait for %s: %w", path, err)
		case pid == p.Pid && status.Signaled():
			return 128 + int(status.Signal()), nil
		case pid == p.Pid && status.Exited():
			return status.ExitStatus(), nil
		}
	}
}

// serial opens a serial line to write to as to a file.
func serial(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_WRONLY|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	t, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	t.Oflag &^= unix.OPOST
	if err := unix.IoctlSetTermios(int(f.Fd()), unix.TCSETS, t); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return f, nil
}

// drain waits until all of a serial line's output has been sent.
func drain(f *os.File) {
	const flush = 1 // TCSBRK with an argument is tcdrain(3)
	if err := unix.IoctlSetInt(int(f.Fd()), unix.TCSBRK, flush); err != nil {
		fmt.Fprintln(os.Stderr, "host-init: drain", f.Name(), err)
	}
}
