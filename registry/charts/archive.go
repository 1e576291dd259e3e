package charts

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"path"
	"regexp"
	"strings"

	"github.com/Masterminds/semver/v3"
	"sigs.k8s.io/yaml"

	"cumulet.io/internal/problem"
)

// Limits of a chart's archive. A few bytes can unpack to many: nothing is kept of what is unpacked but Chart.yaml, and
// reading ends at the limits.
const (
	MaxArchiveBytes  = 20 << 20
	MaxUnpackedBytes = 200 << 20
	MaxEntries       = 10_000
	MaxChartYAML     = 256 << 10
)

// Metadata is Chart.yaml, as index.yaml repeats it (Helm, "The Chart.yaml File").
type Metadata struct {
	Name         string            `json:"name,omitempty"`
	Home         string            `json:"home,omitempty"`
	Sources      []string          `json:"sources,omitempty"`
	Version      string            `json:"version,omitempty"`
	Description  string            `json:"description,omitempty"`
	Keywords     []string          `json:"keywords,omitempty"`
	Maintainers  []Maintainer      `json:"maintainers,omitempty"`
	Icon         string            `json:"icon,omitempty"`
	APIVersion   string            `json:"apiVersion,omitempty"`
	Condition    string            `json:"condition,omitempty"`
	Tags         string            `json:"tags,omitempty"`
	AppVersion   string            `json:"appVersion,omitempty"`
	Deprecated   bool              `json:"deprecated,omitempty"`
	Annotations  map[string]string `json:"annotations,omitempty"`
	KubeVersion  string            `json:"kubeVersion,omitempty"`
	Dependencies []Dependency      `json:"dependencies,omitempty"`
	Type         string            `json:"type,omitempty"`
}

// Maintainer is a person behind a chart.
type Maintainer struct {
	Name  string `json:"name,omitempty"`
	Email string `json:"email,omitempty"`
	URL   string `json:"url,omitempty"`
}

// Dependency is a chart that another one needs.
type Dependency struct {
	Name         string   `json:"name"`
	Version      string   `json:"version,omitempty"`
	Repository   string   `json:"repository"`
	Condition    string   `json:"condition,omitempty"`
	Tags         []string `json:"tags,omitempty"`
	Enabled      bool     `json:"enabled,omitempty"`
	ImportValues []any    `json:"import-values,omitempty"`
	Alias        string   `json:"alias,omitempty"`
}

// namePattern is of a chart's name; Helm asks for lower case, and takes what has been published otherwise.
var namePattern = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$`)

func badArchive(format string, args ...any) error {
	return problem.Invalid("chart", "must be a chart as helm package makes it", fmt.Sprintf(format, args...))
}

// countReader counts what is read of a gzip stream and ends at a limit.
type countReader struct {
	r    io.Reader
	left int64
}

// Read implements io.Reader.
func (c *countReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	if c.left -= int64(n); c.left < 0 {
		return 0, problem.New(problem.ErrTooLarge, "a chart may have %d bytes unpacked", MaxUnpackedBytes)
	}
	return n, err
}

// readArchive reads a chart's archive to its end and gives its metadata. Every entry is checked, so that what is stored
// can be unpacked anywhere without harm.
func readArchive(src io.Reader) (*Metadata, error) {
	gz, err := gzip.NewReader(src)
	if err != nil {
		return nil, badArchive("it is not in gzip's format")
	}
	unpacked := &countReader{gz, MaxUnpackedBytes}
	archive := tar.NewReader(unpacked)
	root, entries := "", 0
	var chart []byte
	for {
		h, err := archive.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, readError(err)
		}
		if entries++; entries > MaxEntries {
			return nil, problem.New(problem.ErrTooLarge, "a chart may have %d files", MaxEntries)
		}
		switch h.Typeflag {
		case tar.TypeReg, tar.TypeDir:
		case tar.TypeXGlobalHeader:
			continue
		default:
			return nil, badArchive("%q is a link or device", h.Name)
		}
		name := strings.TrimSuffix(strings.TrimPrefix(h.Name, "./"), "/")
		if name == "" || name == "." {
			continue
		}
		if strings.ContainsAny(name, "\\\x00") || path.IsAbs(name) || path.Clean(name) != name || name == ".." || strings.HasPrefix(name, "../") ||
			len(name) > 1 && name[1] == ':' {
			return nil, badArchive("%q leads out of it", h.Name)
		}
		top, rest, _ := strings.Cut(name, "/")
		if root == "" {
			root = top
		}
		if top != root {
			return nil, badArchive("it has %q and %q at its top", root, top)
		}
		if rest != "Chart.yaml" || h.Typeflag != tar.TypeReg {
			continue // Next reads over it, within the limit
		}
		if chart != nil {
			return nil, badArchive("it has Chart.yaml twice")
		}
		if chart, err = io.ReadAll(io.LimitReader(archive, MaxChartYAML+1)); err != nil {
			return nil, readError(err)
		}
		if len(chart) > MaxChartYAML {
			return nil, problem.New(problem.ErrTooLarge, "Chart.yaml may have %d bytes", MaxChartYAML)
		}
	}
	// What follows the archive's end counts too, and the checksum at gzip's end is checked.
	if _, err := io.Copy(io.Discard, unpacked); err != nil {
		return nil, readError(err)
	}
	if chart == nil {
		return nil, badArchive("it has no Chart.yaml")
	}
	m, err := parseMetadata(chart)
	if err != nil {
		return nil, err
	}
	if m.Name != root {
		return nil, badArchive("Chart.yaml has the name %q, the directory is %q", m.Name, root)
	}
	return m, nil
}

func readError(err error) error {
	var p *problem.Error
	if errors.As(err, &p) {
		return err
	}
	return badArchive("it cannot be read to its end: %v", err)
}

func parseMetadata(text []byte) (*Metadata, error) {
	if bytes.Count(text, []byte("&")) > 100 {
		// Aliases of aliases grow without bound; nobody needs as many in a Chart.yaml.
		return nil, badArchive("Chart.yaml has too many anchors")
	}
	m := &Metadata{}
	if err := yaml.Unmarshal(text, m); err != nil {
		return nil, badArchive("Chart.yaml is not understood: %v", err)
	}
	switch {
	case m.APIVersion != "v1" && m.APIVersion != "v2":
		return nil, problem.Invalid("Chart.yaml apiVersion", "must be v1 or v2", m.APIVersion)
	case !namePattern.MatchString(m.Name):
		return nil, problem.Invalid("Chart.yaml name", "must be 1 to 128 of letters, digits and inner . _ -", m.Name)
	case m.Type != "" && m.Type != "application" && m.Type != "library":
		return nil, problem.Invalid("Chart.yaml type", "must be application or library", m.Type)
	}
	if _, err := semver.StrictNewVersion(m.Version); err != nil || len(m.Version) > 128 {
		return nil, problem.Invalid("Chart.yaml version", "must be a semantic version such as 1.2.3", m.Version)
	}
	return m, nil
}

// fileName is a chart's archive's name in its repository.
func fileName(name, version string) string { return name + "-" + version + ".tgz" }

// reference is a chart's name and version.
type reference struct{ name, version string }

// splitFileName takes the name of an archive apart, in every way in which the rest is a version: "web-1.2.3-4.5.6" may be
// of web or of web-1.2.3.
func splitFileName(file string) []reference {
	rest, ok := strings.CutSuffix(file, ".tgz")
	if !ok {
		return nil
	}
	var out []reference
	for i := 0; i < len(rest)-1 && i <= 128; i++ {
		if rest[i] != '-' || rest[i+1] < '0' || rest[i+1] > '9' || !namePattern.MatchString(rest[:i]) {
			continue
		}
		if _, err := semver.StrictNewVersion(rest[i+1:]); err == nil {
			out = append(out, reference{rest[:i], rest[i+1:]})
		}
	}
	return out
}
