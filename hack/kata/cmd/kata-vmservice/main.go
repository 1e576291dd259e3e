// Command kata-vmservice runs virtual machines for Kata's shim on a machine
// without hardware virtualisation.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"

	"golang.org/x/sys/unix"

	"cumulet.io/hack/kata/vmservice"
)

type options struct {
	service     vmservice.Config
	syslog      string
	printConfig bool
}

func main() {
	o, err := parse(os.Args[1:])
	if err != nil {
		os.Exit(2) // the flag package has told
	}
	if o.printConfig {
		fmt.Print(vmservice.KataConfig(o.service.Socket, o.service.MemoryMiB))
		return
	}
	if err := run(o); err != nil {
		fmt.Fprintln(os.Stderr, "kata-vmservice:", err)
		os.Exit(1)
	}
}

func run(o options) error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	defer stop()
	syslog := make(chan error, 1)
	go func() {
		if o.syslog == "" {
			syslog <- nil
			return
		}
		err := vmservice.ServeSyslog(ctx, o.syslog)
		if err != nil {
			o.service.Log.Error("no syslog socket", "error", err)
		}
		syslog <- err
	}()
	err := vmservice.Run(ctx, o.service)
	stop()
	return errors.Join(err, <-syslog)
}

func parse(args []string) (options, error) {
	var o options
	c := &o.service
	c.Log = slog.New(slog.NewJSONHandler(os.Stderr, nil))
	f := flag.NewFlagSet("kata-vmservice", flag.ContinueOnError)
	f.StringVar(&c.Socket, "socket", "", "Unix socket to serve at: remote_hypervisor_socket of Kata's configuration")
	f.StringVar(&c.StateDir, "state", "", "directory of the machines, with a short path; its content is removed at start")
	f.StringVar(&c.Kernel, "kernel", "", "kernel of the machines (vmlinuz, or vmlinux with a PVH entry)")
	f.StringVar(&c.Initrd, "initrd", "", "initial ramdisk of the machines, with the agent")
	f.StringVar(&c.QEMU, "qemu", "/usr/bin/qemu-system-x86_64", "QEMU")
	f.StringVar(&c.Virtiofsd, "virtiofsd", "/usr/lib/qemu/virtiofsd", "virtiofsd of QEMU 7.2")
	f.StringVar(&c.Accel, "accel", "tcg", "what runs the guests' code: tcg (emulation) or kvm")
	f.IntVar(&c.MemoryMiB, "memory", 256, "MiB of a machine's memory, where its request says none")
	f.StringVar(&o.syslog, "syslog", "", "file for what comes to /dev/log, which is served where nobody does: Kata's shim does not start without")
	f.BoolVar(&o.printConfig, "print-config", false, "print a configuration of Kata for this -socket and -memory, and exit")
	if err := f.Parse(args); err != nil {
		return o, err
	}
	if f.NArg() > 0 {
		err := fmt.Errorf("unexpected argument %q", f.Arg(0))
		fmt.Fprintln(f.Output(), err)
		return o, err
	}
	return o, nil
}
