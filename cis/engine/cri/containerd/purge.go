package containerd

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"cumulet.io/internal/mounts"
)

// removals is how many sandboxes are removed at a time.
const removals = 8

// RemoveSandboxes stops and removes every sandbox with what runs in it, while
// containerd is up. It tries them all and reports what is left.
func (d *Daemon) RemoveSandboxes(ctx context.Context) error {
	conn, err := grpc.NewClient("unix://"+d.Socket(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return fmt.Errorf("remove sandboxes: %w", err)
	}
	defer conn.Close() // nothing is in flight
	runtime := runtimev1.NewRuntimeServiceClient(conn)
	list, err := runtime.ListPodSandbox(ctx, &runtimev1.ListPodSandboxRequest{})
	if err != nil {
		return fmt.Errorf("remove sandboxes: list: %w", err)
	}
	errs := make([]error, len(list.GetItems())) // each goroutine's own
	var group errgroup.Group
	group.SetLimit(removals)
	for i, sandbox := range list.GetItems() {
		group.Go(func() error {
			id := sandbox.GetId()
			if _, err := runtime.StopPodSandbox(ctx, &runtimev1.StopPodSandboxRequest{PodSandboxId: id}); err != nil {
				errs[i] = fmt.Errorf("stop sandbox %s: %w", id, err)
				return nil
			}
			if _, err := runtime.RemovePodSandbox(ctx, &runtimev1.RemovePodSandboxRequest{PodSandboxId: id}); err != nil {
				errs[i] = fmt.Errorf("remove sandbox %s: %w", id, err)
			}
			return nil
		})
	}
	return errors.Join(group.Wait(), errors.Join(errs...))
}

// Purge removes what this containerd has left on the machine: shims and their
// containers, packet filter rules, mounts, the bridge, Dir and RunDir with all
// images in them. It works on what a killed server has left, too. Only for after
// Run has returned, and only when nothing is to be kept; RemoveSandboxes before
// it gives containers their gentle end.
func (d *Daemon) Purge(ctx context.Context) error {
	unlock, err := d.lock(ctx)
	if err != nil {
		return fmt.Errorf("purge: %w", err)
	}
	var errs []error
	child, err := d.child()
	if err == nil {
		err = child.StopOrphans(ctx)
	}
	errs = append(errs, err)
	if err := d.killShims(ctx); err != nil {
		errs = append(errs, err)
	}
	// Before the directories go: they tell whose rules are whose.
	if err := d.config.deleteRules(); err != nil {
		errs = append(errs, err)
	}
	for _, dir := range []string{d.config.shortDir(), d.config.RunDir, d.config.Dir} {
		if err := mounts.RemoveAll(dir); err != nil {
			errs = append(errs, err)
		}
	}
	if err := deleteLink(d.config.Network.Bridge); err != nil {
		errs = append(errs, err)
	}
	errs = append(errs, unlock())
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("purge containerd in %s: %w", d.config.Dir, err)
	}
	return nil
}

// killShims kills the shims that serve this socket with all their descendants,
// and waits until they are gone.
func (d *Daemon) killShims(ctx context.Context) error {
	for {
		shims, children, err := processes(d.Socket())
		if err != nil || len(shims) == 0 {
			return err
		}
		for len(shims) > 0 {
			pid := shims[0]
			shims = append(shims[1:], children[pid]...)
			if err := unix.Kill(pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("kill %d: %w", pid, err)
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("shims are still there: %w", ctx.Err())
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// processes returns the shims of the socket and every process's children.
func processes(socket string) (shims []int, children map[int][]int, err error) {
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil, nil, err
	}
	children = map[int][]int{}
	for _, dir := range dirs {
		pid, err := strconv.Atoi(filepath.Base(dir))
		if err != nil {
			continue
		}
		// A process that has ended meanwhile reads as an error: skip it.
		stat, err := os.ReadFile(filepath.Join(dir, "stat"))
		if err != nil {
			continue
		}
		// pid (command) state parent ...; the command may hold anything.
		f := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
		if len(f) < 2 {
			continue
		}
		if parent, err := strconv.Atoi(f[1]); err == nil {
			children[parent] = append(children[parent], pid)
		}
		cmdline, err := os.ReadFile(filepath.Join(dir, "cmdline"))
		if err != nil {
			continue
		}
		args := strings.Split(string(cmdline), "\x00")
		if strings.HasPrefix(filepath.Base(args[0]), "containerd-shim-") && slices.Contains(args[1:], socket) {
			shims = append(shims, pid)
		}
	}
	return shims, children, nil
}

// deleteLink deletes a network interface; one that is not there is fine.
func deleteLink(name string) error {
	link, err := net.InterfaceByName(name)
	if err != nil {
		return nil //nolint:nilerr // there is none by this name
	}
	conn, err := netlink.Dial(unix.NETLINK_ROUTE, nil)
	if err != nil {
		return fmt.Errorf("delete interface %s: %w", name, err)
	}
	defer conn.Close() // the answer has come
	header := make([]byte, unix.SizeofIfInfomsg)
	binary.NativeEndian.PutUint32(header[4:], uint32(link.Index))
	_, err = conn.Execute(netlink.Message{
		Header: netlink.Header{Type: unix.RTM_DELLINK, Flags: netlink.Request | netlink.Acknowledge},
		Data:   header,
	})
	if err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("delete interface %s: %w", name, err)
	}
	return nil
}
