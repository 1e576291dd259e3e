package cri

import (
	"context"
	"fmt"
	"time"

	rt "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// watch routes containerd's events to the actors until ctx ends. After each (re)connect, and every Config.Relist, it
// lists everything once, so that an event lost on the way costs time and nothing else.
func (e *Engine) watch(ctx context.Context) {
	tick, sweep := time.NewTicker(e.cfg.Relist), time.NewTicker(sweepEvery)
	defer tick.Stop()
	defer sweep.Stop()
	done := make(chan struct{})
	go func() {
		defer close(done)
		var found strays
		for n := 0; ; {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
				e.relistLogged(ctx)
			case <-sweep.C:
				// A look costs a read for each process of the machine.
				lately := time.Since(time.Unix(0, e.suspected.Load())) < sweepLately
				if n++; lately || len(found) > 0 || n%sweepRarely == 0 {
					found = e.sweep(ctx, found)
				}
			}
		}
	}()
	for ctx.Err() == nil {
		began := time.Now()
		err := e.stream(ctx)
		if ctx.Err() != nil {
			break
		}
		e.log.Warn("containerd's event stream ended", "error", err)
		if time.Since(began) < time.Second {
			sleep(ctx, 500*time.Millisecond)
		}
	}
	<-done
}

func (e *Engine) stream(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s, err := e.rt.GetContainerEvents(ctx, &rt.GetEventsRequest{})
	if err != nil {
		return err
	}
	if err := e.relist(ctx); err != nil {
		return fmt.Errorf("relist: %w", err)
	}
	e.suspect()
	e.hears(true)
	defer e.hears(false)
	for {
		ev, err := s.Recv()
		if err != nil {
			return err
		}
		e.route(ev)
	}
}

// hearsay is how long it may take from the end of a container to hearing of it.
const hearsay = 5 * time.Second

// hears notes that from now on containerd tells of every end, or of none.
func (e *Engine) hears(yes bool) {
	until := e.Evidence()
	e.mu.Lock()
	defer e.mu.Unlock()
	e.hearing, e.hearsSince, e.heardUntil = yes, time.Now(), until
}

// Evidence is until when the live instances of this engine are known to have lived: a little less than now, and while
// containerd is away, a little less than when it went. Zero when nothing is known yet.
func (e *Engine) Evidence() time.Time {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.hearing && time.Since(e.hearsSince) >= hearsay {
		return time.Now().Add(-hearsay)
	}
	return e.heardUntil
}

func (e *Engine) route(ev *rt.ContainerEventResponse) {
	if ev.ContainerEventType == rt.ContainerEventType_CONTAINER_CREATED_EVENT ||
		ev.ContainerEventType == rt.ContainerEventType_CONTAINER_DELETED_EVENT {
		return // made or removed by an actor, that knows
	}
	labels := ev.GetPodSandboxStatus().GetLabels()
	if labels == nil && len(ev.ContainersStatuses) > 0 {
		labels = ev.ContainersStatuses[0].Labels
	}
	if labels[labelNode] != e.cfg.Node {
		return
	}
	e.mu.Lock()
	a := e.actors[labels[labelInstance]]
	e.mu.Unlock()
	if a != nil {
		a.box.post(func() { a.observe(ev) })
	}
}

func (e *Engine) relistLogged(ctx context.Context) {
	if err := e.relist(ctx); err != nil && ctx.Err() == nil {
		e.log.Warn("relist failed", "error", err)
	}
}

// seen is what a relist found of one instance.
type seen struct {
	// at is when the listing began: what was made later is not missing.
	at         time.Time
	sandboxes  []*rt.PodSandbox
	containers map[string]rt.ContainerState
}

// relist tells every actor what containerd has of its instance, and removes sandboxes that nobody knows.
func (e *Engine) relist(ctx context.Context) error {
	at := time.Now()
	e.mu.Lock()
	synced := e.synced
	actors := make(map[string]*actor, len(e.actors))
	for id, a := range e.actors {
		actors[id] = a
	}
	e.mu.Unlock()
	sandboxes, err := e.listSandboxes(ctx, "")
	if err != nil {
		return err
	}
	containers, err := e.listContainers(ctx, "")
	if err != nil {
		return err
	}
	found := make(map[string]*seen, len(actors))
	for id := range actors {
		found[id] = &seen{at: at, containers: map[string]rt.ContainerState{}}
	}
	var orphans []*rt.PodSandbox
	for _, s := range sandboxes {
		if f := found[s.Labels[labelInstance]]; f != nil {
			f.sandboxes = append(f.sandboxes, s)
		} else {
			orphans = append(orphans, s)
		}
	}
	for _, c := range containers {
		if f := found[c.Labels[labelInstance]]; f != nil {
			f.containers[c.Id] = c.State
		}
	}
	for id, a := range actors {
		f := found[id]
		a.box.post(func() { a.compare(f) })
	}
	if synced {
		e.removeOrphans(ctx, orphans)
	}
	return nil
}

// removeOrphans removes sandboxes of this engine that belong to no live instance. One whose instance has come up since
// the list was made is left alone.
func (e *Engine) removeOrphans(ctx context.Context, orphans []*rt.PodSandbox) {
	for _, s := range orphans {
		id := s.Labels[labelInstance]
		e.mu.Lock()
		live := e.actors[id] != nil
		e.mu.Unlock()
		if live {
			continue
		}
		if err := e.removeSandbox(ctx, s.Id); err != nil {
			e.log.Warn("orphan sandbox not removed", "sandbox", s.Id, "instance", id, "error", err)
			continue
		}
		e.log.Info("orphan sandbox removed", "sandbox", s.Id, "instance", id)
		if validID(id) {
			e.removeFiles(id)
		}
	}
}

func sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}
