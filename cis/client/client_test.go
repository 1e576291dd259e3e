package client_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/propagation"
	"go.uber.org/goleak"

	"cumulet.io/cis"
	"cumulet.io/cis/client"
	"cumulet.io/cis/control"
	"cumulet.io/cis/server/servertest"
	"cumulet.io/internal/problem"
	"cumulet.io/registry/hubtoken"
)

// client-go pings a closed WebSocket once more, up to 5 seconds later.
func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction("k8s.io/client-go/tools/remotecommand.(*heartbeat).start"))
}

func spec(name string) cis.Spec {
	return cis.Spec{Name: name, Labels: map[string]string{"app": name}, Source: cis.Source{Node: "vk-1"},
		Containers: []cis.Container{{Name: "main", Image: "registry.test/a/b:1", Env: []cis.EnvVar{{Name: "P", Value: "hush-hush", Secret: true}}}},
		Volumes:    []cis.Volume{{Name: "v", Files: &cis.FilesVolume{Files: []cis.File{{Path: "f", Data: []byte("x")}}}}}}
}

func newClient(t testing.TB, env *servertest.Env, access ...hubtoken.Access) *client.Client {
	t.Helper()
	if len(access) == 0 {
		access = []hubtoken.Access{servertest.Org("acme", "write")}
	}
	c, err := client.New(client.Config{BaseURL: env.URL, Source: env.Source(access...), Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// running makes an instance and waits until it runs.
func running(t testing.TB, c *client.Client, key string) *cis.Instance {
	t.Helper()
	in, _, err := c.Create(t.Context(), "acme", cis.CreateRequest{Key: key, Spec: spec("web")})
	if err != nil {
		t.Fatal(err)
	}
	return await(t, c, in.ID, cis.Running)
}

func await(t testing.TB, c *client.Client, id string, p cis.Phase) *cis.Instance {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for _, err := range c.Watch(ctx, "acme", "", "") {
		if err != nil {
			t.Fatal(err)
		}
		in, err := c.Get(ctx, "acme", id)
		if err != nil {
			t.Fatal(err)
		}
		if in.Status.Phase == p {
			return in
		}
	}
	return nil
}

func TestInstances(t *testing.T) {
	e := newLoop()
	env := servertest.New(t, e.make, servertest.Options{Change: func(c *control.Config) { c.Quota = control.Quota{Instances: 2} }})
	c := newClient(t, env)
	ctx := t.Context()
	in, created, err := c.Create(ctx, "acme", cis.CreateRequest{Key: "k", Spec: spec("web")})
	if err != nil || !created || in.Spec.Containers[0].Env[0].Value != "" {
		t.Fatalf("%+v, %v, %v", in, created, err)
	}
	again, created, err := c.Create(ctx, "acme", cis.CreateRequest{Key: "k", Spec: spec("web")})
	if err != nil || created || again.ID != in.ID {
		t.Errorf("repeat: %v, %v", created, err)
	}
	if _, _, err := c.Create(ctx, "acme", cis.CreateRequest{Key: "k", Spec: spec("other")}); !errors.Is(err, problem.ErrConflict) {
		t.Errorf("other spec: %v", err)
	}
	_, _, err = c.Create(ctx, "acme", cis.CreateRequest{Key: "bad", Spec: cis.Spec{Name: "x"}})
	var p *problem.Error
	if !errors.As(err, &p) || !errors.Is(err, problem.ErrInvalid) || p.Field != "spec.containers" {
		t.Errorf("no containers: %v", err)
	}
	running(t, c, "k2")
	if _, _, err := c.Create(ctx, "acme", cis.CreateRequest{Key: "k3", Spec: spec("web")}); !errors.Is(err, problem.ErrExhausted) {
		t.Errorf("quota: %v", err)
	}
	list, err := c.List(ctx, "acme", cis.ListRequest{Node: "vk-1", Labels: map[string]string{"app": "web"}, Live: true, Limit: 1})
	if err != nil || len(list.Items) != 1 || list.Next == "" || list.Items[0].ID != in.ID {
		t.Fatalf("list %+v, %v", list, err)
	}
	list, err = c.List(ctx, "acme", cis.ListRequest{Node: "vk-1", Cursor: list.Next})
	if err != nil || len(list.Items) != 1 || list.Next != "" {
		t.Errorf("second page %+v, %v", list, err)
	}
	if evs, err := c.Events(ctx, "acme", in.ID); err != nil || len(evs) != 1 || evs[0].Reason != "Started" {
		t.Errorf("events %+v, %v", evs, err)
	}
	if stats, err := c.Stats(ctx, "acme", []string{in.ID}); err != nil || len(stats) != 1 || stats[0].Containers[0].CPUNanoseconds != 7 {
		t.Errorf("stats %+v, %v", stats, err)
	}
	if stats, err := c.Stats(ctx, "acme", nil); err != nil || len(stats) != 2 {
		t.Errorf("all stats %+v, %v", stats, err)
	}
	if err := c.UpdateVolume(ctx, "acme", in.ID, "v", cis.FilesVolume{Files: []cis.File{{Path: "f", Data: []byte("new")}}}); err != nil {
		t.Error(err)
	}
	if sb, err := c.Sandboxes(ctx); err != nil || sb.Available[0] != cis.Runc || sb.Unavailable[cis.Kata] != "no KVM" || sb.Node != "test-1" {
		t.Errorf("sandboxes %+v, %v", sb, err)
	}
	grace := int64(3)
	if in, err = c.Delete(ctx, "acme", in.ID, &grace); err != nil || !in.Desired.Stop || *in.Desired.GraceSeconds != 3 {
		t.Errorf("delete %+v, %v", in, err)
	}
	await(t, c, in.ID, cis.Succeeded)
	if _, err := c.Get(ctx, "acme", "i-00000000000000000000"); !errors.Is(err, problem.ErrNotFound) {
		t.Errorf("unknown: %v", err)
	}
	if _, err := c.Get(ctx, "umbrella", in.ID); !errors.Is(err, problem.ErrForbidden) {
		t.Errorf("another org: %v", err)
	}
}

// An answer that is lost, and a service that is away for a while, make one instance.
func TestCreateAfterLostAnswer(t *testing.T) {
	var lose atomic.Int32
	lose.Store(3)
	env := servertest.New(t, newLoop().make, servertest.Options{Wrap: func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method != http.MethodPost || lose.Load() == 0 {
				next.ServeHTTP(w, r)
				return
			}
			switch lose.Add(-1) {
			case 2: // done, but never heard of
				next.ServeHTTP(httptest.NewRecorder(), r)
				panic(http.ErrAbortHandler)
			case 1: // half an answer
				w.Header().Set("Content-Length", "1000")
				next.ServeHTTP(w, r)
				panic(http.ErrAbortHandler)
			default:
				w.Header().Set("Retry-After", "0")
				problem.Write(w, problem.New(problem.ErrUnavailable, "busy"))
			}
		})
	}})
	c := newClient(t, env)
	in, created, err := c.Create(t.Context(), "acme", cis.CreateRequest{Key: "k", Spec: spec("web")})
	if err != nil || created {
		t.Fatalf("%v, %v", created, err)
	}
	list, err := c.List(t.Context(), "acme", cis.ListRequest{})
	if err != nil || len(list.Items) != 1 || list.Items[0].ID != in.ID {
		t.Errorf("%+v, %v", list, err)
	}
}

func TestUnavailable(t *testing.T) {
	env := servertest.New(t, newLoop().make, servertest.Options{})
	c := newClient(t, env)
	env.Kill()
	if _, err := c.Get(t.Context(), "acme", "i-00000000000000000000"); !errors.Is(err, problem.ErrUnavailable) {
		t.Errorf("nobody there: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := c.Get(ctx, "acme", "i-00000000000000000000"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("impatient caller: %v", err)
	}
}

// The service is killed while instances are made and watched: the watch goes on, and misses nothing.
func TestWatchOverRestarts(t *testing.T) {
	var cut atomic.Int32
	env := servertest.New(t, newLoop().make, servertest.Options{Wrap: func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if strings.HasSuffix(r.URL.Path, "/watch") && cut.Add(1) <= 6 {
				w = &cutter{ResponseWriter: w, left: 3000}
			}
			next.ServeHTTP(w, r)
		})
	}})
	c := newClient(t, env)
	list, err := c.List(t.Context(), "acme", cis.ListRequest{})
	if err != nil {
		t.Fatal(err)
	}
	const n = 24
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := range n {
			in, _, err := c.Create(t.Context(), "acme", cis.CreateRequest{Key: fmt.Sprint(i), Spec: spec("web")})
			if err != nil {
				t.Error(err)
				return
			}
			if i%8 == 4 {
				env.Kill()
				env.Start()
			}
			if _, err := c.Delete(t.Context(), "acme", in.ID, nil); err != nil {
				t.Error(err)
			}
		}
	})
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	ended := map[string]bool{}
	for item, err := range c.Watch(ctx, "acme", "vk-1", list.Cursor) {
		if err != nil {
			t.Fatalf("%d ended: %v", len(ended), err)
		}
		if in := item.Instance; in != nil && in.Status.Phase.Final() {
			ended[in.ID] = true
		}
		if len(ended) == n {
			break
		}
	}
	wg.Wait()
	if cut.Load() <= 6 {
		t.Errorf("only %d connections: nothing was tested", cut.Load())
	}
}

// cutter breaks a connection in the middle of a line.
type cutter struct {
	http.ResponseWriter
	left int
}

func (c *cutter) Unwrap() http.ResponseWriter { return c.ResponseWriter }

func (c *cutter) Write(p []byte) (int, error) {
	if len(p) > c.left {
		_, _ = c.ResponseWriter.Write(p[:c.left])
		_ = http.NewResponseController(c.ResponseWriter).Flush()
		panic(http.ErrAbortHandler)
	}
	c.left -= len(p)
	return c.ResponseWriter.Write(p)
}

// A spec crosses the wire with an instance's first change and when it has changed itself; every item has it all the same.
func TestWatchSpecs(t *testing.T) {
	var mu sync.Mutex
	var stream strings.Builder
	env := servertest.New(t, newLoop().make, servertest.Options{Wrap: func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if strings.HasSuffix(r.URL.Path, "/watch") {
				w = &tee{ResponseWriter: w, mu: &mu, to: &stream}
			}
			next.ServeHTTP(w, r)
		})
	}})
	c := newClient(t, env)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	list, err := c.List(ctx, "acme", cis.ListRequest{})
	if err != nil {
		t.Fatal(err)
	}
	data, phase, items := "x", cis.Pending, 0
	var id string
	for item, err := range c.Watch(ctx, "acme", "", list.Cursor) {
		if err != nil {
			t.Fatalf("%s: %v", phase, err)
		}
		switch in := item.Instance; {
		case in == nil && id == "": // the bookmark of the beginning
			made, _, err := c.Create(ctx, "acme", cis.CreateRequest{Key: "k", Spec: spec("web")})
			if err != nil {
				t.Fatal(err)
			}
			id = made.ID
		case in == nil:
		default:
			items++
			phase = in.Status.Phase
			now := string(in.Spec.Volumes[0].Files.Files[0].Data)
			if in.Spec.Name != "web" || len(in.Spec.Containers) != 1 || now != "x" && now != data {
				t.Fatalf("%s has the spec %+v, its file %q", phase, in.Spec, now)
			}
			switch {
			case phase == cis.Running && data == "x":
				data = "y"
				if err := c.UpdateVolume(ctx, "acme", id, "v", cis.FilesVolume{Files: []cis.File{{Path: "f", Data: []byte(data)}}}); err != nil {
					t.Fatal(err)
				}
			case phase == cis.Running && now == "y":
				if _, err := c.Delete(ctx, "acme", id, new(int64)); err != nil {
					t.Fatal(err)
				}
			}
		}
		if phase.Final() {
			break
		}
	}
	mu.Lock()
	defer mu.Unlock()
	if n := strings.Count(stream.String(), `"spec":`); n != 2 || items < 4 {
		t.Errorf("%d specs for %d items:\n%s", n, items, stream.String())
	}
}

// tee copies an answer.
type tee struct {
	http.ResponseWriter
	mu *sync.Mutex
	to *strings.Builder
}

func (w *tee) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w *tee) Write(p []byte) (int, error) {
	w.mu.Lock()
	w.to.Write(p)
	w.mu.Unlock()
	return w.ResponseWriter.Write(p)
}

func TestWatchEnds(t *testing.T) {
	env := servertest.New(t, newLoop().make, servertest.Options{})
	c := newClient(t, env)
	first := func(ctx context.Context, org, cursor string) error {
		for _, err := range c.Watch(ctx, org, "", cursor) {
			return err
		}
		return errors.New("ended without an error")
	}
	for name, tt := range map[string]struct {
		org, cursor string
		want        error
	}{
		"another store": {"acme", "aaaaaaaa.7", problem.ErrGone},
		"malformed":     {"acme", "7", problem.ErrInvalid},
		"another org":   {"umbrella", "", problem.ErrForbidden},
		"fine":          {"acme", "", nil},
	} {
		if err := first(t.Context(), tt.org, tt.cursor); !errors.Is(err, tt.want) {
			t.Errorf("%s: %v, want %v", name, err, tt.want)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	for _, err := range c.Watch(ctx, "acme", "", "") {
		if err != nil && !errors.Is(err, context.Canceled) {
			t.Errorf("cancelled: %v", err)
		}
		cancel()
	}
}

func TestLogs(t *testing.T) {
	e := newLoop()
	env := servertest.New(t, e.make, servertest.Options{})
	c := newClient(t, env)
	in := running(t, c, "k")
	readAll := func(req cis.LogRequest) (string, error) {
		rc, err := c.Logs(t.Context(), "acme", in.ID, req)
		if err != nil {
			return "", err
		}
		defer rc.Close()
		b, err := io.ReadAll(rc)
		return string(b), err
	}
	e.logs = "a\nb\x00\xff\n"
	if got, err := readAll(cis.LogRequest{Container: "main"}); got != e.logs || err != nil {
		t.Errorf("%q, %v", got, err)
	}
	tail := int64(0)
	since := time.Date(2026, 1, 2, 3, 4, 5, 67, time.UTC)
	if got, err := readAll(cis.LogRequest{Container: "main", Tail: &tail, Previous: true, Timestamps: true, Since: since, LimitBytes: 9}); err != nil ||
		got != "tail=0 previous=true timestamps=true since=2026-01-02T03:04:05.000000067Z limit=9" {
		t.Errorf("%q, %v", got, err)
	}
	e.logs = strings.Repeat("x", 100_000) + "!"
	if got, err := readAll(cis.LogRequest{Container: "main"}); err == nil || len(got) > 100_000 {
		t.Errorf("a log that broke off looks whole: %d bytes, %v", len(got), err)
	}
	if _, err := readAll(cis.LogRequest{Container: "nope"}); !errors.Is(err, problem.ErrNotFound) {
		t.Errorf("no such container: %v", err)
	}
	e.logs = "first"
	rc, err := c.Logs(t.Context(), "acme", in.ID, cis.LogRequest{Container: "main", Follow: true})
	if err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 5)
	if _, err := io.ReadFull(rc, buf); err != nil || string(buf) != "first" {
		t.Errorf("%q, %v", buf, err)
	}
	_ = rc.Close()
}

// The service's part of a trace belongs to the caller's.
func TestTraceIsPassedOn(t *testing.T) {
	before := otel.GetTextMapPropagator()
	otel.SetTextMapPropagator(propagation.TraceContext{})
	defer otel.SetTextMapPropagator(before)
	const parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
	got := make(chan string, 1)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		got <- r.Header.Get("traceparent")
		fmt.Fprint(w, `{"items":[]}`)
	}))
	defer srv.Close()
	c, err := client.New(client.Config{BaseURL: srv.URL, Source: servertest.Source("t")})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ctx := propagation.TraceContext{}.Extract(t.Context(), propagation.MapCarrier{"traceparent": parent})
	if _, err := c.List(ctx, "acme", cis.ListRequest{}); err != nil {
		t.Fatal(err)
	}
	if h := <-got; h != parent {
		t.Errorf("the service got %q", h)
	}
}

func TestNewRefuses(t *testing.T) {
	for _, bad := range []client.Config{
		{}, {BaseURL: "ftp://x", Source: servertest.Source("t")}, {BaseURL: "http://", Source: servertest.Source("t")},
		{BaseURL: "http://u:p@x", Source: servertest.Source("t")}, {BaseURL: "http://x"},
		{BaseURL: "https://x", Source: servertest.Source("t"), CAPEM: []byte("x")},
	} {
		if _, err := client.New(bad); err == nil {
			t.Errorf("%+v was taken", bad)
		}
	}
}
