package cri

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	rt "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// exitRecord is how a container ended as its shim told it. The shim is the process's parent and outlives containerd.
// containerd, when it was not there at the end, forgets the exit code at its next start; this record does not.
type exitRecord struct {
	// ID is the CRI id of the attempt that ended.
	ID     string    `json:"id"`
	Status uint32    `json:"status"`
	At     time.Time `json:"at"`
}

// unknownExitCode is what CRI says of an end that it has not seen.
const unknownExitCode = 255

// shimRetry is the time between two tries to reach a shim.
const shimRetry = time.Second

// watchExit waits for the end of an attempt at its shim until ctx ends, and keeps it. What CRI says decides when the
// container has ended; what is kept here is how, for when CRI does not know.
func (a *actor) watchExit(ctx context.Context, c *container, id string) {
	if a.e.cfg.TaskDir == "" || id == "" || c.rec.exit(id) != nil {
		return
	}
	a.do(ctx, func(ctx context.Context) func() {
		for {
			exit, err := waitShim(ctx, a.e.cfg.TaskDir, id)
			if err != nil && ctx.Err() == nil && isGVisor(a.e.cfg.TaskDir, id) {
				var rerr error
				if exit, rerr = a.e.cfg.Runsc.ended(ctx, id); rerr != nil {
					err = errors.Join(err, rerr)
				} else {
					err = nil
				}
			}
			if err == nil {
				return func() { a.noteExit(c, *exit) }
			}
			if ctx.Err() != nil {
				return nil
			}
			// A shim that has died tells nothing ever again; then containerd sees that, and ctx ends.
			a.log.Debug("shim not asked", "container", c.spec.Name, "id", id, "error", err)
			sleep(ctx, shimRetry)
		}
	})
}

// noteExit keeps the end of an attempt that is not known to have ended.
func (a *actor) noteExit(c *container, exit exitRecord) {
	if c.rec.Terminated == nil && c.rec.ID == exit.ID || c.busy && c.id != exit.ID {
		c.rec.Exit = &exit
		a.save() // before it is used
	}
}

// exit gives the kept end of the attempt with a CRI id, nil when there is none.
func (r *containerRecord) exit(id string) *exitRecord {
	if id == "" || r.Exit == nil || r.Exit.ID != id {
		return nil
	}
	return r.Exit
}

// witnessed puts the kept end into a status of CRI that tells the end of an attempt without knowing it.
func (r *containerRecord) witnessed(s *rt.ContainerStatus) *rt.ContainerStatus {
	exit := r.exit(s.Id)
	if exit == nil || s.ExitCode != unknownExitCode {
		return s
	}
	return &rt.ContainerStatus{Id: s.Id, Metadata: s.Metadata, State: rt.ContainerState_CONTAINER_EXITED,
		CreatedAt: s.CreatedAt, StartedAt: s.StartedAt, FinishedAt: exit.At.UnixNano(), ExitCode: int32(exit.Status)}
}

// Bounds of CollectExits.
const (
	collectTimeout  = 5 * time.Second // for all shims
	collectOne      = 2 * time.Second // for one
	collectParallel = 32
)

// What containerd's CRI service writes into the specification of a container.
const (
	annotationUID  = "io.kubernetes.cri.sandbox-uid"    // the instance's id
	annotationName = "io.kubernetes.cri.container-name" // empty for the sandbox itself
)

// CollectExits asks the shims which containers have ended, and keeps that. It is to be called before each start of
// containerd, which forgets what ended while it was away. With an empty Config.TaskDir it does nothing. It takes at most
// a few seconds. An error names what could not be asked or kept; everything else has been kept all the same.
func (e *Engine) CollectExits(ctx context.Context) error {
	if e.cfg.TaskDir == "" {
		return nil
	}
	return collectExits(ctx, e.cfg, e.keepExits)
}

// keepExits tells the owner of an instance how containers of it have ended, or writes it down for the next one.
func (e *Engine) keepExits(instance string, ends map[string]exitRecord) error {
	e.mu.Lock()
	defer e.mu.Unlock() // no owner begins meanwhile
	a := e.actors[instance]
	if a == nil {
		return keepExits(e.instanceDir(instance), ends)
	}
	a.box.post(func() {
		for name, exit := range ends {
			if c := a.byName(name); c != nil {
				a.noteExit(c, exit)
			}
		}
	})
	return nil
}

func collectExits(ctx context.Context, cfg Config, keep func(instance string, ends map[string]exitRecord) error) error {
	entries, err := os.ReadDir(filepath.Join(cfg.TaskDir, criNamespace))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("list tasks: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, collectTimeout)
	defer cancel()
	var (
		group errgroup.Group
		mu    sync.Mutex
		errs  []error
		ends  = map[string]map[string]exitRecord{} // by instance and container name
	)
	group.SetLimit(collectParallel)
	for _, entry := range entries {
		if !entry.IsDir() {
			continue
		}
		group.Go(func() error {
			instance, name, exit, err := collectOneExit(ctx, cfg, entry.Name())
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				errs = append(errs, fmt.Errorf("task %s: %w", entry.Name(), err))
			}
			if exit == nil {
				return nil
			}
			if ends[instance] == nil {
				ends[instance] = map[string]exitRecord{}
			}
			if was, ok := ends[instance][name]; !ok || was.At.Before(exit.At) {
				ends[instance][name] = *exit
			}
			return nil
		})
	}
	errs = append(errs, group.Wait())
	for instance, of := range ends {
		if err := keep(instance, of); err != nil {
			errs = append(errs, fmt.Errorf("instance %s: %w", instance, err))
		}
	}
	return errors.Join(errs...)
}

// collectOneExit tells whose container a task is and how it ended; no exit when it runs or is none of an instance.
func collectOneExit(ctx context.Context, cfg Config, id string) (instance, name string, exit *exitRecord, err error) {
	ctx, cancel := context.WithTimeout(ctx, collectOne)
	defer cancel()
	b, err := readBundle(filepath.Join(bundleDir(cfg.TaskDir, id), "config.json"))
	if errors.Is(err, os.ErrNotExist) {
		return "", "", nil, nil // a task that has not been made, or is gone
	}
	if err != nil {
		return "", "", nil, err
	}
	instance, name = decodeOwner(b)
	if name == "" || !validID(instance) {
		return "", "", nil, nil
	}
	s, err := openShim(ctx, cfg.TaskDir, id)
	if err == nil {
		exit, err = s.ended(ctx)
		err = errors.Join(err, s.close())
	}
	if exit == nil && err != nil && isGVisor(cfg.TaskDir, id) {
		var rerr error
		if exit, rerr = cfg.Runsc.ended(ctx, id); rerr == nil {
			return instance, name, exit, nil
		}
		err = errors.Join(err, rerr)
	}
	return instance, name, exit, err
}

// decodeOwner reads from the specification of a container whose it is; empty when it does not say.
func decodeOwner(b []byte) (instance, name string) {
	var spec struct {
		Annotations map[string]string `json:"annotations"`
	}
	if json.Unmarshal(b, &spec) != nil {
		return "", ""
	}
	return spec.Annotations[annotationUID], spec.Annotations[annotationName]
}

// keepExits puts ends into the record of an instance that no actor owns yet. Containers whose end is known, and of
// which the record does not tell, are left alone.
func keepExits(dir string, ends map[string]exitRecord) error {
	rec, err := loadRecord(dir)
	if rec == nil || err != nil {
		return err
	}
	for name, exit := range ends {
		if c := rec.Containers[name]; c != nil && c.exit(exit.ID) == nil && !(c.ID == exit.ID && c.Terminated != nil) {
			c.Exit = &exit
		}
	}
	b, err := json.Marshal(rec)
	if err != nil {
		return fmt.Errorf("encode instance state: %w", err)
	}
	return writeRecord(dir, b)
}
