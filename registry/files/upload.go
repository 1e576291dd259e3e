package files

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/google/uuid"

	"cumulet.io/internal/problem"
)

const (
	// maxPart is the most that a kill can cost an upload.
	maxPart = 64 << 20
	// maxParts bounds the rows of one upload, and with it what a client makes by sending it in crumbs.
	maxParts = 20_000
	// maxUploads is how many unfinished uploads a repository may have.
	maxUploads = 100
)

// Upload is a file that is stored in parts.
type Upload struct {
	ID string
	Put
	Offset    int64
	ExpiresAt time.Time
	// Finished tells that the file is stored.
	Finished bool
}

// NewUpload begins an upload of a known length.
func (s *Store) NewUpload(ctx context.Context, p Put) (*Upload, error) {
	if err := p.validate(); err != nil {
		return nil, err
	}
	if p.Length < 0 {
		return nil, problem.Invalid("Upload-Length", "must be the length of the file in bytes", p.Length)
	}
	if p.Length > s.cfg.MaxBytes {
		return nil, s.tooLarge()
	}
	if _, err := s.Room(ctx, p.Repository, p.Length); err != nil {
		return nil, err
	}
	id, err := uuid.NewRandom() // knowing one must not tell others
	if err != nil {
		return nil, fmt.Errorf("begin upload: %w", err)
	}
	u := &Upload{ID: id.String(), Put: p, ExpiresAt: s.cfg.Now().Add(s.cfg.UploadTTL).UTC()}
	res, err := s.cfg.DB.ExecContext(ctx, s.cfg.DB.Q(`INSERT INTO registry_file_uploads (id, repository, path, version, media_type, digest, expected, length, account, expires, finished)
		SELECT ?, ?, ?, ?, ?, ?, ?, CAST(? AS BIGINT), ?, CAST(? AS BIGINT), 0
		WHERE (SELECT count(*) FROM registry_file_uploads WHERE repository = ? AND finished = 0) < ?`),
		u.ID, p.Repository, p.Path, p.Version, p.MediaType, p.Digest, p.Replace, p.Length, p.Account, u.ExpiresAt.UnixNano(), p.Repository, maxUploads)
	if err != nil {
		return nil, fmt.Errorf("begin upload: %w", err)
	}
	if n, err := res.RowsAffected(); err != nil {
		return nil, fmt.Errorf("begin upload: %w", err)
	} else if n == 0 {
		return nil, problem.New(problem.ErrExhausted, "%s has %d unfinished uploads: finish or end some", p.Repository, maxUploads)
	}
	return u, nil
}

// Upload gives an upload of a repository; ErrNotFound when it is not there, or has rested too long.
func (s *Store) Upload(ctx context.Context, repository, id string) (*Upload, error) {
	u := &Upload{ID: id}
	var expires, finished int64
	err := s.cfg.DB.QueryRowContext(ctx, s.cfg.DB.Q(`SELECT repository, path, version, media_type, digest, expected, length, account, expires, finished,
		(SELECT CAST(COALESCE(sum(size), 0) AS BIGINT) FROM registry_file_parts WHERE upload = u.id) FROM registry_file_uploads u WHERE id = ? AND repository = ?`), id, repository).
		Scan(&u.Repository, &u.Path, &u.Version, &u.MediaType, &u.Digest, &u.Replace, &u.Length, &u.Account, &expires, &finished, &u.Offset)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, problem.New(problem.ErrNotFound, "there is no such upload; it may have rested too long: begin another")
	}
	if err != nil {
		return nil, fmt.Errorf("read upload: %w", err)
	}
	u.ExpiresAt, u.Finished = time.Unix(0, expires).UTC(), finished != 0
	if u.Finished {
		u.Offset = u.Length
	}
	return u, nil
}

// Append adds what src gives, from the offset on that the client believes in, and gives the upload as it is then. What
// came before a fault of src stays, and is told with the fault. With the last byte the file is stored; an error of that
// leaves the upload whole, and an append of nothing tries again.
func (s *Store) Append(ctx context.Context, repository, id string, offset int64, src io.Reader) (*Upload, error) {
	u, err := s.Upload(ctx, repository, id)
	if err != nil {
		return nil, err
	}
	if offset != u.Offset {
		return u, problem.Invalid("Upload-Offset", fmt.Sprintf("must be %d, where the upload is", u.Offset), offset)
	}
	for !u.Finished && u.Offset < u.Length {
		n, err := s.appendPart(ctx, u, src)
		u.Offset += n
		if err != nil {
			return u, err
		}
		if n == 0 {
			return u, nil // the body has ended
		}
	}
	if u.Finished {
		return u, nil
	}
	var one [1]byte
	if n, err := io.ReadFull(src, one[:]); n > 0 {
		return u, problem.Invalid("Upload-Length", fmt.Sprintf("is %d: there is more in the body", u.Length), u.Length)
	} else if err != nil && !errors.Is(err, io.EOF) {
		return u, err
	}
	return u, s.complete(ctx, u)
}

// remembering ends at a fault, so that what came before it is kept.
type remembering struct {
	r   io.Reader
	err error
}

// Read implements io.Reader.
func (f *remembering) Read(p []byte) (int, error) {
	n, err := f.r.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		f.err = err
		err = io.EOF
	}
	return n, err
}

// appendPart stores one part and tells its size; 0 when src had nothing.
func (s *Store) appendPart(ctx context.Context, u *Upload, src io.Reader) (int64, error) {
	owner, err := newOwner()
	if err != nil {
		return 0, err
	}
	body := &remembering{r: io.LimitReader(src, min(maxPart, u.Length-u.Offset))}
	first := make([]byte, 1)
	if n, _ := io.ReadFull(body, first); n == 0 { //nolint:errcheck // body remembers it
		return 0, body.err
	}
	// A client that goes ends its request's context: what it has sent is kept all the same.
	keep, cancel := context.WithTimeout(context.WithoutCancel(ctx), holdTime)
	defer cancel()
	c, err := s.Hold(keep, owner, io.MultiReader(bytes.NewReader(first), body))
	if err != nil {
		return 0, fmt.Errorf("store part: %w", err)
	}
	expires := s.cfg.Now().Add(s.cfg.UploadTTL).UTC()
	err = s.cfg.DB.InTx(keep, func(tx *sql.Tx) error {
		// Written first: of two that append at the same offset, one waits and then finds the other's part.
		res, err := tx.ExecContext(keep, s.cfg.DB.Q(`UPDATE registry_file_uploads SET expires = ? WHERE id = ? AND finished = 0`), expires.UnixNano(), u.ID)
		if err != nil {
			return err
		}
		if n, err := res.RowsAffected(); err != nil {
			return err
		} else if n == 0 {
			return problem.New(problem.ErrConflict, "the upload is ended by another request")
		}
		var at, parts int64
		if err := tx.QueryRowContext(keep, s.cfg.DB.Q(`SELECT CAST(COALESCE(sum(size), 0) AS BIGINT), count(*) FROM registry_file_parts WHERE upload = ?`), u.ID).Scan(&at, &parts); err != nil {
			return err
		}
		if at != u.Offset {
			return problem.New(problem.ErrConflict, "another request appends to this upload: ask where it is")
		}
		if parts >= maxParts {
			return problem.New(problem.ErrExhausted, "the upload has %d parts: begin another with larger ones", maxParts)
		}
		if err := c.Claim(keep, tx); err != nil {
			return err
		}
		_, err = tx.ExecContext(keep, s.cfg.DB.Q(`INSERT INTO registry_file_parts (upload, start, size, digest, owner) VALUES (?, ?, ?, ?, ?)`), u.ID, u.Offset, c.Size, c.Digest, c.Owner)
		return err
	})
	if err != nil {
		c.Drop(ctx)
		return 0, fmt.Errorf("store part: %w", err)
	}
	u.ExpiresAt = expires
	return c.Size, body.err
}

// parts gives an upload's parts in order.
func (s *Store) parts(ctx context.Context, id string) ([]Content, error) {
	rows, err := s.cfg.DB.QueryContext(ctx, s.cfg.DB.Q(`SELECT owner, digest, size FROM registry_file_parts WHERE upload = ? ORDER BY start`), id)
	if err != nil {
		return nil, fmt.Errorf("read parts: %w", err)
	}
	defer rows.Close() //nolint:errcheck // Err tells
	var out []Content
	for rows.Next() {
		var c Content
		if err := rows.Scan(&c.Owner, &c.Digest, &c.Size); err != nil {
			return nil, fmt.Errorf("read parts: %w", err)
		}
		out = append(out, c)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("read parts: %w", err)
	}
	return out, nil
}

// joined reads parts one after the other, each opened when it is needed.
type joined struct {
	//nolint:containedctx // a reader takes none
	ctx   context.Context
	blobs Blobs
	parts []Content
	open  io.ReadCloser
	left  int64
}

// Read implements io.Reader.
func (j *joined) Read(p []byte) (int, error) {
	for {
		if j.open == nil {
			if len(j.parts) == 0 {
				return 0, io.EOF
			}
			r, err := j.blobs.Open(j.ctx, j.parts[0].Digest, 0)
			if err != nil {
				return 0, fmt.Errorf("read part: %w", err)
			}
			j.open, j.left, j.parts = r, j.parts[0].Size, j.parts[1:]
		}
		n, err := j.open.Read(p)
		j.left -= int64(n)
		if errors.Is(err, io.EOF) {
			if j.left != 0 {
				return n, io.ErrUnexpectedEOF
			}
			if err = j.Close(); err == nil && n == 0 {
				continue
			}
		}
		return n, err
	}
}

// Close implements io.Closer.
func (j *joined) Close() error {
	if j.open == nil {
		return nil
	}
	err := j.open.Close()
	j.open = nil
	return err
}

// complete makes the file of an upload's parts.
func (s *Store) complete(ctx context.Context, u *Upload) error {
	parts, err := s.parts(ctx, u.ID)
	if err != nil {
		return err
	}
	body := &joined{ctx: ctx, blobs: s.cfg.Blobs, parts: parts}
	defer body.Close() //nolint:errcheck // only read
	if _, _, err := s.Store(ctx, u.Put, body); err != nil {
		return err
	}
	err = s.cfg.DB.InTx(ctx, func(tx *sql.Tx) error {
		if _, err := tx.ExecContext(ctx, s.cfg.DB.Q(`UPDATE registry_file_uploads SET finished = 1 WHERE id = ?`), u.ID); err != nil {
			return err
		}
		return s.dropParts(ctx, tx, u.ID)
	})
	if err != nil {
		return fmt.Errorf("finish upload: %w", err)
	}
	u.Finished = true
	s.Collect(ctx)
	return nil
}

func (s *Store) dropParts(ctx context.Context, tx *sql.Tx, id string) error {
	if _, err := tx.ExecContext(ctx, s.cfg.DB.Q(`INSERT INTO registry_file_garbage (owner, digest, due) SELECT owner, digest, 0 FROM registry_file_parts WHERE upload = ?
		ON CONFLICT (owner) DO NOTHING`), id); err != nil {
		return err
	}
	_, err := tx.ExecContext(ctx, s.cfg.DB.Q(`DELETE FROM registry_file_parts WHERE upload = ?`), id)
	return err
}

// EndUpload gives an upload up.
func (s *Store) EndUpload(ctx context.Context, repository, id string) error {
	if _, err := s.Upload(ctx, repository, id); err != nil {
		return err
	}
	if err := s.endUpload(ctx, id); err != nil {
		return err
	}
	s.Collect(ctx)
	return nil
}

func (s *Store) endUpload(ctx context.Context, id string) error {
	err := s.cfg.DB.InTx(ctx, func(tx *sql.Tx) error {
		// Written first: an append that is at it waits, and then finds it ended.
		if _, err := tx.ExecContext(ctx, s.cfg.DB.Q(`UPDATE registry_file_uploads SET finished = 1 WHERE id = ?`), id); err != nil {
			return err
		}
		if err := s.dropParts(ctx, tx, id); err != nil {
			return err
		}
		_, err := tx.ExecContext(ctx, s.cfg.DB.Q(`DELETE FROM registry_file_uploads WHERE id = ?`), id)
		return err
	})
	if err != nil {
		return fmt.Errorf("end upload: %w", err)
	}
	return nil
}

func (s *Store) expireUploads(ctx context.Context) error {
	for {
		var id string
		err := s.cfg.DB.QueryRowContext(ctx, s.cfg.DB.Q(`SELECT id FROM registry_file_uploads WHERE expires < ? LIMIT 1`), s.cfg.Now().UnixNano()).Scan(&id)
		if errors.Is(err, sql.ErrNoRows) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("find old uploads: %w", err)
		}
		if err := s.endUpload(ctx, id); err != nil {
			return err
		}
	}
}
