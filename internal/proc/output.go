package proc

import (
	"bytes"
	"log/slog"
	"sync"
)

// maxLine bounds a record made from a child's output; a longer line becomes
// several.
const maxLine = 16 << 10

// lineLog turns a child's output into log records, one a line.
type lineLog struct {
	log *slog.Logger
	max int // bytes of a record

	mu   sync.Mutex
	part []byte // a line whose end has not come yet
}

// Write never fails.
func (l *lineLog) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := len(b)
	for {
		line, rest, ended := bytes.Cut(b, []byte{'\n'})
		for len(l.part)+len(line) > l.max {
			room := l.max - len(l.part)
			l.emit(append(l.part, line[:room]...))
			line = line[room:]
		}
		l.part = append(l.part, line...)
		if !ended {
			return n, nil
		}
		l.emit(l.part)
		b = rest
	}
}

// flush emits what a child that died in the middle of a line has left.
func (l *lineLog) flush() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.emit(l.part)
}

func (l *lineLog) emit(line []byte) {
	if line = bytes.TrimRight(line, "\r"); len(line) > 0 {
		l.log.Info("output", "line", string(line))
	}
	l.part = l.part[:0]
}
