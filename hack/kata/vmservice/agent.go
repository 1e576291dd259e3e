package vmservice

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/containerd/ttrpc"
	agent "github.com/kata-containers/kata-containers/src/runtime/virtcontainers/pkg/agent/protocols/grpc"

	"cumulet.io/hack/kata/vsock"
)

// agentPort is the guest's vsock port at which its agent listens.
const agentPort = 1024

// serveAgent makes the Unix socket that leads to the agent.
func (v *vm) serveAgent() error {
	l, err := (&net.ListenConfig{}).Listen(context.Background(), "unix", v.path(agentSocket))
	if err != nil {
		return err
	}
	v.agent = l
	v.tasks.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return // closed
			}
			v.tasks.Go(func() { v.relay(c) })
		}
	})
	return nil
}

func (v *vm) relay(c net.Conn) {
	s, err := v.vsock.Dial(stoppedContext{v.stopped}, agentPort)
	if err != nil {
		c.Close() // which is all that the shim can be told
		return
	}
	vsock.Relay(s, c)
}

// greet waits until the agent answers and does for it what the shim leaves to a
// remote hypervisor: the clock and the network.
func (v *vm) greet(ctx context.Context) error {
	c, err := v.dialAgent(ctx)
	if err != nil {
		return fmt.Errorf("reach the agent: %w", err)
	}
	client := ttrpc.NewClient(c)
	defer client.Close()
	if _, err := agent.NewHealthClient(client).Check(ctx, &agent.CheckRequest{}); err != nil {
		return fmt.Errorf("check the agent: %w", err)
	}
	a := agent.NewAgentServiceClient(client)
	now := time.Now()
	if _, err := a.SetGuestDateTime(ctx, &agent.SetGuestDateTimeRequest{Sec: now.Unix(), Usec: int64(now.Nanosecond() / 1000)}); err != nil {
		return fmt.Errorf("set the guest's clock: %w", err)
	}
	for _, i := range v.network.interfaces {
		if _, err := a.UpdateInterface(ctx, &agent.UpdateInterfaceRequest{Interface: i}); err != nil {
			return fmt.Errorf("set the guest's interface %s: %w", i.Name, err)
		}
	}
	if r := v.network.routes; len(r) > 0 {
		if _, err := a.UpdateRoutes(ctx, &agent.UpdateRoutesRequest{Routes: &agent.Routes{Routes: r}}); err != nil {
			return fmt.Errorf("set the guest's routes: %w", err)
		}
	}
	return nil
}

// dialAgent connects as soon as the agent listens, through a pipe: ttrpc wants
// all that a net.Conn has.
func (v *vm) dialAgent(ctx context.Context) (net.Conn, error) {
	for {
		s, err := v.vsock.Dial(ctx, agentPort)
		if err == nil {
			ours, theirs := net.Pipe()
			go vsock.Relay(s, theirs)
			return ours, nil
		}
		if !errors.Is(err, vsock.ErrRefused) {
			return nil, err
		}
		// The guest's driver is there before its agent is.
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}
