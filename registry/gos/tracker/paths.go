package tracker

import (
	"strings"

	"github.com/opencontainers/go-digest"
)

// Kind is what a path of the distribution core's layout stands for.
type Kind string

// The kinds. KindOther is any file that needs no care of its own.
const (
	KindOther    Kind = ""
	KindBlob     Kind = "blob"     // a blob's content
	KindLayer    Kind = "layer"    // a repository's link to a layer or config
	KindRevision Kind = "revision" // a repository's link to a manifest
	KindTag      Kind = "tag"      // a tag's current manifest
	KindUpload   Kind = "upload"   // any file of an upload under way
)

// Path is a parsed path.
type Path struct {
	Kind Kind
	// Repository is of all kinds but KindOther and KindBlob.
	Repository string
	// Digest is of KindBlob, KindLayer and KindRevision.
	Digest digest.Digest
	// Tag is of KindTag. Upload is the upload's id, of KindUpload.
	Tag, Upload string
}

const (
	blobRoot       = "/docker/registry/v2/blobs/"
	repositoryRoot = "/docker/registry/v2/repositories/"
)

// ParsePath reads a path of the core's layout (its registry/storage/paths.go). A path that is none of it, or not quite,
// is KindOther.
func ParsePath(path string) Path {
	if rest, ok := strings.CutPrefix(path, blobRoot); ok {
		p := strings.Split(rest, "/")
		if len(p) == 4 && p[3] == "data" && strings.HasPrefix(p[2], p[1]) && len(p[1]) == 2 {
			if d, ok := parseDigest(p[0], p[2]); ok {
				return Path{Kind: KindBlob, Digest: d}
			}
		}
		return Path{}
	}
	rest, ok := strings.CutPrefix(path, repositoryRoot)
	if !ok {
		return Path{}
	}
	p := strings.Split(rest, "/")
	// A component of a repository's name never begins with an underscore, so the first that does ends it.
	at := 0
	for at < len(p) && !strings.HasPrefix(p[at], "_") {
		at++
	}
	if at == 0 || at == len(p) {
		return Path{}
	}
	name, marker, p := strings.Join(p[:at], "/"), p[at], p[at+1:]
	switch {
	case marker == "_layers" && len(p) == 3 && p[2] == "link":
		if d, ok := parseDigest(p[0], p[1]); ok {
			return Path{Kind: KindLayer, Repository: name, Digest: d}
		}
	case marker == "_manifests" && len(p) == 4 && p[0] == "revisions" && p[3] == "link":
		if d, ok := parseDigest(p[1], p[2]); ok {
			return Path{Kind: KindRevision, Repository: name, Digest: d}
		}
	case marker == "_manifests" && len(p) == 4 && p[0] == "tags" && p[2] == "current" && p[3] == "link":
		return Path{Kind: KindTag, Repository: name, Tag: p[1]}
	case marker == "_uploads" && len(p) >= 2:
		return Path{Kind: KindUpload, Repository: name, Upload: p[0]}
	}
	return Path{}
}

func parseDigest(algorithm, hex string) (digest.Digest, bool) {
	d := digest.Digest(algorithm + ":" + hex)
	return d, d.Validate() == nil
}

// BlobPath is where the core looks for a blob's content.
func BlobPath(d digest.Digest) string {
	return blobRoot + d.Algorithm().String() + "/" + d.Encoded()[:2] + "/" + d.Encoded() + "/data"
}

// LayerPath is a repository's link to a layer or config.
func LayerPath(repository string, d digest.Digest) string {
	return repositoryRoot + repository + "/_layers/" + d.Algorithm().String() + "/" + d.Encoded() + "/link"
}

// uploadDir is the directory of an upload.
func uploadDir(repository, id string) string { return repositoryRoot + repository + "/_uploads/" + id }
