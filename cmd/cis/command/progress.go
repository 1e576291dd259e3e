package command

import (
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/term"
)

// progress tells how far a transfer is: on a terminal in one line that changes, else now and then in a line of its own.
type progress struct {
	w        io.Writer
	what     string
	total    int64
	terminal bool

	mu   sync.Mutex
	told time.Time
}

func newProgress(w io.Writer, what string, total int64) *progress {
	f, ok := w.(*os.File)
	return &progress{w: w, what: what, total: total, terminal: ok && term.IsTerminal(int(f.Fd())), told: time.Now()}
}

// reader counts what is read of r, which begins at an offset.
func (p *progress) reader(r io.Reader, offset int64) io.Reader { return &progressReader{r, p, offset} }

type progressReader struct {
	r  io.Reader
	p  *progress
	at int64
}

// Read implements io.Reader.
func (r *progressReader) Read(b []byte) (int, error) {
	n, err := r.r.Read(b)
	r.at += int64(n)
	r.p.tell(r.at)
	return n, err
}

func (p *progress) tell(at int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	every := 10 * time.Second
	if p.terminal {
		every = 200 * time.Millisecond
	}
	if time.Since(p.told) < every {
		return
	}
	p.told = time.Now()
	percent := 100.0
	if p.total > 0 {
		percent = 100 * float64(at) / float64(p.total)
	}
	line := fmt.Sprintf("%s: %s of %s (%.0f%%)", p.what, size(at), size(p.total), percent)
	if p.terminal {
		fmt.Fprintf(p.w, "\r\x1b[K%s", line)
	} else {
		fmt.Fprintln(p.w, line)
	}
}

// end clears the line, so that what follows begins at its start.
func (p *progress) end() {
	if p.terminal {
		fmt.Fprint(p.w, "\r\x1b[K")
	}
}
