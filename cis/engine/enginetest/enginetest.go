// Package enginetest is the conformance suite of engines: what control, provider and users rely on, checked from
// outside through the contract alone.
//
// Run runs every case against an engine that a Factory makes. Sink records an engine's reports and is of use in other
// tests of engines too. Nothing here is for production.
package enginetest

import (
	"context"
	"slices"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"

	"cumulet.io/cis"
	"cumulet.io/cis/engine"
)

// Factory tells the suite how to make engines and what to run on them.
type Factory struct {
	// New makes an engine that reports to sink, without calling its Run or Sync. What it needs to release is t.Cleanup's,
	// after the suite has ended every instance and Run has returned.
	New func(t *testing.T, sink engine.Sink) engine.Engine
	// Restart makes another engine over what old left behind, as a new process after a kill -9. Old's Run has been
	// cancelled and has returned. nil skips the cases of it.
	Restart func(t *testing.T, old engine.Engine, sink engine.Sink) engine.Engine
	// Image has a POSIX shell and busybox's commands. MissingImage cannot be pulled; default
	// "127.0.0.1:9/missing/image:v1".
	Image, MissingImage string
	// Shell makes a command line that runs a script; default sh -c. Scripts are POSIX and straight: lists with ; && ||
	// and no loops or functions, so that a small interpreter will do.
	Shell func(script string) []string
	// Sandbox is the class that the instances ask for; "" leaves the choice to the engine.
	Sandbox cis.SandboxClass
	// Slow multiplies every time-out; 0 means 1.
	Slow float64
	// AtOnce is how many cases run at a time; 0 means 1. With more, the engines of all cases live side by side.
	AtOnce int
	// Around, when set, calls run with what each case needs around it, as synctest.Test.
	Around func(t *testing.T, run func(*testing.T))
	// Skip names cases that the engine's surroundings do not allow, with the reason that is printed. One without a reason is
	// left out, and told by who does so.
	Skip map[string]string
}

// Run runs the suite, each case a subtest with an engine of its own. It returns when all have ended.
func Run(t *testing.T, f Factory) {
	if f.Shell == nil {
		f.Shell = func(script string) []string { return []string{"sh", "-c", script} }
	}
	if f.MissingImage == "" {
		f.MissingImage = "127.0.0.1:9/missing/image:v1"
	}
	if f.Around == nil {
		f.Around = func(t *testing.T, run func(*testing.T)) { run(t) }
	}
	if f.Slow == 0 {
		f.Slow = 1
	}
	var cases errgroup.Group // for its limit: a subtest keeps its failure to itself
	cases.SetLimit(max(1, f.AtOnce))
	for _, c := range slices.Concat(lifeCases(), containerCases(), accessCases(), troubleCases()) {
		if why, skip := f.Skip[c.name]; skip && why == "" {
			continue
		}
		cases.Go(func() error {
			t.Run(c.name, func(t *testing.T) {
				if why, skip := f.Skip[c.name]; skip {
					t.Skip(why)
				}
				f.Around(t, func(t *testing.T) { c.run(start(t, f)) })
			})
			return nil
		})
	}
	_ = cases.Wait() // no error, as above
}

// Names are the names of all cases, in their order.
func Names() []string {
	var names []string
	for _, c := range slices.Concat(lifeCases(), containerCases(), accessCases(), troubleCases()) {
		names = append(names, c.name)
	}
	return names
}

// testCase is one case; its name is what Factory.Skip has.
type testCase struct {
	name string
	run  func(r *rig)
}

// rig is an engine at work.
type rig struct {
	*testing.T
	f    Factory
	sink *Sink
	eng  engine.Engine
	stop func() // cancels Run and waits for it

	live map[string]*cis.Instance
}

func start(t *testing.T, f Factory) *rig {
	r := &rig{T: t, f: f, sink: &Sink{}, live: map[string]*cis.Instance{}}
	r.eng = f.New(t, r.sink)
	r.run(nil)
	t.Cleanup(func() {
		for id, in := range r.live {
			if !r.sink.Status(id).Phase.Final() {
				r.ask(in, 0)
			}
		}
		for id := range r.live {
			r.await(id, ended)
		}
		r.stop()
		r.sink.Check(t)
	})
	return r
}

// run starts the engine and syncs it.
func (r *rig) run(all []*cis.Instance) {
	r.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	eng := r.eng
	go func() { done <- eng.Run(ctx) }()
	r.stop = func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				r.Errorf("Run: %v", err)
			}
		case <-time.After(r.timeout()):
			r.Errorf("Run did not return within %v of the end of its context", r.timeout())
		}
	}
	if err := eng.Sync(r.ctx(), all); err != nil {
		r.Fatalf("Sync: %v", err)
	}
}

func (r *rig) timeout() time.Duration { return time.Duration(r.f.Slow * float64(30*time.Second)) }

// ctx ends a little after the longest that one step of a case may take.
func (r *rig) ctx() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 2*r.timeout())
	r.Cleanup(cancel)
	return ctx
}

// instance makes an instance of one container, main, that runs a script and is not restarted.
func (r *rig) instance(script string, change ...func(*cis.Spec)) *cis.Instance {
	r.Helper()
	grace := int64(5)
	spec := cis.Spec{
		Name: "test", Sandbox: r.f.Sandbox, GraceSeconds: &grace, RestartPolicy: corev1.RestartPolicyNever,
		Containers: []cis.Container{r.container("main", script)},
	}
	for _, f := range change {
		f(&spec)
	}
	now := time.Now().UTC()
	id := cis.NewID(now)
	if err := cis.ValidateCreate(&cis.CreateRequest{Key: id, Spec: spec}); err != nil {
		r.Fatalf("the case's spec: %v", err)
	}
	return &cis.Instance{ID: id, Org: "acme", Key: id, CreatedAt: now, Version: 1, Spec: spec.Defaulted()}
}

func (r *rig) container(name, script string) cis.Container {
	return cis.Container{Name: name, Image: r.f.Image, Command: r.f.Shell(script), ImagePullPolicy: corev1.PullIfNotPresent}
}

// ensure hands an instance to the engine.
func (r *rig) ensure(in *cis.Instance) string {
	r.Helper()
	r.live[in.ID] = in
	copied := *in // the engine keeps what it is given
	if err := r.eng.Ensure(r.ctx(), &copied); err != nil {
		r.Fatalf("Ensure: %v", err)
	}
	return in.ID
}

// ask asks for an end with this grace.
func (r *rig) ask(in *cis.Instance, grace int64) {
	r.Helper()
	stopped := *in
	stopped.Version++
	stopped.Desired = cis.Desired{Stop: true, GraceSeconds: &grace, StopAt: time.Now().UTC()}
	r.ensure(&stopped)
}

func (r *rig) await(id string, ok func(cis.Status) bool) cis.Status {
	r.Helper()
	return r.sink.Await(r, id, ok, r.timeout())
}

// finish runs a script in an instance to its end.
func (r *rig) finish(script string, change ...func(*cis.Spec)) (string, cis.Status) {
	r.Helper()
	id := r.ensure(r.instance(script, change...))
	return id, r.await(id, ended)
}

// says runs a script to its successful end and gives what it wrote to its termination message.
func (r *rig) says(script string, change ...func(*cis.Spec)) string {
	r.Helper()
	id, st := r.finish(script, change...)
	if st.Phase != cis.Succeeded {
		r.Fatalf("%s: %s", id, describe(st))
	}
	return terminated(r, st, "main").Message
}

func ended(st cis.Status) bool   { return st.Phase.Final() }
func running(st cis.Status) bool { return st.Phase == cis.Running }
func ready(st cis.Status) bool   { return st.Phase == cis.Running && st.Ready }

// find gives the status of a container.
func find(st cis.Status, name string) corev1.ContainerStatus {
	for _, list := range [][]corev1.ContainerStatus{st.InitContainers, st.Containers} {
		for _, c := range list {
			if c.Name == name {
				return c
			}
		}
	}
	return corev1.ContainerStatus{}
}

// terminated gives the end of a container that must have ended.
func terminated(r *rig, st cis.Status, name string) corev1.ContainerStateTerminated {
	r.Helper()
	c := find(st, name)
	if c.State.Terminated == nil {
		r.Fatalf("container %s has not ended: %s", name, describe(st))
	}
	return *c.State.Terminated
}

// scratch gives a spec a volume that is mounted at /data in every container.
func scratch(s *cis.Spec) {
	s.Volumes = append(s.Volumes, cis.Volume{Name: "data", EmptyDir: &cis.EmptyDir{}})
	for _, list := range [][]cis.Container{s.InitContainers, s.Containers} {
		for i := range list {
			list[i].Mounts = append(list[i].Mounts, cis.Mount{Volume: "data", Path: "/data"})
		}
	}
}

// whenFile is a probe that succeeds while a file is there.
func whenFile(path string) *corev1.Probe {
	return &corev1.Probe{
		ProbeHandler:  corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: []string{"test", "-f", path}}},
		PeriodSeconds: 1, TimeoutSeconds: 5, FailureThreshold: 3,
	}
}

// readyWhen makes main ready while a file is there.
func readyWhen(path string) func(*cis.Spec) {
	return func(s *cis.Spec) { s.Containers[0].ReadinessProbe = whenFile(path) }
}

func restart(p corev1.RestartPolicy) func(*cis.Spec) {
	return func(s *cis.Spec) { s.RestartPolicy = p }
}
