// Command kata-agent is the first process of a virtual machine of kata-vmservice.
package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"

	"github.com/containerd/ttrpc"
	"github.com/mdlayher/vsock"

	"cumulet.io/hack/kata/agent"
	"cumulet.io/hack/kata/agent/guest"
	"cumulet.io/hack/kata/agent/inside"
	"cumulet.io/hack/kata/boot"
	"cumulet.io/hack/kata/sharing"
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
	// The kernel would panic without its first process.
	if err := boot.Off(); err != nil {
		log.Error("power off", "error", err)
	}
}

func run(log *slog.Logger) error {
	if os.Getpid() != 1 {
		return fmt.Errorf("kata-agent is a virtual machine's first process, not a command to run")
	}
	if err := guest.Boot(); err != nil {
		return err
	}
	a, err := agent.New(host{}, guest.ShareDir, guest.CgroupRoot, log)
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

// host asks the VM service, at the host's end of the socket device.
type host struct{}

func (host) Call(req sharing.Request) (sharing.Response, error) {
	c, err := vsock.Dial(vsock.Host, sharing.Port, nil)
	if err != nil {
		return sharing.Response{}, fmt.Errorf("reach the VM service: %w", err)
	}
	defer c.Close()
	return sharing.Call(c, req)
}
