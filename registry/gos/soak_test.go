package gos_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"cumulet.io/internal/problem"
	"cumulet.io/internal/sqldb/sqldbtest"
	"cumulet.io/internal/testenv"
	"cumulet.io/registry/gos"
	"cumulet.io/registry/gos/gostest"
	"cumulet.io/registry/gos/tracker"
)

// clock is a tracker's that the test moves.
type clock struct{ ms atomic.Int64 }

func (c *clock) now() time.Time { return time.UnixMilli(c.ms.Load()) }

// manifests is what the manifests of repositories need, as the registry's index would know it.
type manifests struct {
	mu   sync.Mutex
	need map[string]bool
}

func (m *manifests) Live(_ context.Context, repository string, d digest.Digest) (bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.need[repository+"@"+d.String()], nil
}

func (m *manifests) set(repository string, d digest.Digest, needed bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.need[repository+"@"+d.String()] = needed
}

// event is what an operation saw. Times are the tracker's, in milliseconds; order is of the whole history.
type event struct {
	op           string
	digest       digest.Digest
	repository   string // or owner
	region       string
	began, ended int64
	first, last  int64 // order of its begin and its end
	err          error
}

type history struct {
	clock *clock
	mu    sync.Mutex
	order int64
	list  []event
}

func (h *history) do(op, region, repository string, d digest.Digest, f func() error) error {
	e := event{op: op, digest: d, repository: repository, region: region}
	h.mu.Lock()
	h.order++
	e.first, e.began = h.order, h.clock.ms.Load()
	h.mu.Unlock()
	e.err = f()
	h.mu.Lock()
	defer h.mu.Unlock()
	h.order++
	e.last, e.ended = h.order, h.clock.ms.Load()
	h.list = append(h.list, e)
	return e.err
}

// check finds reads that failed although something made a promise that they would not:
//   - what was pushed, found or mounted is there for half a lease, from when that began;
//   - what is linked while a manifest needs it, or has an owner, is there until that ends.
func (h *history) check(t *testing.T, lease time.Duration) (promised int) {
	half := lease.Milliseconds() / 2
	for _, e := range h.list {
		if e.op != "pull" && e.op != "find" {
			continue
		}
		var why *event
		for i := range h.list {
			p := &h.list[i]
			if p.digest != e.digest || p.err != nil || p.last >= e.first {
				continue
			}
			switch p.op {
			case "push", "mount", "find", "pull", "own":
				if e.ended <= p.began+half {
					why = p
				}
			}
			if p.op == "need" || p.op == "own" {
				ended := false
				for j := range h.list {
					q := &h.list[j]
					over := p.op == "need" && q.op == "forget" || p.op == "own" && q.op == "release"
					if over && q.digest == p.digest && q.repository == p.repository && q.last > p.first && q.first < e.last {
						ended = true
					}
				}
				if !ended {
					why = p
				}
			}
			if why != nil {
				break
			}
		}
		if why == nil {
			continue
		}
		promised++
		if e.err != nil {
			t.Errorf("%s of %s in %s at %d..%d failed, though %s of %s in %s at %d..%d succeeded before: %v",
				e.op, e.digest, e.region, e.began, e.ended, why.op, why.repository, why.region, why.began, why.ended, e.err)
		}
	}
	return promised
}

// Random pushes, mounts, looks, pulls and deletes in three regions, with collectors at work in all of them and a clock
// that runs: nothing that anyone relies on is collected, and in the end everything is.
func TestCollectorSoak(t *testing.T) {
	sqldbtest.Each(t, func(t *testing.T, empty func(testing.TB) string) { collectorSoak(t, empty(t)) })
}

func collectorSoak(t *testing.T, address string) {
	random := testenv.Random(t)
	const lease, presign = time.Hour, 10 * time.Minute
	c := &clock{}
	c.ms.Store(time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC).UnixMilli())
	w := newWorldOn(t, address, tracker.Config{Lease: lease, Now: c.now}, "a", "b", "c")
	refs := &manifests{need: map[string]bool{}}
	var nodes []*node
	for _, s := range w.servers {
		nodes = append(nodes, w.node(s.name, 2*time.Millisecond, func(cfg *gos.Config) {
			cfg.References, cfg.PresignTTL = refs, presign
		}))
	}
	h := &history{clock: c}
	const blobs, repositories, workers = 60, 1, 6
	content := make([][]byte, blobs)
	for i := range content {
		content[i] = gostest.Bytes(uint64(500+i), 1+i*i*30)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var background, wg sync.WaitGroup
	// Time runs with the work, so that on a busy machine no promise is over before it was given, and a little by itself.
	background.Go(func() {
		for ctx.Err() == nil {
			time.Sleep(10 * time.Millisecond)
			c.ms.Add(lease.Milliseconds() / 200)
		}
	})
	var dropped, objects atomic.Int64
	for _, n := range nodes {
		background.Go(func() {
			for ctx.Err() == nil {
				s, err := n.Sweep(ctx)
				if err != nil && ctx.Err() == nil {
					t.Errorf("sweep: %v", err)
				}
				dropped.Add(int64(s.Dropped))
				objects.Add(int64(s.Objects))
				time.Sleep(5 * time.Millisecond)
			}
		})
	}
	read := func(n *node, repo string, d digest.Digest, want []byte) {
		_ = h.do("pull", n.Name(), repo, d, func() error {
			body, err := n.Open(ctx, d, 0)
			if err != nil {
				return err
			}
			defer body.Close()
			got, err := drain(body)
			if err == nil && !got.is(want) {
				t.Errorf("%s: wrong bytes", d)
			}
			return err
		})
	}
	// late waits until a promise of now is nearly over.
	late := func(r *rand.Rand) {
		for at := c.ms.Load() + lease.Milliseconds()*int64(20+r.IntN(25))/100; c.ms.Load() < at; {
			time.Sleep(time.Millisecond)
		}
	}
	began := time.Now()
	goesOn := func() bool { // longer on a machine that is too busy for anything to be collected
		took := time.Since(began)
		return !t.Failed() && (took < 8*time.Second || dropped.Load() == 0 && took < time.Minute)
	}
	for worker := range workers {
		r := rand.New(rand.NewPCG(random.Uint64(), uint64(worker)))
		wg.Go(func() {
			for ; goesOn(); c.ms.Add(lease.Milliseconds() / 60) {
				i := r.IntN(blobs)
				d := digest.FromBytes(content[i])
				n := nodes[r.IntN(len(nodes))]
				repo := fmt.Sprintf("acme/r%d-%d", worker, r.IntN(repositories)) // a worker's own, so that its history is in order
				link := func() error { return n.Tracker().PutFile(ctx, tracker.LayerPath(repo, d), []byte(d)) }
				switch r.IntN(10) {
				case 0: // a push: upload, link, manifest
					if h.do("push", n.Name(), repo, d, func() error { return upload(ctx, n, repo, r.Uint64(), content[i], d) }) != nil {
						break
					}
					if r.IntN(3) == 0 {
						refs.set(repo, d, true)
						_ = h.do("need", n.Name(), repo, d, link)
					}
				case 2: // a mount: the source's link is looked at, and the link made
					found := h.do("find", n.Name(), repo, d, func() error { _, err := n.Stat(ctx, d); return err })
					if found == nil && h.do("mount", n.Name(), repo, d, link) == nil && r.IntN(2) == 0 {
						refs.set(repo, d, true)
						_ = h.do("need", n.Name(), repo, d, link)
					}
				case 1, 3, 4: // manifests are deleted
					for range 10 {
						d := digest.FromBytes(content[r.IntN(blobs)])
						_ = h.do("forget", n.Name(), repo, d, func() error { refs.set(repo, d, false); return nil })
					}
				case 5: // a file, which may be released at once
					owner := fmt.Sprintf("file/%d", worker)
					if h.do("own", n.Name(), owner, d, func() error {
						_, _, err := n.Put(ctx, owner, bytes.NewReader(content[i]))
						return err
					}) == nil && r.IntN(2) == 0 {
						_ = h.do("release", n.Name(), owner, d, func() error { return n.Release(ctx, owner, d) })
						late(r)
						read(nodes[r.IntN(len(nodes))], repo, d, content[i])
					}
				case 6:
					owner := fmt.Sprintf("file/%d", worker)
					for range 10 {
						d := digest.FromBytes(content[r.IntN(blobs)])
						_ = h.do("release", n.Name(), owner, d, func() error { return n.Release(ctx, owner, d) })
					}
				case 7, 8: // a look, and a pull when what it promised is nearly over
					if h.do("find", n.Name(), repo, d, func() error { _, err := n.Stat(ctx, d); return err }) != nil {
						break
					}
					late(r)
					read(nodes[r.IntN(len(nodes))], repo, d, content[i])
				default:
					read(n, repo, d, content[i])
				}
			}
		})
	}
	wg.Wait()
	cancel()
	background.Wait()
	promised := h.check(t, lease)
	t.Logf("%d operations, %d reads that were promised, %d blobs dropped, %d objects deleted", len(h.list), promised, dropped.Load(), objects.Load())
	if promised == 0 || dropped.Load() == 0 {
		t.Error("the soak shows nothing")
	}

	// Nobody needs anything any more: nothing stays.
	refs.mu.Lock()
	refs.need = map[string]bool{}
	refs.mu.Unlock()
	for worker := range workers {
		for _, data := range content {
			if err := nodes[0].Release(t.Context(), fmt.Sprintf("file/%d", worker), digest.FromBytes(data)); err != nil {
				t.Fatal(err)
			}
		}
	}
	for range 12 {
		c.ms.Add((9 * 24 * time.Hour).Milliseconds())
		for _, n := range nodes {
			if _, err := n.Sweep(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, s := range w.servers {
		if n := s.objects(t); n != 0 {
			t.Errorf("region %s still has %d objects", s.name, n)
		}
	}
	for _, data := range content {
		if _, err := nodes[0].Stat(t.Context(), digest.FromBytes(data)); !errors.Is(err, problem.ErrNotFound) {
			t.Errorf("%s: %v", digest.FromBytes(data), err)
		}
	}
	for _, table := range []string{"gos_files", "gos_segments", "gos_blobs", "gos_replicas", "gos_garbage"} {
		var n int
		if err := w.db.QueryRowContext(t.Context(), `SELECT count(*) FROM `+table).Scan(&n); err != nil || n != 0 {
			t.Errorf("%s: %d rows, %v", table, n, err)
		}
	}
}

// upload pushes as the distribution core does: in chunks, each by a writer of its own, then into the blob's place.
func upload(ctx context.Context, n *node, repo string, id uint64, data []byte, d digest.Digest) error {
	dir := fmt.Sprintf("/docker/registry/v2/repositories/%s/_uploads/%x", repo, id)
	if err := n.Tracker().PutFile(ctx, dir+"/startedat", []byte("now")); err != nil {
		return err
	}
	half := len(data) / 2
	for i, chunk := range [][]byte{data[:half], data[half:]} {
		w, err := n.Writer(ctx, dir+"/data", i > 0)
		if err != nil {
			return err
		}
		if _, err := w.Write(chunk); err != nil {
			return errors.Join(err, w.Close())
		}
		if i == 0 {
			err = w.Close()
		} else {
			err = w.Commit(ctx)
		}
		if err != nil {
			return err
		}
	}
	if _, err := n.Stat(ctx, d); err != nil { // as the core: what is there is not moved again
		if !errors.Is(err, problem.ErrNotFound) {
			return err
		}
		if err := n.Tracker().Move(ctx, dir+"/data", tracker.BlobPath(d)); err != nil {
			return err
		}
	}
	if err := n.Tracker().PutFile(ctx, tracker.LayerPath(repo, d), []byte(d)); err != nil {
		return err
	}
	return n.Tracker().Delete(ctx, dir)
}
