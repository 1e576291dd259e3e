package enginetest

import (
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"

	"cumulet.io/cis"
)

// forever ends on TERM with code 7 and shows by a file that it is prepared to.
const forever = "trap 'exit 7' TERM; touch /tmp/up; sleep 3600 & wait"

// lifeCases are the life of an instance as a whole.
func lifeCases() []testCase {
	return []testCase{
		{"Succeeds", succeeds},
		{"Fails", fails},
		{"EnsureTwice", ensureTwice},
		{"EnsureAfterEnd", ensureAfterEnd},
		{"StopBeforeStart", stopBeforeStart},
		{"GracefulStop", gracefulStop},
		{"KillAfterGrace", killAfterGrace},
		{"GraceShortened", graceShortened},
		{"StopTwice", stopTwice},
		{"StopDuringInit", stopDuringInit},
		{"PreStopBeyondGrace", preStopBeyondGrace},
		{"StopEndsSidecarsLast", stopEndsSidecarsLast},
		{"Deadline", deadline},
		{"Classes", classes},
		{"RejectsUnknownClass", rejectsUnknownClass},
	}
}

func succeeds(r *rig) {
	before := time.Now().Add(-time.Second)
	in := r.instance("exit 0")
	id := r.ensure(in)
	st := r.await(id, ended)
	end := terminated(r, st, "main")
	switch {
	case st.Phase != cis.Succeeded, end.ExitCode != 0, end.Reason != "Completed":
		r.Errorf("not a success: %s", describe(st))
	case st.StartedAt.Before(before), st.EndedAt.Before(st.StartedAt):
		r.Errorf("started %v, ended %v", st.StartedAt, st.EndedAt)
	case end.StartedAt.IsZero(), end.FinishedAt.Before(&end.StartedAt), end.ContainerID == "":
		r.Errorf("incomplete end: %+v", end)
	case st.Size != cis.SizeOf(&in.Spec):
		r.Errorf("size %+v, want %+v", st.Size, cis.SizeOf(&in.Spec))
	case st.Incarnation != 1:
		r.Errorf("incarnation %d", st.Incarnation)
	case st.SandboxClass == "", st.Runtime == "", r.f.Sandbox != "" && st.SandboxClass != r.f.Sandbox:
		r.Errorf("sandbox class %q, runtime %q", st.SandboxClass, st.Runtime)
	case st.Ready:
		r.Error("ready after the end")
	}
	if len(st.Containers) != 1 || st.Containers[0].Image == "" {
		r.Errorf("container statuses: %+v", st.Containers)
	}
	if !slices.ContainsFunc(r.sink.History(id), func(st cis.Status) bool { return len(st.IPs) > 0 }) {
		r.Error("no address was ever reported")
	}
}

func fails(r *rig) {
	_, st := r.finish("exit 3")
	if end := terminated(r, st, "main"); st.Phase != cis.Failed || end.ExitCode != 3 || end.Reason != "Error" {
		r.Errorf("not a failure: %s", describe(st))
	}
}

func ensureTwice(r *rig) {
	in := r.instance(forever, readyWhen("/tmp/up"))
	var calls sync.WaitGroup
	for range 8 {
		copied := *in
		calls.Go(func() {
			if err := r.eng.Ensure(r.ctx(), &copied); err != nil {
				r.Errorf("Ensure: %v", err)
			}
		})
	}
	calls.Wait()
	id := r.ensure(in)
	r.await(id, ready)
	r.ensure(in)
	r.ask(in, 5)
	st := r.await(id, ended)
	ids := map[string]bool{}
	for _, st := range r.sink.History(id) {
		if c := find(st, "main"); c.ContainerID != "" {
			ids[c.ContainerID] = true
		}
	}
	if len(ids) != 1 || find(st, "main").RestartCount != 0 || st.Incarnation != 1 {
		r.Errorf("%d containers were seen: %s", len(ids), describe(st))
	}
}

func ensureAfterEnd(r *rig) {
	in := r.instance("exit 0")
	id := r.ensure(in)
	st := r.await(id, ended)
	r.ensure(in)
	r.ask(in, 0)
	// Another instance runs through meanwhile: what the engine would do to the first, it would have begun.
	r.finish("exit 0")
	if now := r.sink.Status(id); now.Phase != st.Phase || find(now, "main").ContainerID != find(st, "main").ContainerID {
		r.Errorf("after the end %s: %s", describe(st), describe(now))
	}
}

func stopBeforeStart(r *rig) {
	in := r.instance("exit 0")
	r.ask(in, 0)
	st := r.await(in.ID, ended)
	if st.Phase == cis.Succeeded || !st.StartedAt.IsZero() || find(st, "main").State.Running != nil {
		r.Errorf("an instance that never began: %s, started %v", describe(st), st.StartedAt)
	}
	r.ensure(in) // an order from before, late
	r.finish("exit 0")
	if now := r.sink.Status(in.ID); now.Phase != st.Phase {
		r.Errorf("began after its end: %s", describe(now))
	}
}

func gracefulStop(r *rig) {
	in := r.instance(forever, readyWhen("/tmp/up"))
	id := r.ensure(in)
	r.await(id, ready)
	asked := time.Now()
	r.ask(in, 120)
	st := r.await(id, ended)
	if end := terminated(r, st, "main"); end.ExitCode != 7 || st.Phase != cis.Failed {
		r.Errorf("after TERM: %s", describe(st))
	}
	if took := time.Since(asked); took > r.timeout() {
		r.Errorf("the end took %v", took)
	}
	stopping := slices.ContainsFunc(r.sink.History(id), func(st cis.Status) bool { return st.Phase == cis.Stopping })
	if !stopping {
		r.Error("Stopping was never reported")
	}
}

func killAfterGrace(r *rig) {
	in := r.instance("trap '' TERM; touch /tmp/up; sleep 3600", readyWhen("/tmp/up"))
	id := r.ensure(in)
	r.await(id, ready)
	asked := time.Now()
	r.ask(in, 2)
	st := r.await(id, ended)
	if end := terminated(r, st, "main"); end.ExitCode != 137 {
		r.Errorf("after KILL: %s", describe(st))
	}
	if took := time.Since(asked); took < 1900*time.Millisecond {
		r.Errorf("killed %v after the request, before its grace of 2 s was over", took)
	}
}

func graceShortened(r *rig) {
	in := r.instance("trap '' TERM; touch /tmp/up; sleep 3600", readyWhen("/tmp/up"))
	id := r.ensure(in)
	r.await(id, ready)
	r.ask(in, 3600)
	r.await(id, func(st cis.Status) bool { return st.Phase == cis.Stopping })
	r.ask(in, 0)
	r.await(id, ended)
}

func stopTwice(r *rig) {
	in := r.instance(forever, readyWhen("/tmp/up"))
	id := r.ensure(in)
	r.await(id, ready)
	r.ask(in, 60)
	r.ask(in, 60)
	st := r.await(id, ended)
	if end := terminated(r, st, "main"); end.ExitCode != 7 {
		r.Errorf("after two requests: %s", describe(st))
	}
}

func stopDuringInit(r *rig) {
	in := r.instance("exit 0", func(s *cis.Spec) {
		s.InitContainers = []cis.Container{r.container("one", "trap 'exit 3' TERM; sleep 3600 & wait")}
	})
	id := r.ensure(in)
	r.await(id, func(st cis.Status) bool { return find(st, "one").State.Running != nil })
	r.ask(in, 3)
	st := r.await(id, ended)
	if st.Phase != cis.Failed || st.Initialized {
		r.Errorf("stopped before its containers: %s", describe(st))
	}
	for _, st := range r.sink.History(id) {
		if find(st, "main").ContainerID != "" {
			r.Fatalf("main began: %s", describe(st))
		}
	}
}

// A hook uses up the grace, but never more than it and the two seconds that core/v1 adds.
func preStopBeyondGrace(r *rig) {
	in := r.instance(forever, readyWhen("/tmp/up"), func(s *cis.Spec) {
		s.Containers[0].Lifecycle = &corev1.Lifecycle{PreStop: &corev1.LifecycleHandler{Exec: &corev1.ExecAction{Command: []string{"sleep", "3600"}}}}
	})
	id := r.ensure(in)
	r.await(id, ready)
	asked := time.Now()
	r.ask(in, 2)
	st := r.await(id, ended)
	if took := time.Since(asked); took < 1900*time.Millisecond {
		r.Errorf("ended after %v, before the hook's grace was over: %s", took, describe(st))
	}
	terminated(r, st, "main")
}

func stopEndsSidecarsLast(r *rig) {
	always := corev1.ContainerRestartPolicyAlways
	in := r.instance("trap 'sleep 2; exit 0' TERM; touch /tmp/up; sleep 3600 & wait", readyWhen("/tmp/up"), func(s *cis.Spec) {
		for _, name := range []string{"first", "second"} {
			side := r.container(name, "trap 'sleep 1; exit 0' TERM; touch /tmp/up; sleep 3600 & wait")
			side.RestartPolicy, side.StartupProbe = &always, whenFile("/tmp/up")
			s.InitContainers = append(s.InitContainers, side)
		}
	})
	id := r.ensure(in)
	r.await(id, ready)
	r.ask(in, 60)
	st := r.await(id, ended)
	main, second, first := terminated(r, st, "main"), terminated(r, st, "second"), terminated(r, st, "first")
	if second.FinishedAt.Before(&main.FinishedAt) || first.FinishedAt.Before(&second.FinishedAt) {
		r.Errorf("main ended at %v, the second sidecar at %v, the first at %v", main.FinishedAt, second.FinishedAt, first.FinishedAt)
	}
	if st.Phase != cis.Succeeded || main.ExitCode != 0 {
		r.Errorf("after TERM: %s", describe(st))
	}
}

func deadline(r *rig) {
	_, st := r.finish("sleep 3600", func(s *cis.Spec) {
		seconds, grace := int64(2), int64(0)
		s.DeadlineSeconds, s.GraceSeconds = &seconds, &grace
	})
	if st.Phase != cis.Failed || st.Reason != "DeadlineExceeded" {
		r.Errorf("past its deadline: %s", describe(st))
	}
}

func classes(r *rig) {
	order := []cis.SandboxClass{cis.Kata, cis.GVisor, cis.Runc}
	can, why := r.eng.Classes(r.ctx())
	if len(can) == 0 {
		r.Fatalf("no sandbox class: %v", why)
	}
	if !slices.IsSortedFunc(can, func(a, b cis.SandboxClass) int { return slices.Index(order, a) - slices.Index(order, b) }) {
		r.Errorf("not strongest first: %v", can)
	}
	for _, c := range order {
		if slices.Contains(can, c) == (why[c] != "") {
			r.Errorf("%s: can run it: %v, why not: %q", c, slices.Contains(can, c), why[c])
		}
	}
	if c, err := r.eng.Capacity(r.ctx()); err != nil || c.MilliCPU <= 0 || c.MemoryBytes <= 0 || c.Instances <= 0 {
		r.Errorf("capacity %+v, %v", c, err)
	}
}

func rejectsUnknownClass(r *rig) {
	can, _ := r.eng.Classes(r.ctx())
	in := r.instance("exit 0")
	in.Spec.Sandbox = "submarine"
	for _, c := range []cis.SandboxClass{cis.Kata, cis.GVisor, cis.Runc} {
		if !slices.Contains(can, c) {
			in.Spec.Sandbox = c
		}
	}
	id := r.ensure(in)
	st := r.await(id, ended)
	if st.Phase != cis.Rejected || st.Reason == "" || !strings.Contains(st.Message, string(in.Spec.Sandbox)) {
		r.Errorf("a class that the engine lacks: %s", describe(st))
	}
	if !st.StartedAt.IsZero() {
		r.Errorf("rejected, but held resources: %+v", st)
	}
	r.sink.AwaitEvent(r, id, func(ev cis.Event) bool {
		return ev.Type == cis.Warning && strings.Contains(ev.Message, string(in.Spec.Sandbox))
	}, r.timeout())
	if slices.ContainsFunc(st.Containers, func(c corev1.ContainerStatus) bool { return c.ContainerID != "" }) {
		r.Errorf("a container was made: %s", describe(st))
	}
}
