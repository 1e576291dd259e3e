package files

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/opencontainers/go-digest"

	"cumulet.io/internal/problem"
)

const (
	// holdTime bounds the storing of one content.
	holdTime = 24 * time.Hour
	// holdSlack is how much longer content without a row is left alone: the clocks of nodes differ.
	holdSlack = time.Hour
)

// Content is stored bytes that no row holds yet. Either a row claims it, or it is dropped; when its process is killed
// before that, Sweep releases it after a day.
type Content struct {
	// Owner is the name under which the blob space keeps it, of this content alone.
	Owner  string
	Digest digest.Digest
	Size   int64
	s      *Store
}

// Hold stores content under an owner's name that was never used before. After an error nothing is kept.
func (s *Store) Hold(ctx context.Context, owner string, src io.Reader) (*Content, error) {
	c := &Content{Owner: owner, s: s}
	due := s.cfg.Now().Add(holdTime + holdSlack).UnixNano()
	if _, err := s.cfg.DB.ExecContext(ctx, s.cfg.DB.Q(`INSERT INTO registry_file_garbage (owner, digest, due) VALUES (?, '', ?)`), owner, due); err != nil {
		return nil, fmt.Errorf("announce content: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, holdTime)
	defer cancel()
	var err error
	if c.Digest, c.Size, err = s.cfg.Blobs.Put(ctx, owner, src); err != nil {
		c.Drop(ctx)
		return nil, err
	}
	return c, nil
}

// Claim is for the transaction that makes a row of the content.
func (c *Content) Claim(ctx context.Context, tx *sql.Tx) error {
	res, err := tx.ExecContext(ctx, c.s.cfg.DB.Q(`DELETE FROM registry_file_garbage WHERE owner = ? AND due > 0`), c.Owner)
	if err != nil {
		return err
	}
	if n, err := res.RowsAffected(); err != nil || n == 0 {
		return errors.Join(err, problem.New(problem.ErrConflict, "storing it took too long: begin again"))
	}
	return nil
}

// Drop releases the content unless a row has claimed it.
func (c *Content) Drop(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
	defer cancel()
	res, err := c.s.cfg.DB.ExecContext(ctx, c.s.cfg.DB.Q(`UPDATE registry_file_garbage SET due = 0 WHERE owner = ? AND due > 0`), c.Owner)
	if err == nil {
		// None: a row has claimed it in a transaction that was committed although it gave an error.
		var n int64
		if n, err = res.RowsAffected(); err == nil && n > 0 {
			err = c.s.releaseOne(ctx, c.Owner, c.Digest)
		}
	}
	if err != nil {
		c.s.cfg.Logger.WarnContext(ctx, "content of a failed upload stays for now", "owner", c.Owner, "digest", c.Digest, "error", err)
	}
}

// Garbage has content that a row held released when the transaction is committed.
func (s *Store) Garbage(ctx context.Context, tx *sql.Tx, owner string, d digest.Digest) error {
	_, err := tx.ExecContext(ctx, s.cfg.DB.Q(`INSERT INTO registry_file_garbage (owner, digest, due) VALUES (?, ?, 0) ON CONFLICT (owner) DO NOTHING`), owner, d)
	return err
}
