package main

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestLines(t *testing.T) {
	var got []string
	lines(strings.NewReader("one\r\n\n"+strings.Repeat("x", 100<<10)+"\nlast"), func(l string) { got = append(got, l) })
	if want := []string{"one", "", strings.Repeat("x", 64<<10), "last"}; !slices.Equal(got, want) {
		t.Errorf("%d lines: %.20q", len(got), got)
	}
}

// What the script is told survives the shell.
func TestScript(t *testing.T) {
	dir := t.TempDir()
	f := files{cache: `/it's "a" $(cache)`}
	if err := f.writeScript(dir, "TestLife|TestX"); err != nil {
		t.Fatal(err)
	}
	script, err := os.ReadFile(filepath.Join(dir, scriptName))
	if err != nil {
		t.Fatal(err)
	}
	head, _, _ := strings.Cut(string(script), "# host.sh")
	out, err := exec.CommandContext(t.Context(), "sh", "-c", head+`printf '%s\n' "$CUMULET_CACHE" "$TESTS" "$RUN_DIR"`).Output()
	if want := f.cache + "\nTestLife|TestX\n" + dir + "\n"; err != nil || string(out) != want {
		t.Errorf("%q, %v; want %q", out, err, want)
	}
	if out, err := exec.CommandContext(t.Context(), "sh", "-n", filepath.Join(dir, scriptName)).CombinedOutput(); err != nil {
		t.Errorf("the script: %v: %s", err, out)
	}
}

// A machine tells what became of it by its lines, and of one that tells nothing the console is shown.
func TestResult(t *testing.T) {
	var out bytes.Buffer
	m := &machine{log: newProgress(&out)}
	m.read(consoleLine, "Kernel panic")
	if _, err := m.result(context.DeadlineExceeded, "qemu: complaint\n"); !errors.Is(err, context.DeadlineExceeded) ||
		!strings.Contains(err.Error(), "complaint") || !strings.Contains(err.Error(), "Kernel panic") {
		t.Errorf("a machine that did not end: %v", err)
	}
	if _, err := m.result(nil, ""); err == nil {
		t.Error("a machine that ended without a word has passed")
	}
	m.read(controlLine, "booted 6.1.0")
	m.read(outputLine, "--- PASS")
	m.read(controlLine, "ended 3")
	if code, err := m.result(nil, ""); code != 3 || err != nil || !m.booted {
		t.Errorf("%d, %v", code, err)
	}
	if got := out.String(); !strings.Contains(got, "booted Linux 6.1.0") || !strings.Contains(got, "--- PASS") {
		t.Errorf("progress %q", got)
	}
}

// A run's directory goes with the run, or with the next one.
func TestRunDir(t *testing.T) {
	dir := t.TempDir()
	left := filepath.Join(dir, dirPrefix+"killed")
	if err := os.MkdirAll(filepath.Join(left, "root"), 0o700); err != nil {
		t.Fatal(err)
	}
	first, removeFirst, err := newRunDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	second, removeSecond, err := newRunDir(dir)
	if err != nil || first == second {
		t.Fatal(first, second, err)
	}
	if _, err := os.Stat(left); !os.IsNotExist(err) {
		t.Errorf("what a killed run has left: %v", err)
	}
	if _, err := os.Stat(first); err != nil {
		t.Errorf("one run removed the other's: %v", err)
	}
	if err := errors.Join(removeFirst(), removeSecond()); err != nil {
		t.Error(err)
	}
	if all, err := os.ReadDir(dir); err != nil || len(all) > 0 {
		t.Errorf("left: %v %v", all, err)
	}
}

// A process at rest stands still, one that works or has ended does not.
func TestStall(t *testing.T) {
	for script, want := range map[string]error{"exec sleep 1000": errStalled, "while :; do :; done": nil, "": nil} {
		cmd := exec.CommandContext(t.Context(), "sh", "-c", script)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		if script == "" {
			_ = cmd.Wait() // it has ended
		}
		if err := watchStall(ctx, cmd.Process.Pid, 300*time.Millisecond, 10*time.Millisecond); !errors.Is(err, want) {
			t.Errorf("%q: %v, want %v", script, err, want)
		}
		cancel()
		if script != "" {
			_ = cmd.Process.Kill() // it has not ended by itself
			_ = cmd.Wait()
		}
	}
}
