package tracker

import (
	"context"
	"database/sql"
)

// Segment is an object that holds a part of a file that is being written.
type Segment struct {
	Object
	Start, Size int64
}

func (t *Tracker) segments(ctx context.Context, q interface {
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
}, path string) ([]Segment, error) {
	var out []Segment
	err := t.rows(ctx, q, func(rows *sql.Rows) error {
		var s Segment
		err := rows.Scan(&s.Start, &s.Region, &s.Key, &s.Size)
		out = append(out, s)
		return err
	}, `SELECT start, region, object, size FROM gos_segments WHERE path = ? ORDER BY start`, path)
	return out, err
}

// Segments gives what is stored of a file that is being written, one behind the other from the start.
func (t *Tracker) Segments(ctx context.Context, path string) ([]Segment, error) {
	var out []Segment
	err := t.call(ctx, "read upload", func(ctx context.Context) (err error) {
		out, err = t.segments(ctx, t.db, path)
		return err
	})
	return out, err
}

// AddSegment appends an intended object to what is stored of a file. It is a conflict when something else was appended
// meanwhile.
func (t *Tracker) AddSegment(ctx context.Context, path string, s Segment) error {
	return t.inTx(ctx, "append to upload", func(ctx context.Context, x *tx) error {
		if err := x.claim(ctx, s.Object); err != nil {
			return err
		}
		var end int64
		if err := x.row(ctx, `SELECT COALESCE(MAX(start + size), 0) FROM gos_segments WHERE path = ?`, path).Scan(&end); err != nil {
			return err
		}
		if end != s.Start {
			return errMoved
		}
		n, err := x.exec(ctx, `INSERT INTO gos_segments (path, start, region, object, size, modified) VALUES (?, ?, ?, ?, ?, ?)
			ON CONFLICT (path, start) DO NOTHING`, path, s.Start, s.Region, s.Key, s.Size, t.nowMillis())
		if err == nil && n == 0 {
			return errMoved
		}
		return err
	})
}

// CommitFile makes a file of what is stored of it. whole is the object that has all of it: the only segment's, or an
// intended one; of an empty file it is zero. The segments that it was made of are garbage.
func (t *Tracker) CommitFile(ctx context.Context, path string, whole Object, size int64) error {
	return t.inTx(ctx, "commit upload", func(ctx context.Context, x *tx) error {
		segments, err := x.dropSegments(ctx, path)
		if err != nil {
			return err
		}
		var end int64
		for _, s := range segments {
			end = s.Start + s.Size
		}
		if end != size {
			return errMoved
		}
		if err := x.dropFile(ctx, path, false); err != nil {
			return err
		}
		if whole.Key == "" {
			return x.putFile(ctx, path, []byte{}, whole, size)
		}
		if err := x.claim(ctx, whole); err != nil {
			return err
		}
		return x.putFile(ctx, path, nil, whole, size)
	})
}

// Restart discards what is stored of a file that is being written.
func (t *Tracker) Restart(ctx context.Context, path string) error {
	return t.inTx(ctx, "restart upload", func(ctx context.Context, x *tx) error {
		_, err := x.dropSegments(ctx, path)
		return err
	})
}

func (x *tx) dropSegments(ctx context.Context, path string) ([]Segment, error) {
	segments, err := x.t.segments(ctx, x, path)
	if err != nil {
		return nil, err
	}
	for _, s := range segments {
		if err := x.discard(ctx, s.Object, x.t.nowMillis()); err != nil {
			return nil, err
		}
	}
	_, err = x.exec(ctx, `DELETE FROM gos_segments WHERE path = ?`, path)
	return segments, err
}
