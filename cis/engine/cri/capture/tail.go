package capture

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"cumulet.io/internal/fswatch"
	"cumulet.io/logs"
)

// Tail copies what is written to an output from now on to w, byte by byte, until ended is closed and the end of it is
// reached, or ctx ends. A reader that is more than a MiB behind may miss what is before that. An error that wraps
// os.ErrNotExist means that nothing is captured in dir.
func Tail(ctx context.Context, dir string, stream logs.Stream, ended <-chan struct{}, w io.Writer) error {
	f, err := os.Open(filepath.Join(dir, string(stream)))
	if err != nil {
		return fmt.Errorf("read output: %w", err)
	}
	defer f.Close()
	at, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return fmt.Errorf("read output: %w", err)
	}
	check := recheck
	news, err := fswatch.Start(f.Name())
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		check = blindCheck
	}
	defer news.Close() //nolint:errcheck // nothing is written through it
	look := time.NewTicker(check)
	defer look.Stop()
	for {
		last := false
		select {
		case <-ended:
			last = true
		default:
		}
		// Past what has been copied and given back.
		if next, err := unix.Seek(int(f.Fd()), at, unix.SEEK_DATA); err == nil {
			at = next
		}
		n, err := io.Copy(w, io.NewSectionReader(f, at, 1<<62-at))
		at += n
		if err != nil {
			return fmt.Errorf("copy output: %w", err)
		}
		if last {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-ended:
		case <-look.C:
		case <-news.Events:
		case <-news.Errors: //nolint:errcheck // an overflown queue: look at once
		}
	}
}
