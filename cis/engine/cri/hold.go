package cri

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// holdFor is how long a connection stays open after this process has gone, for the starts that were under way on it.
const holdFor = 2 * time.Minute

// heldConn is a connection that outlives this process. containerd gives up the start of a container, and kills what of
// it runs already, when the connection that asked for it is closed; so a kill of this process in that moment would be
// the end of an instance. A small process therefore has the connection open as well, until a while after this one.
type heldConn struct {
	net.Conn
	keep  func() bool
	alive io.Closer // the holder waits for its end
	proc  *exec.Cmd
	close func() error
}

// hold has a connection outlive this process; keep tells whether it shall outlive its closing, too. Where that cannot be
// had it is used as it is.
func hold(c net.Conn, keep func() bool, log *slog.Logger) net.Conn {
	h := &heldConn{Conn: c, keep: keep}
	if err := h.start(); err != nil {
		log.Warn("starts of containers do not outlive this process", "error", err)
		return c
	}
	h.close = sync.OnceValue(h.end)
	return h
}

// start runs the holder: it waits for the end of its input, which is that of this process, and then sleeps.
func (h *heldConn) start() error {
	sc, ok := h.Conn.(syscall.Conn)
	if !ok {
		return fmt.Errorf("hold connection: %T has no descriptor", h.Conn)
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return fmt.Errorf("hold connection: %w", err)
	}
	fd := -1
	if cerr := raw.Control(func(p uintptr) { fd, err = unix.FcntlInt(p, unix.F_DUPFD_CLOEXEC, 3) }); cerr != nil || err != nil {
		return fmt.Errorf("hold connection: %w", errors.Join(cerr, err))
	}
	f := os.NewFile(uintptr(fd), "connection")
	defer f.Close()                                                                                     //nolint:errcheck // the holder has its own
	cmd := exec.CommandContext(context.Background(), "/bin/sh", "-c", "read -r _; exec sleep "+strconv.Itoa(int(holdFor.Seconds()))) //nolint:gosec // a constant
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}
	cmd.Dir = "/"
	cmd.ExtraFiles = []*os.File{f}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // a signal from the terminal is for this process alone
	in, err := cmd.StdinPipe()
	if err != nil {
		return fmt.Errorf("hold connection: %w", err)
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("hold connection: %w", errors.Join(err, in.Close()))
	}
	h.alive, h.proc = in, cmd
	// The descriptors share their mode, and os made it the holder's.
	if err := unix.SetNonblock(fd, true); err != nil {
		return fmt.Errorf("hold connection: %w", errors.Join(err, h.release()))
	}
	return nil
}

// Close ends the connection.
func (h *heldConn) Close() error { return h.close() }

func (h *heldConn) end() error {
	err := h.Conn.Close()
	if h.keep() {
		return errors.Join(err, h.alive.Close(), h.proc.Process.Release())
	}
	return errors.Join(err, h.release())
}

// release ends the holder.
func (h *heldConn) release() error {
	err := h.proc.Process.Kill()
	h.proc.Wait() //nolint:errcheck,gosec // it was killed; alive is closed with it
	return err
}
