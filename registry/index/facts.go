package index

import (
	"context"
	"database/sql"
	"fmt"
	"maps"
	"slices"
	"strings"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/opencontainers/go-digest"

	"cumulet.io/internal/problem"
)

// Artifact types of facts about an image: referrers whose annotations say it all. Their keys begin with
// AnnotationPrefix and the kind, as "io.cumulet.test.result".
const (
	ArtifactBuild    = "application/vnd.cumulet.build.v1+json"
	ArtifactTest     = "application/vnd.cumulet.test.v1+json"
	ArtifactScan     = "application/vnd.cumulet.scan.v1+json"
	AnnotationPrefix = "io.cumulet."
)

// Kinds of facts.
const (
	FactBuild      = "build" // by, source, revision, base, base.digest and what a build adds
	FactTest       = "test"  // a test's name: passed or failed
	FactScan       = "scan"  // critical, high, …: how many
	FactSBOM       = "sbom"  // a format: the digest of the document's manifest
	FactSignature  = "signature"
	FactProvenance = "provenance"
	FactLabel      = "label"
)

const (
	maxFacts     = 128
	maxFactName  = 128
	maxFactValue = 512
)

// Fact is something known of an image.
type Fact struct {
	Kind  string `json:"kind"`
	Name  string `json:"name"`
	Value string `json:"value"`
	// Source is the manifest that says so: the image's own, or a referrer's.
	Source digest.Digest `json:"source"`
}

// attachments are well-known artifact types of referrers.
func attachments() map[string][2]string {
	return map[string][2]string{
		"application/spdx+json":                              {FactSBOM, "spdx"},
		"text/spdx":                                          {FactSBOM, "spdx"},
		"application/vnd.cyclonedx+json":                     {FactSBOM, "cyclonedx"},
		"application/vnd.cyclonedx+xml":                      {FactSBOM, "cyclonedx"},
		"application/vnd.syft+json":                          {FactSBOM, "syft"},
		"application/vnd.in-toto+json":                       {FactProvenance, "in-toto"},
		"application/vnd.dev.cosign.artifact.sig.v1+json":    {FactSignature, "cosign"},
		"application/vnd.dev.sigstore.bundle.v0.3+json":      {FactSignature, "sigstore"},
		"application/vnd.cncf.notary.signature":              {FactSignature, "notary"},
		"application/vnd.dev.cosign.artifact.sbom.v1+json":   {FactSBOM, "cosign"},
		"application/vnd.dev.sigstore.bundle+json;version=1": {FactSignature, "sigstore"},
	}
}

// standard are the image specification's pre-defined annotations that say how an image was built.
func standard() map[string]string {
	return map[string]string{v1.AnnotationSource: "source", v1.AnnotationRevision: "revision", v1.AnnotationBaseImageName: "base",
		v1.AnnotationBaseImageDigest: "base.digest", v1.AnnotationVersion: "version"}
}

// Facts gives what a manifest says: of itself, or of its subject when it has one.
func (m *Manifest) Facts() []Fact {
	var out []Fact
	add := func(kind, name, value string) {
		name, value = cut(name, maxFactName), cut(value, maxFactValue)
		known := slices.ContainsFunc(out, func(f Fact) bool { return f.Kind == kind && f.Name == name })
		if name != "" && value != "" && !known && len(out) < maxFacts {
			out = append(out, Fact{Kind: kind, Name: name, Value: value, Source: m.Digest})
		}
	}
	ofBuild := func(texts map[string]string) {
		for key, name := range standard() {
			add(FactBuild, name, texts[key])
		}
	}
	keys := slices.Sorted(maps.Keys(m.Annotations))
	own := func(kind string) {
		for _, k := range keys {
			if name, ok := strings.CutPrefix(k, AnnotationPrefix+kind+"."); ok {
				add(kind, name, m.Annotations[k])
			}
		}
	}
	switch {
	case m.Subject == "":
		ofBuild(m.Annotations)
		ofBuild(m.Labels)
		for _, k := range slices.Sorted(maps.Keys(m.Labels)) {
			add(FactLabel, k, m.Labels[k])
		}
	case m.ArtifactType == ArtifactBuild:
		ofBuild(m.Annotations)
		own(FactBuild)
	case m.ArtifactType == ArtifactScan:
		own(FactScan)
	case m.ArtifactType == ArtifactTest:
		add(FactTest, m.Annotations[AnnotationPrefix+"test.name"], m.Annotations[AnnotationPrefix+"test.result"])
	default:
		if a, ok := attachments()[m.ArtifactType]; ok {
			add(a[0], a[1], m.Digest.String())
		}
	}
	return out
}

func (s *Store) addFacts(ctx context.Context, tx *sql.Tx, org string, m *Manifest, actor string) error {
	facts, image := m.Facts(), m.Digest
	if m.Subject != "" {
		image = m.Subject
	}
	if actor != "" && (m.Subject == "" || m.ArtifactType == ArtifactBuild) {
		// Who pushed is the registry's own knowledge, whatever a build says of itself.
		name := "pushed-by"
		if m.Subject != "" {
			name = "attached-by"
		}
		facts = append(facts, Fact{Kind: FactBuild, Name: name, Value: actor})
	}
	for _, f := range facts {
		if _, err := tx.ExecContext(ctx, s.db.Q(`INSERT INTO index_facts (repository, image, source, org, kind, name, value) VALUES (?, ?, ?, ?, ?, ?, ?)
			ON CONFLICT (repository, image, source, kind, name) DO UPDATE SET value = excluded.value`), m.Repository, image, m.Digest, org, f.Kind, f.Name, f.Value); err != nil {
			return err
		}
	}
	return nil
}

// FactsOf lists what is known of an image, by kind and name.
func (s *Store) FactsOf(ctx context.Context, repository string, image digest.Digest) ([]Fact, error) {
	rows, err := s.db.QueryContext(ctx, s.db.Q(`SELECT kind, name, value, source FROM index_facts WHERE repository = ? AND image = ?
		ORDER BY kind, name, source LIMIT 10000`), repository, image)
	out, err := collect(rows, err, func(scan func(...any) error) (Fact, error) {
		var f Fact
		return f, scan(&f.Kind, &f.Name, &f.Value, &f.Source)
	})
	if err != nil {
		return nil, fmt.Errorf("list facts: %w", err)
	}
	return out, nil
}

// Condition is one that Find's images meet: they have a fact of a kind, of a name and of a value where these are not
// "", or with Not they have none.
type Condition struct {
	Kind, Name, Value string
	Not               bool
}

// ParseCondition reads "[!]kind[:name[=value]]", as "test:unit=passed", "!sbom".
func ParseCondition(text string) (Condition, error) {
	var c Condition
	rest, not := strings.CutPrefix(text, "!")
	c.Not = not
	var named bool
	c.Kind, rest, named = strings.Cut(rest, ":")
	c.Name, c.Value, _ = strings.Cut(rest, "=")
	kinds := []string{FactBuild, FactTest, FactScan, FactSBOM, FactSignature, FactProvenance, FactLabel}
	if !slices.Contains(kinds, c.Kind) || named && c.Name == "" || len(text) > maxFactName+maxFactValue || strings.ContainsRune(text, 0) {
		return c, problem.Invalid("fact", "must be [!]kind[:name[=value]] with a kind of "+strings.Join(kinds, ", "), text)
	}
	return c, nil
}

// Image is an image that Find or UsedBy found.
type Image struct {
	Repository string        `json:"repository"`
	Digest     digest.Digest `json:"digest"`
	Tags       []string      `json:"tags"`
	MediaType  string        `json:"mediaType"`
	Platform   string        `json:"platform,omitempty"`
}

// maxConditions bounds a query.
const maxConditions = 16

// Find lists the org's images that meet all conditions, by repository and digest, those after (repository, digest).
func (s *Store) Find(ctx context.Context, org string, conditions []Condition, afterRepository string, after digest.Digest, limit int) ([]Image, error) {
	if len(conditions) > maxConditions {
		return nil, problem.Invalid("fact", fmt.Sprintf("must be given at most %d times", maxConditions), len(conditions))
	}
	query, args := `WHERE m.org = ? AND m.subject = ''`, []any{org}
	for _, c := range conditions {
		not := ""
		if c.Not {
			not = "NOT "
		}
		query += ` AND ` + not + `EXISTS (SELECT 1 FROM index_facts f WHERE f.org = m.org AND f.repository = m.repository AND f.image = m.digest AND f.kind = ?`
		args = append(args, c.Kind)
		if c.Name != "" {
			query, args = query+` AND f.name = ?`, append(args, c.Name)
		}
		if c.Value != "" {
			query, args = query+` AND f.value = ?`, append(args, c.Value)
		}
		query += `)`
	}
	return s.images(ctx, query, args, afterRepository, after, limit)
}

// UsedBy lists the org's images whose manifest needs a blob, by repository and digest.
func (s *Store) UsedBy(ctx context.Context, org string, blob digest.Digest, afterRepository string, after digest.Digest, limit int) ([]Image, error) {
	return s.images(ctx, `JOIN index_manifest_blobs b ON b.repository = m.repository AND b.manifest = m.digest WHERE b.blob = ? AND m.org = ?`,
		[]any{blob, org}, afterRepository, after, limit)
}

// images lists manifests with their tags.
func (s *Store) images(ctx context.Context, where string, args []any, afterRepository string, after digest.Digest, limit int) ([]Image, error) {
	repository, dgst := s.byBytes("m.repository"), s.byBytes("m.digest")
	rows, err := s.db.QueryContext(ctx, s.db.Q(`SELECT m.repository, m.digest, m.media_type, m.platform, COALESCE(t.tag, '')
		FROM (SELECT m.repository, m.digest, m.media_type, m.platform FROM index_manifests m `+where+`
			AND (`+repository+` > ? OR m.repository = ? AND `+dgst+` > ?) ORDER BY `+repository+`, `+dgst+` LIMIT ?) m
		LEFT JOIN index_tags t ON t.repository = m.repository AND t.digest = m.digest ORDER BY `+repository+`, `+dgst+`, t.tag`),
		append(args, afterRepository, afterRepository, after, min(max(limit, 1), MaxPage))...)
	found, err := collect(rows, err, func(scan func(...any) error) (Image, error) {
		i := Image{Tags: []string{""}}
		return i, scan(&i.Repository, &i.Digest, &i.MediaType, &i.Platform, &i.Tags[0])
	})
	if err != nil {
		return nil, fmt.Errorf("find images: %w", err)
	}
	out := []Image{}
	for _, i := range found {
		if i.Tags[0] == "" {
			i.Tags = []string{}
		}
		if n := len(out) - 1; n >= 0 && out[n].Repository == i.Repository && out[n].Digest == i.Digest {
			out[n].Tags = append(out[n].Tags, i.Tags...)
			continue
		}
		out = append(out, i)
	}
	return out, nil
}
