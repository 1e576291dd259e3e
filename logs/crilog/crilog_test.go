package crilog_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"cumulet.io/internal/fswatch"
	"cumulet.io/logs"
	"cumulet.io/logs/crilog"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestParse(t *testing.T) {
	for _, c := range []struct {
		line, stream, text string
		partial, bad       bool
	}{
		{line: "2026-01-02T15:04:05.123456789Z stdout F text", stream: "stdout", text: "text"},
		{line: "2026-01-02T15:04:05.123456789Z stderr P a piece\n", stream: "stderr", text: "a piece", partial: true},
		{line: "2026-01-02T15:04:05.1+02:00 stdout F:x  two ", stream: "stdout", text: " two "},
		{line: "2026-01-02T15:04:05Z stdout F \n", stream: "stdout"},
		{line: "2026-01-02T15:04:05Z stdout F \r\n", stream: "stdout", text: "\r"},
		{line: "2026-01-02T15:04:05Z stdout F \xff\x00", stream: "stdout", text: "\xff\x00"},
		{line: "2026-01-02T15:04:05Z stdout F", bad: true},
		{line: "2026-01-02T15:04:05Z stdin F x", bad: true},
		{line: "2026-01-02T15:04:05Z stdout G x", bad: true},
		{line: "2026-01-02T15:04:05Z stdout FX x", bad: true},
		{line: "yesterday stdout F x", bad: true},
		{line: "", bad: true},
	} {
		e, err := crilog.Parse([]byte(c.line))
		if c.bad {
			if !errors.Is(err, crilog.ErrMalformed) {
				t.Errorf("Parse(%q): %v, want ErrMalformed", c.line, err)
			}
			continue
		}
		if err != nil || string(e.Stream) != c.stream || string(e.Text) != c.text || e.Partial != c.partial {
			t.Errorf("Parse(%q) = %+v, %v", c.line, e, err)
		}
		if e.Time.Location() != time.UTC {
			t.Errorf("Parse(%q): the time is not UTC", c.line)
		}
	}
}

const file = `2026-01-02T00:00:01.5Z stdout F one
2026-01-02T00:00:02.000000001Z stderr P two 
2026-01-02T00:00:03Z stderr F halves
garbage
2026-01-02T00:00:04Z stdout F 
2026-01-02T00:00:05Z stdout F five
`

func write(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "0.log")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func at(s int) time.Time { return time.Date(2026, 1, 2, 0, 0, s, 0, time.UTC) }

func TestCopy(t *testing.T) {
	n := func(n int64) *int64 { return &n }
	for _, c := range []struct {
		name, file string
		o          crilog.Options
		want       string
	}{
		{"all", file, crilog.Options{}, "one\ntwo halves\n\nfive\n"},
		{"tail", file, crilog.Options{Tail: n(2)}, "\nfive\n"},
		{"tail from the middle of a line", file, crilog.Options{Tail: n(4)}, "halves\n\nfive\n"},
		{"tail of all", file, crilog.Options{Tail: n(100)}, "one\ntwo halves\n\nfive\n"},
		{"tail of none", file, crilog.Options{Tail: n(0)}, ""},
		{"since", file, crilog.Options{Since: at(3)}, "halves\n\nfive\n"},
		{"limit", file, crilog.Options{LimitBytes: 7}, "one\ntwo"},
		{"timestamps", file, crilog.Options{Timestamps: true}, "2026-01-02T00:00:01.500000000Z one\n" +
			"2026-01-02T00:00:02.000000001Z two halves\n2026-01-02T00:00:04.000000000Z \n2026-01-02T00:00:05.000000000Z five\n"},
		{"a last line without newline", "2026-01-02T00:00:01Z stdout F cut", crilog.Options{}, "cut\n"},
		{"tail with a last line without newline", file + "2026-01-02T00:00:06Z stdout F cut", crilog.Options{Tail: n(1)}, "five\n"},
		{"empty", "", crilog.Options{}, ""},
		{"limit with time", file, crilog.Options{LimitBytes: 10, Timestamps: true}, "2026-01-02"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var b bytes.Buffer
			if err := crilog.Copy(t.Context(), &b, write(t, c.file), c.o); err != nil {
				t.Fatal(err)
			}
			if b.String() != c.want {
				t.Errorf("got %q, want %q", b.String(), c.want)
			}
		})
	}
}

func TestCopyMissing(t *testing.T) {
	err := crilog.Copy(t.Context(), io.Discard, filepath.Join(t.TempDir(), "0.log"), crilog.Options{})
	if !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v", err)
	}
}

// TestCopyHugeLine holds that a line far above MaxRecord is cut there and the next is whole.
func TestCopyHugeLine(t *testing.T) {
	head := "2026-01-02T00:00:01Z stdout F "
	path := write(t, head+strings.Repeat("x", 3*crilog.MaxRecord)+"\n"+"2026-01-02T00:00:02Z stdout F next\n")
	var b bytes.Buffer
	if err := crilog.Copy(t.Context(), &b, path, crilog.Options{}); err != nil {
		t.Fatal(err)
	}
	want := strings.Repeat("x", crilog.MaxRecord-len(head)) + "\nnext\n"
	if b.String() != want {
		t.Errorf("%d bytes, want %d", b.Len(), len(want))
	}
}

// TestTailBlocks crosses the blocks that tail reads backwards.
func TestTailBlocks(t *testing.T) {
	var all bytes.Buffer
	for i := range 5000 {
		all.Write(crilog.AppendRecord(nil, crilog.Entry{Time: at(i), Stream: logs.Stdout, Text: []byte(strings.Repeat("y", i%97))}))
	}
	path := write(t, all.String())
	for _, n := range []int64{1, 10, 500, 1000, 4999, 5000, 5001} {
		var b bytes.Buffer
		if err := crilog.Copy(t.Context(), &b, path, crilog.Options{Tail: &n}); err != nil {
			t.Fatal(err)
		}
		if got := int64(bytes.Count(b.Bytes(), []byte{'\n'})); got != min(n, 5000) {
			t.Errorf("tail %d gives %d lines", n, got)
		}
	}
}

// sink lets a test wait for output.
type sink struct {
	mu   sync.Mutex
	b    bytes.Buffer
	grew chan struct{}
}

func (s *sink) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n, err := s.b.Write(p)
	select {
	case s.grew <- struct{}{}:
	default:
	}
	return n, err
}

func (s *sink) String() string { s.mu.Lock(); defer s.mu.Unlock(); return s.b.String() }

func (s *sink) await(t *testing.T, want string) {
	t.Helper()
	deadline := time.After(10 * time.Second)
	for s.String() != want {
		select {
		case <-s.grew:
		case <-deadline:
			t.Fatalf("got %q, want %q", s.String(), want)
		}
	}
}

func TestFollow(t *testing.T) {
	t.Run("watched", testFollow)
	t.Run("blind", func(t *testing.T) {
		start := fswatch.Start
		fswatch.Start = func(string) (*fswatch.News, error) { return &fswatch.News{}, errors.New("too many open files") }
		defer func() { fswatch.Start = start }()
		testFollow(t)
	})
}

func testFollow(t *testing.T) {
	t.Helper()
	path := write(t, "2026-01-02T00:00:01Z stdout F one\n2026-01-02T00:00:02Z stdout F tw")
	f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	put := func(s string) {
		if _, err := f.WriteString(s); err != nil {
			t.Error(err)
		}
	}
	out := &sink{grew: make(chan struct{}, 1)}
	ended, done := make(chan struct{}), make(chan error, 1)
	go func() { done <- crilog.Copy(t.Context(), out, path, crilog.Options{Follow: true, Ended: ended}) }()
	out.await(t, "one\n")
	put("o\n")
	out.await(t, "one\ntwo\n")
	// A rotation: what is still in the old file comes first.
	put("2026-01-02T00:00:03Z stdout F three\n")
	if err := os.Rename(path, path+".old"); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte("2026-01-02T00:00:04Z stdout F four\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	out.await(t, "one\ntwo\nthree\nfour\n")
	g, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	if _, err := g.WriteString("2026-01-02T00:00:05Z stdout F five\n"); err != nil {
		t.Fatal(err)
	}
	close(ended)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if want := "one\ntwo\nthree\nfour\nfive\n"; out.String() != want {
		t.Errorf("got %q, want %q", out.String(), want)
	}
}

func TestFollowCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	out := &sink{grew: make(chan struct{}, 1)}
	path, done := write(t, file), make(chan error, 1)
	go func() { done <- crilog.Copy(ctx, out, path, crilog.Options{Follow: true}) }()
	out.await(t, "one\ntwo halves\n\nfive\n")
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

func FuzzParse(f *testing.F) {
	for l := range strings.Lines(file) {
		f.Add([]byte(l))
	}
	f.Fuzz(func(t *testing.T, line []byte) {
		e, err := crilog.Parse(line)
		if err != nil {
			return
		}
		again, err := crilog.Parse(crilog.AppendRecord(nil, e))
		if err != nil || !again.Time.Equal(e.Time) || again.Stream != e.Stream || again.Partial != e.Partial || !bytes.Equal(again.Text, e.Text) {
			t.Fatalf("%q: %+v, again %+v, %v", line, e, again, err)
		}
	})
}
