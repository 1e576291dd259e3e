package provider

import (
	"context"
	"errors"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"cumulet.io/cis"
	"cumulet.io/internal/problem"
)

// Bounds of one listing: pages of at most 1,000 instances, fewer where they are large.
const (
	pageSize = 1000
	maxPages = 100_000
)

// follow keeps an org's instances known: all by listing, then every change from the watch, and again from the start when
// the watch cannot be resumed. Beside it, everything is compared by listing from time to time. It returns when ctx ends.
func (p *Provider) follow(ctx context.Context, org string, podsSynced func() bool) error {
	if !until(ctx, podsSynced) {
		return nil
	}
	retry := firstRetry
	for ctx.Err() == nil {
		cursor, err := p.list(ctx, org)
		if err == nil {
			retry = firstRetry
			p.setTrouble(org, nil)
			err = p.watch(ctx, org, cursor)
		}
		if ctx.Err() != nil {
			return nil
		}
		if errors.Is(err, problem.ErrGone) {
			p.log.InfoContext(ctx, "the watch is too far behind, listing again", "org", org)
			continue
		}
		p.setTrouble(org, err)
		p.log.WarnContext(ctx, "following instances failed, will be tried again", "org", org, "error", err)
		pause(ctx, retry)
		retry = min(retry*2, maxRetry)
	}
	return nil
}

// until waits for a condition that comes true once; false when ctx ends first.
func until(ctx context.Context, done func() bool) bool {
	for !done() {
		if !pause(ctx, 20*time.Millisecond) {
			return false
		}
	}
	return true
}

func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// pages lists all of an org's instances of this node, and gives the cursor for a watch that misses nothing after the
// beginning of the listing. Ended ones are there for as long as the service keeps their records, so they are handed on and
// not kept: take gets every instance, and what it tells to keep comes back.
func (p *Provider) pages(ctx context.Context, org string, live bool, take func(*cis.Instance) (keep bool)) (kept []cis.Instance, cursor string, err error) {
	req := cis.ListRequest{Node: p.cfg.Node, Live: live, Limit: pageSize}
	for page := range maxPages {
		list, err := p.cfg.Services.Instances.List(ctx, org, req)
		if err != nil {
			return nil, "", fmt.Errorf("list instances of %s: %w", org, err)
		}
		if page == 0 {
			cursor = list.Cursor
		}
		for i := range list.Items {
			if in := list.Items[i]; take(&in) {
				kept = append(kept, in)
			}
		}
		if list.Next == "" {
			return kept, cursor, nil
		}
		req.Cursor = list.Next
	}
	return nil, "", fmt.Errorf("list instances of %s: more than %d pages", org, maxPages)
}

// learn is what a listing does with each instance: it is noted, and no longer missing. Live ones are kept, to be compared.
func (p *Provider) learn(org string, missing map[string]types.UID) func(*cis.Instance) bool {
	return func(in *cis.Instance) bool {
		delete(missing, in.ID)
		p.note(org, in)
		return !in.Status.Phase.Final()
	}
}

// list learns all of an org's instances, ended ones too, and wakes every pod of the org.
func (p *Provider) list(ctx context.Context, org string) (cursor string, err error) {
	before := p.liveIDs(org)
	live, cursor, err := p.pages(ctx, org, false, p.learn(org, before))
	if err != nil {
		return "", err
	}
	p.missing(before)
	p.compare(ctx, org, live)
	p.mu.Lock()
	p.synced[org] = true
	var wake []types.UID
	for uid, t := range p.pods {
		if t.org == org {
			wake = append(wake, uid)
		}
	}
	p.mu.Unlock()
	for _, uid := range wake {
		p.queue.Add(uid)
	}
	return cursor, nil
}

// watch takes changes until the watch breaks for good.
func (p *Provider) watch(ctx context.Context, org, cursor string) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	done := make(chan struct{})
	go func() {
		defer close(done)
		p.reconcileEvery(ctx, org)
	}()
	defer func() { cancel(); <-done }()
	for item, err := range p.cfg.Services.Watcher.Watch(ctx, org, p.cfg.Node, cursor) {
		switch {
		case err != nil:
			return fmt.Errorf("watch: %w", err)
		case item.Instance != nil:
			p.note(org, item.Instance)
		case item.Event != nil:
			p.instanceEvent(item.Event)
		}
	}
	return errors.New("watch: ended")
}

// note takes the news of an instance. Older news than what is known is dropped, and so is the end of an instance whose
// pod is not known: nothing is left to do about either.
func (p *Provider) note(org string, in *cis.Instance) {
	if in.Spec.Source.Node != p.cfg.Node || in.Spec.Source.UID == "" {
		return
	}
	uid := types.UID(in.Spec.Source.UID)
	p.mu.Lock()
	if p.pods[uid] == nil && in.Status.Phase.Final() {
		p.mu.Unlock()
		return
	}
	t := p.track(uid, org)
	if t.org != org || t.instance != nil && (t.instance.ID != in.ID || t.instance.Version >= in.Version) {
		p.mu.Unlock()
		return
	}
	t.instance = in
	p.instances[in.ID] = uid
	p.mu.Unlock()
	p.queue.Add(uid)
}

// liveIDs are the instances of an org that are known and not ended.
func (p *Provider) liveIDs(org string) map[string]types.UID {
	p.mu.Lock()
	defer p.mu.Unlock()
	all := map[string]types.UID{}
	for uid, t := range p.pods {
		if t.org == org && t.instance != nil && !t.instance.Status.Phase.Final() {
			all[t.instance.ID] = uid
		}
	}
	return all
}

// missing marks instances that a complete listing did not have; the worker asks for each before it believes that.
func (p *Provider) missing(ids map[string]types.UID) {
	for _, uid := range ids {
		p.mu.Lock()
		if t := p.pods[uid]; t != nil {
			t.lost = true
		}
		p.mu.Unlock()
		p.queue.Add(uid)
	}
}

// reconcileEvery compares pods and instances from time to time, so that a change that nobody told of is found.
func (p *Provider) reconcileEvery(ctx context.Context, org string) {
	for pause(ctx, p.cfg.Reconcile) {
		before := p.liveIDs(org)
		live, _, err := p.pages(ctx, org, true, p.learn(org, before))
		p.setTrouble(org, err)
		if err != nil {
			p.log.WarnContext(ctx, "comparing instances failed", "org", org, "error", err)
			continue
		}
		p.missing(before)
		p.compare(ctx, org, live)
	}
}

// compare looks for the pod of every live instance whose pod is not known. Only a certain answer of the API server, for this
// one pod, ends an instance: an error does not, and neither does an empty or failed listing.
func (p *Provider) compare(ctx context.Context, org string, all []cis.Instance) {
	for i := range all {
		src := all[i].Spec.Source
		if all[i].Status.Phase.Final() || src.Node != p.cfg.Node || src.UID == "" {
			continue
		}
		uid := types.UID(src.UID)
		if v, ok := p.view(uid); ok && v.pod != nil {
			continue
		}
		pod, gone, err := p.lookFor(ctx, src.Namespace, src.Name, uid)
		switch {
		case err != nil:
			p.log.WarnContext(ctx, "cannot tell whether an instance's pod is there", "org", org, "instance", all[i].ID, "uid", uid, "error", err)
		case gone:
			p.log.InfoContext(ctx, "an instance's pod is gone, so it ends", "org", org, "instance", all[i].ID, "namespace", src.Namespace, "pod", src.Name, "uid", uid)
			p.mu.Lock()
			p.track(uid, org).gone = true
			p.mu.Unlock()
			p.queue.Add(uid)
		case pod.Spec.NodeName == p.cfg.Node:
			p.seen(pod) // the informer is behind
		}
	}
}

// lookFor asks the API server for a pod. gone is true when the name has no pod or another one.
func (p *Provider) lookFor(ctx context.Context, namespace, name string, uid types.UID) (pod *corev1.Pod, gone bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	pod, err = p.cfg.Client.CoreV1().Pods(namespace).Get(ctx, name, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return nil, true, nil
	case err != nil:
		return nil, false, fmt.Errorf("get pod %s/%s: %w", namespace, name, err)
	case pod.UID != uid:
		return nil, true, nil
	}
	return pod, false, nil
}
