package cri

import (
	"errors"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// sweepEvery is the time between two looks for what starts that were cut short have left, for sweepLately after each time that
// there may have been one, and while there is something; otherwise it is one in sweepRarely looks.
const (
	sweepEvery  = 10 * time.Second
	sweepLately = 2 * time.Minute
	sweepRarely = 30
)

// suspect has the next looks taken: containerd has been started again, or has not made a sandbox that it was asked for.
func (e *Engine) suspect() { e.suspected.Store(time.Now().UnixNano()) }

// sweep removes the shims and the cgroups that starts have left which were cut short. strays are the shims that the look before
// found suspect; it gives this one's.
func (e *Engine) sweep(strays map[shimProcess]bool) map[shimProcess]bool {
	e.sweepCgroups()
	if e.cfg.TaskDir == "" {
		return nil // that containerd is its operator's
	}
	return e.sweepShims(strays)
}

// sweepShims kills the shims of this containerd that have no bundle, and had none at the look before: containerd was killed,
// or told to make the sandbox no more, when it had just started them, and knows nothing of them.
func (e *Engine) sweepShims(strays map[shimProcess]bool) map[shimProcess]bool {
	all, err := shims()
	if err != nil {
		e.log.Warn("shims not looked for", "error", err)
		return nil
	}
	now := map[shimProcess]bool{}
	for _, s := range all {
		if s.address != e.cfg.Socket || s.id == "" {
			continue
		}
		if _, err := os.Stat(bundleDir(e.cfg.TaskDir, s.id)); !errors.Is(err, os.ErrNotExist) {
			continue
		}
		if !strays[s] {
			now[s] = true
			continue
		}
		e.log.Info("a shim that containerd does not know is killed", "pid", s.pid, "sandbox", s.id)
		err := unix.Kill(s.pid, unix.SIGKILL)
		if err == nil || errors.Is(err, unix.ESRCH) {
			err = e.removeShimSocket(s.id)
		}
		if err != nil {
			e.log.Warn("shim not removed", "pid", s.pid, "sandbox", s.id, "error", err)
		}
	}
	return now
}

// sweepCgroups removes those of instances that have ended here: a runtime that was at work still has made them anew, and what
// is in them is nobody's.
func (e *Engine) sweepCgroups() {
	for _, id := range e.cgroup.ids() {
		e.mu.Lock()
		ended := e.ended.has(id)
		e.mu.Unlock()
		if !ended {
			continue
		}
		if err := e.cgroup.remove(id); err != nil {
			e.log.Warn("instance cgroup not removed", "instance", id, "error", err)
		}
	}
}
