package main

import (
	"bytes"
	"fmt"
	"io"
	"sync"
	"time"
)

// progress writes whole lines, each with the seconds since the start.
type progress struct {
	began time.Time
	mu    sync.Mutex
	w     io.Writer
}

func newProgress(w io.Writer) *progress { return &progress{began: time.Now(), w: w} }

func (p *progress) elapsed() time.Duration { return time.Since(p.began).Round(time.Second) }

func (p *progress) say(text string) { p.line("==> " + text) }

func (p *progress) line(text string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	fmt.Fprintf(p.w, "%4.0fs %s\n", p.elapsed().Seconds(), text)
}

// lines gives a stream's lines to f, and drops what is too long of one.
func lines(r io.Reader, f func(string)) {
	const most = 64 << 10
	var line []byte
	buf := make([]byte, 4096)
	for {
		n, err := r.Read(buf)
		for _, b := range buf[:n] {
			switch {
			case b == '\n':
				f(string(bytes.TrimRight(line, "\r")))
				line = line[:0]
			case len(line) < most:
				line = append(line, b)
			}
		}
		if err != nil {
			if len(line) > 0 {
				f(string(line))
			}
			return
		}
	}
}
