package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// bootTimeout is far more than the emulated machine needs to boot on a machine
// with much else to do.
const bootTimeout = 5 * time.Minute

// machine is the emulated one.
type machine struct {
	options
	files files
	dir   string // of this run
	log   *progress

	mu      sync.Mutex
	console []string // the end of it
	booted  bool
	code    string // what the script ended with
}

// kernelParams trim the boot, as those of hack/kata's virtual machines do.
var kernelParams = []string{
	"console=ttyS0", "quiet", "oops=panic", "panic=-1", "reboot=t", "mitigations=off", "nokaslr", "cryptomgr.notests",
	"no_timer_check", "tsc=reliable", "random.trust_cpu=on", "i8042.noaux", "i8042.nokbd", "cgroup_no_v1=all",
	// A regular tick: of timers that are set one at a time the emulation loses one now and then, and with it all that follow.
	"nohz=off", "highres=off",
}

// The pipes of QEMU's serial lines, in the order in which QEMU gets them.
const (
	consoleLine = iota
	outputLine
	controlLine
	serialLines
)

func (m *machine) args(socket string) []string {
	memory := strconv.Itoa(m.memoryMiB)
	args := []string{
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-name", "katahost",
		"-machine", "q35,accel=tcg,sata=off,smbus=off,usb=off,graphics=off,hpet=off,memory-backend=ram",
		"-cpu", "max", "-smp", strconv.Itoa(m.cpus), "-m", memory + "M",
		"-object", "memory-backend-memfd,id=ram,share=on,size=" + memory + "M", // virtiofsd works in it
		"-kernel", m.files.kernel, "-initrd", m.files.initrd,
		"-append", strings.Join(kernelParams, " ") + " cumulet.run=" + filepath.Join(m.dir, scriptName),
		"-chardev", "socket,id=fs,path=" + socket, "-device", "vhost-user-fs-pci,chardev=fs,tag=root,queue-size=1024",
		"-device", "virtio-rng-pci",
	}
	for i := range serialLines {
		args = append(args, "-add-fd", fmt.Sprintf("fd=%d,set=%d", 3+i, i),
			"-chardev", fmt.Sprintf("file,id=serial%d,path=/dev/fdset/%d,append=on", i, i), "-serial", fmt.Sprintf("chardev:serial%d", i))
	}
	return args
}

// run boots the machine and gives what the script ended with.
func (m *machine) run(ctx context.Context) (code int, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	socket := filepath.Join(m.dir, "fs.sock")
	var complaint strings.Builder // told when all has failed
	files, err := m.startFiles(ctx, socket, &complaint)
	if err != nil {
		return 0, err
	}
	filesEnd := sync.OnceFunc(func() {
		cancel(nil)
		_ = files.Wait() // it ends with QEMU, or is killed
	})
	defer filesEnd()
	var ends []*os.File
	var readers sync.WaitGroup
	for i := range serialLines {
		r, w, err := os.Pipe()
		if err != nil {
			return 0, err
		}
		ends = append(ends, w)
		readers.Go(func() {
			defer r.Close()
			lines(r, func(l string) { m.read(i, l) })
		})
	}
	qemu := exec.CommandContext(ctx, m.files.qemu, m.args(socket)...)
	qemu.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL}
	var said strings.Builder
	qemu.Stderr, qemu.ExtraFiles = &said, ends
	m.log.say(fmt.Sprintf("booting the emulated host: processors: %d, memory: %d MiB", m.cpus, m.memoryMiB))
	err = qemu.Start()
	for _, w := range ends {
		w.Close() // QEMU has it
	}
	if err != nil {
		readers.Wait()
		return 0, fmt.Errorf("start QEMU: %w", err)
	}
	watch := time.AfterFunc(bootTimeout, func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		if !m.booted {
			cancel(fmt.Errorf("the emulated host has not booted after %v", bootTimeout))
		}
	})
	defer watch.Stop()
	readers.Go(func() {
		if err := watchStall(ctx, qemu.Process.Pid, stallTime, stallLeast); err != nil {
			cancel(err)
		}
	})
	err = qemu.Wait()
	cause := context.Cause(ctx)
	cancel(nil)
	readers.Wait()
	filesEnd()
	return m.result(errors.Join(cause, err), said.String()+complaint.String())
}

// startFiles starts the server of this machine's files. It gets the socket that
// QEMU connects to, so that nobody has to wait for one.
func (m *machine) startFiles(ctx context.Context, socket string, complaint *strings.Builder) (*exec.Cmd, error) {
	if err := os.Remove(socket); err != nil && !errors.Is(err, os.ErrNotExist) { // of an earlier boot
		return nil, err
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		return nil, err
	}
	defer l.Close()
	l.SetUnlinkOnClose(false)
	f, err := l.File()
	if err != nil {
		return nil, err
	}
	defer f.Close()
	at := filepath.Join(m.dir, "root")
	if err := os.MkdirAll(at, 0o700); err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, "/proc/self/exe", serveCommand, at, m.dir, m.files.cache)
	cmd.Stderr, cmd.ExtraFiles = complaint, []*os.File{f}
	cmd.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL, Unshareflags: unix.CLONE_NEWNS}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start the file server: %w", err)
	}
	return cmd, nil
}

// read takes note of a line of the machine's.
func (m *machine) read(from int, line string) {
	switch from {
	case outputLine:
		m.log.line(line)
	case consoleLine:
		if m.verbose {
			m.log.line("console: " + line)
		}
		m.mu.Lock()
		defer m.mu.Unlock()
		const most = 40
		if m.console = append(m.console, line); len(m.console) > most {
			m.console = m.console[1:]
		}
	case controlLine:
		m.mu.Lock()
		defer m.mu.Unlock()
		if release, ok := strings.CutPrefix(line, "booted "); ok {
			m.booted = true
			m.log.say("booted Linux " + release)
		}
		if code, ok := strings.CutPrefix(line, "ended "); ok {
			m.code = code
		}
	}
}

// result is what the script ended with, or why it did not.
func (m *machine) result(err error, complaint string) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.code != "" {
		return strconv.Atoi(m.code)
	}
	if err == nil {
		err = errors.New("the emulated host ended before host.sh did")
	}
	return 0, fmt.Errorf("%w\n%sits console ends:\n%s", err, complaint, strings.Join(m.console, "\n"))
}
