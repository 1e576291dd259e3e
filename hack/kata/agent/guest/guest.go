// Package guest is the frame of a guest agent's program, the first process of
// its virtual machine: it boots what the kernel has started into a machine for
// containers, and serves the agent at the port where Kata's shim looks for it.
package guest

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"

	"github.com/containerd/ttrpc"
	"github.com/mdlayher/vsock"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"cumulet.io/hack/kata/agent/inside"
	"cumulet.io/hack/kata/boot"
)

// Port is the vsock port at which Kata expects its agent.
const Port = 1024

// CgroupRoot is where the guest has its cgroups, of version 2.
const CgroupRoot = "/sys/fs/cgroup"

// Agent is what is served.
type Agent interface {
	Register(*ttrpc.Server)
	// Recover makes of a panic in a service an error.
	Recover(context.Context, ttrpc.Unmarshaler, *ttrpc.UnaryServerInfo, ttrpc.Method) (any, error)
}

// Main is a guest agent's main function. In a virtual machine's first process it
// serves the agent that start gives, and ends the machine when that fails; in a
// process that the agent starts of its own program, it becomes the container's.
func Main(start func(*slog.Logger) (Agent, error)) {
	if len(os.Args) > 1 && os.Args[1] == inside.Command {
		inside.Main()
	}
	if os.Getpid() != 1 {
		fmt.Fprintln(os.Stderr, os.Args[0], "is a virtual machine's first process, not a command to run")
		os.Exit(1)
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	log.Error("the agent has ended", "error", serve(start, log))
	// The kernel would panic without its first process.
	if err := boot.Off(); err != nil {
		log.Error("power off", "error", err)
	}
}

// serve returns an error only.
func serve(start func(*slog.Logger) (Agent, error), log *slog.Logger) error {
	a, err := start(log)
	if err != nil {
		return err
	}
	l, err := vsock.Listen(Port, nil)
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	s, err := ttrpc.NewServer(ttrpc.WithUnaryServerInterceptor(a.Recover))
	if err != nil {
		return err
	}
	a.Register(s)
	if err := s.Serve(context.Background(), l); err != nil {
		return err
	}
	return errors.New("the server was stopped")
}

// Boot mounts what a kernel offers, loads the modules, makes further mounts, which
// may need them, and raises the loopback interface.
func Boot(further ...boot.Mount) error {
	// A bind mount of the root over itself is one that containers can leave.
	const at = "/run"
	if err := (boot.Mount{Source: "/", Target: at, Flags: unix.MS_BIND}).Do(); err != nil {
		return err
	}
	if err := boot.Enter(at); err != nil {
		return err
	}
	tmp := boot.Mount{Source: "tmp", Target: "/tmp", FSType: "tmpfs", Flags: unix.MS_NOSUID | unix.MS_NODEV, Data: "mode=1777"}
	if err := boot.All(append(boot.Kernel(""), tmp)); err != nil {
		return err
	}
	if err := boot.Modules(); err != nil {
		return err
	}
	// The console may be one of theirs.
	if err := boot.Output(); err != nil {
		return err
	}
	if err := boot.All(further); err != nil {
		return err
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find lo: %w", err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return fmt.Errorf("raise lo: %w", err)
	}
	return nil
}
