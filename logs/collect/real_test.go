package collect

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sync/errgroup"

	"cumulet.io/internal/testenv"
	"cumulet.io/logs"
	"cumulet.io/logs/crilog"
	"cumulet.io/logs/elastic"
	"cumulet.io/logs/embedded"
	"cumulet.io/logs/logstest"
)

const storeEnv = "CUMULET_TEST_LOG_STORE" // "ADDRESS DIR": this process is the store, to be killed

func TestMain(m *testing.M) {
	if v := os.Getenv(storeEnv); v != "" {
		if err := serveStore(v); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	goleak.VerifyTestMain(m)
}

func serveStore(v string) error {
	addr, dir, _ := strings.Cut(v, " ")
	st, err := embedded.Open(context.Background(), embedded.Options{Dir: dir, Log: slog.New(slog.NewTextHandler(os.Stderr, nil)),
		Writer: embedded.Credential{User: "collector", Password: "write-secret"},
		Reader: embedded.Credential{User: "reader", Password: "read-secret"}})
	if err != nil {
		return err
	}
	return http.ListenAndServe(addr, st) //nolint:gosec // a test's own
}

// storeProcess is the embedded store in a process of its own.
type storeProcess struct {
	t         *testing.T
	addr, dir string
	cmd       *exec.Cmd
}

func (p *storeProcess) start() {
	p.t.Helper()
	p.cmd = exec.CommandContext(context.Background(), os.Args[0])
	p.cmd.Env = append(os.Environ(), storeEnv+"="+p.addr+" "+p.dir)
	p.cmd.Stderr = os.Stderr
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := p.cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	testenv.Eventually(p.t, 30*time.Second, func() error {
		c, err := net.Dial("tcp", p.addr)
		if err == nil {
			err = c.Close()
		}
		return err
	})
}

func (p *storeProcess) kill() {
	_ = p.cmd.Process.Kill()
	_ = p.cmd.Wait()
}

func freeAddr(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// faults is a proxy before the store: it refuses, or cuts the answer of, a part of the bulk requests.
func faults(t *testing.T, addr string, rnd *rand.Rand) *httptest.Server {
	proxy := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: addr})
	proxy.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	tr := &http.Transport{}
	proxy.Transport = tr
	var mu sync.Mutex
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		n := rnd.IntN(10)
		mu.Unlock()
		switch {
		case !strings.HasSuffix(r.URL.Path, "_bulk"):
			proxy.ServeHTTP(w, r)
		case n == 0:
			http.Error(w, "overloaded", http.StatusServiceUnavailable)
		case n == 1:
			http.Error(w, "too many", http.StatusTooManyRequests)
		case n == 2: // stored, but the answer never comes
			rec := httptest.NewRecorder()
			proxy.ServeHTTP(rec, r)
			c, _, err := http.NewResponseController(w).Hijack()
			if err == nil {
				_ = c.Close()
			}
		default:
			proxy.ServeHTTP(w, r)
		}
	}))
	t.Cleanup(func() { srv.Close(); tr.CloseIdleConnections() })
	return srv
}

// writeAttempt writes one attempt's file as a runtime does, with pieces, both streams and odd bytes.
func writeAttempt(path string, lines int, seed uint64) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o640)
	if err != nil {
		return err
	}
	rnd := rand.New(rand.NewPCG(seed, 1))
	odd := []string{"", " ", "carriage\r", "tab\t\"q\" \\ \x00 é 漢 😀", strings.Repeat("long ", 3000), "2026-01-02T00:00:00Z stdout F nested"}
	for i := range lines {
		e := crilog.Entry{Time: time.Now(), Stream: logs.Stdout, Text: fmt.Appendf(nil, "line %d of %s", i, path), Partial: rnd.IntN(20) == 0}
		if rnd.IntN(3) == 0 {
			e.Stream = logs.Stderr
		}
		if rnd.IntN(50) == 0 {
			e.Text = []byte(odd[rnd.IntN(len(odd))])
		}
		if _, err := f.Write(crilog.AppendRecord(nil, e)); err != nil {
			return err
		}
	}
	return f.Close()
}

// TestNothingLostNothingTwice runs the real Filebeat against a store and a way to it that fail in every way.
func TestNothingLostNothingTwice(t *testing.T) {
	binary := testenv.Tool(t, "filebeat")
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	dir := t.TempDir()
	store := &storeProcess{t: t, addr: freeAddr(t), dir: filepath.Join(dir, "store")}
	store.start()
	t.Cleanup(func() { store.kill() })
	srv := faults(t, store.addr, rand.New(rand.NewPCG(seed, 2)))
	c, err := New(Options{Binary: binary, Dir: filepath.Join(dir, "fb"), LogRoot: filepath.Join(dir, "logs"), MeterDir: filepath.Join(dir, "meter"),
		Store: srv.URL, User: "collector", Password: "write-secret"}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	var pid atomic.Int64
	c.started = func(p int) { pid.Store(int64(p)) }
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	stop := sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(stop)

	const instances, attempts, lines = 5, 3, 1500
	var wg sync.WaitGroup
	for i := range instances {
		wg.Go(func() {
			for a := range attempts {
				path := filepath.Join(c.o.LogRoot, fmt.Sprintf("org%d", i%2), fmt.Sprintf("i-%d", i), "main", fmt.Sprintf("%d.log", a))
				if err := writeAttempt(path, lines, seed+uint64(10*i+a)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	meter := filepath.Join(c.o.MeterDir, "meter-1.ndjson")
	const events = 300
	var text strings.Builder
	for n := range events {
		fmt.Fprintf(&text, `{"id":"i/1/%d", "time":%q, "n":1.50}`+"\n", n, time.Date(2026, 1, 31, 23, 59, 0, n*500_000_123, time.UTC).Format(time.RFC3339Nano))
	}
	if err := os.MkdirAll(c.o.MeterDir, 0o750); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(meter, []byte(text.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	// Filebeat and the store die at moments that the seed chooses, while events flow.
	for range 3 {
		before, _ := c.Stats(t.Context())
		want := before.Acked + int64(rnd.IntN(2000))
		testenv.Eventually(t, time.Minute, func() error {
			st, err := c.Stats(t.Context())
			if err == nil && st.Acked < want && st.Active > 0 {
				err = fmt.Errorf("%d acknowledged, waiting for %d", st.Acked, want)
			}
			return err
		})
		store.kill()
		old := pid.Load()
		if err := syscall.Kill(int(old), syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		store.start()
		testenv.Eventually(t, time.Minute, func() error {
			if pid.Load() == old {
				return fmt.Errorf("Filebeat %d was not started again", old)
			}
			return c.Ready(t.Context())
		})
	}
	wg.Wait()
	files, err := filepath.Glob(filepath.Join(c.o.LogRoot, "*", "*", "*", "*.log"))
	if err != nil || len(files) != instances*attempts {
		t.Fatal(files, err)
	}
	testenv.Eventually(t, 3*time.Minute, func() error {
		for _, f := range append(files, meter) {
			if ok, err := c.Shipped(f); err != nil || !ok {
				return fmt.Errorf("%s is not shipped: %w", f, err)
			}
		}
		return nil
	})

	tr := &http.Transport{}
	t.Cleanup(tr.CloseIdleConnections)
	s, err := elastic.New(elastic.Options{Addresses: []string{"http://" + store.addr}, User: "reader", Password: "read-secret", Transport: tr})
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		sameAsFile(t, s, c.o.LogRoot, f)
	}
	events2, next, err := s.SearchMeter(t.Context(), time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC), nil, 2*events)
	if err != nil || len(next) > 0 {
		t.Fatal(next, err)
	}
	if got := string(bytes.Join(events2, []byte("\n"))) + "\n"; got != text.String() {
		t.Errorf("meter events differ: %d of %d bytes", len(got), text.Len())
	}

	// What is shipped may go, what is not ended may not.
	r := &Reaper{Collector: c, Grace: time.Nanosecond, Log: slog.New(slog.DiscardHandler),
		Ended: func(_ context.Context, org, instance string) bool { return instance != "i-3" }}
	if n, err := r.Pass(t.Context()); err != nil || n != instances-1 {
		t.Errorf("removed %d: %v", n, err)
	}
	if left, err := filepath.Glob(filepath.Join(c.o.LogRoot, "*", "*")); err != nil || len(left) != 1 || filepath.Base(left[0]) != "i-3" {
		t.Errorf("left %v %v", left, err)
	}
	cutWhileItGrows(t, c, s)
	stop()
	for _, path := range []string{filepath.Join(c.o.Dir, "filebeat.yml")} {
		b, err := os.ReadFile(path)
		if err != nil || bytes.Contains(b, []byte("write-secret")) {
			t.Errorf("%s has the password (%v)", path, err)
		}
	}
}

// TestLastWordAfterSilence has programs say their last word just when Filebeat closes what nothing is written to: what it then
// never looks at, the Reaper has it look at.
func TestLastWordAfterSilence(t *testing.T) {
	binary := testenv.Tool(t, "filebeat")
	dir := t.TempDir()
	store := &storeProcess{t: t, addr: freeAddr(t), dir: filepath.Join(dir, "store")}
	store.start()
	t.Cleanup(store.kill)
	c, err := New(Options{Binary: binary, Dir: filepath.Join(dir, "fb"), LogRoot: filepath.Join(dir, "logs"), MeterDir: filepath.Join(dir, "meter"),
		Store: "http://" + store.addr, User: "collector", Password: "write-secret", Scan: time.Second, idle: 3 * time.Second}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	var starts atomic.Int64
	c.started = func(int) { starts.Add(1) }
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	testenv.Eventually(t, time.Minute, func() error { return c.Ready(t.Context()) })

	const programs = 100
	var group errgroup.Group
	for i := range programs {
		path := filepath.Join(c.o.LogRoot, "acme", fmt.Sprintf("i-%d", i), "main", "0.log")
		if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
			t.Fatal(err)
		}
		group.Go(func() error {
			time.Sleep(time.Duration(i) * time.Second / programs) // at every moment of a second
			f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o640)
			if err != nil {
				return err
			}
			say := func(word string) error {
				_, err := f.Write(crilog.AppendRecord(nil, crilog.Entry{Time: time.Now().UTC(), Stream: logs.Stdout, Text: []byte(word)}))
				return err
			}
			err = say("the first")
			time.Sleep(c.o.idle)
			return errors.Join(err, say("the last"), f.Close())
		})
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	r := &Reaper{Collector: c, Grace: time.Second, Patience: 8 * time.Second, Log: slog.New(slog.DiscardHandler), Ended: func(context.Context, string, string) bool { return true }}
	removed := 0
	testenv.Eventually(t, time.Minute, func() error {
		n, err := r.Pass(t.Context())
		if removed += n; err == nil && removed < programs {
			err = fmt.Errorf("the logs of %d programs have arrived", removed)
		}
		return err
	})
	if n := starts.Load(); n != 2 {
		t.Errorf("Filebeat was started %d times", n)
	}
	tr := &http.Transport{}
	t.Cleanup(tr.CloseIdleConnections)
	s, err := elastic.New(elastic.Options{Addresses: []string{"http://" + store.addr}, User: "reader", Password: "read-secret", Transport: tr})
	if err != nil {
		t.Fatal(err)
	}
	for i := range programs {
		var said []string
		for _, rec := range logstest.All(t, s, logs.Query{Org: "acme", Instance: fmt.Sprintf("i-%d", i), Limit: 10}) {
			said = append(said, rec.Message)
		}
		if !slices.Equal(said, []string{"the first", "the last"}) {
			t.Errorf("program %d said %q", i, said)
		}
	}
}

// cutWhileItGrows holds that a log whose shipped beginning is given back, again and again, arrives whole.
func cutWhileItGrows(t *testing.T, c *Collector, s logs.Store) {
	t.Helper()
	file := filepath.Join(c.o.LogRoot, "acme", "i-4", "app", "0.log")
	if err := os.MkdirAll(filepath.Dir(file), 0o750); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(file, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	r := &Reaper{Collector: c, Keep: 100 << 10, Log: slog.New(slog.DiscardHandler)}
	const lines = 2000
	var freed int64
	for part := range 3 {
		var b []byte
		for n := range lines {
			b = crilog.AppendRecord(b, crilog.Entry{Time: time.Date(2026, 1, 2, 3, 0, part, n, time.UTC), Stream: logs.Stdout,
				Text: fmt.Appendf(nil, "line %d %s", part*lines+n, strings.Repeat("x", 200))})
		}
		if _, err := f.Write(b); err != nil {
			t.Fatal(err)
		}
		testenv.Eventually(t, time.Minute, func() error {
			if ok, err := c.Shipped(file); err != nil || !ok {
				return fmt.Errorf("not shipped: %w", err)
			}
			return nil
		})
		n, err := r.Cut(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		freed += n
	}
	if used, err := crilog.Used(file); err != nil || used > r.Keep+128<<10 || freed == 0 {
		t.Errorf("%d bytes are in use, %d were given back, %v", used, freed, err)
	}
	n := 0
	for _, rec := range logstest.All(t, s, logs.Query{Org: "acme", Instance: "i-4", Limit: 700}) {
		if want := fmt.Sprintf("line %d ", n); !strings.HasPrefix(rec.Message, want) {
			t.Fatalf("%.40q, want %q", rec.Message, want)
		}
		n++
	}
	if n != 3*lines {
		t.Errorf("%d lines, want %d", n, 3*lines)
	}
}

// sameAsFile holds that the store gives the bytes that the node's file gives.
func sameAsFile(t *testing.T, s logs.Store, root, file string) {
	t.Helper()
	var want, got bytes.Buffer
	if err := crilog.Copy(t.Context(), &want, file, crilog.Options{Timestamps: true}); err != nil {
		t.Fatal(err)
	}
	rel, err := filepath.Rel(root, file)
	if err != nil {
		t.Fatal(err)
	}
	parts := strings.Split(rel, "/")
	var attempt int
	if _, err := fmt.Sscanf(parts[3], "%d.log", &attempt); err != nil {
		t.Fatal(err)
	}
	p := crilog.NewPrinter(&got, time.Time{}, 0, true)
	for _, r := range logstest.All(t, s, logs.Query{Org: parts[0], Instance: parts[1], Container: parts[2], Attempt: &attempt, Limit: 700}) {
		if err := p.Print(crilog.Entry{Time: r.Time, Stream: r.Stream, Partial: r.Partial, Text: []byte(r.Message)}); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(got.Bytes(), want.Bytes()) {
		i := 0
		for i < min(got.Len(), want.Len()) && got.Bytes()[i] == want.Bytes()[i] {
			i++
		}
		t.Errorf("%s: %d bytes, want %d; they differ at %d: got %.80q, want %.80q", rel, got.Len(), want.Len(), i,
			got.Bytes()[i:], want.Bytes()[i:])
	}
}
