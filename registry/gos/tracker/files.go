package tracker

import (
	"context"
	"database/sql"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"cumulet.io/internal/problem"
)

var (
	errSwept = problem.New(problem.ErrConflict, "the upload took too long and was swept away: begin again")
	errMoved = problem.New(problem.ErrConflict, "another request has written to this upload: ask for its offset and go on from there")
)

// File is a file or directory of the core's layout.
type File struct {
	Path     string
	Dir      bool
	Size     int64
	Modified time.Time
	// Content is a small file's; Object holds that of others.
	Content []byte
	Object  Object
}

// below bounds the paths under a directory: from inclusive, to exclusive.
func below(dir string) (from, to string) {
	dir = strings.TrimSuffix(dir, "/")
	return dir + "/", dir + "0" // the byte behind a slash
}

// File reads a file or finds a directory. A layer's link that was not asked for lately is touched.
func (t *Tracker) File(ctx context.Context, path string) (*File, error) {
	f := &File{Path: path}
	err := t.call(ctx, "read file", func(ctx context.Context) error {
		var modified, touched int64
		var kind string
		err := t.db.QueryRowContext(ctx, t.db.Q(`SELECT content, region, object, size, modified, touched, kind FROM gos_files WHERE path = ?`), path).
			Scan(&f.Content, &f.Object.Region, &f.Object.Key, &f.Size, &modified, &touched, &kind)
		if errors.Is(err, sql.ErrNoRows) {
			from, to := below(path)
			f.Dir = true
			var found string
			return t.db.QueryRowContext(ctx, t.db.Q(`SELECT path FROM gos_files WHERE path`+t.bytewise+` >= ? AND path`+t.bytewise+` < ? LIMIT 1`), from, to).Scan(&found)
		}
		if err != nil {
			return err
		}
		f.Modified = fromMillis(modified)
		if now := t.now(); Kind(kind) == KindLayer && touched < now.Add(-t.lease/2).UnixMilli() {
			// Whoever finds the link may rely on it for a while: the collector looks at the same column.
			res, err := t.execContext(ctx, t.db.Q(`UPDATE gos_files SET touched = ? WHERE path = ?`), now.UnixMilli(), path)
			if err != nil {
				return err
			}
			if n, err := res.RowsAffected(); err != nil || n == 0 {
				return errors.Join(err, sql.ErrNoRows)
			}
		}
		return nil
	})
	return f, err
}

// Read is File for replicas: it touches nothing.
func (t *Tracker) Read(ctx context.Context, path string) (*File, error) {
	f := &File{Path: path}
	err := t.call(ctx, "read file", func(ctx context.Context) error {
		var modified int64
		err := t.db.QueryRowContext(ctx, t.db.Q(`SELECT content, region, object, size, modified FROM gos_files WHERE path = ?`), path).
			Scan(&f.Content, &f.Object.Region, &f.Object.Key, &f.Size, &modified)
		if errors.Is(err, sql.ErrNoRows) {
			from, to := below(path)
			f.Dir = true
			var found string
			return t.db.QueryRowContext(ctx, t.db.Q(`SELECT path FROM gos_files WHERE path`+t.bytewise+` >= ? AND path`+t.bytewise+` < ? LIMIT 1`), from, to).Scan(&found)
		}
		f.Modified = fromMillis(modified)
		return err
	})
	return f, err
}

// List gives the direct children of a directory in byte order, without content.
func (t *Tracker) List(ctx context.Context, dir string) ([]File, error) {
	var out []File
	err := t.call(ctx, "list directory", func(ctx context.Context) error {
		from, to := below(dir)
		return t.rows(ctx, t.db, func(rows *sql.Rows) error {
			var f File
			var modified int64
			if err := rows.Scan(&f.Path, &f.Size, &modified); err != nil {
				return err
			}
			f.Modified = fromMillis(modified)
			if i := strings.IndexByte(f.Path[len(from):], '/'); i >= 0 {
				f.Path, f.Dir, f.Size = f.Path[:len(from)+i], true, 0
				if len(out) > 0 && out[len(out)-1].Path == f.Path {
					return nil
				}
			}
			out = append(out, f)
			return nil
		}, `SELECT path, size, modified FROM gos_files WHERE path`+t.bytewise+` >= ? AND path`+t.bytewise+` < ? ORDER BY path`+t.bytewise, from, to)
	})
	return out, err
}

// PutFile stores a small file. A link to a blob renews the blob's lease, and fails when there is no such blob.
func (t *Tracker) PutFile(ctx context.Context, path string, content []byte) error {
	if content == nil {
		content = []byte{}
	}
	return t.inTx(ctx, "write file", func(ctx context.Context, x *tx) error {
		if ParsePath(path).Kind != KindUpload {
			if _, err := x.next(ctx); err != nil {
				return err
			}
		}
		if err := x.dropFile(ctx, path, false); err != nil {
			return err
		}
		return x.putFile(ctx, path, content, Object{}, int64(len(content)))
	})
}

func (x *tx) putFile(ctx context.Context, path string, content []byte, o Object, size int64) error {
	p := ParsePath(path)
	var seq int64
	if p.Kind != KindUpload {
		var err error
		if seq, err = x.next(ctx); err != nil {
			return err
		}
	}
	// A link says which blob it is to: that of another digest's algorithm is to the canonical one.
	if target, err := digest.Parse(string(content)); err == nil && p.Kind == KindLayer {
		p.Digest = target
	}
	if p.Kind == KindLayer || p.Kind == KindRevision {
		if err := x.keep(ctx, p.Digest); err != nil {
			return err
		}
	}
	now := x.t.nowMillis()
	_, err := x.exec(ctx, `INSERT INTO gos_files (path, content, region, object, size, modified, touched, repository, kind, digest, seq)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
		ON CONFLICT (path) DO UPDATE SET content = excluded.content, region = excluded.region, object = excluded.object,
			size = excluded.size, modified = excluded.modified, touched = excluded.touched, seq = excluded.seq`,
		path, content, o.Region, o.Key, size, now, now, p.Repository, string(p.Kind), p.Digest.String(), seq)
	return err
}

// dropFile gives what a file has in objects to the sweeper, and removes its row when remove is set. found tells of either.
func (x *tx) dropFile(ctx context.Context, path string, remove bool) error {
	var o Object
	var seq int64
	err := x.row(ctx, `SELECT region, object, seq FROM gos_files WHERE path = ?`, path).Scan(&o.Region, &o.Key, &seq)
	if errors.Is(err, sql.ErrNoRows) {
		return nil
	}
	if err != nil {
		return err
	}
	if o.Key != "" {
		if err := x.discard(ctx, o, x.t.nowMillis()); err != nil {
			return err
		}
	}
	if !remove {
		return nil
	}
	if _, err := x.exec(ctx, `DELETE FROM gos_files WHERE path = ?`, path); err != nil || seq == 0 {
		return err
	}
	return x.gone(ctx, "file", path)
}

// Move renames a file. Into a blob's place it commits the blob: its content is verified by the caller.
func (t *Tracker) Move(ctx context.Context, from, to string) error {
	return t.inTx(ctx, "move file", func(ctx context.Context, x *tx) error {
		if _, err := x.next(ctx); err != nil {
			return err
		}
		var f File
		var seq int64
		err := x.row(ctx, `SELECT content, region, object, size, seq FROM gos_files WHERE path = ?`, from).
			Scan(&f.Content, &f.Object.Region, &f.Object.Key, &f.Size, &seq)
		if err != nil {
			return err
		}
		if _, err := x.exec(ctx, `DELETE FROM gos_files WHERE path = ?`, from); err != nil {
			return err
		}
		if seq > 0 {
			if err := x.gone(ctx, "file", from); err != nil {
				return err
			}
		}
		p := ParsePath(to)
		if p.Kind != KindBlob {
			if err := x.dropFile(ctx, to, false); err != nil {
				return err
			}
			return x.putFile(ctx, to, f.Content, f.Object, f.Size)
		}
		if f.Object.Key == "" {
			// An upload of nothing wrote no object.
			if p.Digest.Algorithm().FromBytes(f.Content) != p.Digest {
				return problem.New(problem.ErrInvalid, "only what a writer stored becomes a blob")
			}
			return x.putInline(ctx, p.Digest, f.Content)
		}
		// commitBlob claims the object, so that one rule holds: what no row names is garbage.
		if err := x.discard(ctx, f.Object, t.nowMillis()); err != nil {
			return err
		}
		return x.commitBlob(ctx, p.Digest, f.Size, f.Object)
	})
}

// Delete removes a file or all that is below a directory.
func (t *Tracker) Delete(ctx context.Context, path string) error {
	return t.inTx(ctx, "delete", func(ctx context.Context, x *tx) error {
		if ParsePath(path+"/x").Kind != KindUpload {
			if _, err := x.next(ctx); err != nil {
				return err
			}
		}
		found, err := x.deleteBelow(ctx, path)
		if err == nil && found == 0 {
			err = errNotFound
		}
		return err
	})
}

// deleteBelow removes a file and all that is below a directory of its name, and tells how much it was. A repository of
// many tags is no more than a few statements for each thousand of its files.
func (x *tx) deleteBelow(ctx context.Context, path string) (found int, err error) {
	from, to := below(path)
	var garbage []Object
	var gone []string
	where := ` WHERE path = ? OR (path` + x.t.bytewise + ` >= ? AND path` + x.t.bytewise + ` < ?)`
	for _, statement := range []string{
		`DELETE FROM gos_files` + where + ` RETURNING path, region, object, seq`,
		`DELETE FROM gos_segments` + where + ` RETURNING path, region, object, 0`,
	} {
		if err := x.t.rows(ctx, x, func(rows *sql.Rows) error {
			var o Object
			var name string
			var seq int64
			if err := rows.Scan(&name, &o.Region, &o.Key, &seq); err != nil {
				return err
			}
			found++
			if o.Key != "" {
				garbage = append(garbage, o)
			}
			if seq > 0 {
				gone = append(gone, name)
			}
			return nil
		}, statement, path, from, to); err != nil {
			return 0, err
		}
	}
	for _, o := range garbage {
		if err := x.discard(ctx, o, x.t.nowMillis()); err != nil {
			return 0, err
		}
	}
	for some := range slices.Chunk(gone, 200) {
		if err := x.allGone(ctx, "file", some); err != nil {
			return 0, err
		}
	}
	return found, nil
}
