package oci

import (
	"context"
	"encoding/json"
	"fmt"
	"regexp"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"cumulet.io/internal/problem"
	"cumulet.io/registry/index"
)

// maxAttached bounds the facts of one attachment.
const maxAttached = 64

var factName = regexp.MustCompile(`^[a-z0-9]([a-z0-9._-]{0,62}[a-z0-9])?$`)

// Attach stores facts about an image as a referrer of it (image specification 1.1, "subject") and gives its digest; the
// same facts have the same one. kind is index.FactBuild, FactTest (facts name and result) or FactScan. Any client of the
// distribution API can attach the same.
func (r *Registry) Attach(ctx context.Context, name string, image digest.Digest, kind string, facts map[string]string, account string) (digest.Digest, error) {
	m, err := attachment(kind, facts)
	if err != nil {
		return "", err
	}
	e, err := r.cfg.Index.Lookup(ctx, name, image.String())
	if err != nil {
		return "", err
	}
	m.Subject = &v1.Descriptor{MediaType: e.MediaType, Digest: e.Digest, Size: e.Size}
	repo, err := r.repository(ctx, name)
	if err != nil {
		return "", err
	}
	if _, err := repo.Blobs(ctx).Put(ctx, v1.MediaTypeEmptyJSON, v1.DescriptorEmptyJSON.Data); err != nil {
		return "", fmt.Errorf("attach: %w", err)
	}
	body, err := json.Marshal(m)
	if err != nil {
		return "", fmt.Errorf("attach: %w", err)
	}
	p, err := r.newPut(route{end: endManifest, name: name, reference: digest.FromBytes(body).String()}, v1.MediaTypeImageManifest, body)
	if err != nil {
		return "", err
	}
	if err := r.putIn(ctx, p, account); err != nil {
		return "", fmt.Errorf("attach: %w", err)
	}
	return p.m.Digest, nil
}

// attachment makes the manifest that says the facts, without its subject.
func attachment(kind string, facts map[string]string) (*v1.Manifest, error) {
	types := map[string]string{index.FactBuild: index.ArtifactBuild, index.FactTest: index.ArtifactTest, index.FactScan: index.ArtifactScan}
	empty := v1.DescriptorEmptyJSON
	empty.Data = nil
	m := &v1.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageManifest, ArtifactType: types[kind],
		Config: empty, Layers: []v1.Descriptor{empty}, Annotations: map[string]string{}}
	if m.ArtifactType == "" {
		return nil, problem.Invalid("kind", "must be build, test or scan", kind)
	}
	if len(facts) == 0 || len(facts) > maxAttached {
		return nil, problem.Invalid("facts", fmt.Sprintf("must be 1 to %d", maxAttached), len(facts))
	}
	if kind == index.FactTest && (facts["name"] == "" || facts["result"] != "passed" && facts["result"] != "failed" && facts["result"] != "skipped") {
		return nil, problem.Invalid("facts", "of a test must have name, and result: passed, failed or skipped", facts["result"])
	}
	standard := map[string]string{"source": v1.AnnotationSource, "revision": v1.AnnotationRevision, "base": v1.AnnotationBaseImageName,
		"base.digest": v1.AnnotationBaseImageDigest, "version": v1.AnnotationVersion}
	for key, value := range facts {
		if !factName.MatchString(key) {
			return nil, problem.Invalid("facts", "must have names of a-z, 0-9 and inner . _ -, at most 64", key)
		}
		if value == "" || len(value) > 512 {
			return nil, problem.Invalid("facts."+key, "must be 1 to 512 bytes", value)
		}
		if s, ok := standard[key]; ok && kind == index.FactBuild {
			m.Annotations[s] = value
			continue
		}
		m.Annotations[index.AnnotationPrefix+kind+"."+key] = value
	}
	return m, nil
}
