package gos_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"cumulet.io/internal/testenv"
	"cumulet.io/registry/gos/gostest"
	"cumulet.io/registry/gos/tracker"
)

// The first byte of a blob that another region has comes one round trip and 50 ms later at most, on connections that
// are there.
func TestFirstByteAcrossRegions(t *testing.T) {
	const rtt, allowed = 80 * time.Millisecond, 50 * time.Millisecond
	w := newWorld(t, tracker.Config{}, "a", "b", "c")
	a := w.node("a", rtt)
	client := &http.Client{Transport: transport(t)}
	// A busy machine is late often: the third fastest of nine counts, of each of five series, beside what the machine adds
	// to a bare read of the source over the same line.
	var medians []time.Duration
	for series := range 5 {
		b := w.node([]string{"b", "c", "b", "c", "b"}[series], rtt)
		base := b.serve(t)
		if _, err := pull(t.Context(), client, base, a.put(t, gostest.Bytes(uint64(series+100), 1000))); err != nil {
			t.Fatal(err) // makes the connections
		}
		direct := store(t, b.lines["a"].url(), transport(t))
		var took, bare []time.Duration
		for i := range 9 {
			d := a.put(t, gostest.Bytes(uint64(series*100+i), 1<<20))
			began := time.Now()
			req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, base+"/"+d.String(), nil)
			if err != nil {
				t.Fatal(err)
			}
			resp, err := client.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(resp.Body, make([]byte, 1)); err != nil {
				t.Fatal(err)
			}
			took = append(took, time.Since(began))
			if _, err := io.Copy(io.Discard, resp.Body); err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			w.stored(d, b.Name()) // what is being stored would take time from the next
			blob, err := w.tracker.Find(t.Context(), d)
			if err != nil {
				t.Fatal(err)
			}
			began = time.Now()
			body, err := direct.Get(t.Context(), blob.In("a"), 0, -1)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(body, make([]byte, 1)); err != nil {
				t.Fatal(err)
			}
			bare = append(bare, time.Since(began))
			if _, err := io.Copy(io.Discard, body); err != nil {
				t.Fatal(err)
			}
			body.Close()
		}
		slices.Sort(took)
		slices.Sort(bare)
		t.Logf("series %d: third %v, median %v, of %v; bare %v", series, took[2], took[4], took, bare)
		if medians = append(medians, took[4]); took[2] <= max(rtt, bare[2])+allowed {
			if took[0] < rtt {
				t.Errorf("%v is less than a round trip: the line is not on the way", took[0])
			}
			return
		}
	}
	t.Errorf("the first byte came after %v in the median, with a round-trip time of %v", medians, rtt)
}

// 100 clients that pull a blob first, at the same time and from two nodes, cost one read of its source.
func TestOneSourceRead(t *testing.T) {
	w := newWorld(t, tracker.Config{}, "a", "b", "c")
	a := w.node("a", 0)
	nodes := []*node{w.node("b", 20*time.Millisecond), w.node("b", 20*time.Millisecond)}
	const size = 9<<20 + 5
	data := gostest.Bytes(1, size)
	d := a.put(t, data)
	client := &http.Client{Transport: &http.Transport{MaxConnsPerHost: 0, DisableCompression: true}}
	defer client.CloseIdleConnections()
	var wg sync.WaitGroup
	bases := []string{nodes[0].serve(t), nodes[1].serve(t)}
	for i := range 100 {
		wg.Go(func() {
			got, err := pull(t.Context(), client, bases[i%2], d)
			if err != nil || !got.is(data) {
				t.Errorf("client %d: %d bytes, %v", i, got.size, err)
			}
		})
	}
	wg.Wait()
	w.stored(d, "b")
	reads := nodes[0].reads.n.Load() + nodes[1].reads.n.Load()
	var bytes int64
	for _, n := range nodes {
		for _, l := range n.lines {
			bytes += l.got.Load()
		}
	}
	if reads != 2 || bytes < size || bytes > size+20_000 {
		t.Errorf("%d reads of %d bytes in all, want 2 ranges of %d", reads, bytes, size)
	}
	// From then on it is there.
	if got, err := pull(t.Context(), client, bases[0], d); err != nil || !got.is(data) {
		t.Errorf("again: %v", err)
	}
	if again := nodes[0].reads.n.Load() + nodes[1].reads.n.Load(); again != reads {
		t.Errorf("a later pull read the source %d times", again-reads)
	}
}

// A source that dies at any byte, for good or for a moment, or gives other bytes, never makes a client believe that it
// has the blob when it has not.
func TestSourceDies(t *testing.T) {
	random := testenv.Random(t)
	w := newWorld(t, tracker.Config{}, "a", "b", "c")
	a := w.node("a", 0)
	const size = 300_000
	client := &http.Client{Transport: transport(t)}
	cuts := []int64{1, 200, 1000, size - 65536, size - 1, size, size + 500}
	for range 12 {
		cuts = append(cuts, 1+random.Int64N(size+600))
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	whole, short := 0, 0
	for i, cut := range cuts {
		for _, revive := range []bool{false, true} {
			data := gostest.Bytes(uint64(1000+i*2), size)
			if revive {
				data = gostest.Bytes(uint64(1001+i*2), size)
			}
			d := a.put(t, data)
			b := w.node("b", 0)
			b.lines["a"].revive = revive
			b.lines["a"].budget.Store(cut)
			base := b.serve(t)
			wg.Go(func() {
				got, err := pull(t.Context(), client, base, d)
				mu.Lock()
				defer mu.Unlock()
				switch {
				case err == nil && got.is(data):
					whole++
				case err == nil:
					t.Errorf("cut at %d: %d wrong bytes look complete", cut, got.size)
				case revive:
					t.Errorf("cut at %d for a moment: %v", cut, err)
				default:
					short++
					if got.size > size-65536 && got.size < size {
						t.Errorf("cut at %d: %d bytes were given out, of the withheld end too", cut, got.size)
					}
				}
			})
		}
	}
	wg.Wait()
	t.Logf("%d pulls were whole, %d broken off", whole, short)
	if short == 0 || whole < len(cuts) {
		t.Errorf("%d whole and %d short: the cuts cut nothing", whole, short)
	}
}

// Bytes that were changed in the source's store are found out before the end.
func TestSourceLies(t *testing.T) {
	w := newWorld(t, tracker.Config{}, "a", "b")
	a, b := w.node("a", 0), w.node("b", 0)
	data := gostest.Bytes(7, 200_000)
	d := a.put(t, data)
	blob, err := w.tracker.Find(t.Context(), d)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(w.servers[0].dir, testenv.S3Bucket, blob.In("a"))
	wrong := slices.Clone(data)
	wrong[100_000] ^= 1
	if err := os.WriteFile(file, wrong, 0o600); err != nil {
		t.Fatal(err)
	}
	client := &http.Client{Transport: transport(t)}
	base := b.serve(t)
	if got, err := pull(t.Context(), client, base, d); err == nil {
		t.Errorf("%d wrong bytes look complete", got.size)
	}
	if blob, err = w.tracker.Find(t.Context(), d); err != nil || blob.In("b") != "" {
		t.Errorf("wrong bytes were stored: %+v, %v", blob, err)
	}
	// Mended at the source, it can be had.
	if err := os.WriteFile(file, data, 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := pull(t.Context(), client, base, d); err != nil || !got.is(data) {
		t.Errorf("mended: %v", err)
	}
}

// A client that does not read, and one that leaves, stop neither the others nor the storing.
func TestSlowClientStopsNobody(t *testing.T) {
	w := newWorld(t, tracker.Config{}, "a", "b")
	a, b := w.node("a", 0), w.node("b", 10*time.Millisecond)
	data := gostest.Bytes(8, 20<<20)
	d := a.put(t, data)
	base := b.serve(t)
	client := &http.Client{Transport: transport(t)}
	get := func(ctx context.Context) *http.Response {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, base+"/"+d.String(), nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		return resp
	}
	leaving, leave := context.WithCancel(t.Context())
	gone := get(leaving) // the first: the fill is its doing
	slow := get(t.Context())
	defer slow.Body.Close()
	leave()
	gone.Body.Close()
	for range 3 {
		if got, err := pull(t.Context(), client, base, d); err != nil || !got.is(data) {
			t.Errorf("another client: %d bytes, %v", got.size, err)
		}
	}
	w.stored(d, "b")
	if got, err := drain(slow.Body); err != nil || !got.is(data) {
		t.Errorf("the slow client: %d bytes, %v", got.size, err)
	}
}

// Ranges, conditions and HEAD answer alike from a region's own store and from another's.
func TestServeBlob(t *testing.T) {
	w := newWorld(t, tracker.Config{}, "a", "b")
	a, b := w.node("a", 0), w.node("b", 0)
	data := gostest.Bytes(9, 200_000)
	d := a.put(t, data)
	client := &http.Client{Transport: transport(t)}
	for _, tc := range []struct {
		method, header, value string
		status                int
		want                  []byte
	}{
		{"GET", "", "", 200, data},
		{"HEAD", "", "", 200, nil},
		{"GET", "Range", "bytes=10-19", 206, data[10:20]},
		{"GET", "Range", "bytes=199000-", 206, data[199000:]},
		{"GET", "Range", "bytes=-5", 206, data[199995:]},
		{"GET", "Range", "bytes=200000-", 416, nil},
		{"GET", "Range", "bytes=5-2", 416, nil},
		{"GET", "Range", "lines=1-2", 416, nil},
		{"GET", "If-None-Match", `"` + d.String() + `"`, 304, nil},
	} {
		for _, n := range []*node{b, a, b} {
			req, err := http.NewRequestWithContext(t.Context(), tc.method, n.serve(t)+"/"+d.String(), nil)
			if err != nil {
				t.Fatal(err)
			}
			if tc.header != "" {
				req.Header.Set(tc.header, tc.value)
			}
			resp, err := client.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			got, err := drain(resp.Body)
			resp.Body.Close()
			if err != nil || resp.StatusCode != tc.status || tc.want != nil && !got.is(tc.want) {
				t.Errorf("%s %s %q from %s: %s, %d bytes, %v", tc.method, tc.header, tc.value, n.Name(), resp.Status, got.size, err)
			}
			if resp.StatusCode < 300 && (resp.Header.Get("Docker-Content-Digest") != d.String() || resp.Header.Get("Accept-Ranges") != "bytes" ||
				resp.Header.Get("Content-Type") != "application/octet-stream") {
				t.Errorf("%s %q: header %v", tc.method, tc.value, resp.Header)
			}
		}
	}
	missing := digest.FromString("missing")
	if _, err := pull(t.Context(), client, a.serve(t), missing); err == nil || !strings.Contains(err.Error(), "404") {
		t.Errorf("a missing blob: %v", err)
	}
	if _, err := pull(t.Context(), client, a.serve(t), "sha256:../../x"); err == nil || !strings.Contains(err.Error(), "400") {
		t.Errorf("no digest: %v", err)
	}
	// An object that was lost in one region comes back from another.
	w.stored(d, "b")
	blob, err := w.tracker.Find(t.Context(), d)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(w.servers[1].dir, testenv.S3Bucket, blob.In("b"))); err != nil {
		t.Fatal(err)
	}
	if got, err := pull(t.Context(), client, b.serve(t), d); err != nil || !got.is(data) {
		t.Errorf("a lost object: %v", err)
	}
	w.stored(d, "b")
	if fmt.Sprint(blob.In("b")) == "" {
		t.Error("no object")
	}
}
