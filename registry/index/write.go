package index

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"

	"github.com/opencontainers/go-digest"

	"cumulet.io/internal/problem"
)

// PutRequest is for Put.
type PutRequest struct {
	Manifest *Manifest
	// Tag is moved to the manifest; "" is none.
	Tag string
	// Actor is the account that pushes, Cause CausePush or CauseImport.
	Actor, Cause string
	// MaxBytes bounds what the org uses afterwards; 0 is no bound.
	MaxBytes int64
}

// PutResult tells what Put changed.
type PutResult struct {
	// New tells that the manifest was not there.
	New bool
	// Before is the digest that the tag had, "" for a new one. Moved tells that it has another one now.
	Before digest.Digest
	Moved  bool
	// Used is what the org uses afterwards, and Added how much of it is new.
	Used, Added int64
}

// Put enters a manifest and moves a tag to it, both or neither. Safe to repeat. ErrForbidden for a tag that may not be
// moved, ErrExhausted when the org would use more than MaxBytes.
func (s *Store) Put(ctx context.Context, req PutRequest) (PutResult, error) {
	m := req.Manifest
	var out PutResult
	annotations, err := text(m.Annotations)
	if err != nil {
		return out, fmt.Errorf("put manifest: %w", err)
	}
	labels, err := text(m.Labels)
	if err != nil {
		return out, fmt.Errorf("put manifest: %w", err)
	}
	org, _, _ := strings.Cut(m.Repository, "/")
	now := s.now().UnixNano()
	err = s.db.InTx(ctx, func(tx *sql.Tx) error {
		// The org's row comes first: it puts an org's writers in a line.
		used, err := s.lockUsage(ctx, tx, org)
		if err != nil {
			return err
		}
		res, err := tx.ExecContext(ctx, s.db.Q(`INSERT INTO index_manifests (repository, digest, org, content, media_type, artifact_type, size, subject,
			annotations, platform, created, labels, pushed, pushed_by, pulled, pulls)
			VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 0, 0) ON CONFLICT (repository, digest) DO NOTHING`),
			m.Repository, m.Digest, org, m.Content, m.MediaType, m.ArtifactType, m.Size, m.Subject, annotations, m.Platform, toNano(m.Created), labels, now, req.Actor)
		if err != nil {
			return err
		}
		n, err := res.RowsAffected()
		if err != nil {
			return err
		}
		if out.New = n == 1; out.New {
			if out.Added, err = s.addBlobs(ctx, tx, org, m); err != nil {
				return err
			}
			if err := s.addFacts(ctx, tx, org, m, req.Actor); err != nil {
				return err
			}
		} else if _, err := tx.ExecContext(ctx, s.db.Q(`UPDATE index_manifests SET pushed = ? WHERE repository = ? AND digest = ?`), now, m.Repository, m.Digest); err != nil {
			return err
		}
		out.Used = used + out.Added
		if req.MaxBytes > 0 && out.Added > 0 && out.Used > req.MaxBytes {
			return overQuota(org, out.Used, req.MaxBytes)
		}
		if out.Added != 0 {
			if err := s.addUsage(ctx, tx, org, out.Added); err != nil {
				return err
			}
		}
		if req.Tag == "" {
			return nil
		}
		out.Before, out.Moved, err = s.moveTag(ctx, tx, m.Repository, req.Tag, m.Digest, req.Actor, req.Cause)
		return err
	})
	s.forget(m.Repository, req.Tag, m.Digest.String())
	if err != nil {
		return PutResult{Used: out.Used}, fmt.Errorf("put manifest: %w", err)
	}
	return out, nil
}

func overQuota(org string, used, limit int64) error {
	return problem.New(problem.ErrExhausted, "the organisation %q may store %d bytes and would use %d: delete images or ask for more", org, limit, used)
}

// moveTag points a tag at a digest and writes its history.
func (s *Store) moveTag(ctx context.Context, tx *sql.Tx, repository, tag string, to digest.Digest, actor, cause string) (before digest.Digest, moved bool, err error) {
	now := s.now().UnixNano()
	before, err = s.tagDigest(ctx, tx, repository, tag)
	if err != nil {
		return "", false, err
	}
	if before == to {
		_, err = tx.ExecContext(ctx, s.db.Q(`UPDATE index_tags SET pushed = ?, pushed_by = ? WHERE repository = ? AND tag = ?`), now, actor, repository, tag)
		return before, false, err
	}
	if cause == CauseImport {
		// What the index has known once it knows better than the store.
		var known bool
		if err := tx.QueryRowContext(ctx, s.db.Q(`SELECT COUNT(*) > 0 FROM index_tag_history WHERE repository = ? AND tag = ?`), repository, tag).Scan(&known); err != nil || known {
			return before, false, err
		}
	}
	if before != "" {
		rules, err := s.rules(ctx, tx, repository)
		if err != nil {
			return "", false, err
		}
		if rules.Immutable(tag) {
			return before, false, ImmutableTag(repository, tag)
		}
	}
	seq, err := s.writeHistory(ctx, tx, repository, tag, before, to, actor, cause)
	if err != nil {
		return "", false, err
	}
	_, err = tx.ExecContext(ctx, s.db.Q(`INSERT INTO index_tags (repository, tag, digest, seq, pushed, pushed_by) VALUES (?, ?, ?, ?, ?, ?)
		ON CONFLICT (repository, tag) DO UPDATE SET digest = excluded.digest, seq = excluded.seq, pushed = excluded.pushed, pushed_by = excluded.pushed_by`),
		repository, tag, to, seq, now, actor)
	return before, true, err
}

// ImmutableTag is the error for a tag that a rule keeps where it is.
func ImmutableTag(repository, tag string) error {
	return problem.New(problem.ErrForbidden, "the tag %q of %s is immutable: push under another tag", tag, repository)
}

// tagDigest gives where a tag is, "" when there is none.
func (s *Store) tagDigest(ctx context.Context, tx *sql.Tx, repository, tag string) (digest.Digest, error) {
	var dgst digest.Digest
	err := tx.QueryRowContext(ctx, s.db.Q(`SELECT digest FROM index_tags WHERE repository = ? AND tag = ?`), repository, tag).Scan(&dgst)
	if errors.Is(err, sql.ErrNoRows) {
		return "", nil
	}
	return dgst, err
}

func (s *Store) writeHistory(ctx context.Context, tx *sql.Tx, repository, tag string, before, after digest.Digest, actor, cause string) (seq int64, err error) {
	if err := tx.QueryRowContext(ctx, s.db.Q(`SELECT COALESCE(MAX(seq), 0) + 1 FROM index_tag_history WHERE repository = ? AND tag = ?`), repository, tag).Scan(&seq); err != nil {
		return 0, err
	}
	_, err = tx.ExecContext(ctx, s.db.Q(`INSERT INTO index_tag_history (repository, tag, seq, before_digest, after_digest, at, actor, cause) VALUES (?, ?, ?, ?, ?, ?, ?, ?)`),
		repository, tag, seq, before, after, s.now().UnixNano(), actor, cause)
	return seq, err
}

// DeleteTag takes a tag away and gives the digest it had. ErrNotFound when there is none, or when it was planned and is
// not due any more; nil is no plan. ErrForbidden when it is immutable.
func (s *Store) DeleteTag(ctx context.Context, repository, tag, actor, cause string, planned *Removal) (digest.Digest, error) {
	var before digest.Digest
	org, _, _ := strings.Cut(repository, "/")
	err := s.db.InTx(ctx, func(tx *sql.Tx) (err error) {
		if _, err = s.lockUsage(ctx, tx, org); err != nil {
			return err
		}
		if before, err = s.tagDigest(ctx, tx, repository, tag); err != nil {
			return err
		}
		if before == "" {
			return tagUnknown(repository, tag)
		}
		if err := s.stillDue(ctx, tx, repository, planned); err != nil {
			return err
		}
		return s.dropTags(ctx, tx, repository, tag, []string{tag}, before, actor, cause)
	})
	s.forget(repository, tag)
	if err != nil {
		return "", fmt.Errorf("delete tag: %w", err)
	}
	return before, nil
}

// Deletable gives the error that deleting a tag, or with "" a manifest with its tags, would meet for an immutable tag.
func (s *Store) Deletable(ctx context.Context, repository, tag string, dgst digest.Digest) error {
	rules, err := s.Rules(ctx, repository)
	if err != nil || len(rules.ImmutableTags) == 0 {
		return err
	}
	tags := []string{tag}
	if tag == "" {
		rows, err := s.db.QueryContext(ctx, s.db.Q(`SELECT tag FROM index_tags WHERE repository = ? AND digest = ?`), repository, dgst)
		if tags, err = collect(rows, err, scanOne[string]); err != nil {
			return fmt.Errorf("read tags: %w", err)
		}
	}
	return rules.deletable(repository, tags)
}

func (r *Rules) deletable(repository string, tags []string) error {
	for _, tag := range tags {
		if r.Immutable(tag) {
			return problem.New(problem.ErrForbidden, "the tag %q of %s is immutable: change the repository's rules first", tag, repository)
		}
	}
	return nil
}

// dropTags takes tags away that point to a digest: one, or with "" all of them.
func (s *Store) dropTags(ctx context.Context, tx *sql.Tx, repository, tag string, tags []string, before digest.Digest, actor, cause string) error {
	rules, err := s.rules(ctx, tx, repository)
	if err != nil {
		return err
	}
	if err := rules.deletable(repository, tags); err != nil {
		return err
	}
	where, args := ` WHERE t.repository = ? AND t.digest = ?`, []any{repository, before}
	if tag != "" {
		where, args = where+` AND t.tag = ?`, append(args, tag)
	}
	if _, err := tx.ExecContext(ctx, s.db.Q(`INSERT INTO index_tag_history (repository, tag, seq, before_digest, after_digest, at, actor, cause)
		SELECT t.repository, t.tag, (SELECT COALESCE(MAX(h.seq), 0) + 1 FROM index_tag_history h WHERE h.repository = t.repository AND h.tag = t.tag),
			t.digest, '', CAST(? AS BIGINT), CAST(? AS TEXT), CAST(? AS TEXT) FROM index_tags t`+where),
		append([]any{s.now().UnixNano(), actor, cause}, args...)...); err != nil {
		return err
	}
	_, err = tx.ExecContext(ctx, s.db.Q(`DELETE FROM index_tags AS t`+where), args...)
	return err
}

// Delete takes a manifest away with the tags that point to it, and gives it and them. ErrNotFound when there is none, or
// when it was planned and is not due any more; nil is no plan. ErrForbidden when one of the tags is immutable.
func (s *Store) Delete(ctx context.Context, repository string, dgst digest.Digest, actor, cause string, planned *Removal) (m *Manifest, tags []string, err error) {
	org, _, _ := strings.Cut(repository, "/")
	err = s.db.InTx(ctx, func(tx *sql.Tx) error {
		if _, err := s.lockUsage(ctx, tx, org); err != nil {
			return err
		}
		m, err = scanManifest(tx.QueryRowContext(ctx, s.db.Q(`SELECT `+manifestColumns+` FROM index_manifests m WHERE m.repository = ? AND m.digest = ?`), repository, dgst).Scan)
		if errors.Is(err, sql.ErrNoRows) {
			return manifestUnknown(repository, dgst)
		}
		if err != nil {
			return err
		}
		if err := s.stillDue(ctx, tx, repository, planned); err != nil {
			return err
		}
		rows, err := tx.QueryContext(ctx, s.db.Q(`SELECT tag FROM index_tags WHERE repository = ? AND digest = ?`), repository, dgst)
		if tags, err = collect(rows, err, scanOne[string]); err != nil {
			return err
		}
		if err := s.dropTags(ctx, tx, repository, "", tags, dgst, actor, cause); err != nil {
			return err
		}
		freed, err := s.dropBlobs(ctx, tx, org, m)
		if err != nil {
			return err
		}
		if err := s.addUsage(ctx, tx, org, -freed); err != nil {
			return err
		}
		for _, statement := range []string{`DELETE FROM index_facts WHERE repository = ? AND source = ?`,
			`DELETE FROM index_manifest_blobs WHERE repository = ? AND manifest = ?`,
			`DELETE FROM index_manifests WHERE repository = ? AND digest = ?`} {
			if _, err := tx.ExecContext(ctx, s.db.Q(statement), repository, dgst); err != nil {
				return err
			}
		}
		return nil
	})
	s.forget(repository, append([]string{dgst.String()}, tags...)...)
	if err != nil {
		return nil, nil, fmt.Errorf("delete manifest: %w", err)
	}
	return m, tags, nil
}

func scanOne[T any](scan func(...any) error) (T, error) {
	var v T
	return v, scan(&v)
}
