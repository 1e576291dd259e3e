package cri

import (
	"context"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"

	"cumulet.io/cis"
)

func (c *container) preStop() *corev1.LifecycleHandler {
	if c.spec.Lifecycle == nil || c.stopped {
		return nil
	}
	return c.spec.Lifecycle.PreStop
}

// postStart runs the hook of a run that has begun. When it fails the container is killed and restarted by its policy.
func (a *actor) postStart(ctx context.Context, c *container, h *corev1.LifecycleHandler) {
	id, ip, spec := c.id, a.ip(), c.spec
	a.do(ctx, func(ctx context.Context) func() {
		err := a.e.runHook(ctx, h, id, ip, spec)
		return func() {
			if c.id != id || !c.running {
				return
			}
			if err != nil && ctx.Err() == nil {
				a.warn(spec.Name, "FailedPostStartHook", "PostStartHook failed: "+message(err))
				if !c.killing {
					a.kill(c, time.Now().Add(seconds(a.grace())), a.grace() > 0, nil)
				}
				return
			}
			c.hooked = true
			a.startProbes(ctx, c)
		}
	})
}

// runHook runs a lifecycle hook to its end, or until ctx ends.
func (e *Engine) runHook(ctx context.Context, h *corev1.LifecycleHandler, id, ip string, c *cis.Container) error {
	switch {
	case h.Exec != nil:
		timeout := 24 * time.Hour
		if d, ok := ctx.Deadline(); ok {
			timeout = max(time.Second, time.Until(d))
		}
		out, err := e.execOnce(ctx, id, h.Exec.Command, timeout)
		if err != nil {
			return fmt.Errorf("%w%s", err, cut(out, 1024))
		}
		return nil
	case h.HTTPGet != nil:
		ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
		defer cancel()
		_, err := httpGet(ctx, h.HTTPGet, ip, c, true)
		return err
	case h.Sleep != nil:
		sleep(ctx, seconds(h.Sleep.Seconds))
	}
	return nil
}
