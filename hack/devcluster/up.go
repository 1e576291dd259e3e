package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
)

// How long the controllers, and then the API server, may take to end after ctx
// does. The latter would wait for clients that watch; what it has acknowledged
// is in etcd.
const (
	controllersBound = 10 * time.Second
	apiServerBound   = 2 * time.Second
)

// Up runs the control plane until ctx ends or a part fails. While it is usable,
// DIR/ready holds the API server's URL.
func Up(ctx context.Context, o Options) error {
	if err := os.MkdirAll(o.Dir, 0o700); err != nil {
		return err
	}
	unlock, err := lock(filepath.Join(o.Dir, "lock"))
	if err != nil {
		return err
	}
	defer unlock()
	ready := filepath.Join(o.Dir, "ready")
	if err := os.Remove(ready); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	listener, err := listen(ctx, o)
	if err != nil {
		return err
	}
	defer listener.Close() // the API server may have closed it already
	server := "https://" + listener.Addr().String()
	pki, err := LoadPKI(o, server)
	if err != nil {
		return fmt.Errorf("certificates: %w", err)
	}
	client, err := newClient(pki, server)
	if err != nil {
		return err
	}

	// etcd ends after the API server, which ends after its clients.
	began := time.Now()
	etcd, err := StartEtcd(ctx, o, pki)
	if err != nil {
		return fmt.Errorf("etcd: %w", err)
	}
	defer etcd.Close()
	serving, stopServing := context.WithCancel(context.WithoutCancel(ctx))
	defer stopServing()
	group, ctx := errgroup.WithContext(ctx)
	failed := make(chan error, 1)
	go func() {
		failed <- until(serving, "API server", func(ctx context.Context) error {
			return RunAPIServer(ctx, o, pki, etcd.Endpoint, listener)
		})
	}()
	group.Go(func() error {
		select {
		case err := <-failed:
			failed <- err
			return err
		case <-ctx.Done():
			return nil
		}
	})
	group.Go(func() error { return until(ctx, "etcd", etcd.Wait) })
	group.Go(func() error {
		if err := client.WaitFor(ctx, "/readyz"); err != nil {
			return err
		}
		group.Go(func() error {
			return until(ctx, "controller manager", func(ctx context.Context) error { return RunControllerManager(ctx, o, pki) })
		})
		group.Go(func() error {
			return until(ctx, "scheduler", func(ctx context.Context) error { return RunScheduler(ctx, o, pki) })
		})
		return nil
	})
	group.Go(func() error {
		if err := prepare(ctx, client); err != nil {
			return err
		}
		fmt.Printf("control plane ready at %s in %.1fs\nexport KUBECONFIG=%s\n", server, time.Since(began).Seconds(), pki.path("admin.kubeconfig"))
		return writeFile(ready, []byte(server+"\n"), 0o644)
	})

	<-ctx.Done()
	return shutDown(group, ready, stopServing, failed)
}

// shutDown ends the parts in their order, within the bounds. Its error is the
// one that made them end, if any did.
func shutDown(group *errgroup.Group, ready string, stopServing func(), failed <-chan error) error {
	if err := os.Remove(ready); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	clients := make(chan error, 1)
	go func() { clients <- group.Wait() }()
	var first error
	select {
	case first = <-clients:
	case <-time.After(controllersBound):
		first = errors.New("the controllers did not end in time")
	}
	stopServing()
	select {
	case err := <-failed:
		if first == nil {
			first = err
		}
	case <-time.After(apiServerBound):
	}
	if errors.Is(first, context.Canceled) {
		return nil
	}
	return first
}

// prepare makes what every user of the cluster relies on: the virtual node's
// rights and, made by a controller, the default service account.
func prepare(ctx context.Context, client *Client) error {
	if err := client.WaitFor(ctx, "/readyz"); err != nil {
		return err
	}
	if err := client.ApplyRBAC(ctx); err != nil {
		return fmt.Errorf("apply the virtual node's rights: %w", err)
	}
	return client.WaitFor(ctx, "/api/v1/namespaces/default/serviceaccounts/default")
}

// until runs a part. Its end is an error that names it, unless ctx has ended
// before.
func until(ctx context.Context, name string, run func(context.Context) error) error {
	err := run(ctx)
	switch {
	case ctx.Err() != nil:
		return nil
	case err == nil:
		err = errors.New("ended unasked")
	}
	return fmt.Errorf("%s: %w", name, err)
}

// lock makes this process the only one on the directory.
func lock(path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close() // never written to
		return nil, fmt.Errorf("another devcluster runs in %s", filepath.Dir(path))
	}
	return func() { f.Close() }, nil
}

// listen takes the API server's port: the one asked for, else the one that the
// directory's kubeconfigs name already, else a free one.
func listen(ctx context.Context, o Options) (net.Listener, error) {
	port, kept := o.Port, filepath.Join(o.Dir, "port")
	if port == 0 {
		b, err := os.ReadFile(kept)
		if err == nil {
			port, err = strconv.Atoi(strings.TrimSpace(string(b)))
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("the kept port: %w", err)
		}
	}
	var config net.ListenConfig
	l, err := config.Listen(ctx, "tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
	if err != nil {
		return nil, fmt.Errorf("API server: %w", err)
	}
	port = l.Addr().(*net.TCPAddr).Port
	return l, writeFile(kept, fmt.Appendln(nil, port), 0o644)
}

// writeFile writes the file whole or not at all.
func writeFile(path string, content []byte, mode fs.FileMode) error {
	tmp := path + ".tmp"
	if err := os.WriteFile(tmp, content, mode); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}
