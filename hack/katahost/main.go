// Command katahost tests Kata as it is in production, on any machine: Kata's
// own shim with its QEMU driver, KVM, vhost-vsock. The machine that this needs
// is emulated, its processor's virtualisation included (AMD's SVM), so it is
// slow: a virtual machine in it takes 20 s to start.
//
// The emulated machine boots Debian's kernel and has this machine's file system,
// which it cannot write to. In it runs host.sh, which makes it a host for Kata as
// docs/kata-host.md has it, asks `cisd host check`, and runs the tests of
// hack/katahost/inside. Nothing of it reaches beyond the machine: it has no
// network but its own.
//
// make test-kata-host builds what is needed and runs it.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

type options struct {
	timeout   time.Duration
	memoryMiB int
	cpus      int
	run       string
	verbose   bool
}

func main() {
	// Children end with the thread that started them: with this one, which ends last.
	runtime.LockOSThread()
	if len(os.Args) > 1 && os.Args[1] == serveCommand {
		fmt.Fprintln(os.Stderr, "katahost:", serve(os.Args[2:]))
		os.Exit(1)
	}
	var o options
	flag.DurationVar(&o.timeout, "timeout", 30*time.Minute, "of everything")
	flag.IntVar(&o.memoryMiB, "memory", 4096, "MiB of the emulated machine")
	flag.IntVar(&o.cpus, "cpus", 1, "processors of the emulated machine: more of them are not faster")
	flag.StringVar(&o.run, "run", ".", "tests to run, as go test has it")
	flag.BoolVar(&o.verbose, "v", false, "the emulated machine's console, too")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	ctx, cancel := context.WithTimeoutCause(ctx, o.timeout, fmt.Errorf("not done after %v", o.timeout))
	err := test(ctx, o)
	cancel()
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "katahost:", err)
		os.Exit(1)
	}
}

func test(ctx context.Context, o options) (err error) {
	log := newProgress(os.Stdout)
	files, err := find()
	if err != nil {
		return err
	}
	dir, remove, err := newRunDir(os.TempDir())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, remove()) }()
	log.say("building the tests and cisd")
	if err := files.build(ctx, dir); err != nil {
		return err
	}
	if err := files.writeScript(dir, o.run); err != nil {
		return err
	}
	boot := func() (int, error) { return (&machine{options: o, files: files, dir: dir, log: log}).run(ctx) }
	code, err := boot()
	if errors.Is(err, errStalled) {
		log.say(strings.ReplaceAll(err.Error(), "\n", "\n      "))
		log.say("once more, from its boot: what stands still is the emulation, and not what is tested")
		code, err = boot()
	}
	if err != nil {
		return err
	}
	if code != 0 {
		return fmt.Errorf("failed: host.sh ended with %d after %v", code, log.elapsed())
	}
	log.say("passed")
	return nil
}
