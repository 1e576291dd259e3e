package proc

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestLineLogBoundsALine(t *testing.T) {
	var log buffer
	l := &lineLog{log: slog.New(slog.NewTextHandler(&log, nil)), max: maxLine}
	long := strings.Repeat("x", 2*maxLine+10)
	for _, b := range []string{"a\r\n\n", "b", "c\n", long + "\n"} {
		if n, err := l.Write([]byte(b)); n != len(b) || err != nil {
			t.Fatalf("Write: %d, %v", n, err)
		}
	}
	var got []int
	for _, line := range strings.Split(log.String(), "\n") {
		if _, v, ok := strings.Cut(line, "line="); ok {
			got = append(got, len(v))
		}
	}
	if want := fmt.Sprint([]int{1, 2, maxLine, maxLine, 10}); fmt.Sprint(got) != want {
		t.Errorf("lengths of records %v, want %s", got, want)
	}
}

func TestFileRotates(t *testing.T) {
	path := filepath.Join(t.TempDir(), "sub", "child.log")
	write := func(f *File, lines ...string) {
		t.Helper()
		for _, l := range lines {
			if _, err := f.Write([]byte(l)); err != nil {
				t.Fatal(err)
			}
		}
	}
	f, err := OpenFile(path, 10, 2)
	if err != nil {
		t.Fatal(err)
	}
	write(f, "aaaa\n", "bbbb\n", "cccc\n")
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Write([]byte("x")); !errors.Is(err, os.ErrClosed) {
		t.Errorf("Write after Close: %v", err)
	}
	// Opened again, it goes on where it was.
	if f, err = OpenFile(path, 10, 2); err != nil {
		t.Fatal(err)
	}
	write(f, "dddd\n", "longer than a file\n", "e\n", "f\n")
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	want := map[string]string{"": "e\nf\n", ".1": "longer than a file\n", ".2": "cccc\ndddd\n"}
	for suffix, content := range want {
		if b, err := os.ReadFile(path + suffix); err != nil || string(b) != content {
			t.Errorf("%s: %q, %v; want %q", suffix, b, err, content)
		}
	}
	if all, err := os.ReadDir(filepath.Dir(path)); err != nil || len(all) != len(want) {
		t.Errorf("files %v, %v", all, err)
	}
}

func TestTrim(t *testing.T) {
	path := filepath.Join(t.TempDir(), "child.log")
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600) // another process's
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, s := range []string{"aaaa", "bbbb", "cccc", "d"} {
		if _, err := f.WriteString(s); err != nil {
			t.Fatal(err)
		}
		if err := Trim(path, 3, 2); err != nil {
			t.Fatal(err)
		}
	}
	for suffix, want := range map[string]string{"": "d", ".1": "cccc", ".2": "bbbb"} {
		if b, err := os.ReadFile(path + suffix); err != nil || string(b) != want {
			t.Errorf("%s: %q, %v; want %q", suffix, b, err, want)
		}
	}
	if all, err := os.ReadDir(filepath.Dir(path)); err != nil || len(all) != 3 {
		t.Errorf("files %v, %v", all, err)
	}
}

func TestFileKeepsNoOldOnes(t *testing.T) {
	path := filepath.Join(t.TempDir(), "child.log")
	f, err := OpenFile(path, 4, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, l := range []string{"aaa\n", "bbb\n"} {
		if _, err := f.Write([]byte(l)); err != nil {
			t.Fatal(err)
		}
	}
	if b, err := os.ReadFile(path); err != nil || string(b) != "bbb\n" {
		t.Errorf("%q, %v", b, err)
	}
}

func TestFileThatCannotRotateStaysBounded(t *testing.T) {
	path := filepath.Join(t.TempDir(), "child.log")
	// A directory that is not empty stands where the old file would go.
	if err := os.MkdirAll(filepath.Join(path+".1", "x"), 0o755); err != nil {
		t.Fatal(err)
	}
	f, err := OpenFile(path, 8, 1)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for range 100 {
		if _, err := f.Write([]byte("aaaa\n")); err != nil {
			t.Fatal(err)
		}
	}
	if info, err := os.Stat(path); err != nil || info.Size() > 8 {
		t.Errorf("size %d, %v", info.Size(), err)
	}
}

func TestOpenFileChecksItsBounds(t *testing.T) {
	for _, c := range []struct {
		max  int64
		keep int
	}{{0, 1}, {1, -1}} {
		if f, err := OpenFile(filepath.Join(t.TempDir(), "x"), c.max, c.keep); err == nil {
			f.Close()
			t.Errorf("%+v was accepted", c)
		}
	}
}

// records collects what a lineLog logs.
type records struct {
	slog.Handler
	lines []string
}

func (r *records) Enabled(context.Context, slog.Level) bool { return true }
func (r *records) Handle(_ context.Context, rec slog.Record) error {
	rec.Attrs(func(a slog.Attr) bool {
		r.lines = append(r.lines, a.Value.String())
		return true
	})
	return nil
}

// However a child's output is cut into writes, the records are its lines, none
// too long.
func FuzzLineLog(f *testing.F) {
	const most = 8
	f.Add([]byte("one\ntwo\r\n\nthree"), 3)
	f.Add(bytes.Repeat([]byte("x"), 2*most+1), 5)
	f.Fuzz(func(t *testing.T, out []byte, size int) {
		if size < 1 || len(out) > 1<<10 {
			t.Skip()
		}
		r := &records{}
		l := &lineLog{log: slog.New(r), max: most}
		for rest := out; len(rest) > 0; {
			n := min(size, len(rest))
			if _, err := l.Write(rest[:n]); err != nil {
				t.Fatal(err)
			}
			rest = rest[n:]
		}
		l.flush()
		var want []string
		for _, line := range bytes.Split(out, []byte("\n")) {
			for len(line) > most {
				want = appendLine(want, line[:most])
				line = line[most:]
			}
			want = appendLine(want, line)
		}
		if !slices.Equal(r.lines, want) {
			t.Errorf("records %q, want %q", r.lines, want)
		}
	})
}

func appendLine(lines []string, line []byte) []string {
	if line = bytes.TrimRight(line, "\r"); len(line) > 0 {
		lines = append(lines, string(line))
	}
	return lines
}
