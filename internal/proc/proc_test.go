package proc

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	if os.Getenv("PROC_TEST_PARENT") != "" {
		parent()
		return
	}
	goleak.VerifyTestMain(m)
}

// buffer is a bytes.Buffer for several goroutines.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) { b.mu.Lock(); defer b.mu.Unlock(); return b.b.Write(p) }
func (b *buffer) String() string              { b.mu.Lock(); defer b.mu.Unlock(); return b.b.String() }

// sh is a child that runs a shell script and reports its pids.
func sh(t *testing.T, script string) (Child, chan int) {
	pids := make(chan int, 100)
	return Child{
		Name: "test", Path: "/bin/sh", Args: []string{"-c", script},
		Log: slog.New(slog.NewTextHandler(t.Output(), nil)), Output: io.Discard,
		MinBackoff: time.Millisecond, MaxBackoff: 5 * time.Millisecond,
		Started: func(pid int) { pids <- pid },
	}, pids
}

// start runs the child until stop is called, which returns Run's error.
func start(t *testing.T, c Child) (stop func() error) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	stop = sync.OnceValue(func() error {
		cancel()
		select {
		case err := <-done:
			return err
		case <-time.After(20 * time.Second):
			return fmt.Errorf("Run did not return")
		}
	})
	t.Cleanup(func() { _ = stop() })
	return stop
}

func next(t *testing.T, pids chan int) int {
	t.Helper()
	select {
	case pid := <-pids:
		return pid
	case <-time.After(20 * time.Second):
		t.Fatal("no start within 20s")
		return 0
	}
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within 20s: %s", what)
		}
	}
}

// gone is whether the process has ended; a zombie has.
func gone(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return true
	}
	_, rest, _ := strings.Cut(string(b), ") ")
	return strings.HasPrefix(rest, "Z")
}

func TestRestartsAfterDeath(t *testing.T) {
	c, pids := sh(t, "exec sleep 1000")
	stop := start(t, c)
	first := next(t, pids)
	if err := syscall.Kill(first, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	second := next(t, pids)
	if second == first {
		t.Errorf("the same pid %d twice", first)
	}
	if err := stop(); err != nil {
		t.Errorf("Run: %v", err)
	}
	if !gone(second) {
		t.Errorf("pid %d is there after Run returned", second)
	}
}

func TestRestartsAfterExitZero(t *testing.T) {
	c, pids := sh(t, "exit 0")
	start(t, c)
	next(t, pids)
	next(t, pids)
	next(t, pids)
}

func TestBackoffGrowsToItsCap(t *testing.T) {
	c, _ := sh(t, "exit 3")
	var log buffer
	c.Log = slog.New(slog.NewTextHandler(&log, nil))
	stop := start(t, c)
	eventually(t, "the cap twice", func() bool { return strings.Count(log.String(), "backoff=5ms") >= 2 })
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	next := map[string]string{"1ms": "2ms", "2ms": "4ms", "4ms": "5ms", "5ms": "5ms"}
	before := ""
	for _, field := range strings.Fields(log.String()) {
		v, ok := strings.CutPrefix(field, "backoff=")
		if !ok {
			continue
		}
		// On a busy machine a child may live for the 5 ms that start the count anew.
		if v != next[before] && v != "1ms" {
			t.Errorf("backoff %s after %s", v, before)
		}
		before = v
	}
	if !strings.Contains(log.String(), "exit status 3") {
		t.Error("the log does not say how the child ended")
	}
}

func TestStopsGently(t *testing.T) {
	mark := filepath.Join(t.TempDir(), "mark")
	ready := mark + ".ready"
	c, pids := sh(t, fmt.Sprintf(`trap 'echo bye > %s; exit 0' TERM; : > %s; while :; do sleep 0.01; done`, mark, ready))
	stop := start(t, c)
	next(t, pids)
	eventually(t, "the trap is set", func() bool { _, err := os.Stat(ready); return err == nil })
	if err := stop(); err != nil {
		t.Errorf("Run: %v", err)
	}
	if b, err := os.ReadFile(mark); err != nil || string(b) != "bye\n" {
		t.Errorf("the child had no time for its end: %q, %v", b, err)
	}
}

func TestKillsWhatIgnoresTheEnd(t *testing.T) {
	ready := filepath.Join(t.TempDir(), "ready")
	c, pids := sh(t, fmt.Sprintf(`trap '' TERM; : > %s; while :; do sleep 0.01; done`, ready))
	c.StopBound = 50 * time.Millisecond
	stop := start(t, c)
	pid := next(t, pids)
	eventually(t, "the trap is set", func() bool { _, err := os.Stat(ready); return err == nil })
	if err := stop(); err != nil {
		t.Errorf("Run: %v", err)
	}
	if !gone(pid) {
		t.Errorf("pid %d survived", pid)
	}
}

func TestUnrunnableIsAnError(t *testing.T) {
	plain := filepath.Join(t.TempDir(), "plain")
	if err := os.WriteFile(plain, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"/no/such/program", "no-such-program-in-path", plain} {
		c, _ := sh(t, "")
		c.Path = path
		if err := c.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "run test:") {
			t.Errorf("%s: Run returned %v", path, err)
		}
	}
}

func TestOutputBecomesRecords(t *testing.T) {
	c, pids := sh(t, `echo one; echo two >&2; printf three; exec sleep 0`)
	var log buffer
	c.Log, c.Output = slog.New(slog.NewTextHandler(&log, nil)), nil
	stop := start(t, c)
	next(t, pids)
	next(t, pids) // the first has ended
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"line=one", "line=two", "line=three", "child=test"} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("no %s in\n%s", want, log.String())
		}
	}
}

func TestGrandchildCannotHoldTheOutput(t *testing.T) {
	// The grandchild keeps the output open after the child has ended.
	c, pids := sh(t, `sleep 1000 & echo $!; exit 0`)
	var out buffer
	c.Output, c.StopBound = &out, 20*time.Millisecond
	stop := start(t, c)
	next(t, pids)
	next(t, pids) // it was started again all the same
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	for _, f := range strings.Fields(out.String()) {
		pid, err := strconv.Atoi(f)
		if err != nil {
			t.Fatal(err)
		}
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Error(err)
		}
	}
}

// parent is another process that runs a child, for TestDieWithParent and TestAdopt.
func parent() {
	c := Child{
		Name: "test", Path: "/bin/sleep", Args: []string{"1000"}, Log: slog.New(slog.DiscardHandler),
		Output: os.Stderr, DieWithParent: os.Getenv("PROC_TEST_PARENT") == "die",
		Started: func(pid int) { fmt.Println(pid) },
	}
	if arg := os.Getenv("PROC_TEST_ARG"); arg != "" {
		c = adoptable(arg)
		c.Started = func(pid int) { fmt.Println(pid) }
	}
	if err := c.Run(context.Background()); err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
}

func TestDieWithParent(t *testing.T) {
	for mode, dies := range map[string]bool{"die": true, "live": false} {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), "PROC_TEST_PARENT="+mode)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		var pid int
		if _, err := fmt.Fscan(out, &pid); err != nil {
			t.Fatal(err)
		}
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait() // killed
		if dies {
			eventually(t, "the child died with its parent", func() bool { return gone(pid) })
			continue
		}
		if gone(pid) {
			t.Error("the child died with its parent, unasked")
		} else if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Error(err)
		}
	}
}
