// Package testservice is a container instance service for the tests of the provider: the real control plane on SQLite, over an
// engine that runs nothing and does what an image's name or a test says. It is for tests only.
package testservice

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	utilexec "k8s.io/utils/exec"

	"cumulet.io/cis"
	"cumulet.io/cis/control"
	"cumulet.io/cis/control/store"
	"cumulet.io/cis/engine"
	"cumulet.io/internal/problem"
	"cumulet.io/internal/sqldb"
	"cumulet.io/provider"
)

// Image names that the engine knows; any other runs until it is stopped.
const (
	ImageRuns = "example.org/runs:v1"
	ImageDone = "example.org/done:v1" // ends at once with 0
	ImageFail = "example.org/fail:v1" // ends at once with 3
	// ImageHeld stays as it is until the test reports a status for it.
	ImageHeld = "example.org/held:v1"
	// ImageStubborn ends only when its grace is over.
	ImageStubborn = "example.org/stubborn:v1"
)

// Service is the service with its engine.
type Service struct {
	*control.Control
	Engine *Engine
}

// Start runs a service until the test ends.
func Start(t testing.TB) *Service {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	db, err := sqldb.Open(ctx, "sqlite:"+filepath.Join(t.TempDir(), "cis.db"))
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	s, err := store.Open(ctx, store.Config{DB: db, Logger: log})
	if err != nil {
		t.Fatal(err)
	}
	e := &Engine{instances: map[string]*cis.Instance{}, volumes: map[string]cis.FilesVolume{}, statuses: map[string]cis.Status{}}
	c, err := control.New(control.Config{Store: s, Region: "test", Node: "host", Logger: log, NewEngine: func(sink engine.Sink) (engine.Engine, error) {
		e.sink = sink
		return e, nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("service: %v", err)
		}
		if err := errors.Join(s.Close(), db.Close()); err != nil {
			t.Errorf("service: %v", err)
		}
	})
	return &Service{Control: c, Engine: e}
}

// Parts gives the service as the provider wants it.
func (s *Service) Parts() provider.Services {
	return provider.Services{Instances: s, Watcher: s, Execer: s, LogReader: s, PortForwarder: s, StatsReader: s}
}

// Live lists the live instances of an org.
func (s *Service) Live(t testing.TB, org string) []cis.Instance {
	t.Helper()
	list, err := s.List(context.Background(), org, cis.ListRequest{Live: true, Limit: 1000})
	if err != nil {
		t.Fatal(err)
	}
	return list.Items
}

// Engine runs nothing. Safe for concurrent use.
type Engine struct {
	sink engine.Sink

	mu        sync.Mutex
	instances map[string]*cis.Instance
	statuses  map[string]cis.Status
	volumes   map[string]cis.FilesVolume // by id/volume
	ips       int
	timers    []*time.Timer
}

// Run implements engine.Engine.
func (e *Engine) Run(ctx context.Context) error {
	<-ctx.Done()
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, t := range e.timers {
		t.Stop()
	}
	return nil
}

// Sync implements engine.Engine.
func (e *Engine) Sync(ctx context.Context, all []*cis.Instance) error {
	for _, in := range all {
		if err := e.Ensure(ctx, in); err != nil {
			return err
		}
	}
	return nil
}

// Ensure implements engine.Engine.
func (e *Engine) Ensure(ctx context.Context, in *cis.Instance) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	old, known := e.instances[in.ID]
	e.instances[in.ID] = in
	if e.statuses[in.ID].Phase.Final() {
		return nil
	}
	switch {
	case in.Desired.Stop && (!known || !old.Desired.Stop):
		if in.Spec.Containers[0].Image == ImageStubborn {
			grace := 30 * time.Second
			if in.Desired.GraceSeconds != nil {
				grace = time.Duration(*in.Desired.GraceSeconds) * time.Second
			}
			st := e.statuses[in.ID]
			st.Phase = cis.Stopping
			e.timers = append(e.timers, time.AfterFunc(grace, func() {
				e.mu.Lock()
				defer e.mu.Unlock()
				_ = e.report(context.Background(), in.ID, e.end(in, 137, "Deleted")) //nolint:errcheck // the test sees it
			}))
			return e.report(ctx, in.ID, st)
		}
		return e.report(ctx, in.ID, e.end(in, 143, "Deleted"))
	case !known && in.Spec.Containers[0].Image != ImageHeld:
		return e.begin(ctx, in)
	}
	return nil
}

// begin starts an instance, or ends it where its image says so.
func (e *Engine) begin(ctx context.Context, in *cis.Instance) error {
	e.ips++
	now := time.Now().UTC()
	st := cis.Status{Phase: cis.Running, SandboxClass: cis.Runc, Runtime: "runc", IPs: []string{fmt.Sprintf("10.9.%d.%d", e.ips/250, e.ips%250+1)},
		HostIP: "192.0.2.1", Node: "host", Region: "test", Incarnation: 1, StartedAt: now, Initialized: true, Ready: true, Size: cis.SizeOf(&in.Spec)}
	for _, c := range in.Spec.InitContainers {
		st.InitContainers = append(st.InitContainers, status(c, corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{
			Reason: "Completed", StartedAt: metav1.NewTime(now), FinishedAt: metav1.NewTime(now)}}))
	}
	for _, c := range in.Spec.Containers {
		s := status(c, corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: metav1.NewTime(now)}})
		s.Ready, s.Started = true, new(true)
		st.Containers = append(st.Containers, s)
	}
	e.record(ctx, cis.Event{Instance: in.ID, Type: cis.Normal, Reason: "Started", Message: "Started container " + in.Spec.Containers[0].Name, Container: in.Spec.Containers[0].Name})
	if err := e.report(ctx, in.ID, st); err != nil {
		return err
	}
	switch in.Spec.Containers[0].Image {
	case ImageDone:
		return e.report(ctx, in.ID, e.end(in, 0, ""))
	case ImageFail:
		return e.report(ctx, in.ID, e.end(in, 3, ""))
	}
	return nil
}

func status(c cis.Container, state corev1.ContainerState) corev1.ContainerStatus {
	return corev1.ContainerStatus{Name: c.Name, Image: c.Image, ImageID: c.Image + "@sha256:0", ContainerID: "test://" + c.Name, State: state}
}

// end makes the last status of an instance.
func (e *Engine) end(in *cis.Instance, code int32, reason string) cis.Status {
	st := e.statuses[in.ID]
	now := time.Now().UTC()
	st.Phase, st.Reason, st.Ready, st.EndedAt = cis.Succeeded, reason, false, now
	if code != 0 {
		st.Phase = cis.Failed
	}
	word := map[bool]string{true: "Completed", false: "Error"}[code == 0]
	var ended []corev1.ContainerStatus
	for _, c := range in.Spec.Containers {
		ended = append(ended, status(c, corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{
			ExitCode: code, Reason: word, StartedAt: metav1.NewTime(st.StartedAt), FinishedAt: metav1.NewTime(now), ContainerID: "test://" + c.Name}}))
	}
	st.Containers = ended
	return st
}

// Set reports a status of an instance, as a test wants it.
func (e *Engine) Set(t testing.TB, id string, change func(*cis.Status)) {
	t.Helper()
	e.mu.Lock()
	defer e.mu.Unlock()
	st := e.statuses[id]
	st.Containers = slices.Clone(st.Containers) // what was reported is others'
	st.InitContainers = slices.Clone(st.InitContainers)
	change(&st)
	if err := e.report(context.Background(), id, st); err != nil {
		t.Fatal(err)
	}
}

func (e *Engine) report(ctx context.Context, id string, st cis.Status) error {
	e.statuses[id] = st
	return e.sink.Report(ctx, id, st)
}

func (e *Engine) record(ctx context.Context, ev cis.Event) {
	_ = e.sink.Record(ctx, ev) //nolint:errcheck // an event more or less
}

// Instance gives the instance as the engine was told of it, secrets included.
func (e *Engine) Instance(id string) *cis.Instance {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.instances[id]
}

// Volume gives the files that a volume was updated with.
func (e *Engine) Volume(id, volume string) (cis.FilesVolume, bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	f, ok := e.volumes[id+"/"+volume]
	return f, ok
}

// Classes implements engine.Engine: everything but Kata.
func (e *Engine) Classes(context.Context) ([]cis.SandboxClass, map[cis.SandboxClass]string) {
	return []cis.SandboxClass{cis.GVisor, cis.Runc}, map[cis.SandboxClass]string{cis.Kata: "the host has no hardware virtualisation"}
}

// Capacity implements engine.Engine.
func (e *Engine) Capacity(context.Context) (engine.Capacity, error) {
	return engine.Capacity{MilliCPU: 1e9, MemoryBytes: 1 << 50, EphemeralDisk: 1 << 50, Instances: 1e6}, nil
}

// Exec implements engine.Execer: "echo WORDS", "cat" and "exit CODE".
func (e *Engine) Exec(_ context.Context, _ string, req cis.ExecRequest) error {
	if len(req.Command) == 0 {
		_, err := io.WriteString(req.Stdout, "attached\n")
		return err
	}
	switch req.Command[0] {
	case "echo":
		_, err := io.WriteString(req.Stdout, strings.Join(req.Command[1:], " ")+"\n")
		return err
	case "cat":
		_, err := io.Copy(req.Stdout, req.Stdin)
		return err
	case "exit":
		return utilexec.CodeExitError{Err: errors.New("exit"), Code: 7}
	}
	return problem.New(problem.ErrInvalid, "unknown command %q", req.Command[0])
}

// Logs implements engine.LogReader.
func (e *Engine) Logs(_ context.Context, id string, req cis.LogRequest, w io.Writer) error {
	lines := []string{"one", "two", "three"}
	if req.Tail != nil && int(*req.Tail) < len(lines) {
		lines = lines[len(lines)-int(*req.Tail):]
	}
	for _, l := range lines {
		if _, err := fmt.Fprintf(w, "%s %s\n", req.Container, l); err != nil {
			return err
		}
	}
	return nil
}

// PortForward implements engine.PortForwarder: what is sent comes back.
func (e *Engine) PortForward(context.Context, string, uint16) (io.ReadWriteCloser, error) {
	r, w := io.Pipe()
	return struct {
		io.Reader
		io.WriteCloser
	}{r, w}, nil
}

// Stats implements engine.StatsReader.
func (e *Engine) Stats(_ context.Context, ids []string) ([]cis.Stats, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	var all []cis.Stats
	for _, id := range ids {
		in := e.instances[id]
		if in == nil || e.statuses[id].Phase != cis.Running {
			continue
		}
		now := time.Now().UTC()
		st := cis.Stats{Instance: id, Time: now, StartTime: e.statuses[id].StartedAt}
		for _, c := range in.Spec.Containers {
			st.Containers = append(st.Containers, cis.ContainerStats{Name: c.Name, StartTime: st.StartTime,
				CPUNanoseconds: uint64(now.Sub(st.StartTime)), MemoryBytes: 1 << 20, DiskBytes: 4096}) //nolint:gosec // not negative
		}
		all = append(all, st)
	}
	return all, nil
}

// UpdateVolume implements engine.VolumeUpdater.
func (e *Engine) UpdateVolume(_ context.Context, id, volume string, files cis.FilesVolume) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.volumes[id+"/"+volume] = files
	return nil
}
