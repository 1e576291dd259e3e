package oci

import (
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/distribution/distribution/v3"
	"github.com/distribution/distribution/v3/registry/api/errcode"
	"github.com/google/uuid"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"cumulet.io/internal/problem"
	"cumulet.io/registry"
	"cumulet.io/registry/hubtoken"
)

// recordedRepository records pushes: the repository's row once a manifest is stored and before it is tagged, the event
// last. A fault between them fails the push, and the client's retry mends it.
type recordedRepository struct {
	distribution.Repository
	registry *Registry
}

// Manifests implements distribution.Repository.
func (r *recordedRepository) Manifests(ctx context.Context, options ...distribution.ManifestServiceOption) (distribution.ManifestService, error) {
	m, err := r.Repository.Manifests(ctx, options...)
	if err != nil {
		return nil, err
	}
	return &recordedManifests{ManifestService: m, repository: r}, nil
}

// Tags implements distribution.Repository.
func (r *recordedRepository) Tags(ctx context.Context) distribution.TagService {
	return &recordedTags{TagService: r.Repository.Tags(ctx), repository: r}
}

type recordedManifests struct {
	distribution.ManifestService
	repository *recordedRepository
}

// Put implements distribution.ManifestService.
func (m *recordedManifests) Put(ctx context.Context, manifest distribution.Manifest, options ...distribution.ManifestServiceOption) (digest.Digest, error) {
	dgst, err := m.ManifestService.Put(ctx, manifest, options...)
	if err != nil {
		return dgst, err
	}
	name, reg := m.repository.Named().Name(), m.repository.registry
	if err := reg.cfg.Directory.Pushed(ctx, name, hubtoken.FromContext(ctx).Subject); err != nil {
		return "", reg.failPush(ctx, "record push", name, err)
	}
	tagged := slices.ContainsFunc(options, func(o distribution.ManifestServiceOption) bool {
		_, ok := o.(distribution.WithTagOption)
		return ok
	})
	if tagged {
		return dgst, nil // its event comes with the tag
	}
	mediaType, payload, err := manifest.Payload()
	if err != nil {
		return "", reg.failPush(ctx, "read manifest", name, err)
	}
	return dgst, m.repository.announce(ctx, v1.Descriptor{Digest: dgst, MediaType: mediaType, Size: int64(len(payload))}, "")
}

type recordedTags struct {
	distribution.TagService
	repository *recordedRepository
}

// Tag implements distribution.TagService.
func (t *recordedTags) Tag(ctx context.Context, tag string, desc v1.Descriptor) error {
	if err := t.TagService.Tag(ctx, tag, desc); err != nil {
		return err
	}
	return t.repository.announce(ctx, desc, tag)
}

// List implements distribution.TagService. The core makes a tag's directory before the tag: what a crash left between
// the two, or a push is about to fill, is not listed.
func (t *recordedTags) List(ctx context.Context, limit int, last string) ([]string, error) {
	var out []string
	for {
		page, err := t.TagService.List(ctx, limit, last)
		if err != nil && !errors.Is(err, io.EOF) {
			return nil, err
		}
		for _, tag := range page {
			last = tag
			var unknown distribution.ErrTagUnknown
			switch _, getErr := t.Get(ctx, tag); {
			case errors.As(getErr, &unknown):
				continue
			case getErr != nil:
				return nil, getErr
			}
			if out = append(out, tag); len(out) == limit {
				return out, nil
			}
		}
		if err != nil || len(page) == 0 {
			return out, io.EOF // the core's sign for the last page
		}
	}
}

func (r *recordedRepository) announce(ctx context.Context, desc v1.Descriptor, tag string) error {
	org, _, _ := strings.Cut(r.Named().Name(), "/")
	id, err := uuid.NewV7()
	if err == nil {
		err = r.registry.cfg.Outbox.Emit(ctx, registry.Event{ID: id.String(), Type: registry.EventPush, Time: time.Now().UTC(), Org: org, Repository: r.Named().Name(),
			Digest: desc.Digest.String(), MediaType: desc.MediaType, Size: desc.Size, Tag: tag,
			Actor: hubtoken.FromContext(ctx).Subject})
	}
	if err != nil {
		return r.registry.failPush(ctx, "announce push", r.Named().Name(), err)
	}
	return nil
}

// failPush logs the cause and gives what the client may know.
func (r *Registry) failPush(ctx context.Context, operation, repository string, err error) error {
	if errors.Is(err, problem.ErrNotFound) || errors.Is(err, problem.ErrInvalid) {
		return errcode.ErrorCodeDenied.WithMessage("there is no such organisation")
	}
	r.cfg.Logger.ErrorContext(ctx, "push failed", "operation", operation, "repository", repository, "error", err)
	return errcode.ErrorCodeUnavailable.WithMessage("the push could not be recorded: try again")
}
