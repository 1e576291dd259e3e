package gos_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/minio/minio-go/v7/pkg/credentials"
	"github.com/opencontainers/go-digest"
	"go.uber.org/goleak"

	"cumulet.io/internal/problem"
	"cumulet.io/internal/sqldb"
	"cumulet.io/internal/sqldb/sqldbtest"
	"cumulet.io/internal/testenv"
	"cumulet.io/registry/gos"
	"cumulet.io/registry/gos/s3"
	"cumulet.io/registry/gos/tracker"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// line is the line between two regions: a TCP proxy with a round-trip time that can be cut.
type line struct {
	t      *testing.T
	listen net.Listener
	target string
	rtt    time.Duration
	// budget is how many bytes may still come from the target before every connection is cut; negative: no end. While
	// dead, connections are refused.
	budget atomic.Int64
	dead   atomic.Bool
	// revive says that the line works again after a cut.
	revive bool
	got    atomic.Int64 // bytes that came from the target

	mu    sync.Mutex
	conns map[net.Conn]bool
	wg    sync.WaitGroup
}

func newLine(t *testing.T, target string, rtt time.Duration) *line {
	t.Helper()
	u, err := url.Parse(target)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &line{t: t, listen: l, target: u.Host, rtt: rtt, conns: map[net.Conn]bool{}}
	p.budget.Store(-1)
	p.wg.Go(p.serve)
	t.Cleanup(func() {
		l.Close()
		p.cut()
		p.wg.Wait()
	})
	return p
}

func (p *line) url() string { return "http://" + p.listen.Addr().String() }

// cut ends every connection.
func (p *line) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		c.Close()
	}
}

func (p *line) add(c net.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.conns[c] = true
}

func (p *line) serve() {
	for {
		client, err := p.listen.Accept()
		if err != nil {
			return
		}
		if p.dead.Load() {
			client.Close()
			continue
		}
		server, err := net.Dial("tcp", p.target)
		if err != nil {
			client.Close()
			continue
		}
		p.add(client)
		p.add(server)
		p.wg.Go(func() { p.carry(server, client, false) })
		p.wg.Go(func() { p.carry(client, server, true) })
	}
}

// carry brings bytes to the other end half a round trip later.
func (p *line) carry(to, from net.Conn, back bool) {
	type packet struct {
		due  time.Time
		data []byte
	}
	packets := make(chan packet, 1024)
	p.wg.Go(func() {
		defer to.Close()
		for pk := range packets {
			time.Sleep(time.Until(pk.due)) // the line's length
			if back {
				if left := p.budget.Load(); left >= 0 {
					if int64(len(pk.data)) > left {
						pk.data = pk.data[:left]
					}
					p.budget.Add(-int64(len(pk.data)))
				}
				p.got.Add(int64(len(pk.data)))
			}
			_, err := to.Write(pk.data)
			if back && p.budget.Load() == 0 {
				p.dead.Store(!p.revive)
				p.budget.Store(-1)
				p.cut()
			}
			if err != nil {
				break
			}
		}
		from.Close()
		for range packets { //nolint:revive // drained, so that the reader ends
		}
	})
	defer close(packets)
	for {
		buf := make([]byte, 64<<10)
		n, err := from.Read(buf)
		if n > 0 {
			packets <- packet{time.Now().Add(p.rtt / 2), buf[:n]}
		}
		if err != nil {
			return
		}
	}
}

// gets counts a client's reads of objects.
type gets struct {
	*http.Transport
	n atomic.Int64
}

func (g *gets) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.Method == http.MethodGet {
		g.n.Add(1)
	}
	return g.Transport.RoundTrip(req)
}

// server is a region's S3 server.
type s3Server struct{ name, url, dir string }

// world is regions with S3 servers, and one tracker.
type world struct {
	t       *testing.T
	servers []s3Server
	db      *sqldb.DB
	tracker *tracker.Tracker
	log     *lockedLog
}

type lockedLog struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func newWorld(t *testing.T, cfg tracker.Config, names ...string) *world {
	t.Helper()
	return newWorldOn(t, sqldbtest.SQLite(t), cfg, names...)
}

// newWorldOn has its tracker in the database at an address.
func newWorldOn(t *testing.T, address string, cfg tracker.Config, names ...string) *world {
	t.Helper()
	w := &world{t: t, log: &lockedLog{}}
	for _, name := range names {
		u, dir := testenv.S3(t)
		w.servers = append(w.servers, s3Server{name, u, dir})
	}
	w.db = sqldbtest.Open(t, address)
	var err error
	if w.tracker, err = tracker.Open(t.Context(), w.db, cfg); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			w.log.mu.Lock()
			defer w.log.mu.Unlock()
			t.Logf("log:\n%s", w.log.b.String())
		}
	})
	return w
}

// node is a node of a region, with a line to each other region.
type node struct {
	*gos.Region
	lines map[string]*line
	// reads counts the GETs that were sent to other regions.
	reads *gets
}

func (w *world) node(name string, rtt time.Duration, change ...func(*gos.Config)) *node {
	t := w.t
	t.Helper()
	n := &node{lines: map[string]*line{}, reads: &gets{Transport: transport(t)}}
	cfg := gos.Config{Name: name, Stores: map[string]gos.ObjectStore{}, Tracker: w.tracker, SpoolDir: t.TempDir(),
		Logger: slog.New(slog.NewTextHandler(w.log, nil))}
	for _, s := range w.servers {
		u := s.url
		var via http.RoundTripper = transport(t)
		if s.name != name {
			n.lines[s.name] = newLine(t, s.url, rtt)
			u, via = n.lines[s.name].url(), n.reads
		}
		cfg.Stores[s.name] = store(t, u, via)
	}
	for _, f := range change {
		f(&cfg)
	}
	r, err := gos.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	n.Region = r
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	return n
}

func transport(t *testing.T) *http.Transport {
	tr := &http.Transport{DisableCompression: true, MaxIdleConnsPerHost: 64}
	t.Cleanup(tr.CloseIdleConnections)
	return tr
}

func store(t *testing.T, u string, via http.RoundTripper) *s3.Store {
	t.Helper()
	s, err := s3.Open(s3.Config{Endpoint: u, PublicEndpoint: "", Bucket: testenv.S3Bucket, Transport: via,
		Credentials: credentials.NewStaticV4(testenv.S3AccessKey, testenv.S3SecretKey, "")})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// put stores a blob in a node's region.
func (n *node) put(t *testing.T, data []byte) digest.Digest {
	t.Helper()
	d, size, err := n.Put(t.Context(), "test", bytes.NewReader(data))
	if err != nil || size != int64(len(data)) || d != digest.FromBytes(data) {
		t.Fatalf("put: %s, %d, %v", d, size, err)
	}
	return d
}

// serve serves a node's blobs on /DIGEST.
func (n *node) serve(t *testing.T) string {
	t.Helper()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := n.ServeBlob(w, r, digest.Digest(strings.TrimPrefix(r.URL.Path, "/")), -1); err != nil {
			problem.Write(w, err)
		}
	}))
	t.Cleanup(srv.Close)
	return srv.URL
}

// pulled is what a client got, which is not kept.
type pulled struct {
	size int
	sum  [sha256.Size]byte
}

func (p pulled) is(data []byte) bool { return p.size == len(data) && p.sum == sha256.Sum256(data) }

// drain reads to the end, or an error.
func drain(r io.Reader) (p pulled, err error) {
	h := sha256.New()
	n, err := io.Copy(h, r)
	p.size = int(n)
	h.Sum(p.sum[:0])
	return p, err
}

// pull is what a client sees: the whole body, or an error.
func pull(ctx context.Context, client *http.Client, base string, d digest.Digest) (pulled, error) {
	var none pulled
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, base+"/"+d.String(), nil)
	if err != nil {
		return none, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return none, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return none, fmt.Errorf("answer %s", resp.Status)
	}
	if resp.Header.Get("Docker-Content-Digest") != d.String() || resp.ContentLength < 0 {
		return none, errors.New("length and digest are not said before the first byte")
	}
	return drain(resp.Body)
}

// stored waits until a region has its own object of a blob.
func (w *world) stored(d digest.Digest, region string) {
	w.t.Helper()
	testenv.Eventually(w.t, time.Minute, func() error {
		b, err := w.tracker.Find(w.t.Context(), d)
		if err == nil && b.In(region) == "" {
			err = fmt.Errorf("region %s has no object of %s", region, d)
		}
		return err
	})
}

// objects counts the files that a region's S3 server has.
func (s s3Server) objects(t *testing.T) int {
	t.Helper()
	n := 0
	err := filepath.WalkDir(filepath.Join(s.dir, testenv.S3Bucket), func(_ string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			n++
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}
