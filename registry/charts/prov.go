package charts

import (
	"bytes"
	"strings"

	"github.com/opencontainers/go-digest"
	"sigs.k8s.io/yaml"

	"cumulet.io/internal/problem"
)

// MaxProvBytes is the largest provenance file.
const MaxProvBytes = 256 << 10

// parseProv reads a provenance file (Helm, "Provenance and Integrity"): clear-signed text that holds Chart.yaml, "...",
// and the archive's digest. The signature is for the users' keys, which the registry does not have.
func parseProv(text []byte) (name, version string, sum digest.Digest, err error) {
	bad := func(why string) (string, string, digest.Digest, error) {
		return "", "", "", problem.Invalid("prov", "must be a provenance file as helm package --sign makes it", why)
	}
	text = bytes.ReplaceAll(text, []byte("\r\n"), []byte("\n"))
	_, signed, ok := bytes.Cut(text, []byte("-----BEGIN PGP SIGNED MESSAGE-----\n"))
	if !ok {
		return bad("it is not a signed message")
	}
	_, signed, ok = bytes.Cut(signed, []byte("\n\n")) // the header's end
	if !ok {
		return bad("it has no text")
	}
	signed, _, ok = bytes.Cut(signed, []byte("\n-----BEGIN PGP SIGNATURE-----"))
	if !ok {
		return bad("it has no signature")
	}
	chart, files, ok := bytes.Cut(signed, []byte("\n...\n"))
	if !ok {
		return bad("it has no digests")
	}
	m, err := parseMetadata(chart)
	if err != nil {
		return "", "", "", err
	}
	var sums struct {
		Files map[string]string `json:"files"`
	}
	if err := yaml.Unmarshal(files, &sums); err != nil {
		return bad("its digests are not understood")
	}
	sum = digest.Digest(strings.ToLower(sums.Files[fileName(m.Name, m.Version)]))
	if sum.Validate() != nil {
		return bad("it has no digest of " + fileName(m.Name, m.Version))
	}
	return m.Name, m.Version, sum, nil
}
