package e2e

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"cumulet.io/hack/platform"
	"cumulet.io/internal/testenv"
)

// openTerminal gives both ends of a pseudo-terminal (pty(7)) of a size.
func openTerminal(t *testing.T, rows, cols uint16) (master, slave *os.File) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = master.Close() })
	if err := unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	resize(t, master, rows, cols)
	if slave, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|syscall.O_NOCTTY, 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = slave.Close() })
	return master, slave
}

func resize(t *testing.T, terminal *os.File, rows, cols uint16) {
	t.Helper()
	if err := unix.IoctlSetWinsize(int(terminal.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: cols}); err != nil {
		t.Fatal(err)
	}
}

// terminal runs kubectl exec -it in a terminal whose size changes: the process in the container sees each size, and
// Ctrl-C ends it.
func terminal(t *testing.T, p *platform.Platform, podName string) {
	master, slave := openTerminal(t, 24, 80)
	cmd := exec.CommandContext(t.Context(), testenv.Tool(t, "kubectl"), "--kubeconfig", p.Kubeconfig, "exec", "-it", podName, "--", "/app", "size")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	lines := make(chan string, 64)
	go func() {
		defer close(lines)
		for s := bufio.NewScanner(master); s.Scan(); {
			lines <- strings.TrimSpace(s.Text())
		}
	}()
	bound := time.NewTimer(time.Minute)
	defer bound.Stop()
	await := func(want string) {
		t.Helper()
		for {
			select {
			case line, ok := <-lines:
				if !ok {
					t.Fatalf("the terminal ended before %q", want)
				}
				if line == want {
					return
				}
				t.Logf("%s: %q", podName, line)
			case err := <-ended:
				t.Fatalf("kubectl ended before %q: %v", want, err)
			case <-bound.C:
				_ = cmd.Process.Kill()
				t.Fatalf("no line %q", want)
			}
		}
	}
	await("size 24 80")
	for _, s := range [][2]uint16{{50, 132}, {10, 40}} {
		resize(t, master, s[0], s[1])
		await(fmt.Sprintf("size %d %d", s[0], s[1]))
	}
	if _, err := master.WriteString("\x03"); err != nil { // Ctrl-C, for the terminal in the container to make a signal of
		t.Fatal(err)
	}
	select {
	case err := <-ended:
		if err != nil {
			t.Errorf("kubectl exec -it: %v", err)
		}
	case <-bound.C:
		_ = cmd.Process.Kill()
		t.Error("Ctrl-C does not end the process in the container")
	}
}
