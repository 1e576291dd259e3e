// Command pause is the first process of an instance's sandbox. It holds the
// sandbox's namespaces open, does nothing, and leaves when told to; where the
// containers of an instance share a process namespace it is their process 1 and
// reaps what they orphan. It is not an init system: it starts and forwards
// nothing.
package main

import (
	"fmt"
	"os"
	"os/signal"

	"golang.org/x/sys/unix"
)

func main() {
	if os.Getpid() != 1 {
		fmt.Fprintln(os.Stderr, "pause: not process 1 here: nothing is reaped")
	}
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, unix.SIGTERM, unix.SIGINT, unix.SIGCHLD)
	run(signals, reap)
}

// run returns at the first signal that asks the sandbox to end, and calls reap
// for every SIGCHLD until then.
func run(signals <-chan os.Signal, reap func() int) {
	for s := range signals {
		if s != unix.SIGCHLD {
			return
		}
		reap()
	}
}

// reap collects every child that has ended and returns how many there were. One
// SIGCHLD may stand for several children.
func reap() int {
	for n := 0; ; {
		pid, err := unix.Wait4(-1, nil, unix.WNOHANG, nil)
		switch {
		case err == unix.EINTR:
		case err != nil || pid <= 0:
			return n
		default:
			n++
		}
	}
}
