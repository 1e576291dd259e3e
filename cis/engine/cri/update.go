package cri

import (
	"context"
	"fmt"

	"cumulet.io/cis"
	"cumulet.io/internal/problem"
)

// UpdateVolume implements engine.VolumeUpdater.
func (e *Engine) UpdateVolume(_ context.Context, id, volume string, files cis.FilesVolume) error {
	a, err := e.actor(id)
	if err != nil {
		return fmt.Errorf("update volume: %w", err)
	}
	if v := a.view.Load(); v != nil && e.cfg.Copying[v.handler] {
		return fmt.Errorf("update volume: %w", problem.New(problem.ErrUnsupported, "the virtual machines of %s have copies of files, which stay as they are", v.handler))
	}
	return a.vols.update(a.spec, volume, &files)
}
