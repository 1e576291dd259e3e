// Package gostest is the conformance suite of gos.ObjectStore, which every implementation runs.
package gostest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"testing/iotest"

	"cumulet.io/registry/gos"
)

// Bytes gives n bytes that follow from seed.
func Bytes(seed uint64, n int) []byte {
	b := make([]byte, n)
	var key [32]byte
	for i := range 8 {
		key[i] = byte(seed >> (8 * i))
	}
	_, _ = rand.NewChaCha8(key).Read(b)
	return b
}

// Run checks a store, which may hold other objects.
func Run(t *testing.T, store gos.ObjectStore) {
	ctx := t.Context()
	read := func(t *testing.T, key string, offset, length int64) []byte {
		t.Helper()
		r, err := store.Get(ctx, key, offset, length)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		b, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	put := func(t *testing.T, data []byte, size int64) string {
		t.Helper()
		key := gos.NewKey()
		// Without Seek and with short reads, as a network gives them.
		n, err := store.Put(ctx, key, iotest.HalfReader(bytes.NewReader(data)), size)
		if err != nil || n != int64(len(data)) {
			t.Fatalf("put %d bytes (size %d): %d, %v", len(data), size, n, err)
		}
		t.Cleanup(func() {
			if err := store.Delete(context.Background(), key); err != nil {
				t.Error(err)
			}
		})
		return key
	}
	for name, n := range map[string]int{"empty": 0, "one byte": 1, "small": 70_000, "large": 21<<20 + 3} {
		t.Run(name, func(t *testing.T) {
			data := Bytes(uint64(n), n)
			for _, size := range []int64{-1, int64(n)} {
				key := put(t, data, size)
				if got, err := store.Stat(ctx, key); err != nil || got != int64(n) {
					t.Errorf("stat: %d, %v", got, err)
				}
				if !bytes.Equal(read(t, key, 0, -1), data) {
					t.Error("read back: other bytes")
				}
				for _, r := range [][2]int64{{0, 1}, {0, 0}, {1, -1}, {int64(n) / 2, 1000}, {int64(n) - 1, 10}, {int64(n), -1}, {int64(n), 5}, {int64(n) + 10, -1}} {
					if r[0] < 0 {
						continue
					}
					from := min(r[0], int64(n))
					to := int64(n)
					if r[1] >= 0 {
						to = min(to, from+r[1])
					}
					if got := read(t, key, r[0], r[1]); !bytes.Equal(got, data[from:to]) {
						t.Errorf("range %v: %d bytes, want %d", r, len(got), to-from)
					}
				}
			}
		})
	}
	t.Run("missing", func(t *testing.T) {
		key := gos.NewKey()
		if _, err := store.Get(ctx, key, 0, -1); !errors.Is(err, gos.ErrNoObject) {
			t.Errorf("get: %v", err)
		}
		if _, err := store.Stat(ctx, key); !errors.Is(err, gos.ErrNoObject) {
			t.Errorf("stat: %v", err)
		}
		if err := store.Delete(ctx, key); err != nil {
			t.Errorf("delete: %v", err)
		}
	})
	t.Run("bad keys", func(t *testing.T) {
		for _, key := range []string{"", "x", "../../etc/passwd", "aa/../../../../etc/passwd00", "/etc/passwd", "AA/" + strings.Repeat("a", 24)} {
			if _, err := store.Put(ctx, key, strings.NewReader("x"), 1); err == nil {
				t.Errorf("put %q was taken", key)
			}
			if _, err := store.Get(ctx, key, 0, -1); err == nil {
				t.Errorf("get %q was taken", key)
			}
			if err := store.Delete(ctx, key); err == nil {
				t.Errorf("delete %q was taken", key)
			}
		}
	})
	t.Run("a broken source leaves nothing", func(t *testing.T) {
		broken := errors.New("the line is cut")
		for _, n := range []int{0, 1000, 9 << 20, 20 << 20} {
			for _, size := range []int64{-1, 30 << 20} {
				key := gos.NewKey()
				r := io.MultiReader(bytes.NewReader(Bytes(1, n)), iotest.ErrReader(broken))
				if _, err := store.Put(ctx, key, r, size); err == nil {
					t.Errorf("%d of %d bytes: no error", n, size)
				}
				if _, err := store.Stat(ctx, key); !errors.Is(err, gos.ErrNoObject) {
					t.Errorf("%d of %d bytes: an object is there (%v)", n, size, err)
				}
				if err := store.Delete(ctx, key); err != nil {
					t.Error(err)
				}
			}
		}
	})
	t.Run("a short source is an error", func(t *testing.T) {
		key := gos.NewKey()
		if _, err := store.Put(ctx, key, strings.NewReader("four"), 5); err == nil {
			t.Error("no error")
		}
		if _, err := store.Stat(ctx, key); !errors.Is(err, gos.ErrNoObject) {
			t.Errorf("an object is there (%v)", err)
		}
	})
	t.Run("compose", func(t *testing.T) {
		for _, sizes := range [][]int{{3, 4}, {6 << 20, 10}, {10, 6 << 20, 7 << 20, 1, 2}, {5 << 20, 5 << 20}, {0, 5, 0}} {
			var parts []string
			var want []byte
			for i, n := range sizes {
				data := Bytes(uint64(i+100), n)
				want = append(want, data...)
				parts = append(parts, put(t, data, int64(n)))
			}
			key := gos.NewKey()
			n, err := store.Compose(ctx, key, parts)
			if err != nil || n != int64(len(want)) {
				t.Fatalf("%v: %d, %v", sizes, n, err)
			}
			if !bytes.Equal(read(t, key, 0, -1), want) {
				t.Errorf("%v: other bytes", sizes)
			}
			if err := store.Delete(ctx, key); err != nil {
				t.Error(err)
			}
		}
		if _, err := store.Compose(ctx, gos.NewKey(), []string{gos.NewKey(), gos.NewKey()}); !errors.Is(err, gos.ErrNoObject) {
			t.Errorf("of missing parts: %v", err)
		}
	})
	if creator, ok := store.(gos.Creator); ok {
		t.Run("piece by piece", func(t *testing.T) { runCreator(t, store, creator) })
	}
	t.Run("concurrent", func(t *testing.T) {
		var wg sync.WaitGroup
		for i := range 16 {
			wg.Go(func() {
				data := Bytes(uint64(i), 100_000+i)
				key := gos.NewKey()
				if _, err := store.Put(ctx, key, bytes.NewReader(data), int64(len(data))); err != nil {
					t.Error(err)
					return
				}
				r, err := store.Get(ctx, key, 7, -1)
				if err != nil {
					t.Error(err)
					return
				}
				// A read that began goes on, whatever is deleted meanwhile, or fails: it never gives other bytes.
				if err := store.Delete(ctx, key); err != nil {
					t.Error(err)
				}
				if got, err := io.ReadAll(r); err == nil && !bytes.Equal(got, data[7:]) {
					t.Error("other bytes")
				}
				r.Close()
			})
		}
		wg.Wait()
	})
}

func runCreator(t *testing.T, store gos.ObjectStore, creator gos.Creator) {
	ctx := t.Context()
	begin := func(t *testing.T, pieces ...[]byte) (string, gos.ObjectWriter) {
		t.Helper()
		key := gos.NewKey()
		w, err := creator.Create(ctx, key)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range pieces {
			if n, err := w.Write(p); err != nil || n != len(p) {
				t.Fatalf("write %d bytes: %d, %v", len(p), n, err)
			}
			if _, err := store.Stat(ctx, key); !errors.Is(err, gos.ErrNoObject) {
				t.Errorf("an object is there before its commit (%v)", err)
			}
		}
		return key, w
	}
	none := func(t *testing.T, key string) {
		t.Helper()
		if _, err := store.Stat(ctx, key); !errors.Is(err, gos.ErrNoObject) {
			t.Errorf("an object is there (%v)", err)
		}
	}
	for _, sizes := range [][]int{{}, {0}, {1}, {70_000, 1, 0, 9 << 20}} {
		var pieces [][]byte
		for i, n := range sizes {
			pieces = append(pieces, Bytes(uint64(i+200), n))
		}
		key, w := begin(t, pieces...)
		if err := w.Commit(); err != nil {
			t.Fatal(err)
		}
		w.Abort() // too late
		r, err := store.Get(ctx, key, 0, -1)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(r)
		if err != nil || !bytes.Equal(got, bytes.Join(pieces, nil)) {
			t.Errorf("%v: %d other bytes, %v", sizes, len(got), err)
		}
		if err := errors.Join(r.Close(), store.Delete(ctx, key)); err != nil {
			t.Error(err)
		}
	}
	key, w := begin(t, Bytes(1, 100_000))
	w.Abort()
	w.Abort()
	if err := w.Commit(); err == nil {
		t.Error("what was given up was committed")
	}
	if _, err := w.Write([]byte("x")); err == nil {
		t.Error("what was given up was written to")
	}
	none(t, key)

	// Abort by another, while pieces come.
	key, w = begin(t)
	done := make(chan error)
	go func() {
		for {
			if _, err := w.Write(Bytes(2, 10_000)); err != nil {
				done <- err
				return
			}
		}
	}()
	w.Abort()
	if err := <-done; err == nil {
		t.Error("the write goes on")
	}
	none(t, key)
	if _, err := creator.Create(ctx, "../../etc/passwd"); err == nil {
		t.Error("a bad key was taken")
	}
}
