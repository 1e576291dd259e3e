package role

import (
	"context"
	"fmt"
	"time"

	"cumulet.io/internal/sqldb"
	"cumulet.io/registry/gos"
	"cumulet.io/registry/gos/dir"
	"cumulet.io/registry/gos/s3"
	"cumulet.io/registry/gos/tracker"
)

// storageCheckTime bounds the look at this region's bucket at the start.
const storageCheckTime = 30 * time.Second

// storage describes where the registry's content is. db is the registry's own database, of the address dsn.
func (p *process) storage(ctx context.Context, db *sqldb.DB, dsn string) (gos.Config, error) {
	c := p.cfg.Registry.Storage
	out := gos.Config{Name: c.Region, SpoolDir: c.SpoolDir, Stores: map[string]gos.ObjectStore{}}
	// A tracker of its own may be out of reach at the start, too; then the replica serves what it knows.
	late := c.Tracker != dsn
	var err error
	if late {
		if db, err = sqldb.OpenLater(c.Tracker); err != nil {
			return out, fmt.Errorf("registry.storage.tracker: %w", err)
		}
		p.close = append(p.close, db.Close)
		late = db.Dialect == sqldb.Postgres && len(c.Regions) > 0 // else there is no replica
	}
	if out.Tracker, err = tracker.Open(ctx, db, tracker.Config{Late: late}); err != nil {
		return out, err
	}
	if len(c.Regions) == 0 {
		store, err := dir.Open(p.cfg.Registry.BlobDir)
		if err != nil {
			return out, err
		}
		out.Stores[c.Region] = store
		return out, nil
	}
	for _, r := range c.Regions {
		creds, err := s3.ReadCredentials(r.CredentialsFile)
		if err != nil {
			return out, fmt.Errorf("registry.storage.regions: %s: %w", r.Name, err)
		}
		store, err := s3.Open(s3.Config{Endpoint: r.Endpoint, PublicEndpoint: r.PublicEndpoint, Bucket: r.Bucket, Region: r.S3Region, Credentials: creds})
		if err != nil {
			return out, fmt.Errorf("registry.storage.regions: %s: %w", r.Name, err)
		}
		out.Stores[r.Name] = store
		if r.Name == c.Region {
			ctx, cancel := context.WithTimeout(ctx, storageCheckTime)
			defer cancel()
			if err := store.Check(ctx); err != nil {
				return out, fmt.Errorf("registry.storage.regions: %s: %w", r.Name, err)
			}
		}
	}
	// A tracker on another machine may be out of reach: this one then serves what it knows.
	if db.Dialect == sqldb.Postgres {
		replica, err := p.database(ctx, "sqlite:"+p.cfg.Path("registry-replica.db"))
		if err != nil {
			return out, err
		}
		if out.Replica, err = tracker.Open(ctx, replica, tracker.Config{}); err != nil {
			return out, err
		}
	}
	return out, nil
}
