package tracker_test

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"cumulet.io/internal/problem"
	"cumulet.io/internal/sqldb/sqldbtest"
	"cumulet.io/registry/gos/tracker"
)

type clock struct{ ms atomic.Int64 }

func (c *clock) now() time.Time          { return time.UnixMilli(c.ms.Load()) }
func (c *clock) advance(d time.Duration) { c.ms.Add(d.Milliseconds()) }

const lease = time.Hour

func open(t *testing.T, dsn string, c *clock) *tracker.Tracker {
	t.Helper()
	db := sqldbtest.Open(t, dsn)
	tr, err := tracker.Open(t.Context(), db, tracker.Config{Lease: lease, Now: c.now})
	if err != nil {
		t.Fatal(err)
	}
	return tr
}

// both runs a test on either database.
func both(t *testing.T, f func(t *testing.T, tr *tracker.Tracker, c *clock)) {
	sqldbtest.Each(t, func(t *testing.T, empty func(testing.TB) string) {
		c := &clock{}
		c.ms.Store(1_700_000_000_000)
		f(t, open(t, empty(t), c), c)
	})
}

func ok(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func commit(t *testing.T, tr *tracker.Tracker, text, region, owner string) (digest.Digest, tracker.Object) {
	t.Helper()
	d := digest.FromString(text)
	o := tracker.Object{Region: region, Key: "key-" + text + "-" + region}
	ok(t, tr.Intend(t.Context(), o, tr.Now().Add(time.Hour)))
	ok(t, tr.CommitBlob(t.Context(), d, int64(len(text)), o, owner))
	return d, o
}

func keys(objects []tracker.Object) []string {
	var out []string
	for _, o := range objects {
		out = append(out, o.Key)
	}
	slices.Sort(out)
	return out
}

func TestLifeOfABlob(t *testing.T) {
	both(t, func(t *testing.T, tr *tracker.Tracker, c *clock) {
		ctx := t.Context()
		collect := func() (marked, dropped int) {
			t.Helper()
			dropped, err := tr.Drop(ctx, tr.Now().Add(-time.Minute), 100)
			ok(t, err)
			marked, err = tr.Mark(ctx)
			ok(t, err)
			return marked, dropped
		}
		d, o := commit(t, tr, "layer", "a", "")
		// Its lease keeps it, then a look, then a link, then an owner.
		if m, _ := collect(); m != 0 {
			t.Error("marked while its lease runs")
		}
		c.advance(lease * 3 / 4)
		if _, err := tr.Touch(ctx, d); err != nil {
			t.Fatal(err)
		}
		c.advance(lease / 2)
		if m, _ := collect(); m != 0 {
			t.Error("marked although it was asked for")
		}
		path := tracker.LayerPath("acme/web", d)
		ok(t, tr.PutFile(ctx, path, []byte(d)))
		c.advance(2 * lease)
		if m, _ := collect(); m != 0 {
			t.Error("marked although it is linked")
		}
		ok(t, tr.Delete(ctx, path))
		ok(t, tr.Reference(ctx, "file/x", d))
		c.advance(2 * lease)
		if m, _ := collect(); m != 0 {
			t.Error("marked although it has an owner")
		}
		ok(t, tr.Release(ctx, "file/x", d))
		if m, _ := collect(); m != 1 {
			t.Error("not marked")
		}
		// What is marked lives again when it is asked for.
		c.advance(2 * time.Minute)
		if _, err := tr.Touch(ctx, d); err != nil {
			t.Fatal(err)
		}
		if m, n := collect(); m != 0 || n != 0 {
			t.Errorf("after a look: %d marked, %d dropped", m, n)
		}
		c.advance(lease + time.Minute)
		if m, n := collect(); m != 1 || n != 0 {
			t.Errorf("%d marked, %d dropped", m, n)
		}
		if m, n := collect(); m != 0 || n != 0 {
			t.Errorf("at once: %d marked, %d dropped", m, n)
		}
		c.advance(2 * time.Minute)
		if _, n := collect(); n != 1 {
			t.Error("not dropped")
		}
		for what, err := range map[string]error{
			"touch":     func() error { _, err := tr.Touch(ctx, d); return err }(),
			"link":      tr.PutFile(ctx, path, []byte(d)),
			"reference": tr.Reference(ctx, "file/x", d),
		} {
			if !errors.Is(err, problem.ErrNotFound) {
				t.Errorf("%s of a blob that is gone: %v", what, err)
			}
		}
		c.advance(time.Second)
		if doomed, err := tr.Doom(ctx, "b", 10); err != nil || len(doomed) != 0 {
			t.Errorf("another region: %v, %v", doomed, err)
		}
		doomed, err := tr.Doom(ctx, "a", 10)
		if err != nil || !slices.Equal(keys(doomed), []string{o.Key}) {
			t.Errorf("garbage: %v, %v", doomed, err)
		}
		ok(t, tr.Swept(ctx, o))
		if doomed, err := tr.Doom(ctx, "a", 10); err != nil || len(doomed) != 0 {
			t.Errorf("swept: %v, %v", doomed, err)
		}
		// The digest may begin another life; a replica of the old one is not taken.
		old := &tracker.Blob{Digest: d, Epoch: 1}
		commit(t, tr, "layer", "c", "")
		late := tracker.Object{Region: "b", Key: "late"}
		ok(t, tr.Intend(ctx, late, tr.Now().Add(time.Hour)))
		if stored, err := tr.AddReplica(ctx, old, late); err != nil || stored {
			t.Errorf("a replica of a life that is over: %v, %v", stored, err)
		}
	})
}

// An object that the sweeper has taken cannot be committed any more, and one that is committed is not swept.
func TestIntents(t *testing.T) {
	both(t, func(t *testing.T, tr *tracker.Tracker, c *clock) {
		ctx := t.Context()
		o := tracker.Object{Region: "a", Key: "slow"}
		ok(t, tr.Intend(ctx, o, tr.Now().Add(time.Hour)))
		c.advance(2 * time.Hour)
		doomed, err := tr.Doom(ctx, "a", 10)
		if err != nil || len(doomed) != 1 {
			t.Fatalf("%v, %v", doomed, err)
		}
		for what, err := range map[string]error{
			"blob":    tr.CommitBlob(ctx, digest.FromString("x"), 1, o, ""),
			"segment": tr.AddSegment(ctx, "/f", tracker.Segment{Object: o, Size: 1}),
		} {
			if !errors.Is(err, problem.ErrConflict) {
				t.Errorf("%s: %v", what, err)
			}
		}
		if _, err := tr.Touch(ctx, digest.FromString("x")); !errors.Is(err, problem.ErrNotFound) {
			t.Errorf("a trace is left: %v", err)
		}
	})
}

func TestSegmentsAndMove(t *testing.T) {
	both(t, func(t *testing.T, tr *tracker.Tracker, c *clock) {
		ctx := t.Context()
		const path = "/docker/registry/v2/repositories/acme/web/_uploads/1/data"
		add := func(key string, start, size int64) error {
			o := tracker.Object{Region: "a", Key: key}
			ok(t, tr.Intend(ctx, o, tr.Now().Add(time.Hour)))
			return tr.AddSegment(ctx, path, tracker.Segment{Object: o, Start: start, Size: size})
		}
		ok(t, add("one", 0, 10))
		if err := add("again", 0, 5); !errors.Is(err, problem.ErrConflict) {
			t.Errorf("two writers at one offset: %v", err)
		}
		if err := add("gap", 20, 5); !errors.Is(err, problem.ErrConflict) {
			t.Errorf("a gap: %v", err)
		}
		ok(t, add("two", 10, 7))
		whole := tracker.Object{Region: "a", Key: "whole"}
		ok(t, tr.Intend(ctx, whole, tr.Now().Add(time.Hour)))
		ok(t, tr.CommitFile(ctx, path, whole, 17))
		d := digest.FromString("whatever")
		ok(t, tr.Move(ctx, path, tracker.BlobPath(d)))
		b, err := tr.Touch(ctx, d)
		if err != nil || b.Size != 17 || b.In("a") != "whole" {
			t.Errorf("%+v, %v", b, err)
		}
		if _, err := tr.File(ctx, path); !errors.Is(err, problem.ErrNotFound) {
			t.Errorf("the upload's file is left: %v", err)
		}
		c.advance(3 * time.Hour)
		doomed, err := tr.Doom(ctx, "a", 10)
		if err != nil || !slices.Equal(keys(doomed), []string{"again", "gap", "one", "two"}) {
			t.Errorf("garbage: %v, %v", keys(doomed), err)
		}
	})
}

// A replica follows every kind of change, also when it was away for long.
func TestReplica(t *testing.T) {
	both(t, func(t *testing.T, tr *tracker.Tracker, c *clock) {
		ctx := t.Context()
		replica := open(t, sqldbtest.SQLite(t), c)
		sync := func() {
			t.Helper()
			for {
				at, err := replica.Position(ctx)
				ok(t, err)
				changes, next, anew, err := tr.Changes(ctx, at, 50)
				ok(t, err)
				if anew {
					ok(t, replica.Reset(ctx))
					continue
				}
				if next.Seq == at.Seq {
					return
				}
				ok(t, replica.Apply(ctx, changes, next))
			}
		}
		const tag = "/docker/registry/v2/repositories/acme/web/_manifests/tags/1/current/link"
		m1, m2 := digest.FromString("m1"), digest.FromString("m2")
		ok(t, tr.PutInline(ctx, m1, []byte("m1")))
		ok(t, tr.PutFile(ctx, tag, []byte(m1)))
		sync()
		ok(t, tr.PutInline(ctx, m2, []byte("m2")))
		ok(t, tr.PutFile(ctx, tag, []byte(m2)))
		ok(t, tr.PutFile(ctx, "/other", []byte("x")))
		d, _ := commit(t, tr, "layer", "a", "")
		if f, err := replica.Read(ctx, tag); err != nil || string(f.Content) != m1.String() {
			t.Errorf("before: %+v, %v", f, err)
		}
		sync()
		if f, err := replica.Read(ctx, tag); err != nil || string(f.Content) != m2.String() {
			t.Errorf("after: %+v, %v", f, err)
		}
		if b, err := replica.Find(ctx, m2); err != nil || string(b.Inline) != "m2" {
			t.Errorf("manifest: %+v, %v", b, err)
		}
		if b, err := replica.Find(ctx, d); err != nil || b.In("a") == "" {
			t.Errorf("blob: %+v, %v", b, err)
		}
		ok(t, tr.Delete(ctx, tag))
		// A directory goes with all that is below it, and nothing beside it.
		const many = 450
		for i := range many {
			ok(t, tr.PutFile(ctx, fmt.Sprintf("/many/%d/link", i), []byte("x")))
		}
		ok(t, tr.PutFile(ctx, "/many0", []byte("x")))
		part := tracker.Object{Region: "a", Key: "part"}
		ok(t, tr.Intend(ctx, part, tr.Now().Add(time.Hour)))
		ok(t, tr.AddSegment(ctx, "/many/data", tracker.Segment{Object: part, Size: 4}))
		sync()
		ok(t, tr.Delete(ctx, "/many"))
		if err := tr.Delete(ctx, "/many"); !errors.Is(err, problem.ErrNotFound) {
			t.Errorf("deleted twice: %v", err)
		}
		sync()
		for _, each := range []*tracker.Tracker{tr, replica} {
			if files, err := each.List(ctx, "/many"); err != nil || len(files) > 0 {
				t.Errorf("%d files of a deleted directory, %v", len(files), err)
			}
			if f, err := each.Read(ctx, "/many0"); err != nil || string(f.Content) != "x" {
				t.Errorf("beside: %+v, %v", f, err)
			}
		}
		c.advance(time.Second)
		if doomed, err := tr.Doom(ctx, "a", 10); err != nil || !slices.Equal(keys(doomed), []string{part.Key}) {
			t.Errorf("garbage of a deleted upload: %v, %v", doomed, err)
		}
		c.advance(2 * lease)
		_, err := tr.Mark(ctx)
		ok(t, err)
		c.advance(time.Minute)
		if n, err := tr.Drop(ctx, tr.Now(), 10); err != nil || n != 3 {
			t.Fatalf("dropped %d, %v", n, err)
		}
		gone := func() {
			t.Helper()
			if _, err := replica.Read(ctx, tag); !errors.Is(err, problem.ErrNotFound) {
				t.Errorf("a deleted tag: %v", err)
			}
			if _, err := replica.Find(ctx, d); !errors.Is(err, problem.ErrNotFound) {
				t.Errorf("a dropped blob: %v", err)
			}
			if f, err := replica.Read(ctx, "/other"); err != nil || string(f.Content) != "x" {
				t.Errorf("another file: %+v, %v", f, err)
			}
		}
		c.advance(time.Minute)
		ok(t, tr.Forget(ctx, tr.Now())) // the replica has not seen the removals, and cannot any more
		sync()
		gone()
	})
}

// Many writers, links and collectors at once: nothing fails for another's sake, and one leads.
func TestConcurrent(t *testing.T) {
	both(t, func(t *testing.T, tr *tracker.Tracker, c *clock) {
		ctx := t.Context()
		var wg sync.WaitGroup
		var leaders atomic.Int64
		for i := range 8 {
			wg.Go(func() {
				if leads, err := tr.Lead(ctx, "x", fmt.Sprint(i), time.Hour); err != nil {
					t.Error(err)
				} else if leads {
					leaders.Add(1)
				}
				for j := range 6 {
					d := digest.FromString(fmt.Sprint("blob", j)) // the same for all
					o := tracker.Object{Region: "a", Key: fmt.Sprintf("%d-%d", i, j)}
					path := tracker.LayerPath("acme/web", d)
					for what, err := range map[string]error{
						"intend": tr.Intend(ctx, o, tr.Now().Add(time.Hour)),
						"commit": tr.CommitBlob(ctx, d, 1, o, ""),
						"link":   tr.PutFile(ctx, path, []byte(d)),
						"read":   func() error { _, err := tr.Touch(ctx, d); return err }(),
						"mark":   func() error { _, err := tr.Mark(ctx); return err }(),
						"drop":   func() error { _, err := tr.Drop(ctx, tr.Now(), 10); return err }(),
					} {
						if err != nil {
							t.Errorf("%s: %v", what, err)
						}
					}
					if err := tr.Delete(ctx, path); err != nil && !errors.Is(err, problem.ErrNotFound) {
						t.Errorf("unlink: %v", err)
					}
				}
			})
		}
		wg.Wait()
		if leaders.Load() != 1 {
			t.Errorf("%d leaders", leaders.Load())
		}
		c.advance(2 * time.Hour)
		if doomed, err := tr.Doom(ctx, "a", 1000); err != nil || len(doomed) != 42 {
			t.Errorf("%d objects are garbage, want all but one of each blob: %v", len(doomed), err)
		}
	})
}

func TestParsePath(t *testing.T) {
	d := digest.FromString("x")
	hex := d.Encoded()
	const repos = "/docker/registry/v2/repositories/"
	for path, want := range map[string]tracker.Path{
		tracker.BlobPath(d):              {Kind: tracker.KindBlob, Digest: d},
		tracker.LayerPath("acme/a/b", d): {Kind: tracker.KindLayer, Repository: "acme/a/b", Digest: d},
		repos + "acme/web/_manifests/revisions/sha256/" + hex + "/link":          {Kind: tracker.KindRevision, Repository: "acme/web", Digest: d},
		repos + "acme/web/_manifests/tags/v1/current/link":                       {Kind: tracker.KindTag, Repository: "acme/web", Tag: "v1"},
		repos + "acme/web/_uploads/u1/hashstates/sha256/100":                     {Kind: tracker.KindUpload, Repository: "acme/web", Upload: "u1"},
		repos + "acme/web/_manifests/tags/v1/index/sha256/" + hex + "/link":      {},
		"/docker/registry/v2/blobs/sha256/00/" + hex + "/data":                   {},
		"/docker/registry/v2/blobs/sha256/" + hex[:2] + "/" + hex[:10] + "/data": {},
		repos + "_layers/sha256/" + hex + "/link":                                {},
		"/": {}, "": {}, "/a/b": {},
	} {
		if got := tracker.ParsePath(path); got != want {
			t.Errorf("%s: %+v, want %+v", path, got, want)
		}
	}
}

func FuzzParsePath(f *testing.F) {
	d := digest.FromString("x")
	for _, path := range []string{tracker.BlobPath(d), tracker.LayerPath("acme/web", d), "/docker/registry/v2/repositories/a/_uploads/1/data",
		"/docker/registry/v2/repositories/a/_manifests/tags/t/current/link", "/docker/registry/v2/blobs/sha256//x/data"} {
		f.Add(path)
	}
	f.Fuzz(func(t *testing.T, path string) {
		p := tracker.ParsePath(path)
		switch p.Kind {
		case tracker.KindBlob:
			if tracker.BlobPath(p.Digest) != path || p.Digest.Validate() != nil {
				t.Errorf("%q: %+v", path, p)
			}
		case tracker.KindLayer:
			if tracker.LayerPath(p.Repository, p.Digest) != path || p.Digest.Validate() != nil {
				t.Errorf("%q: %+v", path, p)
			}
		case tracker.KindOther:
			if p != (tracker.Path{}) {
				t.Errorf("%q: %+v", path, p)
			}
		default:
			if p.Repository == "" {
				t.Errorf("%q: %+v", path, p)
			}
		}
	})
}
