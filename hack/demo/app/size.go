package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// size prints the terminal's rows and columns, and again whenever they have changed. Not every kernel that a container
// may have tells by a signal, so it looks from time to time too.
func size(ctx context.Context) error {
	winch := make(chan os.Signal, 1)
	signal.Notify(winch, syscall.SIGWINCH)
	defer signal.Stop(winch)
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	last := ""
	for {
		w, err := unix.IoctlGetWinsize(int(os.Stdout.Fd()), unix.TIOCGWINSZ)
		if err != nil {
			return fmt.Errorf("size of the terminal: %w", err)
		}
		if now := fmt.Sprintf("size %d %d", w.Row, w.Col); now != last {
			fmt.Println(now)
			last = now
		}
		select {
		case <-ctx.Done():
			return nil
		case <-winch:
		case <-tick.C:
		}
	}
}
