package testenv

import (
	"context"
	"net"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"
)

// Child starts the test's own binary again, for the test to kill, and waits until it listens at addr. The variables, as
// "NAME=value", are what its TestMain knows by that it is to be a server and not the tests. It dies with the test's process.
func Child(t testing.TB, addr string, args []string, variables ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(os.Args[0], args...) //nolint:gosec,noctx // the test's own binary; killed by the test, which is its point
	cmd.Env = append(os.Environ(), variables...)
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	Eventually(t, time.Minute, func() error {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", addr)
		if err != nil {
			return err
		}
		return conn.Close()
	})
	return cmd
}
