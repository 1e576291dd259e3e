package cri

import (
	"context"
	"fmt"

	"cumulet.io/cis"
)

// UpdateVolume implements engine.VolumeUpdater.
func (e *Engine) UpdateVolume(_ context.Context, id, volume string, files cis.FilesVolume) error {
	a, err := e.actor(id)
	if err != nil {
		return fmt.Errorf("update volume: %w", err)
	}
	return a.vols.update(a.spec, volume, &files)
}
