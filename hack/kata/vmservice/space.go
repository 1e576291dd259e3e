package vmservice

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// space is an operating system thread in a shim's mount namespace, in which a
// machine's mounts are made and its processes are started. Nothing that is
// mounted there is seen elsewhere, and all of it is gone with the last process:
// with the shim, or, because each child is to be killed with the thread that
// started it, with this service.
type space struct {
	shim int // its process
	work chan func()
	done chan struct{}
}

func enterSpace(pid int) (*space, error) {
	s := &space{shim: pid, work: make(chan func()), done: make(chan struct{})}
	ready := make(chan error)
	go func() {
		defer close(s.done)
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		if err := enterMounts(pid); err != nil {
			ready <- err
			return
		}
		close(ready)
		for f := range s.work {
			f()
		}
	}()
	if err := <-ready; err != nil {
		return nil, fmt.Errorf("enter the space of the shim %d: %w", pid, err)
	}
	return s, nil
}

func enterMounts(pid int) error {
	ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/mnt", pid))
	if err != nil {
		return err
	}
	defer ns.Close()
	// A thread that shares its root and working directory cannot change it.
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return err
	}
	return unix.Setns(int(ns.Fd()), unix.CLONE_NEWNS)
}

// do has f run by the thread.
func (s *space) do(f func() error) error {
	result := make(chan error, 1)
	s.work <- func() { result <- f() }
	return <-result
}

// leave ends the thread. Nothing may be done in it afterwards.
func (s *space) leave() error {
	if s == nil {
		return nil
	}
	close(s.work)
	<-s.done
	return nil
}

// child is a process of a machine.
type child struct {
	cmd   *exec.Cmd
	done  chan struct{}
	state *os.ProcessState // once done is closed
}

// start starts a program in the shim's cgroups, with the files as descriptors 3, 4
// and so on, and with its output in a log.
func (s *space) start(args []string, files []*os.File, log string) (*child, error) {
	out, err := os.OpenFile(log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	defer out.Close()
	c := &child{cmd: exec.CommandContext(context.Background(), args[0], args[1:]...), done: make(chan struct{})}
	c.cmd.Stdout, c.cmd.Stderr, c.cmd.ExtraFiles = out, out, files
	c.cmd.Dir = "/"
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: unix.SIGKILL}
	if err := s.do(func() error { return inCgroups(s.shim, c.cmd.Start) }); err != nil {
		return nil, err
	}
	go func() {
		defer close(c.done)
		// How it ended is in its state.
		_ = c.cmd.Wait()
		c.state = c.cmd.ProcessState
	}()
	return c, nil
}

// kill kills the process and those that it started.
func (c *child) kill() {
	select {
	case <-c.done:
		return
	default:
	}
	if err := unix.Kill(-c.cmd.Process.Pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
		_ = c.cmd.Process.Kill() // fails only for one that has ended
	}
	<-c.done
}
