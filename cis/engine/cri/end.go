package cri

import (
	"context"
	"errors"
	"fmt"
	"time"

	rt "k8s.io/cri-api/pkg/apis/runtime/v1"

	"cumulet.io/billing"
	"cumulet.io/cis"
)

// minGrace is what a container always gets between TERM and KILL once an end has begun gracefully, as kubelet.
const minGrace = 2 * time.Second

// checkEnd decides to end an instance whose work is done or has failed for good.
func (a *actor) checkEnd() {
	if a.rec.Stop != nil {
		return
	}
	finished := true
	for _, c := range a.containers {
		t := c.rec.Terminated
		switch {
		case c.kind == kindInit && t != nil && t.ExitCode != 0 && !a.restarts(c):
			a.stop(stopRecord{At: time.Now(), Grace: a.grace(), Failed: true, Reason: "InitContainerFailed",
				Message: fmt.Sprintf("Init container %s exited with code %d", c.spec.Name, t.ExitCode)})
			a.later(time.Now())
			return
		case c.kind == kindMain && (c.running || c.busy || t == nil || a.restarts(c)):
			finished = false
		}
	}
	if finished {
		a.stop(stopRecord{At: time.Now(), Grace: a.grace()})
		a.later(time.Now())
	}
}

// terminate ends what runs, containers first, sidecars after them in reverse order, and then gives the verdict.
func (a *actor) terminate() {
	if !a.stopping {
		a.stopping = true
		a.cancelMaking()
	}
	waiting := a.metering || a.sandbox == sandboxMaking || a.sandbox == sandboxRemoving
	for _, c := range a.containers {
		if c.running && !c.killing {
			a.kill(c, a.rec.Stop.At.Add(seconds(a.rec.Stop.Grace)), a.rec.Stop.Grace > 0, a.before(c))
		}
		waiting = waiting || c.running || c.busy
	}
	if !waiting {
		a.rec.Verdict = a.judge()
		a.save()
		a.finish()
	}
}

// before gives the runs that must have ended before c is told to: for a sidecar all containers and later sidecars.
func (a *actor) before(c *container) []<-chan struct{} {
	if c.kind != kindSidecar {
		return nil
	}
	var list []<-chan struct{}
	later := false
	for _, o := range a.containers {
		if o == c {
			later = true
		} else if later && o.running {
			list = append(list, o.ended)
		}
	}
	return list
}

// hurry makes ends under way begin anew, with a shorter grace.
func (a *actor) hurry() {
	for _, c := range a.containers {
		if c.killing && c.stopKill != nil {
			c.stopKill()
		}
	}
}

// kill ends the current run of a container: preStop, its turn, TERM, KILL at the deadline.
func (a *actor) kill(c *container, deadline time.Time, graceful bool, turn []<-chan struct{}) {
	ctx, cancel := context.WithCancel(a.ctx)
	c.killing, c.stopKill = true, cancel
	hook := c.preStop()
	c.stopped = true
	id, name, ip := c.id, c.spec.Name, a.ip()
	a.info(name, "Killing", "Stopping container "+name)
	a.do(ctx, func(ctx context.Context) func() {
		defer cancel()
		if hook != nil && graceful {
			hctx, done := context.WithDeadline(ctx, deadline)
			if err := a.e.runHook(hctx, hook, id, ip, c.spec); err != nil && ctx.Err() == nil {
				a.box.post(func() { a.warn(name, "FailedPreStopHook", "PreStopHook failed: "+message(err)) })
			}
			done()
		}
		waitTurn(ctx, turn, deadline)
		left := time.Until(deadline)
		if graceful {
			left = max(left, minGrace)
		}
		left = max(left, 0)
		err := ctx.Err()
		if err == nil {
			err = a.e.stopContainer(ctx, id, left)
		}
		if err != nil && ctx.Err() == nil {
			a.log.Warn("container not stopped", "container", name, "error", err)
			sleep(ctx, 500*time.Millisecond)
		}
		return func() {
			if c.id != id || !c.running {
				return
			}
			if err != nil {
				c.killing = false // again, if it still is to end
				return
			}
			a.check(c)
		}
	})
}

func waitTurn(ctx context.Context, turn []<-chan struct{}, deadline time.Time) {
	t := time.NewTimer(time.Until(deadline))
	defer t.Stop()
	for _, ended := range turn {
		select {
		case <-ended:
		case <-t.C:
			return
		case <-ctx.Done():
			return
		}
	}
}

func (e *Engine) stopContainer(ctx context.Context, id string, grace time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, grace+2*time.Minute)
	defer cancel()
	_, err := e.rt.StopContainer(ctx, &rt.StopContainerRequest{ContainerId: id, Timeout: int64((grace + time.Second - 1) / time.Second)})
	if isNotFound(err) {
		return nil
	}
	return err
}

// judge says how the instance ended, from how its containers did.
func (a *actor) judge() *verdict {
	s := a.rec.Stop
	v := &verdict{Phase: cis.Succeeded, Reason: s.Reason, Message: s.Message, At: a.rec.StartedAt, MeterReason: meterCompleted}
	ran, oom := false, false
	for _, c := range a.containers {
		t := c.rec.Terminated
		if t != nil && t.FinishedAt.After(v.At) {
			v.At = t.FinishedAt.UTC()
		}
		if c.kind != kindMain {
			continue
		}
		if t == nil {
			v.Phase = cis.Failed
			continue
		}
		ran = true
		if t.ExitCode == 0 {
			continue
		}
		v.Phase = cis.Failed
		oom = oom || t.Reason == "OOMKilled"
		if v.Reason == "" && !s.Deleted {
			v.Reason, v.Message = t.Reason, fmt.Sprintf("Container %s exited with code %d", c.spec.Name, t.ExitCode)
		}
	}
	if s.Failed {
		v.Phase = cis.Failed
	}
	if s.Deleted && s.Reason == "" && v.Phase == cis.Failed {
		v.Reason, v.Message = "Deleted", "The instance was deleted"
	}
	switch {
	case oom && !s.Deleted:
		v.MeterReason = meterOOMKilled
	case s.Deleted:
		v.MeterReason = meterDeleted
	case !ran:
		v.MeterReason = meterStartFailed
	case v.Phase == cis.Failed:
		v.MeterReason = meterFailed
	}
	if !ran || v.At.IsZero() || v.At.Before(a.rec.StartedAt) {
		v.At = time.Now().UTC()
	}
	return v
}

// finish removes what the instance has on the node, ends the meter and then reports the end.
func (a *actor) finish() {
	if a.finalQueued || a.cleaning {
		return
	}
	if now := time.Now(); now.Before(a.retryAt) {
		a.later(a.retryAt)
		return
	}
	if a.cleaned {
		a.finalQueued = true
		return
	}
	a.cleaning = true
	a.save()
	a.retire()
	if a.stopConsole != nil {
		a.stopConsole()
	}
	v, s, m := a.rec.Verdict, a.subject(), a.meter
	metered := v.Phase != cis.Rejected && !a.rec.StartedAt.IsZero() && a.e.cfg.Meter != nil
	nothing := a.sandboxID == "" && a.sandboxWait == 0 && !a.adopt
	a.do(a.ctx, func(ctx context.Context) func() {
		var err error
		if metered {
			// First: it is the end of the containers that counts, not of the cleaning up.
			err = a.stopMeter(ctx, m, s, v)
		}
		if err == nil && !nothing {
			err = a.clearSandboxes(ctx)
		}
		if err == nil {
			err = errors.Join(a.vols.remove(), a.e.cgroup.remove(a.id))
		}
		return func() {
			a.cleaning = false
			if err != nil {
				a.log.Warn("ended instance not cleaned up, will be repeated", "error", err)
				a.retryAt = time.Now().Add(time.Second)
				return
			}
			a.cleaned, a.sandboxID, a.sandbox = true, "", sandboxNone
		}
	})
}

func (a *actor) stopMeter(ctx context.Context, m Meter, s billing.Subject, v *verdict) error {
	if m == nil {
		var err error
		if m, err = a.e.cfg.Meter.Start(ctx, s); err != nil {
			return fmt.Errorf("find meter: %w", err)
		}
	}
	if err := m.Stop(ctx, v.At, v.MeterReason); err != nil {
		return fmt.Errorf("stop meter: %w", err)
	}
	return nil
}
