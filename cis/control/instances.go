package control

import (
	"context"
	"encoding/json"
	"fmt"
	"hash/maphash"
	"iter"
	"math"
	"slices"
	"time"

	"cumulet.io/cis"
	"cumulet.io/cis/control/store"
	"cumulet.io/cis/engine"
	"cumulet.io/cis/sandbox"
	"cumulet.io/internal/problem"
)

// Create implements cis.Instances. An instance that asks for a sandbox class that is not to be had, or that the operator
// does not allow its org, is recorded, and rejected with an event that says why, so that its owner finds out where he looks.
func (c *Control) Create(ctx context.Context, org string, req cis.CreateRequest) (*cis.Instance, bool, error) {
	if err := cis.ValidateOrg(org); err != nil {
		return nil, false, err
	}
	if err := cis.ValidateCreate(&req); err != nil {
		return nil, false, err
	}
	if err := c.mayBePrivileged(&req.Spec); err != nil {
		return nil, false, err
	}
	hash, err := c.store.Hash(&req.Spec)
	if err != nil {
		return nil, false, err
	}
	n := store.NewInstance{Org: org, Key: req.Key, Spec: req.Spec, Hash: hash, Status: cis.Status{Phase: cis.Pending, Region: c.cfg.Region}}
	host, err := c.hostNow(ctx)
	if err != nil {
		return nil, false, err
	}
	class, reason, why := c.isolate(host, org, req.Spec.Sandbox)
	switch {
	case why != "":
		now := c.cfg.Now().UTC()
		n.Status = cis.Status{Phase: cis.Rejected, Reason: reason, Message: why, Region: c.cfg.Region, EndedAt: now}
		n.Events = []cis.Event{{Type: cis.Warning, Reason: reason, Message: why}}
	default:
		if err := sandbox.Supports(class, &req.Spec); err != nil {
			return nil, false, err
		}
		n.Status.SandboxClass = class
	}
	size := cis.SizeOf(&req.Spec)
	n.Admit = func(ofOrg, total store.Usage) error {
		q, _ := c.quota(org)
		if err := admits(q, ofOrg, size); err != nil {
			return err
		}
		return host.admits(total, sandbox.OverheadOf(class, size).On(size))
	}
	in, created, err := c.store.Create(ctx, n)
	if err != nil {
		return nil, false, err
	}
	if created {
		c.log.InfoContext(ctx, "instance recorded", "instance", in.ID, "org", org, "phase", in.Status.Phase)
		c.touch(in.ID)
	}
	return in, created, nil
}

// mayBePrivileged refuses privileged containers where the operator has not allowed them: they are root on the host, and
// so could read every other org's instances.
func (c *Control) mayBePrivileged(spec *cis.Spec) error {
	if c.cfg.AllowPrivileged {
		return nil
	}
	for _, group := range []struct {
		field      string
		containers []cis.Container
	}{{"initContainers", spec.InitContainers}, {"containers", spec.Containers}} {
		for i, k := range group.containers {
			if s := k.SecurityContext; s != nil && s.Privileged != nil && *s.Privileged {
				return problem.Invalid(fmt.Sprintf("spec.%s[%d].securityContext.privileged", group.field, i),
					"must not be true: the operator has not allowed privileged instances (control.allowPrivileged)", true)
			}
		}
	}
	return nil
}

// Get implements cis.Instances.
func (c *Control) Get(ctx context.Context, org, id string) (*cis.Instance, error) {
	return c.instance(ctx, org, id)
}

// List implements cis.Instances.
func (c *Control) List(ctx context.Context, org string, req cis.ListRequest) (*cis.InstanceList, error) {
	if err := cis.ValidateOrg(org); err != nil {
		return nil, err
	}
	return c.store.List(ctx, org, req)
}

// Delete implements cis.Instances. A second delete may shorten the grace, not lengthen it.
func (c *Control) Delete(ctx context.Context, org, id string, graceSeconds *int64) (*cis.Instance, error) {
	if graceSeconds != nil && (*graceSeconds < 0 || *graceSeconds > math.MaxInt32) {
		return nil, problem.Invalid("graceSeconds", "must be 0 to 2147483647", *graceSeconds)
	}
	in, err := c.instance(ctx, org, id)
	if err != nil {
		return nil, err
	}
	if in.Status.Phase.Final() {
		return in, nil
	}
	return c.change(ctx, id, func(in *cis.Instance) (store.Changed, error) {
		d := &in.Desired
		switch {
		case in.Status.Phase.Final():
			return store.Unchanged, nil
		case !d.Stop:
			*d = cis.Desired{Stop: true, GraceSeconds: clone(graceSeconds), StopAt: c.cfg.Now().UTC().Round(0)}
		case graceSeconds != nil && *graceSeconds < grace(in):
			d.GraceSeconds = clone(graceSeconds)
		default:
			return store.Unchanged, nil
		}
		return store.ChangedState, nil
	})
}

// change updates an instance and lets the engine know.
func (c *Control) change(ctx context.Context, id string, f func(*cis.Instance) (store.Changed, error)) (*cis.Instance, error) {
	in, err := c.store.Update(ctx, id, f)
	if err == nil {
		c.touch(id)
	}
	return in, err
}

// grace is the grace that holds for an instance that is being stopped, in seconds.
func grace(in *cis.Instance) int64 {
	switch {
	case in.Desired.GraceSeconds != nil:
		return *in.Desired.GraceSeconds
	case in.Spec.GraceSeconds != nil:
		return *in.Spec.GraceSeconds
	default:
		return cis.DefaultGraceSeconds
	}
}

func clone(p *int64) *int64 {
	if p == nil {
		return nil
	}
	v := *p
	return &v
}

// UpdateVolume implements cis.Instances. The record is changed first, so that an instance whose engine could not be
// told gets the files when it can.
func (c *Control) UpdateVolume(ctx context.Context, org, id, volume string, files cis.FilesVolume) error {
	if err := cis.ValidateFiles(&files); err != nil {
		return err
	}
	in, err := c.instance(ctx, org, id)
	if err != nil {
		return err
	}
	if in.Status.Phase.Final() {
		return ended(in)
	}
	updater, ok := c.engine.(engine.VolumeUpdater)
	if !ok {
		return problem.New(problem.ErrUnsupported, "instances here cannot have their volumes updated")
	}
	turn := c.updates[maphash.String(c.seed, id)%uint64(len(c.updates))]
	select {
	case turn <- struct{}{}:
		defer func() { <-turn }()
	case <-ctx.Done():
		return ctx.Err()
	}
	_, err = c.change(ctx, id, func(in *cis.Instance) (store.Changed, error) {
		if in.Status.Phase.Final() {
			return store.Unchanged, ended(in)
		}
		i := slices.IndexFunc(in.Spec.Volumes, func(v cis.Volume) bool { return v.Name == volume && v.Files != nil })
		if i < 0 {
			return store.Unchanged, problem.New(problem.ErrNotFound, "instance %s has no volume of files %.64q", id, volume)
		}
		in.Spec.Volumes = slices.Clone(in.Spec.Volumes)
		files.Secret = files.Secret || in.Spec.Volumes[i].Files.Secret
		in.Spec.Volumes[i].Files = &files
		if n := cis.FilesBytes(in.Spec.Volumes); n > cis.MaxVolumesBytes {
			return store.Unchanged, problem.New(problem.ErrTooLarge, "the files of the volumes of instance %s would be %d bytes in all, more than %d", id, n, cis.MaxVolumesBytes)
		}
		return store.ChangedSpec, nil
	})
	if err != nil {
		return err
	}
	if err := updater.UpdateVolume(ctx, id, volume, files); err != nil {
		return fmt.Errorf("update volume of %s: %w", id, err)
	}
	return nil
}

func ended(in *cis.Instance) error {
	return problem.New(problem.ErrConflict, "instance %s has ended (%s)", in.ID, in.Status.Phase)
}

// Events implements cis.EventLister.
func (c *Control) Events(ctx context.Context, org, id string) ([]cis.Event, error) {
	if _, err := c.instance(ctx, org, id); err != nil {
		return nil, err
	}
	return c.store.Events(ctx, org, id)
}

// bookmarkEvery is how often a watch without news tells that it lives.
const bookmarkEvery = 15 * time.Second

// Watch implements cis.Watcher; a bookmark comes at the beginning and every 15 seconds. Of an instance that changes
// faster than the watcher reads, only the newest state may be seen. It ends with ctx's error when ctx ends.
func (c *Control) Watch(ctx context.Context, org, node, cursor string) iter.Seq2[cis.WatchItem, error] {
	return func(yield func(cis.WatchItem, error) bool) {
		if err := cis.ValidateOrg(org); err != nil {
			yield(cis.WatchItem{}, err)
			return
		}
		tick := time.NewTicker(bookmarkEvery)
		defer tick.Stop()
		for item, err := range c.store.Watch(ctx, org, node, cursor, tick.C) {
			if !yield(item, err) {
				return
			}
		}
	}
}

// Report implements engine.Sink. A report that would undo an end, or that is of an earlier incarnation, is late and
// changes nothing; nor does one that says what is known.
func (c *Control) Report(ctx context.Context, id string, st cis.Status) error {
	if st.Phase == "" {
		return problem.Invalid("status.phase", "must be set", st.Phase)
	}
	if st.Region == "" {
		st.Region = c.cfg.Region
	}
	if st.Node == "" {
		st.Node = c.cfg.Node
	}
	if in := c.store.Live(id); in != nil && st.SandboxClass == "" && !st.Phase.Final() {
		st.SandboxClass = in.Status.SandboxClass // as admitted; the engine has not come to it yet
	}
	text, err := json.Marshal(st)
	if err != nil {
		return fmt.Errorf("report of %s: %w", id, err)
	}
	if c.store.StatusJSON(id) == string(text) {
		return nil
	}
	var was cis.Phase
	in, err := c.store.Update(ctx, id, func(in *cis.Instance) (store.Changed, error) {
		was = in.Status.Phase
		if was.Final() || st.Incarnation < in.Status.Incarnation {
			return store.Unchanged, nil
		}
		in.Status = st
		return store.ChangedState, nil
	})
	if err != nil {
		return fmt.Errorf("report of %s: %w", id, err)
	}
	if was != in.Status.Phase {
		c.log.InfoContext(ctx, "instance phase", "instance", id, "org", in.Org, "phase", in.Status.Phase, "reason", in.Status.Reason)
	}
	return nil
}

// Record implements engine.Sink.
func (c *Control) Record(ctx context.Context, ev cis.Event) error {
	if err := c.store.Record(ctx, ev); err != nil {
		return fmt.Errorf("record event of %s: %w", ev.Instance, err)
	}
	return nil
}
