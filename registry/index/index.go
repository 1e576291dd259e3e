// Package index keeps what the registry holds as rows: manifests and the blobs they need, tags and where they have
// been, rules, what an org uses, what is known of an image. On SQLite or PostgreSQL, through internal/sqldb.
//
// Contents are not here: they are in the store below registry/oci, which writes both. A manifest's content is stored
// before its row and its row is gone before its content, and a tag is what its row says. So a row never points at
// nothing, and what a crash leaves in the store alone was never acknowledged.
package index

import (
	"context"
	"database/sql"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/opencontainers/go-digest"

	"cumulet.io/internal/problem"
	"cumulet.io/internal/sqldb"
)

//go:embed migrations/*.sql
var migrations embed.FS

// Kinds of a manifest's blobs.
const (
	KindConfig   = "config"
	KindLayer    = "layer"
	KindManifest = "manifest" // of an index
	KindForeign  = "foreign"  // a layer that is kept elsewhere
)

// Causes of a tag's change.
const (
	CausePush      = "push"
	CauseDelete    = "delete"
	CauseRetention = "retention"
	CauseImport    = "import"
)

// Blob is what a manifest points to. Digest is the canonical one of the store.
type Blob struct {
	Digest digest.Digest `json:"digest"`
	Kind   string        `json:"kind"`
	Size   int64         `json:"size"`
}

// Manifest is a manifest of one repository.
type Manifest struct {
	Repository string `json:"repository"`
	// Digest is the name it was pushed under, Content the SHA-256 under which the store has it.
	Digest       digest.Digest     `json:"digest"`
	Content      digest.Digest     `json:"-"`
	MediaType    string            `json:"mediaType"`
	ArtifactType string            `json:"artifactType,omitempty"`
	Size         int64             `json:"size"`
	Subject      digest.Digest     `json:"subject,omitempty"`
	Annotations  map[string]string `json:"annotations,omitempty"`
	// Platform is "os/architecture[/variant]"; Created and Labels are of the image's config.
	Platform string            `json:"platform,omitempty"`
	Created  time.Time         `json:"created,omitzero"`
	Labels   map[string]string `json:"labels,omitempty"`
	Blobs    []Blob            `json:"blobs,omitempty"`
	Pushed   time.Time         `json:"pushed"`
	PushedBy string            `json:"pushedBy,omitempty"`
	// Pulled is the time of the last pull, zero for never.
	Pulled time.Time `json:"pulled,omitzero"`
	Pulls  int64     `json:"pulls"`
}

// Config is for Open. The zero value is right for production.
type Config struct {
	// Now is the clock; nil is time.Now.
	Now func() time.Time
}

// Store is the index. Safe for concurrent use, also by several processes on one PostgreSQL database. A SQLite database
// belongs to one process: lookups are remembered.
type Store struct {
	db  *sqldb.DB
	now func() time.Time
	// lookups is nil on PostgreSQL, where other processes write too.
	lookups *lookupCache
	// byBytes orders text by bytes on either dialect.
	byBytes func(column string) string
}

// Open brings the schema up to date and gives the index on db. The caller keeps db open, and closes it later.
func Open(ctx context.Context, db *sqldb.DB, cfg Config) (*Store, error) {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if err := db.Migrate(ctx, "registry/index", migrations, "migrations"); err != nil {
		return nil, fmt.Errorf("open index: %w", err)
	}
	s := &Store{db: db, now: cfg.Now, byBytes: func(column string) string { return column }}
	if db.Dialect == sqldb.Postgres {
		s.byBytes = func(column string) string { return column + ` COLLATE "C"` }
		return s, nil
	}
	var err error
	if s.lookups, err = newLookupCache(); err != nil {
		return nil, fmt.Errorf("open index: %w", err)
	}
	return s, nil
}

// Complete tells whether everything that the store holds has been entered once (see SetComplete).
func (s *Store) Complete(ctx context.Context) (bool, error) {
	var value string
	err := s.db.QueryRowContext(ctx, `SELECT value FROM index_state WHERE name = 'complete'`).Scan(&value)
	if errors.Is(err, sql.ErrNoRows) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("read index state: %w", err)
	}
	return value == "true", nil
}

// SetComplete records that the index knows what the store holds.
func (s *Store) SetComplete(ctx context.Context) error {
	_, err := s.db.ExecContext(ctx, `INSERT INTO index_state (name, value) VALUES ('complete', 'true')
		ON CONFLICT (name) DO UPDATE SET value = excluded.value`)
	if err != nil {
		return fmt.Errorf("write index state: %w", err)
	}
	return nil
}

const manifestColumns = `m.repository, m.digest, m.content, m.media_type, m.artifact_type, m.size, m.subject, m.annotations,
	m.platform, m.created, m.labels, m.pushed, m.pushed_by, m.pulled, m.pulls`

// annotationsColumn and labelsColumn are places among manifestColumns.
const annotationsColumn, labelsColumn = 7, 10

// shortColumns are manifestColumns without what may be long.
const shortColumns = `m.repository, m.digest, m.content, m.media_type, m.artifact_type, m.size, m.subject, '{}',
	m.platform, m.created, '{}', m.pushed, m.pushed_by, m.pulled, m.pulls`

func scanManifest(scan func(...any) error) (*Manifest, error) {
	var m Manifest
	var annotations, labels string
	var created, pushed, pulled int64
	if err := scan(&m.Repository, &m.Digest, &m.Content, &m.MediaType, &m.ArtifactType, &m.Size, &m.Subject, &annotations,
		&m.Platform, &created, &labels, &pushed, &m.PushedBy, &pulled, &m.Pulls); err != nil {
		return nil, err
	}
	if err := json.Unmarshal([]byte(annotations), &m.Annotations); err != nil {
		return nil, fmt.Errorf("annotations of %s: %w", m.Digest, err)
	}
	if err := json.Unmarshal([]byte(labels), &m.Labels); err != nil {
		return nil, fmt.Errorf("labels of %s: %w", m.Digest, err)
	}
	m.Created, m.Pushed, m.Pulled = fromNano(created), fromNano(pushed), fromNano(pulled)
	return &m, nil
}

func fromNano(n int64) time.Time {
	if n == 0 {
		return time.Time{}
	}
	return time.Unix(0, n).UTC()
}

func toNano(t time.Time) int64 {
	// A config may claim any year; what nanoseconds cannot hold is as good as unknown.
	if t.IsZero() || t.Year() < 1700 || t.Year() > 2200 {
		return 0
	}
	return t.UnixNano()
}

func text(m map[string]string) (string, error) {
	if len(m) == 0 {
		return "{}", nil
	}
	b, err := json.Marshal(m)
	return string(b), err
}

// collect reads all rows.
func collect[T any](rows *sql.Rows, err error, scan func(func(...any) error) (T, error)) ([]T, error) {
	if err != nil {
		return nil, err
	}
	defer rows.Close() //nolint:errcheck // Err tells
	out := []T{}
	for rows.Next() {
		v, err := scan(rows.Scan)
		if err != nil {
			return nil, err
		}
		out = append(out, v)
	}
	return out, rows.Err()
}

func manifestUnknown(repository string, dgst digest.Digest) error {
	return problem.New(problem.ErrNotFound, "there is no manifest %s in %s", dgst, repository)
}

func tagUnknown(repository, tag string) error {
	return problem.New(problem.ErrNotFound, "there is no tag %q in %s", tag, repository)
}
