// Package charts keeps Helm charts in the registry's repositories as a classic chart repository: index.yaml, archives,
// provenance files, and the upload API that ChartMuseum's clients speak.
//
// Charts as OCI artifacts need nothing of it: they are pushed to /v2/ like images. It decides nobody's rights:
// files.Access does.
package charts

import (
	"context"
	"database/sql"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/opencontainers/go-digest"

	"cumulet.io/internal/problem"
	"cumulet.io/internal/sqldb"
	"cumulet.io/registry"
	"cumulet.io/registry/files"
)

//go:embed migrations/*.sql
var migrations embed.FS

// MediaType is of a chart's archive.
const MediaType = "application/gzip"

// Space is what charts share with files: quota, what is being stored, and garbage.
type Space interface {
	// Room tells how many bytes may be stored in a repository; ErrExhausted when length is more.
	Room(ctx context.Context, repository string, length int64) (int64, error)
	// Within gives what a transaction ends with that has stored something; ErrExhausted when that was too much.
	Within(ctx context.Context, repository string) (func(context.Context, *sql.Tx) error, error)
	// Hold stores content under an owner's name that was never used before, for a row to claim.
	Hold(ctx context.Context, owner string, src io.Reader) (*files.Content, error)
	// Garbage has content that a row held released when the transaction is committed; Collect does it soon.
	Garbage(ctx context.Context, tx *sql.Tx, owner string, d digest.Digest) error
	Collect(ctx context.Context)
}

// Config is for New. DB, Blobs, Space and Directory are required.
type Config struct {
	DB        *sqldb.DB
	Blobs     files.Blobs
	Space     Space
	Directory files.Directory
	// Outbox is told of pushes, pulls and deletions; nil is nobody.
	Outbox registry.Outbox
	// Now is the clock; nil is time.Now.
	Now func() time.Time
	// Logger is told of what goes wrong; nil is slog.Default.
	Logger *slog.Logger
}

// Store keeps charts. Safe for concurrent use, also by several processes on one PostgreSQL database.
type Store struct {
	cfg   Config
	cache *indexCache
}

// New brings the schema up to date.
func New(ctx context.Context, cfg Config) (*Store, error) {
	if cfg.DB == nil || cfg.Blobs == nil || cfg.Space == nil || cfg.Directory == nil {
		return nil, errors.New("charts: database, blobs, space and directory are needed")
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	if err := cfg.DB.Migrate(ctx, "registry-charts", migrations, "migrations"); err != nil {
		return nil, fmt.Errorf("charts: %w", err)
	}
	cache, err := newIndexCache()
	if err != nil {
		return nil, fmt.Errorf("charts: %w", err)
	}
	return &Store{cfg, cache}, nil
}

// Chart is one version of a chart.
type Chart struct {
	Entry
	Size      int64  `json:"-"`
	HasProv   bool   `json:"-"`
	CreatedBy string `json:"-"`
	owner     string
}

// sum is the archive's digest.
func (c *Chart) sum() digest.Digest { return digest.NewDigestFromEncoded(digest.SHA256, c.Digest) }

// Chart gives one version of a chart; ErrNotFound where there is none.
func (s *Store) Chart(ctx context.Context, repository, name, version string) (*Chart, error) {
	return s.chart(ctx, s.cfg.DB, repository, name, version)
}

func (s *Store) chart(ctx context.Context, db sqldb.Querier, repository, name, version string) (*Chart, error) {
	c := &Chart{}
	var entry, prov string
	err := db.QueryRowContext(ctx, s.cfg.DB.Q(`SELECT entry, size, prov, owner, created_by FROM registry_charts WHERE repository = ? AND name = ? AND version = ?`),
		repository, name, version).Scan(&entry, &c.Size, &prov, &c.owner, &c.CreatedBy)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, problem.New(problem.ErrNotFound, "%s has no chart %q of version %q", repository, name, version)
	}
	if err != nil {
		return nil, fmt.Errorf("read chart: %w", err)
	}
	c.HasProv = prov != ""
	if err := json.Unmarshal([]byte(entry), &c.Entry); err != nil {
		return nil, fmt.Errorf("read chart: %w", err)
	}
	return c, nil
}

// Prov gives a chart's provenance file; ErrNotFound where there is none.
func (s *Store) Prov(ctx context.Context, repository, name, version string) ([]byte, error) {
	var prov string
	err := s.cfg.DB.QueryRowContext(ctx, s.cfg.DB.Q(`SELECT prov FROM registry_charts WHERE repository = ? AND name = ? AND version = ?`), repository, name, version).Scan(&prov)
	if err == nil && prov != "" {
		return []byte(prov), nil
	}
	if err == nil || errors.Is(err, sql.ErrNoRows) {
		return nil, problem.New(problem.ErrNotFound, "%s has no provenance file of %s", repository, fileName(name, version))
	}
	return nil, fmt.Errorf("read provenance: %w", err)
}

// Usage is how many bytes an org's charts take; equal content counts once.
func (s *Store) Usage(ctx context.Context, org string) (int64, error) {
	return s.UsageIn(ctx, s.cfg.DB, org)
}

// UsageIn is Usage as a transaction has it.
func (s *Store) UsageIn(ctx context.Context, db sqldb.Querier, org string) (int64, error) {
	var n sql.NullInt64
	err := db.QueryRowContext(ctx, s.cfg.DB.Q(`SELECT CAST(sum(size) AS BIGINT) FROM (SELECT digest, max(size) AS size FROM registry_charts WHERE org = ? GROUP BY digest) AS each`), org).Scan(&n)
	if err != nil {
		return 0, fmt.Errorf("count charts: %w", err)
	}
	return n.Int64, nil
}

// Upload is a chart as a client sends it.
type Upload struct {
	Repository, Account string
	// Archive is the chart, Prov its provenance file, nil for none.
	Archive io.Reader
	Prov    []byte
	// Force replaces another archive of the same version.
	Force bool
}

// Store checks a chart and stores it. made is false when the same archive was there.
func (s *Store) Store(ctx context.Context, u Upload) (c *Chart, made bool, err error) {
	// The archive is checked before anything is kept; it is read twice, from a file rather than from memory.
	spool, err := os.CreateTemp("", "chart-*.tgz")
	if err != nil {
		return nil, false, fmt.Errorf("store chart: %w", err)
	}
	defer os.Remove(spool.Name())
	defer spool.Close() //nolint:errcheck // it is removed
	size, err := io.Copy(spool, io.LimitReader(u.Archive, MaxArchiveBytes+1))
	if err != nil {
		return nil, false, fmt.Errorf("store chart: %w", err)
	}
	if size > MaxArchiveBytes {
		return nil, false, problem.New(problem.ErrTooLarge, "a chart may have %d bytes", MaxArchiveBytes)
	}
	if _, err := s.cfg.Space.Room(ctx, u.Repository, size); err != nil {
		return nil, false, err
	}
	if _, err := spool.Seek(0, io.SeekStart); err != nil {
		return nil, false, fmt.Errorf("store chart: %w", err)
	}
	m, err := readArchive(spool)
	if err != nil {
		return nil, false, err
	}
	if _, err := spool.Seek(0, io.SeekStart); err != nil {
		return nil, false, fmt.Errorf("store chart: %w", err)
	}
	id, err := uuid.NewV7()
	if err != nil {
		return nil, false, fmt.Errorf("store chart: %w", err)
	}
	held, err := s.cfg.Space.Hold(ctx, ownerPrefix+id.String(), spool)
	if err != nil {
		return nil, false, fmt.Errorf("store chart: %w", err)
	}
	drop := func(err error) error {
		held.Drop(ctx)
		return err
	}
	if len(u.Prov) > 0 {
		name, version, of, err := parseProv(u.Prov)
		if err == nil && (name != m.Name || version != m.Version || of != held.Digest) {
			err = problem.Invalid("prov", "must be of this archive, which is "+held.Digest.String(), of)
		}
		if err != nil {
			return nil, false, drop(err)
		}
	}
	if err := s.cfg.Directory.Pushed(ctx, u.Repository, u.Account); err != nil {
		return nil, false, drop(fmt.Errorf("store chart: %w", err))
	}
	c = &Chart{Entry: Entry{Metadata: *m, Digest: held.Digest.Encoded(), Created: s.cfg.Now().UTC(), URLs: []string{fileName(m.Name, m.Version)}},
		Size: held.Size, CreatedBy: u.Account, owner: held.Owner}
	there, err := s.commit(ctx, u, c, held)
	if err != nil {
		return nil, false, drop(err)
	}
	if there != nil {
		c = there
	}
	s.cfg.Space.Collect(ctx)
	// It has the same id when a client tries again, so that the retry of a push that was killed here tells of it.
	if err := s.emit(ctx, registry.EventPush, c.owner, u.Repository, c, u.Account); err != nil {
		return nil, false, fmt.Errorf("announce chart: %w", err)
	}
	return c, there == nil, nil
}

// ownerPrefix begins the names under which the blob space keeps charts.
const ownerPrefix = "chart/"

// bump counts a change of a repository and one of its names; the row makes those who change it wait for each other.
func (s *Store) bump(ctx context.Context, tx *sql.Tx, repository, name string) error {
	var revision int64
	err := tx.QueryRowContext(ctx, s.cfg.DB.Q(`INSERT INTO registry_chart_repositories (repository, revision, changed) VALUES (?, 1, ?)
		ON CONFLICT (repository) DO UPDATE SET revision = registry_chart_repositories.revision + 1, changed = excluded.changed RETURNING revision`),
		repository, s.cfg.Now().UnixNano()).Scan(&revision)
	if err != nil {
		return err
	}
	_, err = tx.ExecContext(ctx, s.cfg.DB.Q(`INSERT INTO registry_chart_names (repository, name, revision) VALUES (?, ?, ?)
		ON CONFLICT (repository, name) DO UPDATE SET revision = excluded.revision`), repository, name, revision)
	return err
}

// commit makes content a chart. It gives the chart that was there with the same archive, nil when there was none.
func (s *Store) commit(ctx context.Context, u Upload, c *Chart, held *files.Content) (there *Chart, err error) {
	org, err := registry.SplitRepository("repository", u.Repository)
	if err != nil {
		return nil, err
	}
	entry, err := json.Marshal(c.Entry)
	if err != nil {
		return nil, fmt.Errorf("store chart: %w", err)
	}
	within, err := s.cfg.Space.Within(ctx, u.Repository)
	if err != nil {
		return nil, err
	}
	err = s.cfg.DB.InTx(ctx, func(tx *sql.Tx) error {
		there = nil
		if err := s.bump(ctx, tx, u.Repository, c.Name); err != nil {
			return err
		}
		if err := held.Claim(ctx, tx); err != nil {
			return err
		}
		old, err := s.chart(ctx, tx, u.Repository, c.Name, c.Version)
		switch {
		case errors.Is(err, problem.ErrNotFound):
			_, err := tx.ExecContext(ctx, s.cfg.DB.Q(`INSERT INTO registry_charts (repository, name, version, org, digest, size, entry, prov, owner, created, created_by)
				VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`), u.Repository, c.Name, c.Version, org, c.sum(), c.Size, string(entry), string(u.Prov), c.owner, c.Created.UnixNano(), u.Account)
			if err != nil {
				return err
			}
			return within(ctx, tx)
		case err != nil:
			return err
		case old.Digest == c.Digest:
			there = old
			if len(u.Prov) > 0 {
				if err := s.setProv(ctx, tx, u.Repository, c.Name, c.Version, u.Prov); err != nil {
					return err
				}
			}
			return s.cfg.Space.Garbage(ctx, tx, c.owner, c.sum())
		case !u.Force:
			return problem.New(problem.ErrConflict, "the chart %s of version %s is there with another archive: choose another version, or replace it with force", c.Name, c.Version)
		}
		if _, err := tx.ExecContext(ctx, s.cfg.DB.Q(`UPDATE registry_charts SET digest = ?, size = ?, entry = ?, prov = ?, owner = ?, created = ?, created_by = ?
			WHERE repository = ? AND name = ? AND version = ?`), c.sum(), c.Size, string(entry), string(u.Prov), c.owner, c.Created.UnixNano(), u.Account, u.Repository, c.Name, c.Version); err != nil {
			return err
		}
		if err := within(ctx, tx); err != nil {
			return err
		}
		return s.cfg.Space.Garbage(ctx, tx, old.owner, old.sum())
	})
	if err != nil {
		return nil, fmt.Errorf("store chart: %w", err)
	}
	return there, nil
}

func (s *Store) setProv(ctx context.Context, tx *sql.Tx, repository, name, version string, prov []byte) error {
	_, err := tx.ExecContext(ctx, s.cfg.DB.Q(`UPDATE registry_charts SET prov = ? WHERE repository = ? AND name = ? AND version = ?`), string(prov), repository, name, version)
	return err
}

// StoreProv stores the provenance file of a chart that is there.
func (s *Store) StoreProv(ctx context.Context, repository string, prov []byte) error {
	name, version, sum, err := parseProv(prov)
	if err != nil {
		return err
	}
	err = s.cfg.DB.InTx(ctx, func(tx *sql.Tx) error {
		// Written first: nobody replaces the archive meanwhile.
		if err := s.bump(ctx, tx, repository, name); err != nil {
			return err
		}
		c, err := s.chart(ctx, tx, repository, name, version)
		if err != nil {
			return err
		}
		if c.sum() != sum {
			return problem.Invalid("prov", "must be of the archive that is there, which is "+c.sum().String(), sum)
		}
		return s.setProv(ctx, tx, repository, name, version, prov)
	})
	if err != nil {
		return fmt.Errorf("store provenance: %w", err)
	}
	return nil
}

// Delete removes a version of a chart with its provenance file.
func (s *Store) Delete(ctx context.Context, repository, name, version, account string) error {
	c, err := s.Chart(ctx, repository, name, version)
	if err != nil {
		return err
	}
	// Told before it is done: a kill between the two is mended by the client's retry, and the id tells that it is the same.
	if err := s.emit(ctx, registry.EventDelete, c.owner+"-delete", repository, c, account); err != nil {
		return fmt.Errorf("announce chart: %w", err)
	}
	err = s.cfg.DB.InTx(ctx, func(tx *sql.Tx) error {
		if err := s.bump(ctx, tx, repository, name); err != nil {
			return err
		}
		res, err := tx.ExecContext(ctx, s.cfg.DB.Q(`DELETE FROM registry_charts WHERE repository = ? AND name = ? AND version = ? AND owner = ?`), repository, name, version, c.owner)
		if err != nil {
			return err
		}
		if n, err := res.RowsAffected(); err != nil || n == 0 {
			return errors.Join(err, problem.New(problem.ErrConflict, "the chart %s of version %s is being changed by another client", name, version))
		}
		return s.cfg.Space.Garbage(ctx, tx, c.owner, c.sum())
	})
	if err != nil {
		return fmt.Errorf("delete chart: %w", err)
	}
	s.cfg.Space.Collect(ctx)
	return nil
}

// DeleteRepository removes all charts of a repository that is deleted.
func (s *Store) DeleteRepository(ctx context.Context, repository string) error {
	err := s.cfg.DB.InTx(ctx, func(tx *sql.Tx) error {
		// Who stores a chart waits from here on, so that none goes without its content.
		if _, err := tx.ExecContext(ctx, s.cfg.DB.Q(`UPDATE registry_chart_repositories SET revision = revision WHERE repository = ?`), repository); err != nil {
			return err
		}
		names, err := s.names(ctx, tx, repository, 0)
		if err != nil {
			return err
		}
		for _, name := range names {
			if err := s.bump(ctx, tx, repository, name); err != nil {
				return err
			}
			list, err := s.versions(ctx, tx, repository, name)
			if err != nil {
				return err
			}
			for _, c := range list {
				if err := s.cfg.Space.Garbage(ctx, tx, c.owner, c.sum()); err != nil {
					return err
				}
			}
			if _, err := tx.ExecContext(ctx, s.cfg.DB.Q(`DELETE FROM registry_charts WHERE repository = ? AND name = ?`), repository, name); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("delete charts of %s: %w", repository, err)
	}
	s.cfg.Space.Collect(ctx)
	return nil
}

// emit tells of what happened to a chart. id is the event's, "" for one of its own.
func (s *Store) emit(ctx context.Context, t registry.EventType, id, repository string, c *Chart, account string) error {
	if s.cfg.Outbox == nil {
		return nil
	}
	if id == "" {
		made, err := uuid.NewV7()
		if err != nil {
			return err
		}
		id = made.String()
	}
	org, err := registry.SplitRepository("repository", repository)
	if err != nil {
		return err
	}
	return s.cfg.Outbox.Emit(ctx, registry.Event{ID: strings.TrimPrefix(id, ownerPrefix), Type: t, Time: s.cfg.Now().UTC(), Org: org, Repository: repository,
		Digest: c.sum().String(), MediaType: MediaType, Size: c.Size, Tag: c.Version, Actor: account, Data: map[string]string{"kind": "chart", "chart": c.Name}})
}
