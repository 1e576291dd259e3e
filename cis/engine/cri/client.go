package cri

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	rt "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Labels on sandboxes and containers. The node keeps apart engines that share a containerd.
const (
	labelInstance    = "cumulet.io/instance"
	labelOrg         = "cumulet.io/org"
	labelNode        = "cumulet.io/node"
	labelIncarnation = "cumulet.io/incarnation"
	labelClass       = "cumulet.io/sandbox"
)

const maxMessage = 64 << 20

// dial connects to containerd, lazily. While it is away calls wait for it until their context ends. Each connection is
// used as wrap gives it.
func dial(socket string, wrap func(net.Conn) net.Conn) (*grpc.ClientConn, error) {
	conn, err := grpc.NewClient("passthrough:///"+socket,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			c, err := (&net.Dialer{}).DialContext(ctx, "unix", socket)
			if err != nil {
				return nil, err
			}
			return wrap(c), nil
		}),
		grpc.WithConnectParams(grpc.ConnectParams{MinConnectTimeout: 5 * time.Second,
			Backoff: backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 2 * time.Second}}),
		grpc.WithDefaultCallOptions(grpc.WaitForReady(true), grpc.MaxCallRecvMsgSize(maxMessage), grpc.MaxCallSendMsgSize(maxMessage)),
		grpc.WithUnaryInterceptor(retryUnavailable))
	if err != nil {
		return nil, fmt.Errorf("connect to containerd: %w", err)
	}
	return conn, nil
}

// retryUnavailable repeats calls that containerd refused because it is starting, and calls that change nothing when
// repeated, until the context ends. A call that makes something is not repeated after a lost connection: its caller
// looks first what became of it.
func retryUnavailable(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	for delay := 50 * time.Millisecond; ; delay = min(2*delay, time.Second) {
		err := invoke(ctx, method, req, reply, cc, opts...)
		if err == nil || !notReady(err) && (status.Code(err) != codes.Unavailable || makes(method)) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(delay):
		}
	}
}

// notReady tells whether containerd answered that its CRI service has not started yet.
func notReady(err error) bool {
	s := status.Convert(err)
	return (s.Code() == codes.Unavailable || s.Code() == codes.Unknown) && strings.Contains(s.Message(), "server is not initialized yet")
}

func makes(method string) bool {
	switch method[strings.LastIndexByte(method, '/')+1:] {
	case "RunPodSandbox", "CreateContainer", "StartContainer", "ExecSync", "PullImage", "Exec", "Start", "Attach":
		return true
	}
	return false
}

func isNotFound(err error) bool { return status.Code(err) == codes.NotFound }

// message is what a person gets to read of a gRPC error.
func message(err error) string {
	if s, ok := status.FromError(err); ok {
		return s.Message()
	}
	return err.Error()
}

// own selects what this engine made; id restricts to one instance when not empty.
func (e *Engine) own(id string) map[string]string {
	sel := map[string]string{labelNode: e.cfg.Node}
	if id != "" {
		sel[labelInstance] = id
	}
	return sel
}

func (e *Engine) listSandboxes(ctx context.Context, id string) ([]*rt.PodSandbox, error) {
	r, err := e.rt.ListPodSandbox(ctx, &rt.ListPodSandboxRequest{Filter: &rt.PodSandboxFilter{LabelSelector: e.own(id)}})
	return r.GetItems(), err
}

func (e *Engine) listContainers(ctx context.Context, id string) ([]*rt.Container, error) {
	r, err := e.rt.ListContainers(ctx, &rt.ListContainersRequest{Filter: &rt.ContainerFilter{LabelSelector: e.own(id)}})
	return r.GetContainers(), err
}

// removeSandbox stops and removes a sandbox with all that is in it; one that is gone is fine. The shim of a sandbox that
// was just being made when containerd was killed may wait for ever, or have a record that it cannot read; then it is killed.
func (e *Engine) removeSandbox(ctx context.Context, id string) error {
	err := e.stopSandbox(ctx, id)
	if err != nil && status.Code(err) != codes.Unavailable && ctx.Err() == nil {
		e.log.Warn("sandbox does not stop, its shim is killed", "sandbox", id, "error", err)
		if err = e.killShims(ctx, id); err == nil {
			err = e.stopSandbox(ctx, id)
		}
	}
	if err != nil {
		return fmt.Errorf("stop sandbox: %w", err)
	}
	if _, err := e.rt.RemovePodSandbox(ctx, &rt.RemovePodSandboxRequest{PodSandboxId: id}); err != nil && !isNotFound(err) {
		return fmt.Errorf("remove sandbox: %w", err)
	}
	return e.removeShimSocket(id)
}

// killShims kills the shim of a sandbox, and those of its containers that have one of their own.
func (e *Engine) killShims(ctx context.Context, sandbox string) error {
	r, err := e.rt.ListContainers(ctx, &rt.ListContainersRequest{Filter: &rt.ContainerFilter{PodSandboxId: sandbox}})
	if err != nil {
		return fmt.Errorf("list containers: %w", err)
	}
	err = signalShim(sandbox, unix.SIGKILL)
	for _, c := range r.GetContainers() {
		err = errors.Join(err, signalShim(c.Id, unix.SIGKILL))
	}
	return err
}

func (e *Engine) stopSandbox(ctx context.Context, id string) error {
	// While containerd is away this waits for it, without a bound.
	if _, err := e.rt.Version(ctx, &rt.VersionRequest{}); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, e.cfg.StopBound)
	defer cancel()
	_, err := e.rt.StopPodSandbox(ctx, &rt.StopPodSandboxRequest{PodSandboxId: id})
	if isNotFound(err) {
		return nil
	}
	return err
}

// startBound is how long the end of an instance waits for what is just being made or started of it. containerd forgets some of
// what it is told to make no more (a shim, or a whole sandbox while it runs); what is made is removed whole.
const startBound = 30 * time.Second

// patiently makes a call by Engine.start. When ctx ends it is given up startBound later; when this engine ends it is left to
// containerd, for the next life to find (resumeStart, lookUp). A call that is given up has ended for its caller while
// containerd is at it still, and what containerd then leaves is for Engine.sweep.
func patiently[T any](ctx context.Context, a *actor, f func(context.Context) (T, error)) (T, error) {
	type answer struct {
		value T
		err   error
	}
	call, giveUp := context.WithCancel(context.WithoutCancel(ctx))
	done := make(chan answer, 1)
	a.e.starting.Add(1)
	go func() {
		defer a.e.starting.Add(-1)
		value, err := f(call)
		done <- answer{value, err}
	}()
	defer func() {
		if a.ctx.Err() == nil {
			giveUp()
		}
	}()
	select {
	case r := <-done:
		return r.value, r.err
	case <-ctx.Done():
	}
	select {
	case r := <-done:
		return r.value, r.err
	case <-a.ctx.Done():
	case <-time.After(startBound):
	}
	if err := a.ctx.Err(); err != nil {
		var none T
		return none, err // Close of the connection ends the call here, and here alone
	}
	giveUp()
	r := <-done
	return r.value, r.err
}
