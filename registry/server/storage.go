package server

import (
	"context"
	"path/filepath"

	"cumulet.io/registry/gos"
	"cumulet.io/registry/gos/dir"
	"cumulet.io/registry/gos/tracker"
)

// localRegion is the name of the one region of a registry that was told of none.
const localRegion = "local"

// openStorage opens the storage that the configuration describes, or one directory.
func openStorage(ctx context.Context, cfg Config) (*gos.Region, error) {
	c := cfg.Storage
	c.Logger = cfg.Logger
	if c.Stores == nil {
		store, err := dir.Open(filepath.Join(cfg.Dir, "blobs"))
		if err != nil {
			return nil, err
		}
		if c.Name == "" {
			c.Name = localRegion
		}
		c.Stores = map[string]gos.ObjectStore{c.Name: store}
	}
	if c.Tracker == nil {
		var err error
		if c.Tracker, err = tracker.Open(ctx, cfg.DB, tracker.Config{}); err != nil {
			return nil, err
		}
	}
	return gos.New(c)
}
