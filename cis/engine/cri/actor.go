package cri

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	rt "k8s.io/cri-api/pkg/apis/runtime/v1"

	"cumulet.io/billing"
	"cumulet.io/cis"
	"cumulet.io/cis/engine/cri/capture"
	"cumulet.io/cis/sandbox"
)

// mailbox is an actor's inbox: functions to run in its goroutine. What posts to it is bounded in number (operations,
// events of few containers, calls), so it is not bounded itself.
type mailbox struct {
	mu    sync.Mutex
	queue []func()
	kick  chan struct{}
}

func (m *mailbox) post(f func()) {
	m.mu.Lock()
	m.queue = append(m.queue, f)
	m.mu.Unlock()
	select {
	case m.kick <- struct{}{}:
	default:
	}
}

func (m *mailbox) take() []func() {
	m.mu.Lock()
	defer m.mu.Unlock()
	q := m.queue
	m.queue = nil
	return q
}

type sandboxPhase int

const (
	sandboxNone sandboxPhase = iota
	sandboxMaking
	sandboxReady
	sandboxRemoving
)

// actor owns one instance. Its goroutine alone reads and writes everything below the mark; blocking work is done by
// operations (do), which hand their result back through the mailbox.
type actor struct {
	e    *Engine
	id   string
	org  string
	dir  string
	log  *slog.Logger
	box  mailbox
	rep  *reporter
	view atomic.Pointer[view]
	vols volumes

	// ---- the goroutine's own
	ctx     context.Context
	ops     sync.WaitGroup
	in      *cis.Instance
	spec    *cis.Spec
	rec     *record
	adopt   bool // what is there must be found first
	adopted bool
	saved   string // the record as last written, to write changes only

	sandbox      sandboxPhase
	sandboxID    string
	sandboxCfg   *rt.PodSandboxConfig
	ips          []string
	sandboxTry   time.Time
	sandboxWait  time.Duration
	consoleOf    string // the sandbox whose console is kept
	stopConsole  context.CancelFunc
	upAt         time.Time // when the sandbox came up
	lost         bool      // the sandbox is gone, another one is needed
	losses       int       // of sandboxes in a row in which no container could be started
	containers   []*container
	images       map[string]*imageState
	early        map[string]*rt.ContainerStatus // statuses of containers whose operation has not reported yet
	meter        Meter
	metering     bool
	stopping     bool // the end has begun in this process
	cleaning     bool
	cleaned      bool
	finalQueued  bool
	finished     bool
	retryAt      time.Time
	wake         time.Time
	measuring    bool // the disk usage is being measured, or next at measureAt
	measureAt    time.Time
	cancelMaking context.CancelFunc
	makeCtx      context.Context
}

// container is one container of the spec.
type container struct {
	spec *cis.Container
	kind kind
	rec  *containerRecord

	busy      bool // an operation of it is under way
	closing   bool // that operation is over's: the run has ended, its output is being copied
	out       *capture.Copier
	id        string // CRI id of the last attempt, "" when none is in the sandbox
	running   bool
	startedAt time.Time
	started   bool // the startup probe has passed, or there is none
	hooked    bool // postStart has ended
	ready     bool // the readiness probe says so, or there is none
	killing   bool
	stopped   bool // preStop has been run
	stopKill  context.CancelFunc
	nextTry   time.Time
	// wait says why it does not run, when that is not plain from the rest.
	waitReason, waitMessage string
	stopRun                 context.CancelFunc // ends the probes of this run
	ended                   chan struct{}      // closed when this run has ended
}

type kind int

const (
	kindInit kind = iota
	kindSidecar
	kindMain
)

func newActor(e *Engine, in *cis.Instance) *actor {
	a := &actor{e: e, id: in.ID, org: in.Org, dir: e.instanceDir(in.ID), in: in, spec: &in.Spec,
		log:    e.log.With("instance", in.ID, "org", in.Org),
		images: map[string]*imageState{}, early: map[string]*rt.ContainerStatus{}}
	a.box.kick = make(chan struct{}, 1)
	a.rep = newReporter(in.ID, e.cfg.Sink, a.log)
	a.vols = volumes{dir: a.dir}
	_, err := os.Lstat(a.dir)
	a.adopt = err == nil || in.Status.Incarnation > 0
	return a
}

// run works until ctx ends (false) or the instance has ended and its final status has been taken (true).
func (a *actor) run(ctx context.Context) bool {
	ctx, cancel := context.WithCancel(ctx)
	a.ctx = ctx
	a.makeCtx, a.cancelMaking = context.WithCancel(ctx)
	a.ops.Add(1)
	go func() {
		defer a.ops.Done()
		a.rep.run(ctx)
	}()
	defer func() {
		cancel()
		a.ops.Wait()
		for _, out := range a.outputs() {
			out.Close() //nolint:errcheck,gosec // what is not copied stays for the next start
		}
	}()

	a.load()
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		for _, f := range a.box.take() {
			f()
		}
		a.wake = time.Time{}
		a.reconcile()
		a.publish()
		if a.finished {
			return true
		}
		if a.wake.IsZero() {
			timer.Reset(time.Hour)
		} else {
			timer.Reset(max(0, time.Until(a.wake)))
		}
		select {
		case <-ctx.Done():
			return false
		case <-a.box.kick:
		case <-timer.C:
		case <-a.rep.delivered:
			a.finished = a.finalQueued
			if a.finished {
				a.e.removeFiles(a.id)
			}
		}
	}
}

// do runs blocking work apart; the function that work gives is run in the actor's goroutine.
func (a *actor) do(ctx context.Context, work func(ctx context.Context) func()) {
	a.ops.Add(1)
	go func() {
		defer a.ops.Done()
		if done := work(ctx); done != nil {
			a.box.post(done)
		}
	}()
}

// later asks for another reconcile at t.
func (a *actor) later(t time.Time) {
	if a.wake.IsZero() || t.Before(a.wake) {
		a.wake = t
	}
}

// load reads the record and lays out the containers.
func (a *actor) load() {
	rec, err := loadRecord(a.dir)
	if err != nil {
		a.log.Error("instance state not read", "error", err)
	}
	if rec == nil {
		rec = &record{}
	}
	rec.Org = a.org
	if rec.Incarnation < a.in.Status.Incarnation {
		rec.Incarnation = a.in.Status.Incarnation
	}
	if rec.StartedAt.IsZero() {
		rec.StartedAt = a.in.Status.StartedAt
	}
	if rec.Class == "" && a.in.Status.Runtime != "" {
		rec.Class, rec.Handler = a.in.Status.SandboxClass, a.in.Status.Runtime
	}
	if rec.Containers == nil {
		rec.Containers = map[string]*containerRecord{}
	}
	a.rec = rec
	layout := func(spec *cis.Container, k kind) {
		r := rec.Containers[spec.Name]
		if r == nil {
			r = &containerRecord{Attempt: -1}
			rec.Containers[spec.Name] = r
		}
		a.containers = append(a.containers, &container{spec: spec, kind: k, rec: r})
	}
	for i := range a.spec.InitContainers {
		c := &a.spec.InitContainers[i]
		if c.Sidecar() {
			layout(c, kindSidecar)
		} else {
			layout(c, kindInit)
		}
	}
	for i := range a.spec.Containers {
		layout(&a.spec.Containers[i], kindMain)
	}
}

// save writes the record when it has changed. Failure to write is repeated, for without it a restart would forget.
func (a *actor) save() {
	if a.finished {
		return
	}
	b, err := json.Marshal(a.rec)
	if err == nil && string(b) == a.saved {
		return
	}
	if err == nil {
		err = writeRecord(a.dir, b)
	}
	if err != nil {
		a.log.Error("instance state not saved", "error", err)
		a.later(time.Now().Add(time.Second))
		return
	}
	a.saved = string(b)
}

// desire takes over what is wanted now.
func (a *actor) desire(in *cis.Instance) {
	a.in = in
}

// reconcile moves the instance one step further. It is called after each message and looks only at the state.
func (a *actor) reconcile() {
	defer a.save()
	if a.adopt && !a.adopted {
		a.find()
		return
	}
	if d := a.in.Desired; d.Stop && a.rec.Verdict == nil {
		grace := a.grace()
		if d.GraceSeconds != nil {
			grace = max(0, *d.GraceSeconds)
		}
		a.stop(stopRecord{At: time.Now(), Grace: grace, Deleted: true})
	}
	switch {
	case a.rec.Verdict != nil:
		a.finish()
	case a.rec.Stop != nil:
		a.terminate()
	default:
		a.advance()
	}
}

func (a *actor) grace() int64 {
	if a.spec.GraceSeconds != nil {
		return max(0, *a.spec.GraceSeconds)
	}
	return 30
}

// stop records the decision to end. A later decision can only shorten the grace, or name the user as the cause.
func (a *actor) stop(s stopRecord) {
	if a.rec.Stop == nil {
		a.rec.Stop = &s
		a.log.Info("instance is to end", "reason", s.Reason, "grace", s.Grace)
		return
	}
	was := a.rec.Stop
	was.Deleted = was.Deleted || s.Deleted
	if before, after := was.At.Add(seconds(was.Grace)), s.At.Add(seconds(s.Grace)); after.Before(before) && s.Grace < was.Grace {
		was.Grace, was.At = s.Grace, s.At
		a.hurry()
	}
}

func seconds(n int64) time.Duration { return time.Duration(min(n, 1<<31)) * time.Second }

// advance is the life of an instance that is to run.
func (a *actor) advance() {
	if a.rec.Class == "" || a.rec.Handler == "" {
		if !a.choose() {
			return
		}
	}
	if a.rec.Incarnation == 0 {
		a.rec.Incarnation = 1
	}
	if a.rec.Size.Class == "" {
		a.rec.Size = a.in.Status.Size
		if a.rec.Size.Class == "" {
			a.rec.Size = cis.SizeOf(a.spec)
		}
	}
	if a.rec.StartedAt.IsZero() {
		a.rec.StartedAt = time.Now().UTC()
	}
	if !a.startMeter() {
		return
	}
	if d := a.spec.DeadlineSeconds; d != nil {
		end := a.rec.StartedAt.Add(seconds(*d))
		if !time.Now().Before(end) {
			a.warn("", "DeadlineExceeded", "Instance was active on the node longer than the specified deadline")
			a.stop(stopRecord{At: time.Now(), Grace: a.grace(), Failed: true, Reason: "DeadlineExceeded",
				Message: "Instance was active on the node longer than the specified deadline"})
			a.terminate()
			return
		}
		a.later(end)
	}
	if a.lost {
		a.replaceSandbox()
		return
	}
	a.resolveImages()
	if a.sandbox == sandboxNone {
		a.makeSandbox()
	}
	if a.sandbox != sandboxReady {
		return
	}
	a.keepConsole(a.sandboxID, a.rec.Incarnation)
	a.watchDisk()
	if a.rec.Stop != nil {
		return
	}
	if a.initialize() {
		for _, c := range a.containers {
			if c.kind == kindMain {
				a.tend(c)
			}
		}
	}
	if !a.rec.MarkedRunning {
		if at := a.firstStart(); !at.IsZero() {
			a.markRunning(at)
		}
	}
	a.checkEnd()
}

// choose picks the runtime of the sandbox class; false ends the instance as rejected.
func (a *actor) choose() bool {
	class := a.spec.Sandbox
	if class == "" {
		class = a.in.Status.SandboxClass // as admitted: what was promised then holds, whatever the host has now
	}
	if class == "" {
		class = a.e.cfg.Default
	}
	for _, c := range sandbox.Classes() {
		if class == "" && c != cis.Runc && a.e.cfg.Handlers[c] != "" {
			class = c
		}
	}
	h, why := a.e.handler(a.org, class)
	if h != "" {
		if why = a.e.unfit(h, a.spec); why == "" {
			a.rec.Class, a.rec.Handler = class, h
			return true
		}
	}
	if class == "" {
		why = fmt.Sprintf("node %s has no runtime that isolates; ask for runc by name to run without isolation", a.e.cfg.Node)
	}
	a.warn("", "SandboxClassUnavailable", why)
	a.rec.Verdict = &verdict{Phase: cis.Rejected, Reason: "SandboxClassUnavailable", Message: why, At: time.Now().UTC()}
	a.finish()
	return false
}

func (a *actor) startMeter() bool {
	if a.meter != nil || a.e.cfg.Meter == nil {
		return true
	}
	if a.metering || time.Now().Before(a.retryAt) {
		a.later(a.retryAt)
		return false
	}
	if slices.ContainsFunc(a.containers, func(c *container) bool { return c.closing }) {
		return false // it has perhaps ended, and its meter must not count on
	}
	a.metering = true
	a.save() // what the meter tells must not be forgotten
	s := a.subject()
	a.do(a.ctx, func(ctx context.Context) func() {
		m, err := a.e.cfg.Meter.Start(ctx, s)
		return func() {
			a.metering = false
			if err != nil {
				a.log.Error("meter not started", "error", err)
				a.retryAt = time.Now().Add(time.Second)
				return
			}
			a.meter = m
			if a.rec.MarkedRunning {
				a.rec.MarkedRunning = false // tell the meter again: it may not have heard
			}
		}
	})
	return false
}

func (a *actor) subject() billing.Subject {
	return billing.Subject{Org: a.org, Instance: a.id, Name: a.spec.Name, Region: a.e.cfg.Region, Node: a.e.cfg.Node,
		SandboxClass: string(a.rec.Class), Incarnation: a.rec.Incarnation, Size: a.rec.Size}
}

// firstStart is when the first container of the instance proper has started in this sandbox, as far as that is still
// known; zero when none has.
func (a *actor) firstStart() time.Time {
	var first time.Time
	for _, c := range a.containers {
		if c.kind != kindMain || c.rec.Incarnation != a.rec.Incarnation {
			continue
		}
		var at time.Time
		switch t := c.rec.Terminated; {
		case c.running:
			at = c.startedAt
		case t != nil && !t.StartedAt.IsZero():
			at = t.StartedAt.Time
		case t != nil:
			at = t.FinishedAt.Time
		}
		if !at.IsZero() && (first.IsZero() || at.Before(first)) {
			first = at
		}
	}
	return first
}

func (a *actor) markRunning(at time.Time) {
	a.rec.MarkedRunning = true
	if a.meter == nil {
		return
	}
	if err := a.meter.MarkRunning(at); err != nil {
		a.log.Error("meter not marked as running", "error", err)
		a.rec.MarkedRunning = false
		a.later(time.Now().Add(time.Second))
	}
}

func (a *actor) emit(typ cis.EventType, container, reason, msg string) {
	a.rep.event(cis.Event{Instance: a.id, Type: typ, Reason: reason, Message: msg, Container: container})
}

func (a *actor) info(container, reason, msg string) { a.emit(cis.Normal, container, reason, msg) }
func (a *actor) warn(container, reason, msg string) { a.emit(cis.Warning, container, reason, msg) }

func (a *actor) logDir() string { return filepath.Join(a.e.cfg.LogRoot, a.org, a.id) }

func (a *actor) policy() corev1.RestartPolicy {
	if a.spec.RestartPolicy == "" {
		return corev1.RestartPolicyAlways
	}
	return a.spec.RestartPolicy
}
