package lazyread

import (
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"
)

const content = "0123456789abcdefghij"

// opened counts what is open, and how often anything was opened.
type opened struct{ now, all int }

type counted struct {
	io.Reader
	o *opened
}

func (c counted) Close() error { c.o.now--; return nil }

func (o *opened) open(offset int64) (io.ReadCloser, error) {
	o.now++
	o.all++
	return counted{iotest.OneByteReader(strings.NewReader(content[offset:])), o}, nil
}

func TestSeeker(t *testing.T) {
	var o opened
	s := &Seeker{Size: int64(len(content)), Open: o.open}
	if err := iotest.TestReader(s, []byte(content)); err != nil {
		t.Error(err)
	}
	if s.Err() != nil || s.Close() != nil || s.Close() != nil || o.now != 0 {
		t.Errorf("%v, %d open", s.Err(), o.now)
	}

	o = opened{}
	if n, err := s.Seek(0, io.SeekEnd); n != s.Size || err != nil {
		t.Error(n, err)
	}
	for _, offset := range []int64{-1, s.Size + 1} {
		if _, err := s.Seek(offset, io.SeekStart); err == nil {
			t.Errorf("seek to %d", offset)
		}
	}
	if n, err := s.Seek(-3, io.SeekEnd); n != s.Size-3 || err != nil {
		t.Error(n, err)
	}
	if o.all != 0 {
		t.Errorf("seeking opened %d times", o.all)
	}
	if b, err := io.ReadAll(s); string(b) != "hij" || err != nil || o.all != 1 {
		t.Errorf("%q %v, opened %d times", b, err, o.all)
	}
}

func TestOpened(t *testing.T) {
	var o opened
	body, err := o.open(5)
	if err != nil {
		t.Fatal(err)
	}
	s := Opened(int64(len(content)), 5, body, o.open)
	for _, from := range []int64{5, 2} {
		if _, err := s.Seek(from, io.SeekStart); err != nil {
			t.Fatal(err)
		}
		if b, err := io.ReadAll(s); string(b) != content[from:] || err != nil {
			t.Errorf("from %d: %q %v", from, b, err)
		}
	}
	if err := s.Close(); err != nil || o.all != 2 || o.now != 0 {
		t.Errorf("%v: opened %d times, %d are open", err, o.all, o.now)
	}
}

func TestSeekerFails(t *testing.T) {
	broken := errors.New("broken")
	for name, c := range map[string]struct {
		open func(int64) (io.ReadCloser, error)
		want error
	}{
		"not there": {func(int64) (io.ReadCloser, error) { return nil, broken }, broken},
		"breaks": {func(int64) (io.ReadCloser, error) {
			return io.NopCloser(io.MultiReader(strings.NewReader("01"), iotest.ErrReader(broken))), nil
		}, broken},
		"too short": {func(int64) (io.ReadCloser, error) { return io.NopCloser(strings.NewReader("01")), nil }, io.ErrUnexpectedEOF},
	} {
		s := &Seeker{Size: 10, Open: c.open}
		if _, err := io.ReadAll(s); !errors.Is(err, c.want) || !errors.Is(s.Err(), c.want) {
			t.Errorf("%s: %v, kept %v", name, err, s.Err())
		}
	}
}
