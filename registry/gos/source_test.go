package gos_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"cumulet.io/internal/problem"
	"cumulet.io/registry/gos"
	"cumulet.io/registry/gos/dir"
	"cumulet.io/registry/gos/gostest"
	"cumulet.io/registry/gos/tracker"
)

// A source that breaks off is not the store's fault: its error comes back as it is, nobody is told that a store failed,
// and nothing is kept. A store that fails is its own fault.
func TestBrokenSource(t *testing.T) {
	w := newWorld(t, tracker.Config{}, "a")
	local, err := dir.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	gone := errors.New("the client has gone")
	refused := problem.New(problem.ErrTooLarge, "it is too large")
	for name, n := range map[string]*node{"S3": w.node("a", 0),
		"directory": w.node("b", 0, func(c *gos.Config) { c.Stores["b"] = local })} {
		for _, size := range []int{0, 1, 100_000, 6 << 20} {
			for _, cause := range []error{gone, io.ErrUnexpectedEOF, refused} {
				src := io.MultiReader(bytes.NewReader(gostest.Bytes(1, size)), iotest.ErrReader(cause))
				if _, _, err := n.Put(t.Context(), "test/broken", src); !errors.Is(err, cause) || errors.Is(err, problem.ErrUnavailable) {
					t.Errorf("%s, %d bytes and %v: %v", name, size, cause, err)
				}
			}
		}
	}
	if text := w.log.b.String(); strings.Contains(text, "object store") || strings.Contains(text, "ERROR") {
		t.Errorf("log: %s", text)
	}
	full := w.node("c", 0, func(c *gos.Config) { c.Stores["c"] = fullStore{local} })
	if _, _, err := full.Put(t.Context(), "test/full", strings.NewReader("x")); !errors.Is(err, problem.ErrUnavailable) {
		t.Errorf("a full store: %v", err)
	}
	if text := w.log.b.String(); !strings.Contains(text, "the object store failed") {
		t.Errorf("nobody is told of a full store: %s", text)
	}
}

// fullStore takes nothing.
type fullStore struct{ gos.ObjectStore }

// Put implements gos.ObjectStore.
func (fullStore) Put(context.Context, string, io.Reader, int64) (int64, error) {
	return 0, errors.New("no space left on device")
}
