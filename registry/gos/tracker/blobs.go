package tracker

import (
	"context"
	"database/sql"
	"time"

	"github.com/opencontainers/go-digest"
)

// Object is an object of a region's store.
type Object struct{ Region, Key string }

// Blob is verified content.
type Blob struct {
	Digest digest.Digest
	Size   int64
	// Epoch tells this life of the digest from an earlier one.
	Epoch int64
	// Inline is the content of a blob that is kept in the tracker; nil of one that is in objects.
	Inline []byte
	// Replicas has the object of each region that has one.
	Replicas []Object
}

// In gives the blob's key in a region, "" when there is none.
func (b *Blob) In(region string) string {
	for _, o := range b.Replicas {
		if o.Region == region {
			return o.Key
		}
	}
	return ""
}

const liveState, markedState = "live", "marked"

// readBlob reads a blob, its state and its lease.
func (t *Tracker) readBlob(ctx context.Context, d digest.Digest) (b *Blob, state string, lease int64, err error) {
	err = t.rows(ctx, t.db, func(rows *sql.Rows) error {
		if b == nil {
			b = &Blob{Digest: d}
		}
		var region, key sql.NullString
		if err := rows.Scan(&b.Size, &b.Epoch, &b.Inline, &state, &lease, &region, &key); err != nil {
			return err
		}
		if key.Valid {
			b.Replicas = append(b.Replicas, Object{region.String, key.String})
		}
		return nil
	}, `SELECT b.size, b.epoch, b.inline, b.state, b.lease, r.region, r.object FROM gos_blobs b
		LEFT JOIN gos_replicas r ON r.digest = b.digest WHERE b.digest = ? ORDER BY r.region`, d.String())
	if err != nil {
		return nil, "", 0, err
	}
	if b == nil {
		return nil, "", 0, errNotFound
	}
	// An empty BLOB may be read as nil.
	if b.Size == 0 && len(b.Replicas) == 0 && b.Inline == nil {
		b.Inline = []byte{}
	}
	return b, state, lease, nil
}

// Touch finds a blob and sees to it that its lease runs for half its length at least: until then it is there, whatever
// is deleted. A blob that was marked for collection lives again.
func (t *Tracker) Touch(ctx context.Context, d digest.Digest) (*Blob, error) {
	var b *Blob
	err := t.call(ctx, "find blob", func(ctx context.Context) error {
		for range 3 {
			blob, state, lease, err := t.readBlob(ctx, d)
			if err != nil {
				return err
			}
			now := t.now()
			if state == liveState && lease >= now.Add(t.lease/2).UnixMilli() {
				b = blob
				return nil
			}
			// The epoch: between the two statements this life may have ended and another begun.
			res, err := t.execContext(ctx, t.db.Q(`UPDATE gos_blobs SET state = 'live', lease = ? WHERE digest = ? AND epoch = ?`),
				now.Add(t.lease).UnixMilli(), d.String(), blob.Epoch)
			if err != nil {
				return err
			}
			if n, err := res.RowsAffected(); err != nil {
				return err
			} else if n > 0 {
				b = blob
				return nil
			}
		}
		return errNotFound
	})
	return b, err
}

// Find is Touch without the lease, for replicas and reports.
func (t *Tracker) Find(ctx context.Context, d digest.Digest) (*Blob, error) {
	var b *Blob
	err := t.call(ctx, "find blob", func(ctx context.Context) (err error) {
		b, _, _, err = t.readBlob(ctx, d)
		return err
	})
	return b, err
}

// keep renews a blob's lease within a transaction, and with it locks the row against the collector.
func (x *tx) keep(ctx context.Context, d digest.Digest) error {
	n, err := x.exec(ctx, `UPDATE gos_blobs SET state = 'live', lease = ? WHERE digest = ?`,
		x.t.now().Add(x.t.lease).UnixMilli(), d.String())
	if err == nil && n == 0 {
		err = errNotFound
	}
	return err
}

// PutInline stores a small blob in the tracker itself, from where every region has it.
func (t *Tracker) PutInline(ctx context.Context, d digest.Digest, content []byte) error {
	return t.inTx(ctx, "store manifest", func(ctx context.Context, x *tx) error { return x.putInline(ctx, d, content) })
}

func (x *tx) putInline(ctx context.Context, d digest.Digest, content []byte) error {
	if content == nil {
		content = []byte{}
	}
	seq, err := x.next(ctx)
	if err != nil {
		return err
	}
	_, err = x.exec(ctx, `INSERT INTO gos_blobs (digest, size, inline, state, marked, lease, epoch, seq)
		VALUES (?, ?, ?, 'live', 0, ?, ?, ?)
		ON CONFLICT (digest) DO UPDATE SET inline = excluded.inline, state = 'live', lease = excluded.lease, seq = excluded.seq`,
		d.String(), len(content), content, x.t.now().Add(x.t.lease).UnixMilli(), seq, seq)
	return err
}

// commitBlob makes an object, which was intended, the blob's. When the blob has an object in that region already, the
// new one is garbage.
func (x *tx) commitBlob(ctx context.Context, d digest.Digest, size int64, o Object) error {
	if err := x.claim(ctx, o); err != nil {
		return err
	}
	seq, err := x.next(ctx)
	if err != nil {
		return err
	}
	if _, err := x.exec(ctx, `INSERT INTO gos_blobs (digest, size, inline, state, marked, lease, epoch, seq)
		VALUES (?, ?, NULL, 'live', 0, ?, ?, ?)
		ON CONFLICT (digest) DO UPDATE SET state = 'live', lease = excluded.lease, seq = excluded.seq`,
		d.String(), size, x.t.now().Add(x.t.lease).UnixMilli(), seq, seq); err != nil {
		return err
	}
	return x.addReplica(ctx, d, o)
}

func (x *tx) addReplica(ctx context.Context, d digest.Digest, o Object) error {
	n, err := x.exec(ctx, `INSERT INTO gos_replicas (digest, region, object) VALUES (?, ?, ?) ON CONFLICT (digest, region) DO NOTHING`,
		d.String(), o.Region, o.Key)
	if err == nil && n == 0 {
		return x.discard(ctx, o, x.t.nowMillis())
	}
	return err
}

// CommitBlob makes an object, which was intended, the content of a digest that the caller has verified, and owner keep
// it; "" is no owner.
func (t *Tracker) CommitBlob(ctx context.Context, d digest.Digest, size int64, o Object, owner string) error {
	return t.inTx(ctx, "commit blob", func(ctx context.Context, x *tx) error {
		if err := x.commitBlob(ctx, d, size, o); err != nil {
			return err
		}
		return x.reference(ctx, owner, d)
	})
}

// AddReplica makes an object, which was intended, a blob's in one more region, unless that life of the blob is over:
// then the object is garbage, and stored is false. It is also false when the region had one already.
func (t *Tracker) AddReplica(ctx context.Context, b *Blob, o Object) (stored bool, err error) {
	err = t.inTx(ctx, "add replica", func(ctx context.Context, x *tx) error {
		seq, err := x.next(ctx)
		if err != nil {
			return err
		}
		n, err := x.exec(ctx, `UPDATE gos_blobs SET seq = ? WHERE digest = ? AND epoch = ?`, seq, b.Digest.String(), b.Epoch)
		if err != nil {
			return err
		}
		if n == 0 {
			return x.discard(ctx, o, t.nowMillis())
		}
		if err := x.claim(ctx, o); err != nil {
			return err
		}
		if err := x.addReplica(ctx, b.Digest, o); err != nil {
			return err
		}
		var key string
		err = x.row(ctx, `SELECT object FROM gos_replicas WHERE digest = ? AND region = ?`, b.Digest.String(), o.Region).Scan(&key)
		stored = key == o.Key
		return err
	})
	return stored, err
}

// LoseReplica records that a region's object is not there or not what it should be. The object becomes garbage.
func (t *Tracker) LoseReplica(ctx context.Context, d digest.Digest, o Object) error {
	return t.inTx(ctx, "lose replica", func(ctx context.Context, x *tx) error {
		seq, err := x.next(ctx)
		if err != nil {
			return err
		}
		n, err := x.exec(ctx, `DELETE FROM gos_replicas WHERE digest = ? AND region = ? AND object = ?`, d.String(), o.Region, o.Key)
		if err != nil || n == 0 {
			return err
		}
		if _, err := x.exec(ctx, `UPDATE gos_blobs SET seq = ? WHERE digest = ?`, seq, d.String()); err != nil {
			return err
		}
		return x.discard(ctx, o, t.nowMillis())
	})
}

func (x *tx) reference(ctx context.Context, owner string, d digest.Digest) error {
	if owner == "" {
		return nil
	}
	_, err := x.exec(ctx, `INSERT INTO gos_references (owner, digest) VALUES (?, ?) ON CONFLICT (owner, digest) DO NOTHING`, owner, d.String())
	return err
}

// Reference makes owner keep a blob that is there.
func (t *Tracker) Reference(ctx context.Context, owner string, d digest.Digest) error {
	return t.inTx(ctx, "reference blob", func(ctx context.Context, x *tx) error {
		if err := x.keep(ctx, d); err != nil {
			return err
		}
		return x.reference(ctx, owner, d)
	})
}

// Release ends a reference, with "" all of an owner's. It is no error when there is none.
func (t *Tracker) Release(ctx context.Context, owner string, d digest.Digest) error {
	return t.call(ctx, "release blob", func(ctx context.Context) error {
		_, err := t.execContext(ctx, t.db.Q(`DELETE FROM gos_references WHERE owner = ? AND (digest = ? OR ? = '')`), owner, d.String(), d.String())
		return err
	})
}

// Intend announces an object before it is written: if it is not committed by due, it is garbage.
func (t *Tracker) Intend(ctx context.Context, o Object, due time.Time) error {
	return t.call(ctx, "intend object", func(ctx context.Context) error {
		_, err := t.execContext(ctx, t.db.Q(`INSERT INTO gos_garbage (region, object, due) VALUES (?, ?, ?)`), o.Region, o.Key, due.UnixMilli())
		return err
	})
}

// Discard gives an object to the sweeper.
func (t *Tracker) Discard(ctx context.Context, o Object) error {
	return t.inTx(ctx, "discard object", func(ctx context.Context, x *tx) error { return x.discard(ctx, o, t.nowMillis()) })
}

// claim takes an intended object out of the garbage. It fails when the sweeper had it.
func (x *tx) claim(ctx context.Context, o Object) error {
	n, err := x.exec(ctx, `DELETE FROM gos_garbage WHERE region = ? AND object = ? AND due >= 0`, o.Region, o.Key)
	if err == nil && n == 0 {
		return errSwept
	}
	return err
}

func (x *tx) discard(ctx context.Context, o Object, due int64) error {
	_, err := x.exec(ctx, `INSERT INTO gos_garbage (region, object, due) VALUES (?, ?, ?)
		ON CONFLICT (region, object) DO UPDATE SET due = excluded.due`, o.Region, o.Key, due)
	return err
}
