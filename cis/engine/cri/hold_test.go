package cri

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"cumulet.io/internal/testenv"
)

const holdTestEnv = "CRI_TEST_HOLD"

func TestMain(m *testing.M) {
	if socket := os.Getenv(holdTestEnv); socket != "" {
		if err := holdAndWait(socket); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// holdAndWait is another process: it holds a connection, writes the holder's pid to it and waits to be killed.
func holdAndWait(socket string) error {
	c, err := net.Dial("unix", socket)
	if err != nil {
		return err
	}
	h, ok := hold(c, func() bool { return false }, slog.Default()).(*heldConn)
	if !ok {
		return errors.New("not held")
	}
	if _, err := fmt.Fprintln(h, h.proc.Process.Pid); err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, h)
	return err
}

// A connection is open for its peer after the process that made it was killed, until its holder ends.
func TestHoldOutlivesAKill(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), holdTestEnv+"="+socket)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	line, err := bufio.NewReader(c).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(line))
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Kill(pid, unix.SIGKILL) //nolint:errcheck // it is gone unless the test has failed
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	cmd.Wait() //nolint:errcheck // killed
	// The holder has seen the end of its input, and is past the shell.
	testenv.Eventually(t, 10*time.Second, func() error {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
		if err == nil && string(b) != "sleep\n" {
			err = fmt.Errorf("the holder is %q", b)
		}
		return err
	})
	if _, err := c.Write([]byte("still there?")); err != nil {
		t.Errorf("the connection ended with its process: %v", err)
	}
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := c.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	// What it had not read makes the end a reset.
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, io.EOF) && !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("the connection outlives its holder: %v", err)
	}
}

// A closed connection ends, unless it is to be kept.
func TestHoldAndClose(t *testing.T) {
	for _, keep := range []bool{false, true} {
		t.Run(fmt.Sprintf("keep %v", keep), func(t *testing.T) {
			l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			d, err := (&net.Dialer{}).DialContext(context.Background(), "unix", l.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			h, ok := hold(d, func() bool { return keep }, slog.New(slog.NewTextHandler(t.Output(), nil))).(*heldConn)
			if !ok {
				t.Fatal("not held")
			}
			pid := h.proc.Process.Pid
			peer, err := l.Accept()
			if err != nil {
				t.Fatal(err)
			}
			defer peer.Close()
			if err := errors.Join(h.Close(), h.Close()); err != nil {
				t.Fatal(err)
			}
			if !keep {
				if _, err := peer.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
					t.Errorf("the connection is open: %v", err)
				}
				return
			}
			if _, err := peer.Write([]byte("x")); err != nil {
				t.Errorf("the connection was not kept: %v", err)
			}
			if err := unix.Kill(pid, unix.SIGKILL); err != nil {
				t.Error(err)
			}
			unix.Wait4(pid, nil, 0, nil) //nolint:errcheck // it was killed
		})
	}
}
