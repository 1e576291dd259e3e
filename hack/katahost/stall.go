package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"
)

// errStalled says that the emulated machine has come to a standstill: the emulation has lost an interrupt for which all in
// it waits. Nothing that is tested can do that, so the machine may be booted once more.
var errStalled = errors.New("the emulated host stands still")

// A machine that is alive has a tick, each of which takes the emulator a little time.
const (
	stallTime  = time.Minute
	stallLeast = 100 * time.Millisecond
)

// watchStall waits until a process has taken less than least of its processor's time within a while, and says so; or until
// ctx ends or the process does.
func watchStall(ctx context.Context, pid int, while, least time.Duration) error {
	last, err := processorTime(pid)
	for err == nil {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(while):
		}
		var now time.Duration
		if now, err = processorTime(pid); err == nil && now-last < least {
			return fmt.Errorf("%w: it took %v of a processor in %v", errStalled, now-last, while)
		}
		last = now
	}
	return nil //nolint:nilerr // it has ended
}

// processorTime is what a process has taken of processors, all its threads together.
func processorTime(pid int) (time.Duration, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	// pid (command) state parent ...; the command may hold anything. utime and stime are the 14th and 15th of all
	// (proc_pid_stat(5)), in the hundredths of a second that Linux shows to programs on every machine.
	const utime, stime, tick = 14 - 3, 15 - 3, 10 * time.Millisecond
	fields := bytes.Fields(b[bytes.LastIndexByte(b, ')')+1:])
	if len(fields) <= stime {
		return 0, fmt.Errorf("/proc/%d/stat has %d fields", pid, len(fields))
	}
	sum := time.Duration(0)
	for _, f := range [][]byte{fields[utime], fields[stime]} {
		n, err := strconv.ParseInt(string(f), 10, 64)
		if err != nil {
			return 0, fmt.Errorf("/proc/%d/stat: %w", pid, err)
		}
		sum += time.Duration(n) * tick
	}
	return sum, nil
}
