package memory

import (
	"strings"
	"time"
)

// logBuffer holds the newest lines of one attempt of a container. Its instance's lock guards it.
type logBuffer struct {
	lines   []logLine
	size    int
	dropped int // lines before the first
	closed  bool
	changed chan struct{}
}

type logLine struct {
	at   time.Time
	text string // with its newline, when there is one yet
}

func (b *logBuffer) write(at time.Time, text string) {
	if b.closed {
		return
	}
	for part := range strings.Lines(text) {
		if n := len(b.lines); n > 0 && !strings.HasSuffix(b.lines[n-1].text, "\n") && len(b.lines[n-1].text) < 16<<10 {
			b.lines[n-1].text += part
		} else {
			b.lines = append(b.lines, logLine{at, part})
		}
		b.size += len(part) + 32
	}
	for b.size > maxLog && len(b.lines) > 1 {
		b.size -= len(b.lines[0].text) + 32
		b.lines = b.lines[1:]
		b.dropped++
	}
	b.wake()
}

func (b *logBuffer) close() {
	b.closed = true
	b.wake()
}

func (b *logBuffer) wake() {
	if b.changed != nil {
		close(b.changed)
		b.changed = nil
	}
}

func (b *logBuffer) wait() <-chan struct{} {
	if b.changed == nil {
		b.changed = make(chan struct{})
	}
	return b.changed
}

// tail is the end of the log, at most so many bytes and lines.
func (b *logBuffer) tail(bytes, lines int) string {
	text := ""
	for i := len(b.lines) - 1; i >= 0 && lines > 0 && len(text) < bytes; i, lines = i-1, lines-1 {
		text = b.lines[i].text + text
	}
	return text[max(0, len(text)-bytes):]
}
