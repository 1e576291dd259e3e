package proc

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// markVariable is in the environment of a child that outlives its parent, with what it was started with. The child is
// found by its arguments; this tells whether it still is what is wanted.
const markVariable = "CUMULET_CHILD"

// mark names everything that a process of this Child is started with.
func (c Child) mark() (string, error) {
	path, err := exec.LookPath(c.Path)
	if err != nil {
		return "", err
	}
	st, err := os.Stat(path)
	if err != nil {
		return "", err
	}
	h := sha256.New()
	fmt.Fprintf(h, "%q %d %d %q %q %q %v %q", path, st.Size(), st.ModTime().UnixNano(), c.Args, c.environ(), c.Dir, c.Credential, c.Version)
	return markVariable + "=" + hex.EncodeToString(h.Sum(nil)[:16]), nil
}

func (c Child) environ() []string {
	if c.Env == nil {
		return os.Environ()
	}
	return c.Env
}

// orphan is a process that a Run which was killed has left.
type orphan struct {
	pid  int
	fd   int // a pidfd: it stays this process's
	mark string
}

func (o orphan) close() { unix.Close(o.fd) } //nolint:errcheck,gosec // nothing is written through it

// orphans finds the living processes that were started with this Child's arguments. The caller closes them.
func (c Child) orphans() ([]orphan, error) {
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil, err
	}
	var found []orphan
	for _, dir := range dirs {
		if !c.isProcess(dir) {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(dir))
		if err != nil || pid == os.Getpid() {
			continue
		}
		fd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			continue // it has ended
		}
		if !c.isProcess(dir) { // it ended before the pidfd, and another one has its number
			unix.Close(fd) //nolint:errcheck,gosec // nothing is written through it
			continue
		}
		o := orphan{pid: pid, fd: fd}
		if env, err := os.ReadFile(filepath.Join(dir, "environ")); err == nil {
			for kv := range bytes.SplitSeq(env, []byte{0}) {
				if bytes.HasPrefix(kv, []byte(markVariable+"=")) {
					o.mark = string(kv)
				}
			}
		}
		found = append(found, o)
	}
	return found, nil
}

// isProcess tells whether the process with that directory in /proc was started with this Child's arguments.
func (c Child) isProcess(dir string) bool {
	cmdline, err := os.ReadFile(filepath.Join(dir, "cmdline"))
	if err != nil {
		return false
	}
	var args []string
	for arg := range bytes.SplitSeq(bytes.TrimSuffix(cmdline, []byte{0}), []byte{0}) {
		args = append(args, string(arg))
	}
	return filepath.Base(args[0]) == filepath.Base(c.Path) && slices.Equal(args[1:], c.Args)
}

// adopt waits for the end of a process that an earlier Run has left and that is what this one would start. It returns
// errNoOrphan when there is none; one that was started with something else is stopped.
func (c Child) adopt(ctx context.Context, log *slog.Logger) error {
	mark, err := c.mark()
	if err != nil {
		return err
	}
	found, err := c.orphans()
	if err != nil {
		return err
	}
	defer func() {
		for _, o := range found {
			o.close()
		}
	}()
	if len(found) != 1 || found[0].mark != mark {
		for _, o := range found {
			log.Info("child of an earlier start is stopped: it was started with something else", "pid", o.pid)
			if err := c.end(context.WithoutCancel(ctx), o); err != nil {
				return err
			}
		}
		return errNoOrphan
	}
	o := found[0]
	log.Info("child of an earlier start goes on", "pid", o.pid)
	if c.Started != nil {
		c.Started(o.pid)
	}
	gone := make(chan error, 1)
	go func() { gone <- o.wait() }()
	select {
	case err = <-gone:
	case <-ctx.Done():
		err = errors.Join(c.end(context.WithoutCancel(ctx), o), <-gone)
	}
	log.Info("child ended", "pid", o.pid)
	return err
}

// errNoOrphan tells that there is nothing to adopt.
var errNoOrphan = errors.New("no child of an earlier start is there")

// wait returns when the process has ended.
func (o orphan) wait() error {
	for {
		_, err := unix.Poll([]unix.PollFd{{Fd: int32(o.fd), Events: unix.POLLIN}}, -1)
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// end stops a process gently, then not.
func (c Child) end(ctx context.Context, o orphan) error {
	gone := make(chan error, 1)
	go func() { gone <- o.wait() }()
	for _, s := range []syscall.Signal{c.StopSignal, syscall.SIGKILL} {
		if err := unix.PidfdSendSignal(o.fd, s, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("stop %s %d: %w", c.Name, o.pid, err)
		}
		bound := time.NewTimer(c.StopBound)
		defer bound.Stop()
		select {
		case err := <-gone:
			return err
		case <-bound.C:
		case <-ctx.Done():
		}
	}
	return fmt.Errorf("stop %s: process %d does not end", c.Name, o.pid)
}

// StopOrphans stops what a Run of this Child has left that was killed itself, and waits until it has ended. It must not
// be called while the Child runs.
func (c Child) StopOrphans(ctx context.Context) error {
	c = c.withDefaults()
	found, err := c.orphans()
	for _, o := range found {
		err = errors.Join(err, c.end(ctx, o))
		o.close()
	}
	return err
}
