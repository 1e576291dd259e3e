package cri

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/fsnotify/fsnotify"

	"cumulet.io/cis"
)

// maxConsole bounds what is kept of a console: a guest's kernel says some 30 KiB when it boots, and little more in health.
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

// copyConsole appends each line of a console to a CRI log file until ctx ends, and goes on where an earlier copy ended.
func copyConsole(ctx context.Context, from, to string) (err error) {
	have := 0
	if b, err := os.ReadFile(to); err == nil {
		have = bytes.Count(b, []byte("\n"))
	}
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
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	out, err := os.OpenFile(to, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o640)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	r := bufio.NewReader(io.LimitReader(in, maxConsole))
	var line []byte
	for {
		part, err := r.ReadSlice('\n')
		line = append(line, part...)
		switch {
		case err == nil:
			if have--; have < 0 {
				if _, err := fmt.Fprintf(out, "%s stdout F %s\n", time.Now().UTC().Format(time.RFC3339Nano), printable(line)); err != nil {
					return err
				}
			}
			line = line[:0]
		case errors.Is(err, bufio.ErrBufferFull):
		case errors.Is(err, io.EOF):
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
		default:
			return err
		}
	}
}

// printable is a line of a console without what a terminal would act on: the tenant's programs write there, too.
func printable(line []byte) []byte {
	return bytes.Map(func(r rune) rune {
		if r < ' ' && r != '\t' || r == 0x7f {
			return -1
		}
		return r
	}, line)
}
