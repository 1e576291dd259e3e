package oci

import (
	"context"
	"errors"
	"net/http"
	"strings"

	"github.com/distribution/distribution/v3"
	"github.com/distribution/distribution/v3/registry/api/errcode"
	"github.com/distribution/distribution/v3/registry/storage/driver"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"

	"cumulet.io/internal/problem"
	"cumulet.io/registry"
	"cumulet.io/registry/hubtoken"
	"cumulet.io/registry/index"
)

// deleteManifest answers DELETE of a manifest or a tag.
func (r *Registry) deleteManifest(w http.ResponseWriter, req *http.Request, rt route) {
	if !r.checkReference(w, req, rt.reference) {
		return
	}
	ctx := req.Context()
	by := actor{name: hubtoken.FromContext(ctx).Subject, address: addressOf(req), cause: index.CauseDelete}
	var err error
	if dgst, ok := asDigest(rt.reference); ok {
		err = r.removeManifest(ctx, rt.name, dgst, by)
	} else {
		err = r.removeTag(ctx, rt.name, rt.reference, by)
	}
	if err != nil {
		r.problem(w, req, "delete manifest", err, errcode.ErrorCodeManifestUnknown)
		return
	}
	w.WriteHeader(http.StatusAccepted)
}

// actor is who changes something, and why.
type actor struct {
	name, address, cause string
	// planned is what a plan of the rules had found, which may not be so any more; nil for what somebody asked for.
	planned *index.Removal
}

// removeTag takes a tag away: its row first, which is the moment it counts, then its link in the store. What a crash
// leaves of the link a rebuild of the index passes over, since the tag has a history.
func (r *Registry) removeTag(ctx context.Context, name, tag string, by actor) error {
	if _, err := r.cfg.Index.Lookup(ctx, name, tag); err != nil {
		return err
	}
	if err := r.cfg.Index.Deletable(ctx, name, tag, ""); err != nil {
		return err
	}
	if err := r.audit(ctx, by, "tag.delete", name, name+":"+tag); err != nil {
		return err
	}
	dgst, err := r.cfg.Index.DeleteTag(ctx, name, tag, by.name, by.cause, by.planned)
	if err != nil {
		return err
	}
	ctx = context.WithoutCancel(ctx)
	repo, err := r.repository(ctx, name)
	if err != nil {
		return err
	}
	if err := untag(ctx, repo, tag); err != nil {
		return err
	}
	return r.announce(ctx, registry.Event{Type: registry.EventDelete, Repository: name, Digest: dgst.String(), Tag: tag, Actor: by.name,
		Data: map[string]string{"cause": by.cause}})
}

// removeManifest takes a manifest and its tags away: their rows first, then the links in the store. Its blobs are for
// garbage collection to take.
func (r *Registry) removeManifest(ctx context.Context, name string, dgst digest.Digest, by actor) error {
	e, err := r.cfg.Index.Lookup(ctx, name, dgst.String())
	if err != nil {
		return err
	}
	if err := r.cfg.Index.Deletable(ctx, name, "", dgst); err != nil {
		return err
	}
	if err := r.audit(ctx, by, "manifest.delete", name, name+"@"+dgst.String()); err != nil {
		return err
	}
	m, tags, err := r.cfg.Index.Delete(ctx, name, dgst, by.name, by.cause, by.planned)
	if err != nil {
		return err
	}
	ctx = context.WithoutCancel(ctx)
	repo, err := r.repository(ctx, name)
	if err != nil {
		return err
	}
	for _, tag := range tags {
		if err := untag(ctx, repo, tag); err != nil {
			return err
		}
	}
	if err := r.dropContent(ctx, repo, e.Content); err != nil {
		return err
	}
	event := registry.Event{Type: registry.EventDelete, Repository: name, Digest: dgst.String(), MediaType: m.MediaType, Size: m.Size, Actor: by.name,
		Data: map[string]string{"cause": by.cause}}
	if len(tags) > 0 {
		event.Data["tags"] = strings.Join(tags, ",")
	}
	return r.announce(ctx, event)
}

// dropContent takes a manifest's link out of the store, unless the same content is there under a digest of another
// algorithm, or was pushed anew meanwhile. A push whose row comes after the last look here finds the link missing itself
// (see keepContent).
func (r *Registry) dropContent(ctx context.Context, repo distribution.Repository, content digest.Digest) error {
	used := func() (bool, error) { return r.cfg.Index.HasContent(ctx, repo.Named().Name(), content) }
	if is, err := used(); err != nil || is {
		return err
	}
	manifests, err := repo.Manifests(ctx)
	if err != nil {
		return err
	}
	manifest, err := manifests.Get(ctx, content)
	if gone(err) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := manifests.Delete(ctx, content); err != nil && !gone(err) {
		return err
	}
	if is, err := used(); err != nil || !is {
		return err
	}
	_, err = manifests.Put(ctx, manifest)
	return err
}

// gone tells of errors that say that something is not in the store.
func gone(err error) bool {
	var path driver.PathNotFoundError
	var revision distribution.ErrManifestUnknownRevision
	var unknown distribution.ErrRepositoryUnknown
	var tag distribution.ErrTagUnknown
	return errors.Is(err, distribution.ErrBlobUnknown) || errors.As(err, &path) || errors.As(err, &revision) ||
		errors.As(err, &unknown) || errors.As(err, &tag)
}

func untag(ctx context.Context, repo distribution.Repository, tag string) error {
	if err := repo.Tags(ctx).Untag(ctx, tag); err != nil && !gone(err) {
		return err
	}
	return nil
}

// deleteRows takes the rows of all manifests of a repository away, with their tags.
func (r *Registry) deleteRows(ctx context.Context, name, account string) error {
	for {
		page, err := r.cfg.Index.Manifests(ctx, name, "", index.MaxPage)
		if err != nil || len(page) == 0 {
			return err
		}
		for _, m := range page {
			if _, _, err := r.cfg.Index.Delete(ctx, name, m.Digest, account, index.CauseDelete, nil); err != nil && !errors.Is(err, problem.ErrNotFound) {
				return err
			}
		}
	}
}

// DeleteRepository takes everything of a repository away, its immutable tags too; its row in the directory is the
// caller's, before or after. The blobs are for garbage collection to take.
func (r *Registry) DeleteRepository(ctx context.Context, name, account string) error {
	rules, err := r.cfg.Index.Rules(ctx, name)
	if err != nil {
		return err
	}
	if len(rules.ImmutableTags) > 0 {
		if err := r.cfg.Index.SetRules(ctx, name, account, &index.Rules{}); err != nil {
			return err
		}
	}
	if err := r.deleteRows(ctx, name, account); err != nil {
		return err
	}
	remover, ok := r.store.(distribution.RepositoryRemover)
	if !ok {
		return nil
	}
	named, err := reference.WithName(name)
	if err != nil {
		return err
	}
	if err := remover.Remove(ctx, named); err != nil && !gone(err) {
		return err
	}
	r.links.forgetAll()
	// What was pushed between the two has lost its content.
	if err := r.deleteRows(ctx, name, account); err != nil {
		return err
	}
	return r.announce(ctx, registry.Event{Type: registry.EventDelete, Repository: name, Actor: account, Data: map[string]string{"cause": index.CauseDelete}})
}
