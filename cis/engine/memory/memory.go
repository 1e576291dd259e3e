// Package memory is an engine that keeps everything in memory: containers are little interpreters of a few commands.
//
// It is for tests of what uses an engine, for benchmarks of the virtual node and for looking at the platform on a
// machine that cannot run containers; it runs no real program and isolates nothing. It has an engine's full semantics,
// phases, restarts, probes, hooks, graceful ends and adoption, and passes enginetest. An idle instance costs some
// kilobytes and no goroutine. All times come from package time, so testing/synctest drives it.
//
// A container without a command runs until TERM and then succeeds. Otherwise its command is one of cat, echo, env,
// exit, fail, false, hostname, httpd, id, nc, pause, pwd, rm, sleep, stty, tail, test, touch, true, as "exit 3" or "sleep 10", or a
// script by sh -c, of these commands and trap and wait, with quotes, variables, output redirects, ; && || and & for
// sleep. Every image exists, unless Config.Pull says no.
package memory

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"cumulet.io/cis"
	"cumulet.io/cis/engine"
	"cumulet.io/internal/problem"
)

// Config configures an engine; all but Sink may be left out.
type Config struct {
	// Sink takes the reports.
	Sink engine.Sink
	// Node and Region are reported as the place.
	Node, Region string
	// Classes are the sandbox classes that the engine claims; default all, of which kata is the strongest.
	Classes []cis.SandboxClass
	// StartDelay is how long a sandbox takes to come up.
	StartDelay time.Duration
	// BackOff is the first pause before a restart or a pull that failed before; default 10 s, doubled up to 30 times it.
	BackOff time.Duration
	// Pull tells why an image cannot be pulled; nil means every image can. It must not block.
	Pull func(image string) error
	// Capacity is what the engine claims to hold; default 10,000 instances.
	Capacity engine.Capacity
	// Workers is how many reports are under way at once; default 4.
	Workers int
	// KeepEnded is how many ended instances keep their logs; default 100.
	KeepEnded int
}

func (o *Config) choose(asked cis.SandboxClass) (cis.SandboxClass, error) {
	if asked == "" {
		return o.Classes[0], nil
	}
	if !slices.Contains(o.Classes, asked) {
		return "", fmt.Errorf("sandbox class %s is not available here: the in-memory engine is set up for %v", asked, o.Classes)
	}
	return asked, nil
}

// Engine implements engine.Engine and all of its optional abilities.
type Engine struct {
	world *world
	sink  engine.Sink
}

// New makes an engine; it fails without a sink.
func New(options Config) (*Engine, error) {
	if options.Sink == nil {
		return nil, errors.New("in-memory engine: no sink to report to")
	}
	if len(options.Classes) == 0 {
		options.Classes = []cis.SandboxClass{cis.Kata, cis.GVisor, cis.Runc}
	}
	if options.BackOff <= 0 {
		options.BackOff = 10 * time.Second
	}
	if options.Workers <= 0 {
		options.Workers = 4
	}
	if options.KeepEnded <= 0 {
		options.KeepEnded = 100
	}
	if options.Capacity == (engine.Capacity{}) {
		options.Capacity = engine.Capacity{MilliCPU: 10_000_000, MemoryBytes: 40 << 40, EphemeralDisk: 100 << 40, Instances: 10_000}
	}
	return &Engine{sink: options.Sink, world: newWorld(options)}, nil
}

// Restart makes an engine that finds what this one left: the instances go on, as containers do when their engine is
// killed. This engine's Run must have returned, and the engine is not used any more.
func (e *Engine) Restart(sink engine.Sink) *Engine { return &Engine{sink: sink, world: e.world} }

// Run implements engine.Engine.
func (e *Engine) Run(ctx context.Context) error {
	stop := context.AfterFunc(ctx, e.world.broadcast)
	defer stop()
	for _, i := range e.world.list() {
		e.world.enqueue(i) // what could not be reported before
	}
	var group errgroup.Group
	for range e.world.options.Workers {
		group.Go(func() error {
			for i := e.world.next(ctx); i != nil; i = e.world.next(ctx) {
				e.work(ctx, i)
				e.world.done(i)
			}
			return nil
		})
	}
	return group.Wait()
}

// work steps an instance and reports what has come of it.
func (e *Engine) work(ctx context.Context, i *instance) {
	i.mu.Lock()
	if i.gone {
		i.mu.Unlock()
		return
	}
	i.step(time.Now())
	st, events := i.status(), i.events
	i.events = nil
	changed := i.last == nil || !reflect.DeepEqual(*i.last, st)
	i.mu.Unlock()

	var err error
	for len(events) > 0 && err == nil {
		if err = unlessUnknown(e.sink.Record(ctx, events[0])); err == nil {
			events = events[1:]
		}
	}
	if err == nil && changed {
		err = unlessUnknown(e.sink.Report(ctx, i.id, st))
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	if err != nil {
		i.events = append(events, i.events...)
		i.events = i.events[:min(len(i.events), maxEvents)]
		time.AfterFunc(100*time.Millisecond, func() { e.world.enqueue(i) })
		return
	}
	i.last = &st
	if st.Phase.Final() {
		e.world.retire(i)
	}
}

// unlessUnknown takes a sink's answer that it does not know the instance for done: nobody wants the report.
func unlessUnknown(err error) error {
	if errors.Is(err, problem.ErrNotFound) {
		return nil
	}
	return err
}

// Sync implements engine.Engine.
func (e *Engine) Sync(ctx context.Context, all []*cis.Instance) error {
	known := make(map[string]bool, len(all))
	for _, in := range all {
		known[in.ID] = true
	}
	for _, i := range e.world.list() {
		if !known[i.id] {
			e.world.remove(i)
		}
	}
	for _, in := range all {
		if err := e.Ensure(ctx, in); err != nil {
			return fmt.Errorf("sync %s: %w", in.ID, err)
		}
	}
	return nil
}

// Ensure implements engine.Engine.
func (e *Engine) Ensure(_ context.Context, in *cis.Instance) error {
	if in.Status.Phase.Final() {
		return nil
	}
	i := e.world.findOrMake(in)
	if i == nil {
		return nil // it has ended
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	if in.Desired.Stop {
		next := *i.in
		next.Desired = in.Desired
		i.in = &next
	}
	e.world.enqueue(i)
	return nil
}

// Classes implements engine.Engine.
func (e *Engine) Classes(context.Context) ([]cis.SandboxClass, map[cis.SandboxClass]string) {
	why := map[cis.SandboxClass]string{}
	for _, c := range []cis.SandboxClass{cis.Kata, cis.GVisor, cis.Runc} {
		if _, err := e.world.options.choose(c); err != nil {
			why[c] = err.Error()
		}
	}
	return slices.Clone(e.world.options.Classes), why
}

// Capacity implements engine.Engine.
func (e *Engine) Capacity(context.Context) (engine.Capacity, error) {
	return e.world.options.Capacity, nil
}

// world is the machine: instances, and those that need a step.
type world struct {
	options Config

	mu        sync.Mutex
	work      sync.Cond
	instances map[string]*instance
	queue     []*instance
	retired   []*instance     // ended ones in order, with their logs
	ended     map[string]bool // ids of those and of older ones
	endedIDs  []string
	addresses uint32
}

const maxEndedIDs = 20_000

func newWorld(o Config) *world {
	w := &world{options: o, instances: map[string]*instance{}, ended: map[string]bool{}}
	w.work.L = &w.mu
	return w
}

func (w *world) broadcast() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.work.Broadcast()
}

func (w *world) enqueue(i *instance) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if i.queued {
		return
	}
	i.queued = true
	if !i.busy {
		w.queue = append(w.queue, i)
		w.work.Signal()
	}
}

// next waits for an instance that needs a step; nil when ctx has ended. No other worker gets it until done.
func (w *world) next(ctx context.Context) *instance {
	w.mu.Lock()
	defer w.mu.Unlock()
	for len(w.queue) == 0 && ctx.Err() == nil {
		w.work.Wait()
	}
	if ctx.Err() != nil {
		return nil
	}
	i := w.queue[0]
	w.queue[0] = nil
	w.queue = w.queue[1:]
	i.queued, i.busy = false, true
	return i
}

func (w *world) done(i *instance) {
	w.mu.Lock()
	defer w.mu.Unlock()
	i.busy = false
	if i.queued {
		w.queue = append(w.queue, i)
		w.work.Signal()
	}
}

func (w *world) findOrMake(in *cis.Instance) *instance {
	w.mu.Lock()
	defer w.mu.Unlock()
	i := w.instances[in.ID]
	if i == nil && !w.ended[in.ID] {
		i = newInstance(w, in)
		w.instances[in.ID] = i
	}
	return i
}

func (w *world) find(id string) (*instance, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if i := w.instances[id]; i != nil {
		return i, nil
	}
	return nil, problem.New(problem.ErrNotFound, "no instance %s on this engine", id)
}

func (w *world) list() []*instance {
	w.mu.Lock()
	defer w.mu.Unlock()
	list := make([]*instance, 0, len(w.instances))
	for _, i := range w.instances {
		list = append(list, i)
	}
	return list
}

// retire remembers an instance as ended and drops the oldest ended ones.
func (w *world) retire(i *instance) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.ended[i.id] || w.instances[i.id] != i {
		return
	}
	w.ended[i.id] = true
	w.endedIDs = append(w.endedIDs, i.id)
	w.retired = append(w.retired, i)
	for len(w.retired) > w.options.KeepEnded {
		delete(w.instances, w.retired[0].id)
		w.retired[0] = nil
		w.retired = w.retired[1:]
	}
	for len(w.endedIDs) > maxEndedIDs {
		delete(w.ended, w.endedIDs[0])
		w.endedIDs = w.endedIDs[1:]
	}
}

func (w *world) remove(i *instance) {
	i.mu.Lock()
	i.gone = true
	i.release()
	i.mu.Unlock()
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.instances, i.id)
}

// address gives the next of 198.18.0.0/15's addresses, which are kept for benchmarks.
func (w *world) address() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.addresses++
	n := w.addresses%(1<<17-4) + 2
	return fmt.Sprintf("198.%d.%d.%d", 18+n>>16, n>>8&255, n&255)
}
