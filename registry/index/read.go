package index

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/opencontainers/go-digest"
)

// MaxPage is the most entries that a listing gives at once.
const MaxPage = 1000

// Manifest gives a manifest with its blobs, or an error of class ErrNotFound.
func (s *Store) Manifest(ctx context.Context, repository string, dgst digest.Digest) (*Manifest, error) {
	m, err := scanManifest(s.db.QueryRowContext(ctx, s.db.Q(`SELECT `+manifestColumns+` FROM index_manifests m WHERE m.repository = ? AND m.digest = ?`), repository, dgst).Scan)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, manifestUnknown(repository, dgst)
	}
	if err != nil {
		return nil, fmt.Errorf("read manifest: %w", err)
	}
	rows, err := s.db.QueryContext(ctx, s.db.Q(`SELECT blob, kind, size FROM index_manifest_blobs WHERE repository = ? AND manifest = ? ORDER BY kind, blob`), repository, dgst)
	if m.Blobs, err = collect(rows, err, scanBlob); err != nil {
		return nil, fmt.Errorf("read manifest: %w", err)
	}
	return m, nil
}

// Manifests lists a repository's manifests without their blobs, annotations and labels, by digest, those after a digest.
func (s *Store) Manifests(ctx context.Context, repository string, after digest.Digest, limit int) ([]*Manifest, error) {
	rows, err := s.db.QueryContext(ctx, s.db.Q(`SELECT `+shortColumns+` FROM index_manifests m
		WHERE m.repository = ? AND `+s.byBytes("m.digest")+` > ? ORDER BY `+s.byBytes("m.digest")+` LIMIT ?`), repository, after, min(max(limit, 1), MaxPage))
	out, err := collect(rows, err, scanManifest)
	if err != nil {
		return nil, fmt.Errorf("list manifests: %w", err)
	}
	return out, nil
}

// maxReferrersBytes bounds what Referrers gives at once, as JSON: the specification holds an answer to what a manifest may
// be, 4 MiB. descriptorBytes is what one has beside annotations and labels, at most.
const (
	maxReferrersBytes = 4<<20 - 64<<10
	descriptorBytes   = 1024
)

// Referrers lists the manifests whose subject is dgst, by digest, those after a digest; with an artifact type, those of
// it. It ends at limit, at most MaxPage, or at maxReferrersBytes; more tells that there are further ones.
func (s *Store) Referrers(ctx context.Context, repository string, dgst digest.Digest, artifactType string, after digest.Digest, limit int) (out []*Manifest, more bool, err error) {
	limit = min(max(limit, 1), MaxPage)
	query, args := `SELECT `+manifestColumns+` FROM index_manifests m WHERE m.repository = ? AND m.subject = ?`, []any{repository, dgst}
	if artifactType != "" {
		query, args = query+` AND m.artifact_type = ?`, append(args, artifactType)
	}
	query += ` AND ` + s.byBytes("m.digest") + ` > ? ORDER BY ` + s.byBytes("m.digest") + ` LIMIT ?`
	rows, err := s.db.QueryContext(ctx, s.db.Q(query), append(args, after, limit+1)...)
	if err != nil {
		return nil, false, fmt.Errorf("list referrers: %w", err)
	}
	defer rows.Close() //nolint:errcheck // Err tells
	out = []*Manifest{}
	for size := 0; rows.Next(); {
		if len(out) == limit {
			return out, true, nil
		}
		m, err := scanManifest(func(into ...any) error {
			err := rows.Scan(into...)
			size += descriptorBytes + len(*into[annotationsColumn].(*string)) + len(*into[labelsColumn].(*string)) //nolint:forcetypeassert // scanManifest's own
			return err
		})
		if err != nil {
			return nil, false, fmt.Errorf("list referrers: %w", err)
		}
		if size > maxReferrersBytes && len(out) > 0 {
			return out, true, nil
		}
		out = append(out, m)
	}
	if err := rows.Err(); err != nil {
		return nil, false, fmt.Errorf("list referrers: %w", err)
	}
	return out, false, nil
}

// Tag is a tag with what it points to.
type Tag struct {
	Name   string        `json:"name"`
	Digest digest.Digest `json:"digest"`
	// Sequence counts the tag's moves.
	Sequence  int64  `json:"sequence"`
	MediaType string `json:"mediaType"`
	Platform  string `json:"platform,omitempty"`
	// Size is that of the manifest and the blobs it needs, in bytes; of an index that of the manifest alone.
	Size     int64     `json:"size"`
	Pushed   time.Time `json:"pushed"`
	PushedBy string    `json:"pushedBy,omitempty"`
	Pulled   time.Time `json:"pulled,omitzero"`
	Pulls    int64     `json:"pulls"`
	// Immutable tells that a rule keeps it where it is.
	Immutable bool `json:"immutable"`
}

// TagNames lists a repository's tags in byte order, those after a name.
func (s *Store) TagNames(ctx context.Context, repository, after string, limit int) ([]string, error) {
	rows, err := s.db.QueryContext(ctx, s.db.Q(`SELECT tag FROM index_tags WHERE repository = ? AND `+s.byBytes("tag")+` > ?
		ORDER BY `+s.byBytes("tag")+` LIMIT ?`), repository, after, limit)
	out, err := collect(rows, err, scanOne[string])
	if err != nil {
		return nil, fmt.Errorf("list tags: %w", err)
	}
	return out, nil
}

// Tags lists a repository's tags in byte order, those after a name.
func (s *Store) Tags(ctx context.Context, repository, after string, limit int) ([]Tag, error) {
	rules, err := s.Rules(ctx, repository)
	if err != nil {
		return nil, err
	}
	rows, err := s.db.QueryContext(ctx, s.db.Q(`SELECT t.tag, t.digest, t.seq, m.media_type, m.platform, m.size + COALESCE((SELECT CAST(SUM(b.size) AS BIGINT) FROM index_manifest_blobs b
			WHERE b.repository = t.repository AND b.manifest = t.digest AND b.kind IN ('config', 'layer')), 0), t.pushed, t.pushed_by, m.pulled, m.pulls
		FROM index_tags t JOIN index_manifests m ON m.repository = t.repository AND m.digest = t.digest
		WHERE t.repository = ? AND `+s.byBytes("t.tag")+` > ? ORDER BY `+s.byBytes("t.tag")+` LIMIT ?`), repository, after, min(max(limit, 1), MaxPage))
	out, err := collect(rows, err, func(scan func(...any) error) (Tag, error) {
		var t Tag
		var pushed, pulled int64
		err := scan(&t.Name, &t.Digest, &t.Sequence, &t.MediaType, &t.Platform, &t.Size, &pushed, &t.PushedBy, &pulled, &t.Pulls)
		t.Pushed, t.Pulled, t.Immutable = fromNano(pushed), fromNano(pulled), rules.Immutable(t.Name)
		return t, err
	})
	if err != nil {
		return nil, fmt.Errorf("list tags: %w", err)
	}
	return out, nil
}

// HasRepository tells whether a repository has a manifest.
func (s *Store) HasRepository(ctx context.Context, repository string) (bool, error) {
	return s.exists(ctx, `SELECT 1 FROM index_manifests WHERE repository = ? LIMIT 1`, repository)
}

// HasContent tells whether a manifest of the repository has this content, under whatever digest.
func (s *Store) HasContent(ctx context.Context, repository string, content digest.Digest) (bool, error) {
	return s.exists(ctx, `SELECT 1 FROM index_manifests WHERE content = ? AND repository = ? LIMIT 1`, content, repository)
}

// Repositories lists the repositories that have a manifest, by name, those after a name.
func (s *Store) Repositories(ctx context.Context, after string, limit int) ([]string, error) {
	name := s.byBytes("repository")
	rows, err := s.db.QueryContext(ctx, s.db.Q(`SELECT DISTINCT `+name+` FROM index_manifests WHERE `+name+` > ? ORDER BY 1 LIMIT ?`), after, min(max(limit, 1), MaxPage))
	out, err := collect(rows, err, scanOne[string])
	if err != nil {
		return nil, fmt.Errorf("list repositories: %w", err)
	}
	return out, nil
}

func (s *Store) exists(ctx context.Context, query string, args ...any) (bool, error) {
	var one int
	err := s.db.QueryRowContext(ctx, s.db.Q(query), args...).Scan(&one)
	if errors.Is(err, sql.ErrNoRows) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("read index: %w", err)
	}
	return true, nil
}

// Live tells whether a manifest of the repository, or of any with "", is dgst or needs it; what is not may be collected
// once it is older than PendingFor. dgst is the store's own, canonical one.
func (s *Store) Live(ctx context.Context, repository string, dgst digest.Digest) (bool, error) {
	if repository == "" {
		return s.exists(ctx, `SELECT 1 FROM index_manifests WHERE content = ? UNION ALL SELECT 1 FROM index_manifest_blobs WHERE blob = ? LIMIT 1`, dgst, dgst)
	}
	return s.exists(ctx, `SELECT 1 FROM index_manifests WHERE content = ? AND repository = ?
		UNION ALL SELECT 1 FROM index_manifest_blobs WHERE blob = ? AND repository = ? LIMIT 1`, dgst, repository, dgst, repository)
}

// Move is one change of a tag.
type Move struct {
	Tag      string `json:"tag"`
	Sequence int64  `json:"sequence"`
	// Before is "" for a new tag, After for a deleted one.
	Before digest.Digest `json:"before,omitempty"`
	After  digest.Digest `json:"after,omitempty"`
	Time   time.Time     `json:"time"`
	Actor  string        `json:"actor,omitempty"`
	Cause  string        `json:"cause"`
	// ID orders all moves of a registry; the next page is before it.
	ID int64 `json:"id"`
}

// History lists the changes of a tag, or of all tags with "", the newest first, those before an id (0 is from the newest).
func (s *Store) History(ctx context.Context, repository, tag string, before int64, limit int) ([]Move, error) {
	query, args := `SELECT id, tag, seq, before_digest, after_digest, at, actor, cause FROM index_tag_history WHERE repository = ?`, []any{repository}
	if tag != "" {
		query, args = query+` AND tag = ?`, append(args, tag)
	}
	if before > 0 {
		query, args = query+` AND id < ?`, append(args, before)
	}
	rows, err := s.db.QueryContext(ctx, s.db.Q(query+` ORDER BY id DESC LIMIT ?`), append(args, min(max(limit, 1), MaxPage))...)
	out, err := collect(rows, err, func(scan func(...any) error) (Move, error) {
		var m Move
		var at int64
		err := scan(&m.ID, &m.Tag, &m.Sequence, &m.Before, &m.After, &at, &m.Actor, &m.Cause)
		m.Time = fromNano(at)
		return m, err
	})
	if err != nil {
		return nil, fmt.Errorf("read tag history: %w", err)
	}
	return out, nil
}
