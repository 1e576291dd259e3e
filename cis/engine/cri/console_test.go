package cri

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"cumulet.io/internal/testenv"
)

func TestConsolePath(t *testing.T) {
	const id = "0123456789abcdef0123"
	for pattern, want := range map[string]string{"/vm/{id}/console": "/vm/" + id + "/console", "/vm/{id:16}/c": "/vm/0123456789abcdef/c",
		"/vm/{id:99}": "/vm/" + id, "/vm/{id:x}": "/vm/" + id, "/vm/{id": "/vm/{id", "/vm": "/vm"} {
		if got := ConsolePath(pattern, id); got != want {
			t.Errorf("%s: %s, want %s", pattern, got, want)
		}
	}
}

// consoleCopy runs copyConsole until it is stopped.
func consoleCopy(t *testing.T, from, to string) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- copyConsole(ctx, from, to) }()
	return func() {
		t.Helper()
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

// logged waits until a log's lines are these.
func logged(t *testing.T, path string, want ...string) {
	t.Helper()
	testenv.Eventually(t, 10*time.Second, func() error {
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		var got []string
		for line := range strings.Lines(string(text)) {
			_, line, _ = strings.Cut(strings.TrimSuffix(line, "\n"), " stdout F ")
			got = append(got, line)
		}
		if strings.Join(got, "|") != strings.Join(want, "|") {
			return fmt.Errorf("the log has %q, want %q", got, want)
		}
		return nil
	})
}

// What a hypervisor writes to a file is kept once, whoever copies it when.
func TestConsoleFile(t *testing.T) {
	dir := t.TempDir()
	from, to := filepath.Join(dir, "console"), filepath.Join(dir, "_kernel", "0.log")
	file, err := os.Create(from)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	say := func(text string) {
		t.Helper()
		if _, err := file.WriteString(text); err != nil {
			t.Fatal(err)
		}
	}
	say("one\r\ntw")
	stop := consoleCopy(t, from, to)
	logged(t, to, "one")
	say("o\n\x1b[31mred\x07 \u009b2J\tend\n")
	logged(t, to, "one", "two", "[31mred 2J\tend")
	stop()
	say("while nobody copies\n")
	stop = consoleCopy(t, from, to)
	logged(t, to, "one", "two", "[31mred 2J\tend", "while nobody copies")
	stop()
}

// Kata's QEMU driver has the console at a socket that one client at a time reads; the guest waits for that client.
func TestConsoleSocket(t *testing.T) {
	dir := t.TempDir()
	to := filepath.Join(dir, "_kernel", "0.log")
	t.Chdir(dir) // for the socket's path is short then
	l, err := net.Listen("unix", "console.sock")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	guest := func(text string) net.Conn {
		t.Helper()
		c, err := l.Accept()
		if err == nil {
			_, err = c.Write([]byte(text))
		}
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	stop := consoleCopy(t, "console.sock", to)
	c := guest("one\r\ntwo\n")
	logged(t, to, "one", "two")
	stop()
	c.Close()
	stop = consoleCopy(t, "console.sock", to) // as after a restart of the engine
	c = guest("three\n")
	logged(t, to, "one", "two", "three")
	// A guest that prints for ever is not held up, and fills no disk.
	line := strings.Repeat("x", 1023) + "\n"
	for range 3 * maxConsole / len(line) {
		if err := c.SetWriteDeadline(time.Now().Add(10 * time.Second)); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Write([]byte(line)); err != nil {
			t.Fatal(err)
		}
	}
	if st, err := os.Stat(to); err != nil || st.Size() > maxConsole*11/10 {
		t.Errorf("%v, %v", st, err)
	}
	c.Close() // the machine's end is that of the copy
	stop()
}
