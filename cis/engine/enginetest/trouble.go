package enginetest

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"cumulet.io/cis"
	"cumulet.io/cis/engine"
	"cumulet.io/internal/problem"
)

// troubleCases are what goes wrong around an engine.
func troubleCases() []testCase {
	return []testCase{
		{"MissingImage", missingImage},
		{"MissingCommand", missingCommand},
		{"FailingSink", failingSink},
		{"RestartAdoptsRunning", restartAdoptsRunning},
		{"RestartFinishesEnded", restartFinishesEnded},
		{"RestartStartsPending", restartStartsPending},
		{"RestartStops", restartStops},
		{"RestartRemovesUnknown", restartRemovesUnknown},
		{"ManyAtOnce", manyAtOnce},
	}
}

func missingImage(r *rig) {
	host, _, _ := strings.Cut(r.f.MissingImage, "/")
	in := r.instance("exit 0", func(s *cis.Spec) {
		s.Containers[0].Image = r.f.MissingImage
		s.Containers[0].Env = []cis.EnvVar{{Name: "TOKEN", Value: "topsecret", Secret: true}}
		s.RegistryAuth = []cis.RegistryAuth{{Server: host, Username: "someone", Password: "topsecret"}}
	})
	id := r.ensure(in)
	st := r.await(id, func(st cis.Status) bool {
		w := find(st, "main").State.Waiting
		return w != nil && (w.Reason == "ErrImagePull" || w.Reason == "ImagePullBackOff")
	})
	if st.Phase == cis.Running || find(st, "main").ContainerID != "" {
		r.Errorf("without its image: %s", describe(st))
	}
	r.sink.AwaitEvent(r, id, func(ev cis.Event) bool {
		return ev.Type == cis.Warning && ev.Container == "main" && strings.Contains(ev.Message, r.f.MissingImage)
	}, r.timeout())
	r.ask(in, 0)
	if st := r.await(id, ended); st.Phase != cis.Failed {
		r.Errorf("given up: %s", describe(st))
	}
	if told := fmt.Sprint(r.sink.History(id), r.sink.Events(id)); strings.Contains(told, "topsecret") {
		r.Error("a report repeats a secret")
	}
}

func missingCommand(r *rig) {
	_, st := r.finish("", func(s *cis.Spec) { s.Containers[0].Command = []string{"/no/such/program"} })
	if end := terminated(r, st, "main"); st.Phase != cis.Failed || end.ExitCode == 0 || end.Message == "" {
		r.Errorf("a program that is not there: %s", describe(st))
	}
}

func failingSink(r *rig) {
	// The rig's sink is in use; an engine of its own gets one that refuses every second call.
	sink := &Sink{}
	var mu sync.Mutex
	calls := 0
	sink.Fail = func(string) error {
		mu.Lock()
		defer mu.Unlock()
		if calls++; calls%2 == 1 {
			return errors.New("the store is away")
		}
		return nil
	}
	r.stop()
	r.sink, r.eng = sink, r.f.New(r.T, sink)
	r.run(nil)
	if _, st := r.finish("exit 3"); st.Phase != cis.Failed || terminated(r, st, "main").ExitCode != 3 {
		r.Errorf("reported %s", describe(st))
	}
}

// crash replaces the engine as a kill -9 would.
func crash(r *rig, all ...*cis.Instance) {
	r.Helper()
	if r.f.Restart == nil {
		r.Skip("the engine keeps nothing over a restart")
	}
	r.stop()
	r.eng = r.f.Restart(r.T, r.eng, r.sink)
	for _, in := range all {
		in.Status = r.sink.Status(in.ID)
	}
	r.run(all)
}

func restartAdoptsRunning(r *rig) {
	in := r.instance(forever, readyWhen("/tmp/up"))
	id := r.ensure(in)
	before := find(r.await(id, ready), "main")
	crash(r, in)
	r.ensure(in)
	r.await(id, ready)
	r.ask(in, 60)
	st := r.await(id, ended)
	if c := find(st, "main"); c.ContainerID != before.ContainerID || c.RestartCount != 0 || st.Incarnation != 1 {
		r.Errorf("was %s, is %s: %s", before.ContainerID, c.ContainerID, describe(st))
	}
	if terminated(r, st, "main").ExitCode != 7 {
		r.Errorf("ended as %s", describe(st))
	}
}

func restartFinishesEnded(r *rig) {
	in := r.instance("touch /tmp/up; sleep 3; exit 6", readyWhen("/tmp/up"))
	id := r.ensure(in)
	before := find(r.await(id, ready), "main")
	if r.f.Restart == nil {
		crash(r)
	}
	crash(r, in)
	st := r.await(id, ended)
	if end := terminated(r, st, "main"); end.ExitCode != 6 || end.ContainerID != before.ContainerID {
		r.Errorf("ended unwatched: %s", describe(st))
	}
}

func restartStartsPending(r *rig) {
	in := r.instance("exit 0")
	r.live[in.ID] = in
	crash(r, in) // the record was written and nobody could be told
	if st := r.await(in.ID, ended); st.Phase != cis.Succeeded || st.Incarnation != 1 {
		r.Errorf("started late: %s", describe(st))
	}
}

func restartStops(r *rig) {
	in := r.instance(forever, readyWhen("/tmp/up"))
	id := r.ensure(in)
	r.await(id, ready)
	stopped := *in
	grace := int64(60)
	stopped.Desired = cis.Desired{Stop: true, GraceSeconds: &grace}
	crash(r, &stopped) // asked to stop while nobody listened
	if st := r.await(id, ended); terminated(r, st, "main").ExitCode != 7 {
		r.Errorf("ended as %s", describe(st))
	}
}

func restartRemovesUnknown(r *rig) {
	in := r.instance(forever, readyWhen("/tmp/up"))
	id := r.ensure(in)
	r.await(id, ready)
	delete(r.live, id)
	r.sink.Forget(id)
	crash(r) // nobody knows it any more
	r.finish("exit 0")
	if x, ok := r.eng.(engine.Execer); ok {
		poll(r, "the removal of an instance that nobody knows", func() error {
			err := x.Exec(r.ctx(), id, cis.ExecRequest{Container: "main", Command: []string{"true"}})
			if errors.Is(err, problem.ErrNotFound) {
				return nil
			}
			return fmt.Errorf("exec: %v", err)
		})
	}
	if s, ok := r.eng.(engine.StatsReader); ok {
		if got, err := s.Stats(r.ctx(), []string{id}); err != nil || len(got) > 0 {
			r.Errorf("statistics of an instance that nobody knows: %+v, %v", got, err)
		}
	}
	for _, st := range r.sink.History(id) {
		if !st.Phase.Final() {
			r.Errorf("an instance that nobody knows goes on: %s", describe(st))
		}
	}
}

// poll repeats check until it is nil.
func poll(r *rig, what string, check func() error) {
	r.Helper()
	deadline, tick := time.After(r.timeout()), time.NewTicker(50*time.Millisecond)
	defer tick.Stop()
	for {
		err := check()
		if err == nil {
			return
		}
		select {
		case <-tick.C:
		case <-deadline:
			r.Fatalf("waited %v for %s: %v", r.timeout(), what, err)
		}
	}
}

func manyAtOnce(r *rig) {
	var ids []string
	for range 8 {
		ids = append(ids, r.ensure(r.instance("exit 0")))
	}
	for _, id := range ids {
		if st := r.await(id, ended); st.Phase != cis.Succeeded {
			r.Errorf("%s: %s", id, describe(st))
		}
	}
}
