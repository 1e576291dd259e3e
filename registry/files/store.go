package files

import (
	"cmp"
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/opencontainers/go-digest"

	"cumulet.io/internal/problem"
	"cumulet.io/internal/sqldb"
	"cumulet.io/registry"
)

//go:embed migrations/*.sql
var migrations embed.FS

// MaxPage is the most files that a listing gives at once.
const MaxPage = 1000

// Directory knows repositories. Errors are of problem's classes. Safe for concurrent use.
type Directory interface {
	// Pushed records a push by an account; the first makes the repository, private.
	Pushed(ctx context.Context, repository, account string) error
	// MayPush is an error of class ErrExhausted for a repository that is not there, of an org that has as many as it may.
	MayPush(ctx context.Context, repository string) error
}

// Config is for New. DB, Blobs and Directory are required.
type Config struct {
	// DB stays the caller's to close.
	DB        *sqldb.DB
	Blobs     Blobs
	Directory Directory
	// Quotas bounds what an org stores; nil is no bound. Usage tells what it stores besides files, as db has it, which is a
	// transaction where one is under way; nil is nothing.
	Quotas registry.Quotas
	Usage  func(ctx context.Context, db sqldb.Querier, org string) (int64, error)
	// Outbox is told of pushes, pulls and deletions; nil is nobody.
	Outbox registry.Outbox
	// MaxBytes is the largest file; 0 is 100 GiB.
	MaxBytes int64
	// UploadTTL is how long an upload may rest; 0 is a day.
	UploadTTL time.Duration
	// Now is the clock; nil is time.Now.
	Now func() time.Time
	// Logger is told of what goes wrong; nil is slog.Default.
	Logger *slog.Logger
}

// Store keeps files. Safe for concurrent use, also by several processes on one PostgreSQL database.
type Store struct {
	cfg Config
	// collate orders text by bytes on either dialect.
	collate string
}

// New brings the schema up to date.
func New(ctx context.Context, cfg Config) (*Store, error) {
	if cfg.DB == nil || cfg.Blobs == nil || cfg.Directory == nil {
		return nil, errors.New("files: database, blobs and directory are needed")
	}
	cfg.MaxBytes = cmp.Or(cfg.MaxBytes, 100<<30)
	cfg.UploadTTL = cmp.Or(cfg.UploadTTL, 24*time.Hour)
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	if err := cfg.DB.Migrate(ctx, "registry-files", migrations, "migrations"); err != nil {
		return nil, fmt.Errorf("files: %w", err)
	}
	s := &Store{cfg: cfg}
	if cfg.DB.Dialect == sqldb.Postgres {
		s.collate = ` COLLATE "C"`
	}
	return s, nil
}

const fileColumns = `repository, path, version, digest, size, media_type, created, created_by`

func scanFile(scan func(...any) error) (*File, error) {
	var f File
	var created int64
	if err := scan(&f.Repository, &f.Path, &f.Version, &f.Digest, &f.Size, &f.MediaType, &created, &f.CreatedBy); err != nil {
		return nil, err
	}
	f.CreatedAt = time.Unix(0, created).UTC()
	return &f, nil
}

// File gives one version of a file, Latest for the one that was stored last; ErrNotFound where there is none.
func (s *Store) File(ctx context.Context, repository, path, version string) (*File, error) {
	query, args := `WHERE repository = ? AND path = ? AND version = ?`, []any{repository, path, version}
	if version == Latest {
		query, args = `WHERE repository = ? AND path = ? ORDER BY created DESC, version DESC LIMIT 1`, args[:2]
	}
	f, err := scanFile(s.cfg.DB.QueryRowContext(ctx, s.cfg.DB.Q(`SELECT `+fileColumns+` FROM registry_files `+query), args...).Scan)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, notHere(repository, path, version)
	}
	if err != nil {
		return nil, fmt.Errorf("read file: %w", err)
	}
	return f, nil
}

func notHere(repository, path, version string) error {
	return problem.New(problem.ErrNotFound, "%s has no file %q of version %q", repository, path, version)
}

// Filter chooses files of a repository. Zero fields choose all.
type Filter struct {
	// Prefix is of the path; Path and Version are exact.
	Prefix, Path, Version string
	// After is the last of the page before: its path, and its version.
	After, AfterVersion string
	// Limit is 1 to MaxPage.
	Limit int
}

// List gives files by path and version, in byte order.
func (s *Store) List(ctx context.Context, repository string, f Filter) ([]File, error) {
	where, args := `WHERE repository = ?`, []any{repository}
	path, version := `path`+s.collate, `version`+s.collate
	if f.Prefix != "" {
		// No path is above U+10FFFF.
		where, args = where+` AND `+path+` >= ? AND `+path+` < ?`, append(args, f.Prefix, f.Prefix+"\U0010FFFF")
	}
	if f.Path != "" {
		where, args = where+` AND path = ?`, append(args, f.Path)
	}
	if f.Version != "" {
		where, args = where+` AND version = ?`, append(args, f.Version)
	}
	if f.After != "" {
		where, args = where+` AND (`+path+` > ? OR path = ? AND `+version+` > ?)`, append(args, f.After, f.After, f.AfterVersion)
	}
	args = append(args, min(max(f.Limit, 1), MaxPage))
	rows, err := s.cfg.DB.QueryContext(ctx, s.cfg.DB.Q(`SELECT `+fileColumns+` FROM registry_files `+where+` ORDER BY `+path+`, `+version+` LIMIT ?`), args...)
	if err != nil {
		return nil, fmt.Errorf("list files: %w", err)
	}
	defer rows.Close() //nolint:errcheck // Err tells
	out := []File{}
	for rows.Next() {
		one, err := scanFile(rows.Scan)
		if err != nil {
			return nil, fmt.Errorf("list files: %w", err)
		}
		out = append(out, *one)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("list files: %w", err)
	}
	return out, nil
}

// Usage is how many bytes an org's files take; equal content counts once.
func (s *Store) Usage(ctx context.Context, org string) (int64, error) {
	return s.usageIn(ctx, s.cfg.DB, org)
}

func (s *Store) usageIn(ctx context.Context, db sqldb.Querier, org string) (int64, error) {
	var n sql.NullInt64
	err := db.QueryRowContext(ctx, s.cfg.DB.Q(`SELECT CAST(sum(size) AS BIGINT) FROM (SELECT digest, max(size) AS size FROM registry_files WHERE org = ? GROUP BY digest) AS each`), org).Scan(&n)
	if err != nil {
		return 0, fmt.Errorf("count files: %w", err)
	}
	return n.Int64, nil
}

// ownerPrefix begins the names under which the blob space keeps files.
const ownerPrefix = "file/"

func newOwner() (string, error) {
	id, err := uuid.NewV7()
	if err != nil {
		return "", fmt.Errorf("make owner: %w", err)
	}
	return ownerPrefix + id.String(), nil
}

// commit makes content a file. replace is the digest of the content that may be replaced, "*" for any, "" for none:
// another one there is ErrConflict, the same content is kept as it is. made tells whether the file is new or changed.
func (s *Store) commit(ctx context.Context, f File, c *Content, replace string) (made bool, err error) {
	org, err := registry.SplitRepository("repository", f.Repository)
	if err != nil {
		return false, err
	}
	within, err := s.Within(ctx, f.Repository)
	if err != nil {
		return false, err
	}
	err = s.cfg.DB.InTx(ctx, func(tx *sql.Tx) error {
		made = false
		if err := c.Claim(ctx, tx); err != nil {
			return err
		}
		insert := func() (int64, error) {
			res, err := tx.ExecContext(ctx, s.cfg.DB.Q(`INSERT INTO registry_files (repository, path, version, org, digest, size, media_type, owner, created, created_by)
				VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (repository, path, version) DO NOTHING`),
				f.Repository, f.Path, f.Version, org, f.Digest, f.Size, f.MediaType, c.Owner, f.CreatedAt.UnixNano(), f.CreatedBy)
			if err != nil {
				return 0, err
			}
			return res.RowsAffected()
		}
		// The insert is first, so that of two writers one waits for the other.
		if replace != "" && replace != "*" {
			var there digest.Digest
			err := tx.QueryRowContext(ctx, s.cfg.DB.Q(`SELECT digest FROM registry_files WHERE repository = ? AND path = ? AND version = ?`), f.Repository, f.Path, f.Version).Scan(&there)
			if errors.Is(err, sql.ErrNoRows) || err == nil && there.String() != replace {
				return problem.New(problem.ErrConflict, "%s of version %s does not have the content that is to be replaced", f.Path, f.Version)
			}
			if err != nil {
				return err
			}
		}
		n, err := insert()
		if err != nil {
			return err
		}
		if n == 1 {
			made = true
			return within(ctx, tx)
		}
		var there digest.Digest
		var owner, mediaType string
		if err := tx.QueryRowContext(ctx, s.cfg.DB.Q(`SELECT digest, owner, media_type FROM registry_files WHERE repository = ? AND path = ? AND version = ?`),
			f.Repository, f.Path, f.Version).Scan(&there, &owner, &mediaType); err != nil {
			return err
		}
		if there == f.Digest && (mediaType == f.MediaType || replace == "") {
			return s.Garbage(ctx, tx, c.Owner, c.Digest) // stored a second time
		}
		if replace == "" {
			return problem.New(problem.ErrConflict, "%s has other content under version %s: choose another version, or replace it with If-Match", f.Path, f.Version)
		}
		res, err := tx.ExecContext(ctx, s.cfg.DB.Q(`UPDATE registry_files SET digest = ?, size = ?, media_type = ?, owner = ?, created = ?, created_by = ?
			WHERE repository = ? AND path = ? AND version = ? AND owner = ?`),
			f.Digest, f.Size, f.MediaType, c.Owner, f.CreatedAt.UnixNano(), f.CreatedBy, f.Repository, f.Path, f.Version, owner)
		if err != nil {
			return err
		}
		if n, err := res.RowsAffected(); err != nil || n == 0 {
			return errors.Join(err, problem.New(problem.ErrConflict, "%s of version %s is being changed by another client", f.Path, f.Version))
		}
		made = true
		if err := within(ctx, tx); err != nil {
			return err
		}
		return s.Garbage(ctx, tx, owner, there)
	})
	if err != nil {
		return false, fmt.Errorf("store file: %w", err)
	}
	return made, nil
}

// Delete removes one version of a file; expected is the digest that it must have, "" for any.
func (s *Store) Delete(ctx context.Context, repository, path, version, expected, account string) error {
	f, err := s.File(ctx, repository, path, version)
	if err != nil {
		return err
	}
	if expected != "" && expected != "*" && f.Digest.String() != expected {
		return problem.New(problem.ErrConflict, "%s of version %s has other content", path, version)
	}
	// Told before it is done: a kill between the two is mended by the client's retry, and the id tells that it is the same.
	owner, err := s.owner(ctx, f)
	if err != nil {
		return err
	}
	if err := s.emit(ctx, registry.EventDelete, owner+"-delete", *f, account); err != nil {
		return err
	}
	err = s.cfg.DB.InTx(ctx, func(tx *sql.Tx) error {
		var owner string
		err := tx.QueryRowContext(ctx, s.cfg.DB.Q(`DELETE FROM registry_files WHERE repository = ? AND path = ? AND version = ? AND digest = ? RETURNING owner`),
			repository, path, f.Version, f.Digest).Scan(&owner)
		if errors.Is(err, sql.ErrNoRows) {
			return notHere(repository, path, version)
		}
		if err != nil {
			return err
		}
		return s.Garbage(ctx, tx, owner, f.Digest)
	})
	if err != nil {
		return fmt.Errorf("delete file: %w", err)
	}
	s.Collect(ctx)
	return nil
}

// owner gives the name under which a file's content is kept; it is of this content at this place alone.
func (s *Store) owner(ctx context.Context, f *File) (string, error) {
	var owner string
	err := s.cfg.DB.QueryRowContext(ctx, s.cfg.DB.Q(`SELECT owner FROM registry_files WHERE repository = ? AND path = ? AND version = ? AND digest = ?`),
		f.Repository, f.Path, f.Version, f.Digest).Scan(&owner)
	if errors.Is(err, sql.ErrNoRows) {
		return "", notHere(f.Repository, f.Path, f.Version)
	}
	if err != nil {
		return "", fmt.Errorf("read file: %w", err)
	}
	return owner, nil
}

// DeleteRepository removes all files and uploads of a repository that is deleted.
func (s *Store) DeleteRepository(ctx context.Context, repository string) error {
	err := s.cfg.DB.InTx(ctx, func(tx *sql.Tx) error {
		for _, query := range []string{
			// Whoever appends to an upload goes first.
			`UPDATE registry_file_uploads SET expires = expires WHERE repository = ?`,
			`INSERT INTO registry_file_garbage (owner, digest, due) SELECT owner, digest, 0 FROM registry_files WHERE repository = ? ON CONFLICT (owner) DO NOTHING`,
			`INSERT INTO registry_file_garbage (owner, digest, due) SELECT owner, digest, 0 FROM registry_file_parts WHERE upload IN
				(SELECT id FROM registry_file_uploads WHERE repository = ?) ON CONFLICT (owner) DO NOTHING`,
			// A file of which this does not know yet is not deleted without its content.
			`DELETE FROM registry_files WHERE repository = ? AND owner IN (SELECT owner FROM registry_file_garbage)`,
			`DELETE FROM registry_file_uploads WHERE repository = ?`,
		} {
			if _, err := tx.ExecContext(ctx, s.cfg.DB.Q(query), repository); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("delete files of %s: %w", repository, err)
	}
	s.Collect(ctx)
	return nil
}

// emit tells of what happened to a file. id is the event's, "" for one of its own.
func (s *Store) emit(ctx context.Context, t registry.EventType, id string, f File, account string) error {
	if s.cfg.Outbox == nil {
		return nil
	}
	if id == "" {
		made, err := uuid.NewV7()
		if err != nil {
			return fmt.Errorf("announce file: %w", err)
		}
		id = made.String()
	}
	org, err := registry.SplitRepository("repository", f.Repository)
	if err != nil {
		return err
	}
	// Of the owner's name, "file/…", the unique part is enough.
	return s.cfg.Outbox.Emit(ctx, registry.Event{ID: strings.TrimPrefix(id, ownerPrefix), Type: t, Time: s.cfg.Now().UTC(), Org: org, Repository: f.Repository,
		Digest: f.Digest.String(), MediaType: f.MediaType, Size: f.Size, Tag: f.Version, Actor: account,
		Data: map[string]string{"kind": "file", "path": f.Path}})
}
