package cri

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	rt "k8s.io/cri-api/pkg/apis/runtime/v1"

	"cumulet.io/cis/engine/cri/capture"
)

// captures tells that the engine brings containers' output to their logs itself, so that no kill of containerd loses
// any. For that it must know where containerd keeps its state; of another containerd than our own it does not.
func (e *Engine) captures() bool { return e.cfg.TaskDir != "" }

// criStateDir is the CRI service's state directory, beside that of its tasks.
func (e *Engine) criStateDir() string {
	return filepath.Join(filepath.Dir(e.cfg.TaskDir), "io.containerd.grpc.v1.cri")
}

// outputDir is where the output of an attempt waits for its log.
func (a *actor) outputDir(container string, attempt int) string {
	return filepath.Join(a.dir, "output", container, strconv.Itoa(attempt))
}

// startContainer starts a container that has been made, its output going where this engine reads it.
func (a *actor) startContainer(ctx context.Context, id, name string, attempt int) error {
	if a.e.captures() {
		dir := a.outputDir(name, attempt)
		if err := capture.Prepare(dir); err != nil {
			return err
		}
		// From now on the attempt counts, whether or not it comes to write anything.
		if err := touch(a.logFile(name, attempt)); err != nil {
			return fmt.Errorf("make log: %w", err)
		}
		if err := capture.Divert(a.e.criStateDir(), id, dir); err != nil {
			return err
		}
	}
	err := a.callStart(ctx, id)
	if a.ctx.Err() == nil { // else it may be under way
		a.restorePipes(id)
	}
	return err
}

func (a *actor) restorePipes(id string) {
	if !a.e.captures() {
		return
	}
	if err := capture.Restore(a.e.criStateDir(), id); err != nil {
		a.log.Warn("containerd's pipes not put back", "container", id, "error", err)
	}
}

// A start that an earlier life of the engine asked for is waited for no longer than resumeBound, and looked for each
// resumeDelay.
const (
	resumeBound = 2 * time.Minute
	resumeDelay = 100 * time.Millisecond
)

// callStart asks containerd for a start.
func (a *actor) callStart(ctx context.Context, id string) error {
	_, err := patiently(ctx, a, func(ctx context.Context) (*rt.StartContainerResponse, error) {
		return a.e.start.StartContainer(ctx, &rt.StartContainerRequest{ContainerId: id})
	})
	return err
}

// resumeStart brings a start to its end that an earlier life of the engine may have asked for, and gives the status then.
// It may be under way still: containerd refuses another one meanwhile.
func (a *actor) resumeStart(ctx context.Context, s *rt.ContainerStatus) (*rt.ContainerStatus, error) {
	if a.e.captures() && !capture.Diverted(a.e.criStateDir(), s.Id) {
		return s, nil // it was not asked for
	}
	for end := time.Now().Add(resumeBound); s.State == rt.ContainerState_CONTAINER_CREATED && time.Now().Before(end); {
		err := a.callStart(ctx, s.Id)
		r, serr := a.e.rt.ContainerStatus(ctx, &rt.ContainerStatusRequest{ContainerId: s.Id})
		if serr != nil {
			return nil, errors.Join(serr, err)
		}
		if s = r.Status; s.State == rt.ContainerState_CONTAINER_CREATED {
			a.log.Debug("a start is under way", "container", s.Metadata.GetName(), "error", err)
			select {
			case <-ctx.Done():
				return nil, ctx.Err()
			case <-time.After(resumeDelay):
			}
		}
	}
	if s.State != rt.ContainerState_CONTAINER_CREATED {
		a.restorePipes(s.Id)
	}
	return s, nil
}

func touch(path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o640)
	if err != nil {
		return err
	}
	return f.Close()
}

// openOutput finds the output of the last attempt that is still to be copied; c.out stays nil when there is none.
func (a *actor) openOutput(c *container) {
	if c.out != nil || !a.e.captures() || c.rec.Attempt < 0 {
		return
	}
	out, err := capture.Open(a.outputDir(c.spec.Name, c.rec.Attempt), a.logFile(c.spec.Name, c.rec.Attempt))
	switch {
	case err == nil:
		c.out = out
	case !errors.Is(err, fs.ErrNotExist): // started before this engine captured, or copied whole
		a.log.Error("output not opened", "container", c.spec.Name, "error", err)
	}
}

// over notes the end of the last attempt of a container once its output is in its log.
func (a *actor) over(c *container, end func() corev1.ContainerStateTerminated) {
	if c.closing {
		return
	}
	if a.openOutput(c); c.out == nil {
		a.exited(c, end())
		return
	}
	out := c.out
	c.closing, c.busy = true, true
	a.do(a.ctx, func(ctx context.Context) func() {
		err := out.Finish(ctx)
		return func() {
			c.closing, c.busy, c.out = false, false, nil
			if a.ctx.Err() != nil {
				return
			}
			if err != nil {
				a.log.Error("the last output is not in its log", "container", c.spec.Name, "error", err)
			}
			a.exited(c, end())
		}
	})
}

// outputs are those that are still to be copied.
func (a *actor) outputs() []*capture.Copier {
	var outs []*capture.Copier
	for _, c := range a.containers {
		if c.out != nil {
			outs = append(outs, c.out)
		}
	}
	return outs
}

// finishOutputs copies what is left of the output of containers that have all ended.
func (a *actor) finishOutputs(ctx context.Context, outs []*capture.Copier) {
	for _, out := range outs {
		if err := out.Finish(ctx); err != nil && ctx.Err() == nil {
			a.log.Error("the last output is not in its log", "error", err)
		}
	}
}
