package capture

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"cumulet.io/logs"
	"cumulet.io/logs/crilog"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// texts gives what the records of a log say of a stream: the bytes that made them, without carriage returns.
func texts(t testing.TB, log string, stream logs.Stream) string {
	t.Helper()
	b, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	if len(b) > 0 && b[len(b)-1] != '\n' {
		t.Fatalf("the log ends within a record: %q", b[max(0, len(b)-80):])
	}
	var out strings.Builder
	var last time.Time
	for line := range bytes.Lines(b) {
		e, err := crilog.Parse(line)
		if err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		if e.Time.Before(last) {
			t.Fatalf("%q goes back behind %s", line, last)
		}
		last = e.Time
		if e.Stream != stream {
			continue
		}
		out.Write(e.Text)
		if !e.Partial {
			out.WriteByte('\n')
		}
	}
	return out.String()
}

type files struct{ dir, log string }

func newFiles(t testing.TB) files {
	t.Helper()
	f := files{dir: filepath.Join(t.TempDir(), "out", "0"), log: filepath.Join(t.TempDir(), "app", "0.log")}
	if err := Prepare(f.dir); err != nil {
		t.Fatal(err)
	}
	return f
}

func (f files) open(t testing.TB) *Copier {
	t.Helper()
	c, err := Open(f.dir, f.log)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// writer is a shim's end of a stream.
func (f files) writer(t testing.TB, s logs.Stream) *os.File {
	t.Helper()
	w, err := os.OpenFile(filepath.Join(f.dir, string(s)), os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.Close() })
	return w
}

func write(t testing.TB, w *os.File, s string) {
	t.Helper()
	if _, err := w.WriteString(s); err != nil {
		t.Fatal(err)
	}
}

func TestLinesPiecesAndEnds(t *testing.T) {
	f := newFiles(t)
	c := f.open(t)
	out, errs := f.writer(t, logs.Stdout), f.writer(t, logs.Stderr)
	step := func(want string) {
		t.Helper()
		if _, err := c.copy(false); err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(f.log)
		if err != nil {
			t.Fatal(err)
		}
		var got strings.Builder
		for line := range bytes.Lines(b) {
			got.Write(line[bytes.IndexByte(line, ' ')+1:])
		}
		if got.String() != want {
			t.Fatalf("log %q, want %q", got.String(), want)
		}
	}
	write(t, out, "a\nb")
	step("stdout F a\n")
	write(t, errs, "\r\n\n")
	c.note(1)
	write(t, out, "c\nx")
	c.note(0)
	step("stdout F a\nstderr F \nstderr F \nstdout F bc\n")
	long := strings.Repeat("y", maxLine)
	write(t, out, long[1:])
	step("stdout F a\nstderr F \nstderr F \nstdout F bc\n") // just as long as one record may be: it may end yet
	write(t, out, "z")
	step("stdout F a\nstderr F \nstderr F \nstdout F bc\nstdout P x" + long[1:] + "\n")
	out.Close()
	errs.Close()
	if err := c.Finish(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := texts(t, f.log, logs.Stdout); got != "a\nbc\nx"+long[1:]+"z" {
		t.Errorf("%q", got[:20])
	}
	if _, err := Open(f.dir, f.log); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("after the end: %v", err)
	}
}

// Whoever copies is killed at any moment of a batch, and the copy is gone on with: every line is there once.
func TestKilledAnywhere(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	f := newFiles(t)
	out, errs := f.writer(t, logs.Stdout), f.writer(t, logs.Stderr)
	var want [2]strings.Builder
	for n := range 300 {
		c, err := Open(f.dir, f.log)
		if err != nil {
			t.Fatal(err)
		}
		for i, w := range []*os.File{out, errs} {
			s := fmt.Sprintf("line %d of %d, %s", n, i, strings.Repeat("x", rnd.IntN(3)*rnd.IntN(20_000)))
			if rnd.IntN(3) > 0 {
				s += "\n"
			}
			write(t, w, s)
			want[i].WriteString(s)
		}
		before, err := os.ReadFile(f.log)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.copy(false); err != nil {
			t.Fatal(err)
		}
		from := c.j.From
		c.Close()
		after, err := os.ReadFile(f.log)
		if err != nil {
			t.Fatal(err)
		}
		// The kill: the journal has the last batch, the log some of it. What is before the batch is there whole.
		if int64(len(after)) > from && len(after) > len(before) {
			if err := os.Truncate(f.log, from+rnd.Int64N(int64(len(after))-from+1)); err != nil {
				t.Fatal(err)
			}
		}
	}
	out.Close()
	errs.Close()
	if err := f.open(t).Finish(t.Context()); err != nil {
		t.Fatal(err)
	}
	for i, s := range streams() {
		if got := texts(t, f.log, s); got != want[i].String() {
			t.Errorf("%s: %d bytes, want %d", s, len(got), want[i].Len())
		}
	}
}

// A disk that is full for a while costs nothing but time.
func TestFailedWriteIsRepeated(t *testing.T) {
	f := newFiles(t)
	c := f.open(t)
	write(t, f.writer(t, logs.Stdout), "one\ntwo\n")
	good := c.out
	bad, err := os.Open(f.log) // cannot be written to
	if err != nil {
		t.Fatal(err)
	}
	defer bad.Close()
	c.out = bad
	if _, err := c.copy(false); err == nil {
		t.Error("no error")
	}
	c.out = good
	if _, err := c.copy(false); err != nil {
		t.Fatal(err)
	}
	if got := texts(t, f.log, logs.Stdout); got != "one\ntwo\n" {
		t.Errorf("%q", got)
	}
}

func TestFollowAndFinish(t *testing.T) {
	for _, watched := range []bool{true, false} {
		t.Run(fmt.Sprint(watched), func(t *testing.T) {
			f := newFiles(t)
			var w *Watcher
			if watched {
				var err error
				if w, err = NewWatcher(); err != nil {
					t.Fatal(err)
				}
				defer w.Close()
			}
			c, out := f.open(t), f.writer(t, logs.Stdout)
			done := make(chan struct{})
			go func() {
				defer close(done)
				c.Follow(t.Context(), w, slog.New(slog.DiscardHandler))
			}()
			var want strings.Builder
			for n := range 200 {
				line := fmt.Sprintf("line %d\n", n)
				write(t, out, line)
				want.WriteString(line)
				if n%50 != 0 {
					continue
				}
				for texts(t, f.log, logs.Stdout) != want.String() { // the test's own time limit ends it
					time.Sleep(time.Millisecond)
				}
			}
			// What comes while somebody still holds the output is waited for.
			finished := make(chan error, 1)
			go func() { finished <- c.Finish(context.Background()) }()
			write(t, out, "the end")
			out.Close()
			if err := <-finished; err != nil {
				t.Fatal(err)
			}
			<-done
			if got := texts(t, f.log, logs.Stdout); got != want.String()+"the end" {
				t.Errorf("%q", got[max(0, len(got)-40):])
			}
		})
	}
}

// TestManyEndAtOnce has many containers of one Watcher end while others begin: what goes away while it is watched holds up nobody.
func TestManyEndAtOnce(t *testing.T) {
	w, err := NewWatcher()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	root := t.TempDir()
	var group errgroup.Group
	for i := range 16 {
		group.Go(func() error {
			for n := range 200 {
				f := files{dir: filepath.Join(root, fmt.Sprint(i), "out", fmt.Sprint(n)), log: filepath.Join(root, fmt.Sprint(i), "log", fmt.Sprint(n))}
				if err := Prepare(f.dir); err != nil {
					return err
				}
				c, err := Open(f.dir, f.log)
				if err != nil {
					return err
				}
				ctx, stop := context.WithCancel(t.Context())
				done := make(chan struct{})
				go func() {
					defer close(done)
					c.Follow(ctx, w, slog.New(slog.DiscardHandler))
				}()
				err = os.WriteFile(filepath.Join(f.dir, string(logs.Stdout)), []byte("line\n"), 0o600)
				stop()
				err = errors.Join(err, c.Finish(t.Context()))
				<-done // the test's own time limit ends it
				if err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	written, err := filepath.Glob(filepath.Join(root, "*", "log", "*"))
	if err != nil || len(written) != 16*200 {
		t.Fatal(err, len(written))
	}
	for _, log := range written {
		if got := texts(t, log, logs.Stdout); got != "line\n" {
			t.Errorf("%s: %q", log, got)
		}
	}
}

// The space of a long output is given back while it goes on.
func TestSpaceIsGivenBack(t *testing.T) {
	f := newFiles(t)
	c, out := f.open(t), f.writer(t, logs.Stdout)
	line := strings.Repeat("x", 1023) + "\n"
	for range 16 {
		write(t, out, strings.Repeat(line, 1024))
		for more := true; more; {
			var err error
			if more, err = c.copy(false); err != nil {
				t.Fatal(err)
			}
		}
	}
	var st unix.Stat_t
	if err := unix.Stat(out.Name(), &st); err != nil {
		t.Fatal(err)
	}
	if used := st.Blocks * 512; used > punchAt+punchKeep || st.Size != 16<<20 {
		t.Errorf("%d bytes in use of %d", used, st.Size)
	}
	if got := texts(t, f.log, logs.Stdout); got != strings.Repeat(line, 16<<10) {
		t.Errorf("%d bytes", len(got))
	}
}

func TestDivert(t *testing.T) {
	state, dir := t.TempDir(), filepath.Join(t.TempDir(), "0")
	io := filepath.Join(state, "containers", "abc", "io", "123")
	if err := errors.Join(os.MkdirAll(io, 0o700), Prepare(dir)); err != nil {
		t.Fatal(err)
	}
	if err := Divert(state, "abc", dir); !errors.Is(err, ErrNoPipe) {
		t.Errorf("without pipes: %v", err)
	}
	pipe := filepath.Join(io, "abc-stdout")
	if err := unix.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	if Diverted(state, "abc") {
		t.Error("diverted without Divert")
	}
	if err := Divert(state, "abc", dir); err != nil {
		t.Fatal(err)
	}
	if !Diverted(state, "abc") {
		t.Error("not diverted")
	}
	write(t, func() *os.File {
		w, err := os.OpenFile(pipe, os.O_WRONLY|os.O_APPEND, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { w.Close() })
		return w
	}(), "hello\n")
	for range 2 { // the second time for nothing
		if err := Restore(state, "abc"); err != nil {
			t.Fatal(err)
		}
	}
	if Diverted(state, "abc") {
		t.Error("diverted after Restore")
	}
	if st, err := os.Lstat(pipe); err != nil || st.Mode()&os.ModeNamedPipe == 0 {
		t.Errorf("%v %v", st, err)
	}
	if b, err := os.ReadFile(filepath.Join(dir, "stdout")); err != nil || string(b) != "hello\n" {
		t.Errorf("%q %v", b, err)
	}
	if left, err := os.ReadDir(io); err != nil || len(left) != 1 {
		t.Errorf("%v %v", left, err)
	}
}

func FuzzJournal(f *testing.F) {
	f.Add((&journal{Done: [2]int64{5, 7}, Stream: 1, N: 3, At: 9, From: 100, To: 150}).encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		j, err := decodeJournal(b)
		if err == nil && !bytes.Equal(j.encode(), b) {
			t.Errorf("%+v", j)
		}
	})
}

// However output is cut into batches, the records say what it was; and a batch makes the same records again.
func FuzzRecords(f *testing.F) {
	f.Add([]byte("a\r\nb\n\n"+strings.Repeat("x", maxLine+1)), 7)
	f.Fuzz(func(t *testing.T, raw []byte, cut int) {
		cut = min(max(cut, 0), len(raw))
		at := time.Unix(1, 5).UTC()
		out, n := appendRecords(nil, raw[:cut], logs.Stdout, at, false)
		again, m := appendRecords(nil, raw[:n], logs.Stdout, at, true)
		if m != n || !bytes.Equal(out, again) {
			t.Fatalf("%q, then %q", out, again)
		}
		out, m = appendRecords(out, raw[n:], logs.Stdout, at, true)
		if n+m != len(raw) {
			t.Fatalf("%d of %d bytes", n+m, len(raw))
		}
		var text []byte
		for line := range bytes.Lines(out) {
			e, err := crilog.Parse(line)
			if err != nil || len(e.Text) > maxLine {
				t.Fatalf("%q: %v", line, err)
			}
			text = append(text, e.Text...)
			if !e.Partial {
				text = append(text, '\n')
			}
		}
		if want := bytes.ReplaceAll(raw, []byte("\r\n"), []byte("\n")); !bytes.Equal(text, want) && !bytes.Contains(raw, []byte("\r\n")) {
			t.Errorf("%q, want %q", text, want)
		}
	})
}
