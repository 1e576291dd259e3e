package tracker

import (
	"context"
	"database/sql"
	"slices"

	"github.com/opencontainers/go-digest"
)

// Change is one row that replicas take over, or a removal.
type Change struct {
	seq  int64
	file *fileRow
	blob *Blob
	// goneFile is a removed path, goneBlob a removed digest.
	goneFile, goneBlob string
}

type fileRow struct {
	path, repository, kind, digest string
	content                        []byte
	object                         Object
	size, modified                 int64
}

// Position is how far a replica has come: to the change Seq, from a start at which the removals up to Base were
// forgotten. It needs none of those: it never had what they removed.
type Position struct{ Seq, Base int64 }

// Position is this replica's.
func (t *Tracker) Position(ctx context.Context) (Position, error) {
	var p Position
	err := t.call(ctx, "read position", func(ctx context.Context) error {
		return t.db.QueryRowContext(ctx, `SELECT last, purged FROM gos_sequence WHERE id = 1`).Scan(&p.Seq, &p.Base)
	})
	return p, err
}

// Changes gives what has changed after a position, up to the position that it returns; anew says that so much is
// forgotten that the replica must begin again, after Reset. Of a row that changed twice only the newest is there, and a tag's
// rows come in the order of their numbers.
func (t *Tracker) Changes(ctx context.Context, from Position, limit int) (changes []Change, next Position, anew bool, err error) {
	err = t.call(ctx, "read changes", func(ctx context.Context) error {
		changes = nil
		var last, purged int64
		if err := t.db.QueryRowContext(ctx, `SELECT last, purged FROM gos_sequence WHERE id = 1`).Scan(&last, &purged); err != nil {
			return err
		}
		next = from
		if from.Seq == 0 {
			next.Base = purged
		}
		if from.Seq > last || from.Seq < purged && next.Base < purged {
			anew = true
			return nil
		}
		after, position := from.Seq, min(last, from.Seq+int64(limit))
		next.Seq = position
		if position == after {
			return nil
		}
		if err := t.rows(ctx, t.db, func(rows *sql.Rows) error {
			var f fileRow
			var seq int64
			err := rows.Scan(&f.path, &f.repository, &f.kind, &f.digest, &f.content, &f.object.Region, &f.object.Key, &f.size, &f.modified, &seq)
			changes = append(changes, Change{seq: seq, file: &f})
			return err
		}, `SELECT path, repository, kind, digest, content, region, object, size, modified, seq FROM gos_files WHERE seq > ? AND seq <= ?`,
			after, position); err != nil {
			return err
		}
		blobs := map[string]*Blob{}
		if err := t.rows(ctx, t.db, func(rows *sql.Rows) error {
			var seq int64
			var b Blob
			var region, key sql.NullString
			if err := rows.Scan(&b.Digest, &b.Size, &b.Epoch, &b.Inline, &seq, &region, &key); err != nil {
				return err
			}
			known := blobs[b.Digest.String()]
			if known == nil {
				known = &b
				blobs[b.Digest.String()] = known
				changes = append(changes, Change{seq: seq, blob: known})
			}
			if key.Valid {
				known.Replicas = append(known.Replicas, Object{region.String, key.String})
			}
			return nil
		}, `SELECT b.digest, b.size, b.epoch, b.inline, b.seq, r.region, r.object FROM gos_blobs b
			LEFT JOIN gos_replicas r ON r.digest = b.digest WHERE b.seq > ? AND b.seq <= ?`, after, position); err != nil {
			return err
		}
		if err := t.rows(ctx, t.db, func(rows *sql.Rows) error {
			var c Change
			var kind, name string
			err := rows.Scan(&c.seq, &kind, &name)
			if kind == "blob" {
				c.goneBlob = name
			} else {
				c.goneFile = name
			}
			changes = append(changes, c)
			return err
		}, `SELECT seq, kind, name FROM gos_gone WHERE seq > ? AND seq <= ?`, after, position); err != nil {
			return err
		}
		slices.SortFunc(changes, func(a, b Change) int { return int(a.seq - b.seq) })
		return nil
	})
	return changes, next, anew, err
}

// Apply takes over changes of another tracker. This one must be a replica: nothing else writes to it.
func (t *Tracker) Apply(ctx context.Context, changes []Change, position Position) error {
	return t.inTx(ctx, "apply changes", func(ctx context.Context, x *tx) error {
		for _, c := range changes {
			if err := x.apply(ctx, c); err != nil {
				return err
			}
		}
		_, err := x.exec(ctx, `UPDATE gos_sequence SET last = ?, purged = ? WHERE id = 1`, position.Seq, position.Base)
		return err
	})
}

func (x *tx) apply(ctx context.Context, c Change) error {
	switch {
	case c.file != nil:
		f := c.file
		if _, err := x.exec(ctx, `DELETE FROM gos_files WHERE path = ?`, f.path); err != nil {
			return err
		}
		_, err := x.exec(ctx, `INSERT INTO gos_files (path, content, region, object, size, modified, touched, repository, kind, digest, seq)
			VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`, f.path, f.content, f.object.Region, f.object.Key, f.size, f.modified, f.modified,
			f.repository, f.kind, f.digest, c.seq)
		return err
	case c.blob != nil:
		if err := x.removeBlob(ctx, c.blob.Digest); err != nil {
			return err
		}
		if _, err := x.exec(ctx, `INSERT INTO gos_blobs (digest, size, inline, state, marked, lease, epoch, seq) VALUES (?, ?, ?, 'live', 0, 0, ?, ?)`,
			c.blob.Digest.String(), c.blob.Size, c.blob.Inline, c.blob.Epoch, c.seq); err != nil {
			return err
		}
		for _, o := range c.blob.Replicas {
			if _, err := x.exec(ctx, `INSERT INTO gos_replicas (digest, region, object) VALUES (?, ?, ?)`, c.blob.Digest.String(), o.Region, o.Key); err != nil {
				return err
			}
		}
		return nil
	case c.goneBlob != "":
		return x.removeBlob(ctx, digest.Digest(c.goneBlob))
	default:
		_, err := x.exec(ctx, `DELETE FROM gos_files WHERE path = ?`, c.goneFile)
		return err
	}
}

func (x *tx) removeBlob(ctx context.Context, d digest.Digest) error {
	if _, err := x.exec(ctx, `DELETE FROM gos_replicas WHERE digest = ?`, d.String()); err != nil {
		return err
	}
	_, err := x.exec(ctx, `DELETE FROM gos_blobs WHERE digest = ?`, d.String())
	return err
}

// Reset empties a replica.
func (t *Tracker) Reset(ctx context.Context) error {
	return t.inTx(ctx, "reset replica", func(ctx context.Context, x *tx) error {
		for _, table := range []string{"gos_files", "gos_blobs", "gos_replicas"} {
			if _, err := x.exec(ctx, `DELETE FROM `+table); err != nil {
				return err
			}
		}
		_, err := x.exec(ctx, `UPDATE gos_sequence SET last = 0, purged = 0 WHERE id = 1`)
		return err
	})
}
