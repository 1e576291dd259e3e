package oci

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/distribution/distribution/v3"
	"github.com/opencontainers/go-digest"

	"cumulet.io/internal/problem"
	"cumulet.io/registry/index"
)

// fillIndex enters what a store holds that is older than its index, once.
func (r *Registry) fillIndex(ctx context.Context) error {
	complete, err := r.cfg.Index.Complete(ctx)
	if err != nil || complete {
		return err
	}
	if _, err := r.Reindex(ctx); err != nil {
		return err
	}
	return r.cfg.Index.SetComplete(ctx)
}

// Reindexed tells what Reindex did.
type Reindexed struct{ Manifests, Tags, Dropped int }

// Reindex makes the index agree with the store: manifests that it does not know are entered, rows whose content is gone
// are dropped, and tags that it has never known are taken from the store. Of a tag that it has known it knows better.
// Safe to repeat, to break off, and while the registry serves.
func (r *Registry) Reindex(ctx context.Context) (Reindexed, error) {
	var out Reindexed
	if err := r.dropMissing(ctx, &out); err != nil {
		return out, fmt.Errorf("reindex: %w", err)
	}
	enumerator, ok := r.store.(distribution.RepositoryEnumerator)
	if !ok {
		return out, errors.New("reindex: the store cannot list repositories")
	}
	var names []string
	err := enumerator.Enumerate(ctx, func(name string) error {
		if validName(name) {
			names = append(names, name)
		}
		return nil
	})
	if err != nil && !gone(err) {
		return out, fmt.Errorf("reindex: %w", err)
	}
	for _, name := range names {
		if err := r.reindex(ctx, name, &out); err != nil {
			return out, fmt.Errorf("reindex %s: %w", name, err)
		}
	}
	return out, nil
}

func (r *Registry) reindex(ctx context.Context, name string, out *Reindexed) error {
	repo, err := r.repository(ctx, name)
	if err != nil {
		return err
	}
	manifests, err := repo.Manifests(ctx)
	if err != nil {
		return err
	}
	lister, ok := manifests.(distribution.ManifestEnumerator)
	if !ok {
		return errors.New("the store cannot list manifests")
	}
	var digests []digest.Digest
	err = lister.Enumerate(ctx, func(dgst digest.Digest) error {
		digests = append(digests, dgst)
		return nil
	})
	if err != nil && !gone(err) {
		return err
	}
	for _, dgst := range digests {
		if err := r.importManifest(ctx, repo, dgst, "", out); err != nil {
			return err
		}
	}
	tags, err := repo.Tags(ctx).All(ctx)
	if err != nil && !gone(err) {
		return err
	}
	for _, tag := range tags {
		desc, err := repo.Tags(ctx).Get(ctx, tag)
		if gone(err) {
			continue // begun and never finished
		}
		if err != nil {
			return err
		}
		if err := r.importManifest(ctx, repo, desc.Digest, tag, out); err != nil {
			return err
		}
	}
	if len(digests) == 0 {
		return nil
	}
	if _, err := r.cfg.Directory.Repository(ctx, name); errors.Is(err, problem.ErrNotFound) {
		if err := r.cfg.Directory.Pushed(ctx, name, ""); err != nil && !errors.Is(err, problem.ErrNotFound) {
			return err
		}
	}
	return nil
}

// importManifest enters one manifest and, where the index has never known it, a tag.
func (r *Registry) importManifest(ctx context.Context, repo distribution.Repository, dgst digest.Digest, tag string, out *Reindexed) error {
	name := repo.Named().Name()
	if tag == "" {
		if _, err := r.cfg.Index.Lookup(ctx, name, dgst.String()); !errors.Is(err, problem.ErrNotFound) {
			return err
		}
	}
	manifests, err := repo.Manifests(ctx)
	if err != nil {
		return err
	}
	manifest, err := manifests.Get(ctx, dgst)
	if gone(err) {
		return nil
	}
	if err != nil {
		r.cfg.Logger.WarnContext(ctx, "a manifest in the store is not entered", "repository", name, "digest", dgst, "error", err)
		return nil
	}
	mediaType, body, err := manifest.Payload()
	if err != nil {
		return err
	}
	m, err := index.Parse(mediaType, body)
	if err != nil {
		r.cfg.Logger.WarnContext(ctx, "a manifest in the store is not entered", "repository", name, "digest", dgst, "error", err)
		return nil
	}
	m.Repository = name
	if err := r.describe(ctx, repo, m); err != nil {
		return err
	}
	done, err := r.cfg.Index.Put(ctx, index.PutRequest{Manifest: m, Tag: tag, Cause: index.CauseImport})
	if err != nil {
		return err
	}
	if done.New {
		out.Manifests++
		// It may have been deleted since it was read: then the row goes again.
		if _, err := manifests.Get(ctx, dgst); gone(err) {
			_, _, err := r.cfg.Index.Delete(ctx, name, m.Digest, "", index.CauseImport, nil)
			return err
		}
	}
	if done.Moved {
		out.Tags++
	}
	return nil
}

// dropMissing drops rows whose content the store does not have, as after it was restored from an older copy.
func (r *Registry) dropMissing(ctx context.Context, out *Reindexed) error {
	for after := ""; ; {
		names, err := r.cfg.Index.Repositories(ctx, after, index.MaxPage)
		if err != nil || len(names) == 0 {
			return err
		}
		for _, name := range names {
			if err := r.dropMissingOf(ctx, name, out); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
		}
		after = names[len(names)-1]
	}
}

func (r *Registry) dropMissingOf(ctx context.Context, name string, out *Reindexed) error {
	repo, err := r.repository(ctx, name)
	if err != nil {
		return err
	}
	manifests, err := repo.Manifests(ctx)
	if err != nil {
		return err
	}
	for after := digest.Digest(""); ; {
		page, err := r.cfg.Index.Manifests(ctx, name, after, index.MaxPage)
		if err != nil || len(page) == 0 {
			return err
		}
		for _, m := range page {
			after = m.Digest
			if ok, err := manifests.Exists(ctx, m.Content); err != nil || ok {
				if err != nil && !gone(err) {
					return err
				}
				if ok {
					continue
				}
			}
			r.cfg.Logger.WarnContext(ctx, "a manifest is gone from the store", "repository", name, "digest", m.Digest)
			if err := r.forceDelete(ctx, name, m.Digest); err != nil {
				return err
			}
			out.Dropped++
		}
	}
}

func (r *Registry) forceDelete(ctx context.Context, name string, dgst digest.Digest) error {
	_, _, err := r.cfg.Index.Delete(ctx, name, dgst, "", index.CauseImport, nil)
	if errors.Is(err, problem.ErrNotFound) {
		return nil
	}
	return err
}

// orgOf is the part of a repository's name that says whose it is.
func orgOf(repository string) string {
	org, _, _ := strings.Cut(repository, "/")
	return org
}
