package proc

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"
)

// adoptable sleeps as long as no other process does.
func adoptable(arg string) Child {
	return Child{
		Name: "test", Path: "sleep", Args: []string{arg}, Env: []string{"A=b"}, Log: slog.New(slog.DiscardHandler),
		Output: os.Stderr, Adopt: true, MinBackoff: time.Millisecond, Version: "1",
	}
}

// orphaned starts a child in another process, and kills that process.
func orphaned(t *testing.T, arg string) int {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "PROC_TEST_PARENT=adopt", "PROC_TEST_ARG="+arg)
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
	t.Cleanup(func() {
		c := adoptable(arg)
		if err := c.StopOrphans(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return pid
}

func TestAdopt(t *testing.T) {
	arg := fmt.Sprintf("1000.%d", os.Getpid())
	pid := orphaned(t, arg)
	if gone(pid) {
		t.Fatal("the child died with its parent")
	}
	c := adoptable(arg)
	pids, before := make(chan int, 10), 0
	c.Started = func(pid int) { pids <- pid }
	c.BeforeStart = func(context.Context) { before++ }
	stop := start(t, c)
	if got := next(t, pids); got != pid {
		t.Errorf("pid %d, want %d", got, pid)
	}
	if err := stop(); err != nil || !gone(pid) || before != 0 {
		t.Errorf("%v; gone %v; %d starts", err, gone(pid), before)
	}

	// One that dies is started again.
	pid = orphaned(t, arg)
	stop = start(t, c)
	if got := next(t, pids); got != pid {
		t.Errorf("pid %d, want %d", got, pid)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	second := next(t, pids)
	if err := stop(); err != nil || second == pid || !gone(second) || before != 1 {
		t.Errorf("%v; pid %d, gone %v; %d starts", err, second, gone(second), before)
	}

	// One that was started with something else is stopped.
	pid = orphaned(t, arg)
	c.Version = "2"
	stop = start(t, c)
	if got := next(t, pids); got == pid || !gone(pid) {
		t.Errorf("pid %d goes on", pid)
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
	pid = orphaned(t, arg)
	if err := c.StopOrphans(t.Context()); err != nil || !gone(pid) {
		t.Errorf("%v; gone %v", err, gone(pid))
	}
}

func TestAdoptNeedsAFile(t *testing.T) {
	c, _ := sh(t, "exit 0")
	c.Adopt = true
	if err := c.Run(t.Context()); err == nil {
		t.Error("a pipe for the output was accepted")
	}
}
