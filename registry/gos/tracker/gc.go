package tracker

import (
	"context"
	"database/sql"
	"time"

	"github.com/opencontainers/go-digest"
)

// doomed is the due of an object that a sweeper is deleting: nobody can claim it any more.
const doomed = -1

// Mark marks blobs that nothing links to and nobody has asked for during a lease. It gives how many.
func (t *Tracker) Mark(ctx context.Context) (int, error) {
	var n int64
	err := t.inTx(ctx, "mark", func(ctx context.Context, x *tx) (err error) {
		// A link that is written at this moment renews the lease in its own transaction, before or after this one: before,
		// the row is not marked; after, it lives again.
		now := t.nowMillis()
		n, err = x.exec(ctx, `UPDATE gos_blobs SET state = 'marked', marked = ? WHERE state = 'live' AND lease < ?
			AND NOT EXISTS (SELECT 1 FROM gos_files f WHERE f.digest = gos_blobs.digest AND f.kind IN ('layer', 'revision'))
			AND NOT EXISTS (SELECT 1 FROM gos_references r WHERE r.digest = gos_blobs.digest)`, now, now)
		return err
	})
	return int(n), err
}

// Drop ends blobs that were marked before a time: their digests are unknown from then on, their objects garbage. It
// gives how many; at most limit.
func (t *Tracker) Drop(ctx context.Context, before time.Time, limit int) (int, error) {
	dropped := 0
	err := t.inTx(ctx, "drop", func(ctx context.Context, x *tx) error {
		dropped = 0
		if _, err := x.next(ctx); err != nil {
			return err
		}
		type victim struct {
			digest string
			epoch  int64
		}
		var victims []victim
		if err := t.rows(ctx, x, func(rows *sql.Rows) error {
			var v victim
			err := rows.Scan(&v.digest, &v.epoch)
			victims = append(victims, v)
			return err
		}, `SELECT digest, epoch FROM gos_blobs WHERE state = 'marked' AND marked < ? ORDER BY digest LIMIT ?`, before.UnixMilli(), limit); err != nil {
			return err
		}
		for _, v := range victims {
			n, err := x.exec(ctx, `DELETE FROM gos_blobs WHERE digest = ? AND epoch = ? AND state = 'marked' AND marked < ?`,
				v.digest, v.epoch, before.UnixMilli())
			if err != nil {
				return err
			}
			if n == 0 {
				continue // it lives again
			}
			dropped++
			var objects []Object
			if err := t.rows(ctx, x, func(rows *sql.Rows) error {
				var o Object
				err := rows.Scan(&o.Region, &o.Key)
				objects = append(objects, o)
				return err
			}, `SELECT region, object FROM gos_replicas WHERE digest = ?`, v.digest); err != nil {
				return err
			}
			for _, o := range objects {
				if err := x.discard(ctx, o, t.nowMillis()); err != nil {
					return err
				}
			}
			if _, err := x.exec(ctx, `DELETE FROM gos_replicas WHERE digest = ?`, v.digest); err != nil {
				return err
			}
			if err := x.gone(ctx, "blob", v.digest); err != nil {
				return err
			}
		}
		return nil
	})
	return dropped, err
}

// Doom gives up to limit objects of a region that are due to be deleted. From then on nobody can claim them.
func (t *Tracker) Doom(ctx context.Context, region string, limit int) ([]Object, error) {
	var out []Object
	err := t.inTx(ctx, "doom", func(ctx context.Context, x *tx) error {
		out = nil
		var due []Object
		if err := t.rows(ctx, x, func(rows *sql.Rows) error {
			o := Object{Region: region}
			err := rows.Scan(&o.Key)
			due = append(due, o)
			return err
		}, `SELECT object FROM gos_garbage WHERE region = ? AND due < ? ORDER BY due LIMIT ?`, region, t.nowMillis(), limit); err != nil {
			return err
		}
		for _, o := range due {
			n, err := x.exec(ctx, `UPDATE gos_garbage SET due = ? WHERE region = ? AND object = ? AND due < ?`, doomed, region, o.Key, t.nowMillis())
			if err != nil {
				return err
			}
			if n > 0 {
				out = append(out, o)
			}
		}
		return nil
	})
	return out, err
}

// Swept forgets an object that was deleted.
func (t *Tracker) Swept(ctx context.Context, o Object) error {
	return t.call(ctx, "forget object", func(ctx context.Context) error {
		_, err := t.execContext(ctx, t.db.Q(`DELETE FROM gos_garbage WHERE region = ? AND object = ? AND due = ?`), o.Region, o.Key, doomed)
		return err
	})
}

// Link is a repository's link to a layer or config.
type Link struct {
	Path       string
	Repository string
	Digest     digest.Digest
	touched    int64
}

// StaleLinks gives up to limit links to layers that were not asked for during a lease, the longest first.
func (t *Tracker) StaleLinks(ctx context.Context, limit int) ([]Link, error) {
	var out []Link
	err := t.call(ctx, "find stale links", func(ctx context.Context) error {
		return t.rows(ctx, t.db, func(rows *sql.Rows) error {
			var l Link
			err := rows.Scan(&l.Path, &l.Repository, &l.Digest, &l.touched)
			out = append(out, l)
			return err
		}, `SELECT path, repository, digest, touched FROM gos_files WHERE kind = 'layer' AND touched < ? ORDER BY touched LIMIT ?`,
			t.now().Add(-t.lease).UnixMilli(), limit)
	})
	return out, err
}

// KeepLink has a link looked at again after a lease.
func (t *Tracker) KeepLink(ctx context.Context, l Link) error {
	return t.call(ctx, "keep link", func(ctx context.Context) error {
		_, err := t.execContext(ctx, t.db.Q(`UPDATE gos_files SET touched = ? WHERE path = ? AND touched = ?`), t.nowMillis(), l.Path, l.touched)
		return err
	})
}

// Unlink removes a link unless it was touched since StaleLinks gave it.
func (t *Tracker) Unlink(ctx context.Context, l Link) (removed bool, err error) {
	err = t.inTx(ctx, "unlink", func(ctx context.Context, x *tx) error {
		removed = false
		if _, err := x.next(ctx); err != nil {
			return err
		}
		n, err := x.exec(ctx, `DELETE FROM gos_files WHERE path = ? AND kind = 'layer' AND touched = ?`, l.Path, l.touched)
		if err != nil || n == 0 {
			return err
		}
		removed = true
		return x.gone(ctx, "file", l.Path)
	})
	return removed, err
}

// PurgeUploads removes up to limit uploads that nothing was written to since a time, and gives how many.
func (t *Tracker) PurgeUploads(ctx context.Context, before time.Time, limit int) (int, error) {
	purged := 0
	err := t.inTx(ctx, "purge uploads", func(ctx context.Context, x *tx) error {
		purged = 0
		dirs := map[string]bool{}
		scan := func(rows *sql.Rows) error {
			var path string
			if err := rows.Scan(&path); err != nil {
				return err
			}
			if p := ParsePath(path); p.Kind == KindUpload {
				dirs[uploadDir(p.Repository, p.Upload)] = true
			}
			return nil
		}
		ms := before.UnixMilli()
		if err := t.rows(ctx, x, scan, `SELECT path FROM gos_files WHERE kind = 'upload' AND modified < ? LIMIT ?`, ms, limit); err != nil {
			return err
		}
		if err := t.rows(ctx, x, scan, `SELECT path FROM gos_segments WHERE modified < ? LIMIT ?`, ms, limit); err != nil {
			return err
		}
		for dir := range dirs {
			from, to := below(dir)
			young := 0
			var paths []string
			look := func(rows *sql.Rows) error {
				var path string
				var modified int64
				err := rows.Scan(&path, &modified)
				if modified >= ms {
					young++
				}
				paths = append(paths, path)
				return err
			}
			for _, table := range []string{"gos_files", "gos_segments"} {
				if err := t.rows(ctx, x, look, `SELECT path, modified FROM `+table+` WHERE path`+t.bytewise+` >= ? AND path`+t.bytewise+` < ?`, from, to); err != nil {
					return err
				}
			}
			if young > 0 {
				continue
			}
			purged++
			for _, p := range paths {
				if err := x.dropFile(ctx, p, true); err != nil {
					return err
				}
				if _, err := x.dropSegments(ctx, p); err != nil {
					return err
				}
			}
		}
		return nil
	})
	return purged, err
}

// Forget forgets removals from before a time. A replica that has not seen them begins anew.
func (t *Tracker) Forget(ctx context.Context, before time.Time) error {
	return t.inTx(ctx, "forget removals", func(ctx context.Context, x *tx) error {
		var newest sql.NullInt64
		if err := x.row(ctx, `SELECT MAX(seq) FROM gos_gone WHERE at < ?`, before.UnixMilli()).Scan(&newest); err != nil || !newest.Valid {
			return err
		}
		if _, err := x.exec(ctx, `UPDATE gos_sequence SET purged = ? WHERE id = 1`, newest.Int64); err != nil {
			return err
		}
		_, err := x.exec(ctx, `DELETE FROM gos_gone WHERE seq <= ?`, newest.Int64)
		return err
	})
}
