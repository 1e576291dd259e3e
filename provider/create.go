package provider

import (
	"context"
	"errors"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"

	"cumulet.io/cis"
	"cumulet.io/internal/problem"
	"cumulet.io/provider/podspec"
)

// key names a pod's create: a retry never makes a second instance.
func key(pod *corev1.Pod) string { return "pod-" + string(pod.UID) }

// create makes the pod's instance.
func (p *Provider) create(ctx context.Context, v *view) (time.Duration, error) {
	w := &v.worker
	if w.request == nil {
		built, again, err := p.build(ctx, v)
		if built == nil {
			return again, err
		}
		w.request = &cis.CreateRequest{Key: key(v.pod), Spec: built.Spec}
		w.remember(v.pod, built)
		if !w.noticed {
			for _, n := range built.Notices {
				p.event(v.pod, n.Container, corev1.EventTypeWarning, n.Reason, n.Message)
			}
			w.noticed = true
		}
	}
	call, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	in, _, err := p.cfg.Services.Instances.Create(call, v.org, *w.request)
	switch {
	case err == nil:
		w.request = nil
		p.refusals.forget(v.pod)
		p.adopt(v, in)
		return p.keep(ctx, v)
	case errors.Is(err, problem.ErrConflict): // made by an earlier life of this provider, or from an older spec
		if err := p.settle(ctx, v); err != nil {
			return 0, err
		}
		if v.instance == nil {
			return 0, fmt.Errorf("create instance: the key is taken by an instance that is not listed: %w", err)
		}
		return p.keep(ctx, v)
	case errors.Is(err, problem.ErrInvalid), errors.Is(err, problem.ErrUnsupported), errors.Is(err, problem.ErrForbidden),
		errors.Is(err, problem.ErrTooLarge):
		w.request = nil
		return p.refuse(ctx, v, reasonRejected, err)
	case errors.Is(err, problem.ErrExhausted):
		w.request = nil // its tokens may be old when there is room
		return 0, errors.Join(err, p.wait(ctx, v, "", "QuotaExceeded", err.Error()))
	}
	return 0, errors.Join(fmt.Errorf("create instance: %w", err),
		p.wait(ctx, v, "", "InstanceServiceUnavailable", "The container instance service cannot make the instance now; this is tried again"))
}

// build resolves the pod's spec. With no result the pod waits or was refused.
func (p *Provider) build(ctx context.Context, v *view) (*podspec.Result, time.Duration, error) {
	call, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	built, err := p.cfg.Builder.Build(call, v.pod)
	if err == nil {
		return built, 0, nil
	}
	var refused *podspec.RefusedError
	var missing *podspec.MissingError
	switch {
	case errors.As(err, &refused):
		again, err := p.refuse(ctx, v, reasonUnsupported, err)
		return nil, again, err
	case errors.As(err, &missing) && missing.Volume != "":
		p.tellAlways(v, "", "FailedMount", "MountVolume.SetUp failed for "+err.Error())
		return nil, 0, errors.Join(err, p.wait(ctx, v, "", "ContainerCreating", ""))
	case errors.As(err, &missing):
		p.tellAlways(v, missing.Container, "Failed", "Error: "+err.Error())
		return nil, 0, errors.Join(err, p.wait(ctx, v, missing.Container, "CreateContainerConfigError", err.Error()))
	case ctx.Err() != nil:
		return nil, 0, err
	}
	// Something could not be looked up, as a token that the node may not ask for.
	return nil, 0, errors.Join(err, p.wait(ctx, v, "", "CreateContainerConfigError", "Error: "+err.Error()))
}

// wait writes why a pod has no instance yet.
func (p *Provider) wait(ctx context.Context, v *view, container, reason, message string) error {
	if message != "" && container == "" {
		p.tell(v, corev1.EventTypeWarning, reason, message)
	}
	return p.write(ctx, v, waitingStatus(v.pod, v.worker.base(v.pod), container, reason, message, time.Now()), nil)
}

// refuse ends a pod that cannot be run. A controller that makes another one at once is slowed down: its next pods stay
// pending for a while, with the reason, before they fail.
func (p *Provider) refuse(ctx context.Context, v *view, reason string, cause error) (time.Duration, error) {
	message := cause.Error()
	var pe *problem.Error
	if errors.As(cause, &pe) {
		message = pe.Detail
		if pe.Field != "" {
			message = pe.Field + ": " + pe.Detail
		}
	}
	if left := p.refusals.delay(v.pod, time.Now()); left > 0 {
		return left, p.wait(ctx, v, "", reason, message)
	}
	return 0, p.fail(ctx, v, reason, message)
}

// adopt notes the pod's instance for this worker and for all.
func (p *Provider) adopt(v *view, in *cis.Instance) {
	p.mu.Lock()
	defer p.mu.Unlock()
	t := v.tracked
	if t.instance == nil || t.instance.ID != in.ID || t.instance.Version < in.Version {
		t.instance = in
	}
	t.lost, v.lost = false, false
	p.instances[in.ID] = v.uid
	v.instance = t.instance
}

// settle finds out whether a create whose answer is not known has made an instance.
func (p *Provider) settle(ctx context.Context, v *view) error {
	made, _, err := p.pages(ctx, v.org, false, func(in *cis.Instance) bool { return in.Key == key(v.pod) })
	if err != nil {
		return err
	}
	if len(made) > 0 {
		p.adopt(v, &made[0])
	}
	v.worker.request = nil
	return nil
}
