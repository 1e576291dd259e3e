package testenv

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"cumulet.io/cis/engine/cri/containerd"
	"cumulet.io/internal/proc"
)

// KataEnv is Kata with virtual machines by emulation: a VM service (hack/kata)
// of the test's own, and a configuration of Kata's shim that names it. It runs
// wherever root is. It isolates as Kata does, at the speed of an emulator: a
// sandbox starts in seconds, and in tens of them on a machine with much to do.
type KataEnv struct {
	ConfigPath string // of Kata's configuration
	Socket     string // of the VM service: remote_hypervisor_socket
	// StateDir has a directory for each running machine, named by the first 16
	// characters of its sandbox's id, with its guest kernel's log in console.log.
	StateDir string

	t   testing.TB
	bin string // where the shim is
	pid atomic.Int64
}

// KataHandler is the name of Kata's runtime handler.
const KataHandler = containerd.HandlerKata

// Kata starts a VM service until the test ends; one that is killed is started
// again. It skips the test where root or a tool is missing. For a containerd
// with the handler:
//
//	kata := testenv.Kata(t)
//	env := testenv.Containerd(t, kata.Configure)
func Kata(t testing.TB) *KataEnv {
	t.Helper()
	RequireRoot(t)
	qemu, binary := Tool(t, "qemu-system-x86_64"), Tool(t, "kata-vmservice")
	kernel, initrd := kataFile(t, "vmlinux"), kataFile(t, "initrd.img")
	s := takeSlot(t, false)
	in := func(name string) string { return filepath.Join(s.dir, name) }
	e := &KataEnv{t: t, bin: filepath.Dir(Tool(t, "containerd-shim-kata-v2"))}
	e.Socket, e.StateDir, e.ConfigPath = in("vm.sock"), in("vm"), in("kata.toml")
	if err := os.MkdirAll(s.dir, 0o711); err != nil {
		t.Fatal(err)
	}
	config, err := exec.CommandContext(t.Context(), binary, "-print-config", "-socket", e.Socket).Output()
	if err != nil {
		t.Fatalf("print Kata's configuration: %v", err)
	}
	if err := os.WriteFile(e.ConfigPath, config, 0o600); err != nil {
		t.Fatal(err)
	}
	log, err := os.Create(in("log"))
	if err != nil {
		t.Fatal(err)
	}
	child := proc.Child{
		Name: "kata-vmservice", Path: binary, Log: logger(t), Output: log, DieWithParent: true, StopBound: 20 * time.Second,
		Args:    []string{"-socket", e.Socket, "-state", e.StateDir, "-kernel", kernel, "-initrd", initrd, "-qemu", qemu, "-syslog", in("syslog")},
		Started: func(pid int) { e.pid.Store(int64(pid)) },
	}
	stop := start(child.Run)
	t.Cleanup(func() {
		if err := errors.Join(stop(), log.Close()); err != nil {
			t.Errorf("kata-vmservice: %v", err)
		}
		if t.Failed() {
			t.Logf("kata-vmservice's log ends:\n%s", tail(in("log")))
			t.Logf("Kata's shims' log ends:\n%s", tail(in("syslog")))
		}
		if err := os.RemoveAll(s.dir); err != nil {
			t.Error(err)
		}
	})
	e.Ready()
	return e
}

// PID is the VM service's.
func (e *KataEnv) PID() int { return int(e.pid.Load()) }

// Ready waits until the VM service answers and Kata's shim can start.
func (e *KataEnv) Ready() {
	e.t.Helper()
	Eventually(e.t, startTimeout, func() error {
		for _, at := range [][2]string{{"unix", e.Socket}, {"unixgram", "/dev/log"}} {
			c, err := net.Dial(at[0], at[1])
			if err != nil {
				return fmt.Errorf("kata-vmservice is not ready: %w", err)
			}
			c.Close()
		}
		return nil
	})
}

// Configure adds the handler to a containerd's configuration.
func (e *KataEnv) Configure(c *containerd.Config) {
	c.BinDirs = append(c.BinDirs, e.bin)
	c.Handlers = append(c.Handlers, containerd.Handler{Name: KataHandler, Type: "io.containerd.kata.v2", ConfigPath: e.ConfigPath})
}

// Console returns the guest kernel's log of a running sandbox.
func (e *KataEnv) Console(sandbox string) (string, error) {
	b, err := os.ReadFile(filepath.Join(e.StateDir, sandbox[:16], "console.log"))
	return string(b), err
}

func kataFile(t testing.TB, name string) string {
	t.Helper()
	cache, err := cacheDir()
	if err != nil {
		missing(t, "no cache directory: %v", err)
	}
	p := filepath.Join(cache, "kata", name)
	if _, err := os.Stat(p); err != nil {
		missing(t, "no %s: run hack/tools.sh kata", p)
	}
	return p
}
