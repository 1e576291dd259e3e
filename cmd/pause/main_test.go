package main

import (
	"os"
	"os/exec"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestRunEndsOnlyWhenTold(t *testing.T) {
	for _, end := range []os.Signal{unix.SIGTERM, unix.SIGINT} {
		signals := make(chan os.Signal, 3)
		signals <- unix.SIGCHLD
		signals <- unix.SIGCHLD
		signals <- end
		reaped := 0
		run(signals, func() int { reaped++; return 0 })
		if reaped != 2 || len(signals) != 0 {
			t.Errorf("%v: reaped %d times with %d signals left, want 2 and 0", end, reaped, len(signals))
		}
	}
}

func TestReapCollectsEveryChild(t *testing.T) {
	const children = 3
	for range children {
		cmd := exec.Command("true")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		// Never waited for through cmd: that is reap's work.
		if err := cmd.Process.Release(); err != nil {
			t.Fatal(err)
		}
	}
	deadline := time.Now().Add(10 * time.Second)
	for n := 0; n < children; {
		if time.Now().After(deadline) {
			t.Fatalf("reaped %d of %d children", n, children)
		}
		// Block until a child has ended, but leave it for reap.
		if err := unix.Waitid(unix.P_ALL, 0, nil, unix.WEXITED|unix.WNOWAIT, nil); err != nil && err != unix.EINTR {
			t.Fatalf("after %d children: %v", n, err)
		}
		n += reap()
	}
	if n := reap(); n != 0 {
		t.Errorf("reap with no children left returned %d", n)
	}
}
