package store

import (
	"errors"
	"testing"

	"cumulet.io/internal/problem"
)

// FuzzCursor: a cursor is one that was given out, or an error of a class.
func FuzzCursor(f *testing.F) {
	for _, c := range []string{"", ".", "abcdefgh.7", "abcdefgh.07", "abcdefgh.-1", "abcdefgh.99999999999999999999", formatPage(7, "i-0"), "AAAA"} {
		f.Add(c)
	}
	s := &Store{name: "abcdefgh"}
	s.published.Store(100)
	s.pruned.Store(5)
	f.Fuzz(func(t *testing.T, c string) {
		if v, err := s.parseCursor(c); err == nil {
			if v < 5 || v > 100 || s.cursor(v) != c {
				t.Errorf("watch cursor %q was taken for %d", c, v)
			}
		} else if !errors.Is(err, problem.ErrInvalid) && !errors.Is(err, problem.ErrGone) {
			t.Errorf("watch cursor %q: %v", c, err)
		}
		if at, id, err := parsePage(c); err == nil {
			if formatPage(at, id) != c {
				t.Errorf("page cursor %q was taken for %d %q", c, at, id)
			}
		} else if !errors.Is(err, problem.ErrInvalid) {
			t.Errorf("page cursor %q: %v", c, err)
		}
	})
}
