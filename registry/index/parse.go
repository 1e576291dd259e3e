package index

import (
	"encoding/json"
	"fmt"
	"mime"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"cumulet.io/internal/problem"
)

// Bounds of a manifest.
const (
	maxDescriptors = 16 << 10
	maxLabelBytes  = 256 << 10
)

// Docker's media types, which the OCI ones were made after.
const (
	dockerConfig       = "application/vnd.docker.container.image.v1+json"
	dockerForeignLayer = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
)

type document struct {
	SchemaVersion int               `json:"schemaVersion"`
	MediaType     string            `json:"mediaType"`
	ArtifactType  string            `json:"artifactType"`
	Config        *v1.Descriptor    `json:"config"`
	Layers        []v1.Descriptor   `json:"layers"`
	Manifests     []v1.Descriptor   `json:"manifests"`
	Subject       *v1.Descriptor    `json:"subject"`
	Annotations   map[string]string `json:"annotations"`
}

// Parse reads what the index keeps of a manifest of the OCI image specification or Docker's schema 2. ConfigOf tells
// where the rest is. Errors are of class ErrInvalid.
func Parse(mediaType string, body []byte) (*Manifest, error) {
	if parsed, _, err := mime.ParseMediaType(mediaType); err == nil {
		mediaType = parsed
	}
	var d document
	if err := json.Unmarshal(body, &d); err != nil {
		return nil, problem.New(problem.ErrInvalid, "the manifest is not JSON of its kind: %v", err)
	}
	if d.SchemaVersion != 2 {
		return nil, problem.Invalid("schemaVersion", "must be 2", d.SchemaVersion)
	}
	if d.MediaType != "" && d.MediaType != mediaType {
		return nil, problem.Invalid("mediaType", fmt.Sprintf("must be the Content-Type, %q", mediaType), d.MediaType)
	}
	if len(d.Layers)+len(d.Manifests) > maxDescriptors {
		return nil, problem.Invalid("layers", fmt.Sprintf("must be at most %d descriptors", maxDescriptors), len(d.Layers)+len(d.Manifests))
	}
	m := &Manifest{Digest: digest.FromBytes(body), Content: digest.FromBytes(body), MediaType: mediaType, Size: int64(len(body)),
		ArtifactType: cut(d.ArtifactType, 255), Annotations: d.Annotations}
	if d.Subject != nil {
		if err := d.Subject.Digest.Validate(); err != nil {
			return nil, problem.Invalid("subject.digest", "must be a digest", d.Subject.Digest)
		}
		m.Subject = d.Subject.Digest
	}
	if d.Config != nil {
		// Image specification 1.1, "Guidelines for Artifact Usage": the config's type stands in.
		if m.ArtifactType == "" {
			m.ArtifactType = cut(d.Config.MediaType, 255)
		}
		if err := m.addBlob("config", KindConfig, *d.Config); err != nil {
			return nil, err
		}
	}
	for i, l := range d.Layers {
		kind := KindLayer
		if len(l.URLs) > 0 && (l.MediaType == dockerForeignLayer || strings.Contains(l.MediaType, "nondistributable")) {
			kind = KindForeign
		}
		if err := m.addBlob(fmt.Sprintf("layers[%d]", i), kind, l); err != nil {
			return nil, err
		}
	}
	for i, c := range d.Manifests {
		if err := m.addBlob(fmt.Sprintf("manifests[%d]", i), KindManifest, c); err != nil {
			return nil, err
		}
	}
	return m, nil
}

// addBlob adds each digest once.
func (m *Manifest) addBlob(field, kind string, d v1.Descriptor) error {
	if err := d.Digest.Validate(); err != nil {
		return problem.Invalid(field+".digest", "must be a digest", d.Digest)
	}
	if d.Size < 0 {
		return problem.Invalid(field+".size", "must not be negative", d.Size)
	}
	m.Blobs = append(m.Blobs, Blob{Digest: d.Digest, Kind: kind, Size: d.Size})
	return nil
}

// ConfigOf gives the digest of the manifest's config when it is an image's.
func (m *Manifest) ConfigOf() (digest.Digest, bool) {
	if m.ArtifactType != v1.MediaTypeImageConfig && m.ArtifactType != dockerConfig {
		return "", false
	}
	for _, b := range m.Blobs {
		if b.Kind == KindConfig {
			return b.Digest, true
		}
	}
	return "", false
}

// AddConfig reads platform, time and labels of an image's config. What is no config changes nothing: the registry
// takes any bytes as a config.
func (m *Manifest) AddConfig(body []byte) {
	var c struct {
		OS           string     `json:"os"`
		Architecture string     `json:"architecture"`
		Variant      string     `json:"variant"`
		Created      *time.Time `json:"created"`
		Config       struct {
			Labels map[string]string `json:"Labels"`
		} `json:"config"`
	}
	if json.Unmarshal(body, &c) != nil {
		return
	}
	if c.OS != "" || c.Architecture != "" {
		m.Platform = cut(strings.TrimSuffix(c.OS+"/"+c.Architecture+"/"+c.Variant, "/"), 128)
	}
	if c.Created != nil {
		m.Created = c.Created.UTC()
	}
	n := 0
	for k, v := range c.Config.Labels {
		n += len(k) + len(v)
	}
	if n <= maxLabelBytes {
		m.Labels = c.Config.Labels
	}
}

// cut shortens text to at most n bytes, between characters, and leaves no byte that a database refuses.
func cut(s string, n int) string {
	s = strings.ReplaceAll(strings.ToValidUTF8(s, "�"), "\x00", "�")
	if len(s) <= n {
		return s
	}
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n]
}
