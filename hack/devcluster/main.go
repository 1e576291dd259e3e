// Command devcluster runs a whole Kubernetes control plane in one process on
// loopback, for the quickstart and for tests: etcd, the API server, the
// controller manager, the scheduler. It has no kubelet and runs no pod: a
// virtual node does. It is also kubectl, by the subcommand or by its own name.
//
//	devcluster up --dir DIR [--port PORT] [--node-name NAME]
//	devcluster kubectl ARGS...
//
// What it knows is in DIR and survives restarts. It is not for production: one
// member, one machine, certificate keys in files.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"k8s.io/component-base/version"
	kubectl "k8s.io/kubectl/pkg/cmd"
)

func main() {
	if err := run(os.Args); err != nil {
		if !errors.Is(err, flag.ErrHelp) {
			fmt.Fprintln(os.Stderr, "devcluster:", err)
		}
		os.Exit(1)
	}
}

func run(args []string) error {
	if filepath.Base(args[0]) == "kubectl" {
		return kubectl.NewDefaultKubectlCommand().Execute()
	}
	if len(args) < 2 {
		return errors.New("want a subcommand: up, kubectl or version")
	}
	switch args[1] {
	case "kubectl":
		// kubectl reads os.Args, for its plugins too.
		os.Args = append([]string{"kubectl"}, args[2:]...)
		return kubectl.NewDefaultKubectlCommand().Execute()
	case "up":
		options, err := parse(args[2:])
		if err != nil {
			return err
		}
		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
		defer stop()
		return Up(ctx, options)
	case "version":
		fmt.Println(version.Get().GitVersion)
		return nil
	}
	return fmt.Errorf("unknown subcommand %q: want up, kubectl or version", args[1])
}

// Options of up.
type Options struct {
	Dir      string   // all state
	Port     int      // of the API server; 0: the one in Dir, else a free one
	NodeName string   // of the virtual node
	NodeIPs  []string // of the virtual node, besides this machine's addresses
	QPS      int      // requests a second of the controllers and of the scheduler
	NoFsync  bool     // etcd does not wait for the disk: fast, lost with the power
	Verbose  int      // klog's level
}

func parse(args []string) (Options, error) {
	var o Options
	fs := flag.NewFlagSet("devcluster up", flag.ContinueOnError)
	fs.StringVar(&o.Dir, "dir", "", "state `directory` (required)")
	fs.IntVar(&o.Port, "port", 0, "API server's port on 127.0.0.1; 0 takes the one used before in --dir, else a free one")
	fs.StringVar(&o.NodeName, "node-name", "cumulet", "name of the virtual node, for its certificate")
	fs.Func("node-ip", "an address of the virtual node besides this machine's (repeatable)", func(s string) error {
		o.NodeIPs = append(o.NodeIPs, s)
		return nil
	})
	fs.IntVar(&o.QPS, "qps", 500, "requests a second of the controllers and of the scheduler")
	fs.BoolVar(&o.NoFsync, "unsafe-no-fsync", false, "let etcd not wait for the disk")
	fs.IntVar(&o.Verbose, "v", 0, "log level")
	if err := fs.Parse(args); err != nil {
		return Options{}, err
	}
	switch {
	case fs.NArg() > 0:
		return Options{}, fmt.Errorf("up takes no arguments, not %q", fs.Args())
	case o.Dir == "":
		return Options{}, errors.New("--dir is required")
	case o.Port < 0 || o.Port > 65535:
		return Options{}, fmt.Errorf("--port %d: want 0 to 65535", o.Port)
	case o.QPS < 1:
		return Options{}, fmt.Errorf("--qps %d: want at least 1", o.QPS)
	}
	dir, err := filepath.Abs(o.Dir)
	o.Dir = dir
	return o, err
}
