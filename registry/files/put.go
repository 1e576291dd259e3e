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
	"cumulet.io/internal/sqldb"
	"cumulet.io/registry"
)

// Put describes a file to be stored.
type Put struct {
	Repository, Path, Version string
	MediaType                 string
	// Digest is what the content must have; "" is whatever it has.
	Digest digest.Digest
	// Replace is the digest of the content that may be replaced, "*" for any; "" is none.
	Replace string
	// Length is the content's, -1 when it is not known.
	Length  int64
	Account string
}

func (p *Put) validate() error {
	if _, err := registry.SplitRepository("repository", p.Repository); err != nil {
		return err
	}
	if err := ValidatePath(p.Path); err != nil {
		return err
	}
	if err := ValidateVersion(p.Version); err != nil {
		return err
	}
	if p.Digest != "" && (p.Digest.Validate() != nil || p.Digest.Algorithm() != digest.SHA256) {
		return problem.Invalid("digest", "must be sha256:… of 64 hexadecimal digits", p.Digest)
	}
	var err error
	p.MediaType, err = cleanMediaType(p.MediaType)
	return err
}

// Store stores a file and gives it. made is false when the same content was there under this version.
func (s *Store) Store(ctx context.Context, p Put, src io.Reader) (f *File, made bool, err error) {
	if err := p.validate(); err != nil {
		return nil, false, err
	}
	if p.Length > s.cfg.MaxBytes {
		return nil, false, s.tooLarge()
	}
	room, err := s.Room(ctx, p.Repository, p.Length)
	if err != nil {
		return nil, false, err
	}
	owner, err := newOwner()
	if err != nil {
		return nil, false, err
	}
	limited := &limitReader{r: src, left: s.cfg.MaxBytes, err: s.tooLarge()}
	if room < s.cfg.MaxBytes {
		limited.left, limited.err = room, noRoom(p.Repository)
	}
	c, err := s.Hold(ctx, owner, limited)
	if err != nil {
		if errors.Is(err, problem.ErrExhausted) {
			s.announceQuota(ctx, p.Repository)
		}
		return nil, false, fmt.Errorf("store file: %w", err)
	}
	return s.finish(ctx, p, c)
}

// finish makes content a file, or drops it.
func (s *Store) finish(ctx context.Context, p Put, c *Content) (*File, bool, error) {
	if p.Digest != "" && p.Digest != c.Digest {
		c.Drop(ctx)
		return nil, false, problem.Invalid("digest", fmt.Sprintf("must be that of the content, which has %d bytes and %s", c.Size, c.Digest), p.Digest)
	}
	if p.Length >= 0 && p.Length != c.Size {
		c.Drop(ctx)
		return nil, false, problem.Invalid("Content-Length", fmt.Sprintf("must be the length of the content, which has %d bytes", c.Size), p.Length)
	}
	// The repository is there before the file is.
	if err := s.cfg.Directory.Pushed(ctx, p.Repository, p.Account); err != nil {
		c.Drop(ctx)
		return nil, false, fmt.Errorf("store file: %w", err)
	}
	f := File{Repository: p.Repository, Path: p.Path, Version: p.Version, Digest: c.Digest, Size: c.Size, MediaType: p.MediaType,
		CreatedAt: s.cfg.Now().UTC(), CreatedBy: p.Account}
	made, err := s.commit(ctx, f, c, p.Replace)
	if err != nil {
		if errors.Is(err, problem.ErrExhausted) {
			s.announceQuota(ctx, p.Repository)
		}
		c.Drop(ctx)
		return nil, false, err
	}
	s.Collect(ctx)
	if made {
		return &f, true, s.announcePush(ctx, &f, c.Owner)
	}
	there, err := s.File(ctx, p.Repository, p.Path, p.Version)
	if err != nil {
		return nil, false, err
	}
	// It may be the retry of a push that was killed before it could tell.
	owner, err := s.owner(ctx, there)
	if err != nil {
		return nil, false, err
	}
	return there, false, s.announcePush(ctx, there, owner)
}

// announcePush tells of a push, under an id that is the same for each retry. A fault fails the push.
func (s *Store) announcePush(ctx context.Context, f *File, owner string) error {
	if err := s.emit(ctx, registry.EventPush, owner, *f, f.CreatedBy); err != nil {
		return fmt.Errorf("announce file: %w", err)
	}
	return nil
}

func (s *Store) tooLarge() error {
	return problem.New(problem.ErrTooLarge, "a file may have %d bytes at most", s.cfg.MaxBytes)
}

func noRoom(repository string) error {
	org, _ := registry.SplitRepository("repository", repository) //nolint:errcheck // it was checked
	return problem.New(problem.ErrExhausted, "the quota of the organisation %q is used up: delete something or ask the operator for more", org)
}

// Room tells how many bytes a file may have for its org's quota; ErrExhausted when length is more, nothing is left, or
// the repository would be one too many.
func (s *Store) Room(ctx context.Context, repository string, length int64) (int64, error) {
	if err := s.cfg.Directory.MayPush(ctx, repository); err != nil {
		if errors.Is(err, problem.ErrExhausted) {
			s.announceQuota(ctx, repository)
		}
		return 0, err
	}
	org, bound, err := s.bound(ctx, repository)
	if err != nil || bound == 0 {
		return s.cfg.MaxBytes, err
	}
	used, err := s.Used(ctx, org)
	if err != nil {
		return 0, err
	}
	left := bound - used
	if left <= 0 || length > left {
		s.announceQuota(ctx, repository)
		return 0, noRoom(repository)
	}
	return left, nil
}

// bound is how many bytes the org of a repository may store; 0 is no bound.
func (s *Store) bound(ctx context.Context, repository string) (org string, bytes int64, err error) {
	org, err = registry.SplitRepository("repository", repository)
	if err != nil || s.cfg.Quotas == nil {
		return org, 0, err
	}
	q, err := s.cfg.Quotas.Quota(ctx, org)
	if err != nil {
		return org, 0, fmt.Errorf("read quota: %w", err)
	}
	return org, q.Bytes, nil
}

// Used is how many bytes an org stores, files and all: what its quota bounds.
func (s *Store) Used(ctx context.Context, org string) (int64, error) {
	return s.used(ctx, s.cfg.DB, org)
}

func (s *Store) used(ctx context.Context, db sqldb.Querier, org string) (int64, error) {
	n, err := s.usageIn(ctx, db, org)
	if err != nil || s.cfg.Usage == nil {
		return n, err
	}
	more, err := s.cfg.Usage(ctx, db, org)
	if err != nil {
		return 0, fmt.Errorf("read usage: %w", err)
	}
	return n + more, nil
}

// Within gives what a transaction ends with that has stored something in a repository. It is ErrExhausted when the org has
// more than it may then, of which Room knew nothing: of several that store at once each waits here for those before it.
func (s *Store) Within(ctx context.Context, repository string) (func(context.Context, *sql.Tx) error, error) {
	org, bound, err := s.bound(ctx, repository)
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context, tx *sql.Tx) error {
		if bound == 0 {
			return nil
		}
		if s.cfg.DB.Dialect == sqldb.Postgres { // on SQLite there is one writer at a time
			if _, err := tx.ExecContext(ctx, `SELECT pg_advisory_xact_lock(hashtextextended($1, 0))`, "registry quota of "+org); err != nil {
				return fmt.Errorf("lock quota: %w", err)
			}
		}
		used, err := s.used(ctx, tx, org)
		if err == nil && used > bound {
			err = noRoom(repository)
		}
		return err
	}, nil
}

// announceQuota tells that an org was refused for its quota: once in an hour, by the event's id.
func (s *Store) announceQuota(ctx context.Context, repository string) {
	org, err := registry.SplitRepository("repository", repository)
	if err != nil || s.cfg.Outbox == nil {
		return
	}
	now := s.cfg.Now().UTC()
	hour := now.Truncate(time.Hour)
	err = s.cfg.Outbox.Emit(ctx, registry.Event{ID: "quota-files-" + org + "-" + hour.Format("2006010215"), Type: registry.EventQuota, Time: now, Org: org,
		Repository: repository, Data: map[string]string{"state": "refused", "reason": "a file was refused for the quota"}})
	if err != nil {
		s.cfg.Logger.WarnContext(ctx, "quota event is lost", "org", org, "error", err)
	}
}

// limitReader fails with err after left bytes.
type limitReader struct {
	r    io.Reader
	left int64
	err  error
}

// Read implements io.Reader.
func (l *limitReader) Read(p []byte) (int, error) {
	if l.left < 0 {
		return 0, l.err
	}
	if int64(len(p)) > l.left+1 {
		p = p[:l.left+1]
	}
	n, err := l.r.Read(p)
	if l.left -= int64(n); l.left < 0 {
		return 0, l.err
	}
	return n, err
}
