package cri

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"runtime"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	rt "k8s.io/cri-api/pkg/apis/runtime/v1"

	"cumulet.io/cis"
	"cumulet.io/internal/problem"
)

const dialTimeout = 10 * time.Second

// PortForward implements engine.PortForwarder. It dials the sandbox's address; a server that listens on the sandbox's
// loopback interface alone is reached from inside its network namespace, which works for runc: the other classes have
// a network stack of their own behind that namespace.
func (e *Engine) PortForward(ctx context.Context, id string, port uint16) (io.ReadWriteCloser, error) {
	a, err := e.actor(id)
	if err != nil {
		return nil, fmt.Errorf("port-forward: %w", err)
	}
	if port == 0 {
		return nil, fmt.Errorf("port-forward: %w", problem.Invalid("port", "must be 1 to 65535", port))
	}
	v := a.view.Load()
	if v == nil || v.sandboxID == "" || len(v.ips) == 0 {
		return nil, fmt.Errorf("port-forward: %w", problem.New(problem.ErrConflict, "instance %s has no sandbox yet", id))
	}
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	conn, err := dialTCP(ctx, v.ips[0], port)
	if errors.Is(err, syscall.ECONNREFUSED) && v.class == cis.Runc {
		if conn, err = e.dialInside(ctx, v.sandboxID, "127.0.0.1", port); errors.Is(err, syscall.ECONNREFUSED) {
			conn, err = e.dialInside(ctx, v.sandboxID, "::1", port)
		}
	}
	switch {
	case errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.EADDRNOTAVAIL):
		return nil, fmt.Errorf("port-forward: %w", problem.New(problem.ErrUnavailable, "nothing listens on port %d of instance %s", port, id))
	case err != nil:
		return nil, fmt.Errorf("port-forward: %w", problem.New(problem.ErrUnavailable, "port %d of instance %s: %v", port, id, err))
	}
	return conn, nil
}

func dialTCP(ctx context.Context, host string, port uint16) (net.Conn, error) {
	return (&net.Dialer{}).DialContext(ctx, "tcp", net.JoinHostPort(host, strconv.Itoa(int(port))))
}

// dialInside dials from within the network namespace of a sandbox.
func (e *Engine) dialInside(ctx context.Context, sandbox, host string, port uint16) (net.Conn, error) {
	path, err := e.netns(ctx, sandbox)
	if err != nil {
		return nil, err
	}
	type result struct {
		conn net.Conn
		err  error
	}
	done := make(chan result, 1)
	go func() {
		// The thread is in the other namespace from Setns on. It is not unlocked, so it ends with this goroutine.
		runtime.LockOSThread()
		fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			done <- result{err: fmt.Errorf("open network namespace: %w", err)}
			return
		}
		defer unix.Close(fd) //nolint:errcheck // read only
		if err := unix.Setns(fd, unix.CLONE_NEWNET); err != nil {
			done <- result{err: fmt.Errorf("enter network namespace: %w", err)}
			return
		}
		// An address needs no resolver, so the socket is made by this goroutine, on this thread.
		conn, err := dialTCP(ctx, host, port)
		done <- result{conn, err}
	}()
	r := <-done
	return r.conn, r.err
}

// netns finds the network namespace of a sandbox.
func (e *Engine) netns(ctx context.Context, sandbox string) (string, error) {
	r, err := e.rt.PodSandboxStatus(ctx, &rt.PodSandboxStatusRequest{PodSandboxId: sandbox, Verbose: true})
	if err != nil {
		return "", fmt.Errorf("sandbox status: %w", err)
	}
	return netnsOf(r.Info["info"])
}

// netnsOf reads the path of the network namespace out of containerd's verbose status.
func netnsOf(info string) (string, error) {
	var x struct {
		RuntimeSpec struct {
			Linux struct {
				Namespaces []struct{ Type, Path string } `json:"namespaces"`
			} `json:"linux"`
		} `json:"runtimeSpec"`
	}
	if err := json.Unmarshal([]byte(info), &x); err != nil {
		return "", fmt.Errorf("decode sandbox status: %w", err)
	}
	for _, n := range x.RuntimeSpec.Linux.Namespaces {
		if n.Type == "network" && n.Path != "" {
			return n.Path, nil
		}
	}
	return "", errors.New("the sandbox has no network namespace of its own")
}
