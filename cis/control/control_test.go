package control_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	corev1 "k8s.io/api/core/v1"

	"cumulet.io/cis"
	"cumulet.io/cis/control"
	"cumulet.io/cis/control/store"
	"cumulet.io/cis/engine"
	"cumulet.io/internal/problem"
	"cumulet.io/internal/sqldb"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type fixture struct {
	*control.Control
	engine *scripted
	store  *store.Store
	stop   func() // ends Run and closes the store, as a crash would leave it
}

// start runs a control plane on the database at path.
func start(t testing.TB, path string, e *scripted, change func(*control.Config)) *fixture {
	t.Helper()
	db, err := sqldb.Open(t.Context(), "sqlite:"+path)
	if err != nil {
		t.Fatal(err)
	}
	st, err := store.Open(t.Context(), store.Config{DB: db, Key: store.Key{7}})
	if err != nil {
		t.Fatal(err)
	}
	cfg := control.Config{Store: st, NewEngine: e.make, Region: "here", Node: "n1", Logger: slog.New(slog.DiscardHandler)}
	if change != nil {
		change(&cfg)
	}
	c, err := control.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	f := &fixture{Control: c, engine: e, store: st}
	f.stop = sync.OnceFunc(func() {
		cancel()
		if err := errors.Join(<-done, st.Close(), db.Close()); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(f.stop)
	return f
}

func dbPath(t testing.TB) string { return filepath.Join(t.TempDir(), "cis.db") }

func spec(name string) cis.Spec {
	return cis.Spec{Name: name, Containers: []cis.Container{{Name: "main", Image: "registry.test/a/b:1",
		Env: []cis.EnvVar{{Name: "P", Value: "hush", Secret: true}}}},
		Volumes: []cis.Volume{{Name: "v", Files: &cis.FilesVolume{Secret: true, Files: []cis.File{{Path: "f", Data: []byte("old")}}}}}}
}

func (f *fixture) create(t testing.TB, key string) *cis.Instance {
	t.Helper()
	in, _, err := f.Create(t.Context(), "acme", cis.CreateRequest{Key: key, Spec: spec("web")})
	if err != nil {
		t.Fatal(err)
	}
	return in
}

// await watches until the instance is in the phase.
func (f *fixture) await(t testing.TB, id string, p cis.Phase) *cis.Instance {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	for _, err := range f.Watch(ctx, "acme", "", "") {
		if err != nil {
			t.Fatalf("%s is not %s: %v", id, p, err)
		}
		in, err := f.Get(ctx, "acme", id)
		if err != nil {
			t.Fatal(err)
		}
		if in.Status.Phase == p {
			return in
		}
	}
	return nil
}

func TestLifecycle(t *testing.T) {
	f := start(t, dbPath(t), newScripted(), nil)
	in := f.create(t, "k")
	if in.Status.Phase != cis.Pending || in.Status.Region != "here" || in.Spec.Containers[0].Env[0].Value != "" {
		t.Errorf("created %+v", in)
	}
	in = f.await(t, in.ID, cis.Running)
	if in.Status.Node != "n1" || in.Status.Incarnation != 1 {
		t.Errorf("running %+v", in.Status)
	}
	in, err := f.Delete(t.Context(), "acme", in.ID, nil)
	if err != nil || !in.Desired.Stop || in.Desired.StopAt.IsZero() || in.Desired.GraceSeconds != nil {
		t.Fatalf("deleted %+v, %v", in.Desired, err)
	}
	in = f.await(t, in.ID, cis.Succeeded)
	again, err := f.Delete(t.Context(), "acme", in.ID, nil)
	if err != nil || again.Version != in.Version {
		t.Errorf("a delete of an ended instance gave %v, %v", again, err)
	}
}

func TestDeleteGrace(t *testing.T) {
	e := newScripted()
	e.idle = true
	f := start(t, dbPath(t), e, nil)
	in := f.create(t, "k")
	n := func(v int64) *int64 { return &v }
	for i, tt := range []struct{ ask, want *int64 }{{n(20), n(20)}, {n(25), n(20)}, {nil, n(20)}, {n(5), n(5)}, {n(0), n(0)}} {
		in, err := f.Delete(t.Context(), "acme", in.ID, tt.ask)
		if err != nil || *in.Desired.GraceSeconds != *tt.want {
			t.Errorf("step %d: grace %v, %v; want %d", i, in.Desired.GraceSeconds, err, *tt.want)
		}
	}
	if _, err := f.Delete(t.Context(), "acme", in.ID, n(-1)); !errors.Is(err, problem.ErrInvalid) {
		t.Errorf("a negative grace gave %v", err)
	}
}

// A crash between the record and the sandbox loses nothing, and neither does one between a delete and the end.
func TestRestart(t *testing.T) {
	path := dbPath(t)
	e := newScripted()
	e.ensure = func(*cis.Instance) error { return errors.New("the engine is dead") }
	f := start(t, path, e, nil)
	a, b := f.create(t, "a"), f.create(t, "b")
	if _, err := f.Delete(t.Context(), "acme", b.ID, nil); err != nil {
		t.Fatal(err)
	}
	f.stop()

	f = start(t, path, newScripted(), nil)
	f.await(t, a.ID, cis.Running)
	f.await(t, b.ID, cis.Succeeded)
	if n := f.engine.firstSync(t); n != 2 {
		t.Errorf("%d instances at the first Sync, want 2", n)
	}
	if got := f.store.All(); len(got) != 1 || got[0].Spec.Containers[0].Env[0].Value != "hush" {
		t.Errorf("live after restart: %+v", got)
	}
	f.stop()
	f = start(t, path, newScripted(), nil)
	f.await(t, a.ID, cis.Running)
	if n := f.engine.firstSync(t); n != 1 {
		t.Errorf("%d instances at the second Sync, want 1", n)
	}
}

func TestEnsureIsRetried(t *testing.T) {
	e := newScripted()
	var n atomic.Int32
	e.ensure = func(*cis.Instance) error {
		if n.Add(1) < 3 {
			return errors.New("busy")
		}
		return nil
	}
	f := start(t, dbPath(t), e, nil)
	f.await(t, f.create(t, "k").ID, cis.Running)
}

func TestSandboxUnavailable(t *testing.T) {
	f := start(t, dbPath(t), newScripted(), nil)
	sp := spec("web")
	sp.Sandbox = cis.Kata
	in, created, err := f.Create(t.Context(), "acme", cis.CreateRequest{Key: "k", Spec: sp})
	if err != nil || !created || in.Status.Phase != cis.Rejected || !strings.Contains(in.Status.Message, "vmx or svm") || in.Status.EndedAt.IsZero() {
		t.Fatalf("%+v, %v", in, err)
	}
	evs, err := f.Events(t.Context(), "acme", in.ID)
	if err != nil || len(evs) != 1 || evs[0].Type != cis.Warning || evs[0].Reason != "SandboxUnavailable" || !strings.Contains(evs[0].Message, "gvisor, runc") {
		t.Errorf("events %+v, %v", evs, err)
	}
	ok := f.create(t, "other")
	f.await(t, ok.ID, cis.Running)
	if n := f.engine.count(in.ID); n != 0 {
		t.Errorf("the engine was told of a rejected instance %d times", n)
	}
	again, created, err := f.Create(t.Context(), "acme", cis.CreateRequest{Key: "k", Spec: sp})
	if err != nil || created || again.ID != in.ID {
		t.Errorf("repeat gave %v, %v", created, err)
	}
}

func TestQuotaAndCapacity(t *testing.T) {
	e := newScripted()
	e.idle = true
	e.capacity = engine.Capacity{Instances: 4}
	f := start(t, dbPath(t), e, func(c *control.Config) {
		c.Quota = control.Quota{Instances: 3}
		c.OrgQuota = map[string]control.Quota{"big": {}, "small": {MilliCPU: 1}}
	})
	create := func(org, key string) error {
		_, _, err := f.Create(t.Context(), org, cis.CreateRequest{Key: key, Spec: spec("web")})
		return err
	}
	for i, tt := range []struct {
		org, key string
		want     error
		text     string
	}{
		{"acme", "1", nil, ""}, {"acme", "2", nil, ""}, {"acme", "3", nil, ""},
		{"acme", "4", problem.ErrExhausted, "quota"}, {"acme", "1", nil, ""},
		{"small", "1", problem.ErrExhausted, "milliCPU"},
		{"big", "1", nil, ""}, {"big", "2", problem.ErrExhausted, "no room"},
	} {
		if err := create(tt.org, tt.key); !errors.Is(err, tt.want) || (err != nil && !strings.Contains(err.Error(), tt.text)) {
			t.Errorf("step %d: %v, want %v", i, err, tt.want)
		}
	}
	// What has ended no longer counts.
	if err := f.Report(t.Context(), f.store.All()[0].ID, cis.Status{Phase: cis.Failed}); err != nil {
		t.Fatal(err)
	}
	if err := create("acme", "4"); err != nil {
		t.Errorf("after an end: %v", err)
	}
}

func TestPrivilegedMustBeAllowed(t *testing.T) {
	yes := true
	sp := spec("root")
	sp.Sandbox = cis.Runc
	sp.Containers[0].SecurityContext = &corev1.SecurityContext{Privileged: &yes}
	req := cis.CreateRequest{Key: "k", Spec: sp}
	for allowed, want := range map[bool]error{false: problem.ErrInvalid, true: nil} {
		f := start(t, dbPath(t), newScripted(), func(c *control.Config) { c.AllowPrivileged = allowed })
		if _, _, err := f.Create(t.Context(), "acme", req); !errors.Is(err, want) {
			t.Errorf("allowed %v: %v", allowed, err)
		}
		f.stop()
	}
}

func TestReport(t *testing.T) {
	e := newScripted()
	e.idle = true
	f := start(t, dbPath(t), e, nil)
	in := f.create(t, "k")
	for i, tt := range []struct {
		st      cis.Status
		changes bool
		phase   cis.Phase
	}{
		{cis.Status{Phase: cis.Starting, Incarnation: 2}, true, cis.Starting},
		{cis.Status{Phase: cis.Starting, Incarnation: 2}, false, cis.Starting},
		{cis.Status{Phase: cis.Failed, Incarnation: 1}, false, cis.Starting},
		{cis.Status{Phase: cis.Running, Incarnation: 2}, true, cis.Running},
		{cis.Status{Phase: cis.Failed, Incarnation: 2}, true, cis.Failed},
		{cis.Status{Phase: cis.Running, Incarnation: 3}, false, cis.Failed},
		{cis.Status{Phase: cis.Succeeded, Incarnation: 3}, false, cis.Failed},
	} {
		before, err := f.Get(t.Context(), "acme", in.ID)
		if err != nil {
			t.Fatal(err)
		}
		if err := f.Report(t.Context(), in.ID, tt.st); err != nil {
			t.Fatal(err)
		}
		after, err := f.Get(t.Context(), "acme", in.ID)
		if err != nil || (after.Version != before.Version) != tt.changes || after.Status.Phase != tt.phase {
			t.Errorf("step %d: version %d to %d, phase %s, %v", i, before.Version, after.Version, after.Status.Phase, err)
		}
	}
	if err := f.Report(t.Context(), "i-00000000000000000000", cis.Status{Phase: cis.Running}); !errors.Is(err, problem.ErrNotFound) {
		t.Errorf("unknown: %v", err)
	}
	if err := f.Report(t.Context(), in.ID, cis.Status{}); !errors.Is(err, problem.ErrInvalid) {
		t.Errorf("no phase: %v", err)
	}
}

func TestCreateConcurrently(t *testing.T) {
	f := start(t, dbPath(t), newScripted(), nil)
	var (
		wg      sync.WaitGroup
		mu      sync.Mutex
		ids     = map[string]bool{}
		created int
	)
	for range 50 {
		wg.Go(func() {
			in, made, err := f.Create(t.Context(), "acme", cis.CreateRequest{Key: "one", Spec: spec("web")})
			if err != nil {
				t.Error(err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			ids[in.ID] = true
			if made {
				created++
			}
		})
	}
	wg.Wait()
	if len(ids) != 1 || created != 1 {
		t.Errorf("%d instances, created %d times", len(ids), created)
	}
}

// Of two updates at once the engine has the one that the record has.
func TestUpdateVolumeInOrder(t *testing.T) {
	e := newScripted()
	began, goOn := make(chan struct{}), make(chan struct{})
	e.updating = func(files cis.FilesVolume) {
		if string(files.Files[0].Data) == "first" {
			close(began)
			<-goOn
		}
	}
	f := start(t, dbPath(t), e, nil)
	in := f.create(t, "k")
	f.await(t, in.ID, cis.Running)
	var wg sync.WaitGroup
	update := func(data string) {
		if err := f.UpdateVolume(t.Context(), "acme", in.ID, "v", cis.FilesVolume{Files: []cis.File{{Path: "f", Data: []byte(data)}}}); err != nil {
			t.Error(err)
		}
	}
	wg.Go(func() { update("first") })
	<-began
	second := make(chan struct{})
	wg.Go(func() { update("second"); close(second) })
	select {
	case <-second:
	case <-time.After(100 * time.Millisecond): // it waits its turn
	}
	close(goOn)
	wg.Wait()
	if got := string(e.volumes[in.ID+"/v"].Files[0].Data); got != "second" {
		t.Errorf("the engine has the %s files", got)
	}
}

func TestUpdateVolume(t *testing.T) {
	path := dbPath(t)
	f := start(t, path, newScripted(), nil)
	in := f.create(t, "k")
	f.await(t, in.ID, cis.Running)
	files := cis.FilesVolume{Files: []cis.File{{Path: "f", Data: []byte("new")}}}
	if err := f.UpdateVolume(t.Context(), "acme", in.ID, "v", files); err != nil {
		t.Fatal(err)
	}
	if got := f.engine.volumes[in.ID+"/v"]; string(got.Files[0].Data) != "new" || !got.Secret {
		t.Errorf("the engine got %+v", got)
	}
	if err := f.UpdateVolume(t.Context(), "acme", in.ID, "nope", files); !errors.Is(err, problem.ErrNotFound) {
		t.Errorf("unknown volume: %v", err)
	}
	if err := f.UpdateVolume(t.Context(), "acme", in.ID, "v", cis.FilesVolume{Files: []cis.File{{Path: "../f"}}}); !errors.Is(err, problem.ErrInvalid) {
		t.Errorf("bad path: %v", err)
	}
	sp := spec("large")
	for i := range 3 {
		sp.Volumes = append(sp.Volumes, cis.Volume{Name: fmt.Sprint("w", i), Files: &cis.FilesVolume{}})
	}
	large, _, err := f.Create(t.Context(), "acme", cis.CreateRequest{Key: "large", Spec: sp})
	if err != nil {
		t.Fatal(err)
	}
	full := cis.FilesVolume{Files: []cis.File{{Path: "f", Data: make([]byte, cis.MaxFilesBytes)}}}
	for i := 0; err == nil && i < 3; i++ {
		err = f.UpdateVolume(t.Context(), "acme", large.ID, fmt.Sprint("w", i), full)
	}
	if n := cis.FilesBytes(f.store.Live(large.ID).Spec.Volumes); !errors.Is(err, problem.ErrTooLarge) || n > cis.MaxVolumesBytes {
		t.Errorf("volumes may grow to %d bytes in all: %v", n, err)
	}
	f.stop()
	f = start(t, path, newScripted(), nil)
	if got := f.store.Live(in.ID).Spec.Volumes[0].Files.Files[0].Data; string(got) != "new" {
		t.Errorf("after a restart the files are %q", got)
	}
	if err := f.Report(t.Context(), in.ID, cis.Status{Phase: cis.Failed, Incarnation: 1}); err != nil {
		t.Fatal(err)
	}
	if err := f.UpdateVolume(t.Context(), "acme", in.ID, "v", files); !errors.Is(err, problem.ErrConflict) {
		t.Errorf("of an ended instance: %v", err)
	}
}

func TestLogs(t *testing.T) {
	e := newScripted()
	f := start(t, dbPath(t), e, func(c *control.Config) {
		c.Logs = func(_ context.Context, org, id string, req cis.LogRequest) (io.ReadCloser, error) {
			if org != "acme" {
				return nil, problem.New(problem.ErrNotFound, "nothing stored")
			}
			return io.NopCloser(strings.NewReader("stored " + req.Container)), nil
		}
	})
	in := f.create(t, "k")
	broken := errors.New("disk")
	for name, tt := range map[string]struct {
		engine func(ctx context.Context, id string, req cis.LogRequest, w io.Writer) error
		want   string
		err    error
	}{
		"node": {func(_ context.Context, _ string, _ cis.LogRequest, w io.Writer) error {
			_, err := io.WriteString(w, "live")
			return err
		}, "live", nil},
		"empty":  {func(context.Context, string, cis.LogRequest, io.Writer) error { return nil }, "", nil},
		"gone":   {nil, "stored main", nil},
		"broken": {func(context.Context, string, cis.LogRequest, io.Writer) error { return broken }, "", broken},
		"cut": {func(_ context.Context, _ string, _ cis.LogRequest, w io.Writer) error {
			_, _ = io.WriteString(w, "li")
			return broken
		}, "li", broken},
		"cut, gone": {func(_ context.Context, _ string, _ cis.LogRequest, w io.Writer) error {
			_, _ = io.WriteString(w, "li")
			return problem.New(problem.ErrNotFound, "x")
		}, "li", problem.ErrNotFound},
	} {
		t.Run(name, func(t *testing.T) {
			e.logs = tt.engine
			rc, err := f.Logs(t.Context(), "acme", in.ID, cis.LogRequest{Container: "main"})
			var got []byte
			if err == nil {
				got, err = io.ReadAll(rc)
				_ = rc.Close()
			}
			if string(got) != tt.want || !errors.Is(err, tt.err) {
				t.Errorf("got %q, %v; want %q, %v", got, err, tt.want, tt.err)
			}
		})
	}
	t.Run("quiet", func(t *testing.T) {
		ended := make(chan struct{})
		e.logs = func(ctx context.Context, _ string, _ cis.LogRequest, _ io.Writer) error {
			<-ctx.Done()
			close(ended)
			return ctx.Err()
		}
		rc, err := f.Logs(t.Context(), "acme", in.ID, cis.LogRequest{Container: "main", Follow: true})
		if err != nil {
			t.Fatal(err)
		}
		_ = rc.Close()
		<-ended
	})
	t.Run("no such container", func(t *testing.T) {
		if _, err := f.Logs(t.Context(), "acme", in.ID, cis.LogRequest{Container: "x"}); !errors.Is(err, problem.ErrNotFound) {
			t.Error(err)
		}
	})
	t.Run("pruned", func(t *testing.T) {
		rc, err := f.Logs(t.Context(), "acme", "i-00000000000000000000", cis.LogRequest{Container: "main"})
		if err != nil {
			t.Fatal(err)
		}
		if got, _ := io.ReadAll(rc); string(got) != "stored main" {
			t.Errorf("got %q", got)
		}
	})
	t.Run("another org", func(t *testing.T) {
		if _, err := f.Logs(t.Context(), "umbrella", in.ID, cis.LogRequest{Container: "main"}); !errors.Is(err, problem.ErrNotFound) {
			t.Error(err)
		}
	})
}

// Whatever happens at the same time, a watcher that is cut again and again and resumes by cursor ends with the truth,
// and never goes back.
func TestWatchResumes(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	f := start(t, dbPath(t), newScripted(), nil)
	list, err := f.List(t.Context(), "acme", cis.ListRequest{})
	if err != nil {
		t.Fatal(err)
	}
	const n = 60
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			in, _, err := f.Create(t.Context(), "acme", cis.CreateRequest{Key: fmt.Sprint(i), Spec: spec("web")})
			if err != nil {
				t.Error(err)
				return
			}
			for j := range 10 {
				if err := errors.Join(f.Report(t.Context(), in.ID, cis.Status{Phase: cis.Running, Incarnation: 1, Message: fmt.Sprint(j)}),
					f.Record(t.Context(), cis.Event{Instance: in.ID, Reason: "Tick", Message: fmt.Sprint(j % 3)})); err != nil {
					t.Error(err)
				}
			}
			if err := f.Report(t.Context(), in.ID, cis.Status{Phase: cis.Failed, Incarnation: 1}); err != nil {
				t.Error(err)
			}
		})
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	versions, final, ticks := map[string]int64{}, map[string]bool{}, map[string]int64{}
	total := func() (s int64) {
		for _, c := range ticks {
			s += c
		}
		return s
	}
	for cursor, sessions := list.Cursor, 0; len(final) < n || total() < 10*n; sessions++ {
		left := 1 + rng.IntN(40)
		for item, err := range f.Watch(ctx, "acme", "", cursor) {
			if err != nil {
				t.Fatalf("after %d sessions with %d ended: %v", sessions, len(final), err)
			}
			cursor = item.Cursor
			if in := item.Instance; in != nil {
				if in.Version <= versions[in.ID] {
					t.Fatalf("%s went from version %d back to %d", in.ID, versions[in.ID], in.Version)
				}
				versions[in.ID] = in.Version
				if in.Status.Phase.Final() {
					final[in.ID] = true
				}
			}
			if ev := item.Event; ev != nil {
				ticks[ev.Instance+ev.Message] = max(ticks[ev.Instance+ev.Message], ev.Count)
			}
			if left--; left == 0 || (len(final) == n && total() == 10*n) {
				break
			}
		}
	}
	wg.Wait()
}
