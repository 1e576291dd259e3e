// Package files keeps plain versioned files in the registry's repositories, beside images: a tool, a model, a report,
// each under a path and a version, with its checksum.
//
// Bytes are in the registry's blob space (Blobs), rows in its database. A version is written once, unless the writer
// says which content is to be replaced. Large files are uploaded in parts and resumed after a fault by the tus protocol.
// Charts have more rules: registry/charts. It decides nobody's rights: Access does.
package files

import (
	"context"
	"fmt"
	"io"
	"mime"
	"regexp"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/opencontainers/go-digest"
	"golang.org/x/text/unicode/norm"

	"cumulet.io/internal/problem"
)

// Blobs is the content-addressed space that keeps the bytes. Errors are of problem's classes. Safe for concurrent use.
type Blobs interface {
	// Put stores what src gives until its end; it is durable and owner's until that releases it. After an error, also
	// one of src, nothing is kept. One digest may have many owners.
	Put(ctx context.Context, owner string, src io.Reader) (digest.Digest, int64, error)
	// Open reads from an offset on; ErrNotFound where there is none. The caller closes the reader.
	Open(ctx context.Context, d digest.Digest, offset int64) (io.ReadCloser, error)
	// Release ends owner's hold, with "" all that owner holds; no error when there is none.
	Release(ctx context.Context, owner string, d digest.Digest) error
}

// Latest stands for the version of a path that was stored last. None can have this name.
const Latest = "latest"

// Limits of names.
const (
	MaxPathBytes      = 1024
	MaxComponentBytes = 255
	MaxPathDepth      = 32
)

// File is one version of a file.
type File struct {
	Repository string `json:"repository"`
	Path       string `json:"path"`
	Version    string `json:"version"`
	// Digest is of the content, "sha256:…".
	Digest    digest.Digest `json:"digest"`
	Size      int64         `json:"size"`
	MediaType string        `json:"mediaType"`
	CreatedAt time.Time     `json:"createdAt"`
	CreatedBy string        `json:"createdBy"`
}

var versionPattern = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9._+-]{0,127}$`)

// ValidateVersion checks a version to be stored.
func ValidateVersion(version string) error {
	if !versionPattern.MatchString(version) || version == Latest {
		return problem.Invalid("version", `must be 1 to 128 of letters, digits and _ . + -, not begin with . + or -, and not be "latest"`, version)
	}
	return nil
}

// ValidatePath checks a file's path: what is valid is shown, stored and downloaded under one name on every system.
func ValidatePath(path string) error {
	invalid := func(rule string) error { return problem.Invalid("path", rule, path) }
	switch {
	case path == "" || len(path) > MaxPathBytes:
		return invalid(fmt.Sprintf("must have 1 to %d bytes", MaxPathBytes))
	case !utf8.ValidString(path):
		return problem.InvalidSecret("path", "must be UTF-8")
	case !norm.NFC.IsNormalString(path):
		return invalid("must be in Unicode normal form C")
	case strings.ContainsFunc(path, func(r rune) bool {
		return unicode.IsControl(r) || unicode.In(r, unicode.Cf, unicode.Co, unicode.Zl, unicode.Zp) || r == '\\' || r == utf8.RuneError
	}):
		return invalid(`must have no control or invisible characters and no \`)
	}
	parts := strings.Split(path, "/")
	if len(parts) > MaxPathDepth {
		return invalid(fmt.Sprintf("must have at most %d components", MaxPathDepth))
	}
	for _, p := range parts {
		if p == "" || p == "." || p == ".." || len(p) > MaxComponentBytes || strings.TrimSpace(p) != p {
			return invalid(fmt.Sprintf("must have components of 1 to %d bytes that are not . or .. and have no space at their ends", MaxComponentBytes))
		}
	}
	return nil
}

// cleanMediaType gives a content type as it is kept: "application/octet-stream" for none.
func cleanMediaType(text string) (string, error) {
	if text == "" {
		return "application/octet-stream", nil
	}
	kind, params, err := mime.ParseMediaType(text)
	if err != nil || len(text) > 255 || !strings.Contains(kind, "/") {
		return "", problem.Invalid("Content-Type", "must be a media type", text)
	}
	return mime.FormatMediaType(kind, params), nil
}
