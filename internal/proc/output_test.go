package proc

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestLineLogBoundsALine(t *testing.T) {
	var log buffer
	l := &lineLog{log: slog.New(slog.NewTextHandler(&log, nil))}
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
