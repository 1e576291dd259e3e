package meter

import (
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"cumulet.io/billing"
)

// Clock tells a node's time. Safe for concurrent use.
type Clock interface {
	// Now gives the wall clock and the monotonic clock of one instant.
	Now() (wall time.Time, mono billing.Clock)
}

type bootClock struct{ boot string }

// SystemClock is the machine's: CLOCK_BOOTTIME and the kernel's boot id.
func SystemClock() (Clock, error) {
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return nil, fmt.Errorf("read the boot id: %w", err)
	}
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return nil, fmt.Errorf("read CLOCK_BOOTTIME: %w", err)
	}
	return bootClock{boot: strings.TrimSpace(string(id))}, nil
}

func (c bootClock) Now() (time.Time, billing.Clock) {
	var ts unix.Timespec
	// The call was tried in SystemClock; it has no error but for an unknown clock.
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return time.Now().UTC(), billing.Clock{}
	}
	return time.Now().UTC(), billing.Clock{Boot: c.boot, Nanos: ts.Nano()}
}
