package cri

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unicode"

	"github.com/fsnotify/fsnotify"

	"cumulet.io/cis"
)

// maxConsole bounds what is kept of a console, bytes: a guest's kernel says some 30 KiB when it boots, and little more in health.
const maxConsole = 1 << 20

// keepConsole keeps the console of an instance's virtual machine, its kernel's log, as the log of a container
// cis.GuestLog, each incarnation an attempt. It ends with ctx.
func (a *actor) keepConsole(sandboxID string, incarnation int64) {
	if a.e.cfg.Console == "" || a.rec.Class != cis.Kata {
		return
	}
	if a.consoleOf == sandboxID {
		return
	}
	a.consoleOf = sandboxID
	from, to := ConsolePath(a.e.cfg.Console, sandboxID), a.logFile(cis.GuestLog, int(incarnation-1))
	ctx, cancel := context.WithCancel(a.ctx)
	if a.stopConsole != nil {
		a.stopConsole()
	}
	a.stopConsole = cancel
	a.do(ctx, func(ctx context.Context) func() {
		if err := copyConsole(ctx, from, to); err != nil {
			a.log.Warn("guest's console not kept", "error", err)
		}
		return nil
	})
}

// ConsolePath fills a sandbox's id into a pattern: {id} is the whole of it, {id:N} its first N characters.
func ConsolePath(pattern, id string) string {
	before, rest, ok := strings.Cut(pattern, "{id")
	if !ok {
		return pattern
	}
	length, after, ok := strings.Cut(rest, "}")
	if !ok {
		return pattern
	}
	if n, err := strconv.Atoi(strings.TrimPrefix(length, ":")); err == nil && n >= 0 && n < len(id) {
		id = id[:n]
	}
	return before + id + after
}

// copyConsole appends each line of a console to a CRI log file until ctx ends. From a file it goes on where an earlier copy
// ended; of a socket, as Kata's QEMU driver has one, there is only what comes from now on.
func copyConsole(ctx context.Context, from, to string) (err error) {
	st, err := os.Stat(from)
	if err != nil {
		return err
	}
	log, err := openConsoleLog(to)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, log.file.Close()) }()
	if st.Mode()&fs.ModeSocket != 0 {
		return log.copySocket(ctx, from)
	}
	return log.copyFile(ctx, from)
}

// consoleLog is the log file that a console's lines are appended to.
type consoleLog struct {
	file  *os.File
	lines int    // that it had when it was opened
	size  int64  // bytes, likewise
	skip  int    // lines that are to come and are there already
	line  []byte // the beginning of one
}

func openConsoleLog(path string) (*consoleLog, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	have, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	file, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o640)
	if err != nil {
		return nil, err
	}
	return &consoleLog{file: file, lines: bytes.Count(have, []byte("\n")), size: int64(len(have))}, nil
}

// Write takes what the console says next.
func (l *consoleLog) Write(p []byte) (int, error) {
	for part := range bytes.Lines(p) {
		if l.line = append(l.line, part...); part[len(part)-1] != '\n' {
			break
		}
		if l.skip--; l.skip < 0 {
			if _, err := fmt.Fprintf(l.file, "%s stdout F %s\n", time.Now().UTC().Format(time.RFC3339Nano), printable(l.line)); err != nil {
				return 0, err
			}
		}
		l.line = l.line[:0]
	}
	return len(p), nil
}

func (l *consoleLog) copyFile(ctx context.Context, from string) (err error) {
	l.skip = l.lines
	watch, err := fsnotify.NewWatcher()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, watch.Close()) }()
	if err := watch.Add(from); err != nil {
		return err
	}
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, in.Close()) }()
	for r := io.LimitReader(in, maxConsole); ; {
		if _, err := io.Copy(l, r); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case _, ok := <-watch.Events:
			if _, err := os.Stat(from); !ok || errors.Is(err, fs.ErrNotExist) {
				return nil
			}
		case err := <-watch.Errors:
			return err
		}
	}
}

func (l *consoleLog) copySocket(ctx context.Context, from string) error {
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", from)
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer func() {
		if stop() {
			conn.Close() // nothing was written to it
		}
	}()
	_, err = io.Copy(l, io.LimitReader(conn, maxConsole-l.size))
	if err == nil {
		// The guest would wait for who reads no more.
		_, err = io.Copy(io.Discard, conn)
	}
	if ctx.Err() != nil || errors.Is(err, syscall.ECONNRESET) {
		return nil
	}
	return err
}

// printable is a line of a console without what a terminal would act on: the tenant's programs write there, too.
func printable(line []byte) []byte {
	return bytes.Map(func(r rune) rune {
		if unicode.IsControl(r) && r != '\t' {
			return -1
		}
		return r
	}, line)
}
