// Command guest-init is the first process of the virtual machines that Kata's
// own QEMU driver starts: the agent of package guest, in the place of Kata's,
// which is a Rust program.
package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"

	"github.com/containerd/ttrpc"
	"github.com/mdlayher/vsock"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"cumulet.io/hack/kata/agent/inside"
	"cumulet.io/hack/kata/boot"
	"cumulet.io/hack/kata/host/guest"
)

// agentPort is the vsock port at which Kata expects its agent.
const agentPort = 1024

func main() {
	if len(os.Args) > 1 && os.Args[1] == inside.Command {
		inside.Main()
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	if err := run(log); err != nil {
		log.Error("the agent has ended", "error", err)
	}
	if err := boot.Off(); err != nil { // the kernel would panic without its first process
		log.Error("power off", "error", err)
	}
}

func run(log *slog.Logger) error {
	if os.Getpid() != 1 {
		return fmt.Errorf("guest-init is a virtual machine's first process, not a command to run")
	}
	const root = "/root"
	if err := (boot.Mount{Source: "/", Target: root, Flags: unix.MS_BIND}).Do(); err != nil {
		return err
	}
	if err := boot.Enter(root); err != nil {
		return err
	}
	if err := boot.All(boot.Kernel("")); err != nil {
		return err
	}
	if err := boot.Output(); err != nil {
		return err
	}
	if err := boot.Modules(); err != nil {
		return err
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find lo: %w", err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return fmt.Errorf("raise lo: %w", err)
	}
	a, err := guest.New("/sys/fs/cgroup", log)
	if err != nil {
		return err
	}
	l, err := vsock.Listen(agentPort, nil)
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	s, err := ttrpc.NewServer(ttrpc.WithUnaryServerInterceptor(a.Recover))
	if err != nil {
		return err
	}
	a.Register(s)
	return s.Serve(context.Background(), l)
}
