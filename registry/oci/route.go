package oci

import (
	"regexp"
	"strings"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"

	"cumulet.io/registry"
)

// endpoint is one of the specification's ("Endpoints").
type endpoint int

const (
	endNone endpoint = iota
	endManifest
	endBlob
	endUploads // a new upload
	endUpload  // one that was begun
	endTags
	endReferrers
)

// route is what a path under /v2/ means. reference is a tag, a digest or an upload's id, as it came.
type route struct {
	end             endpoint
	name, reference string
}

// parseRoute takes a path apart from its end, since a name may hold any number of components. The name is one by the
// specification's grammar; the reference is not checked. What is of no such form is for the core to refuse.
func parseRoute(path string) route {
	rt := splitRoute(path)
	if rt.end != endNone {
		if _, err := reference.WithName(rt.name); err != nil {
			return route{}
		}
	}
	return rt
}

func splitRoute(path string) route {
	rest, ok := strings.CutPrefix(path, "/v2/")
	if !ok {
		return route{}
	}
	if name, ok := strings.CutSuffix(rest, "/tags/list"); ok && name != "" {
		return route{endTags, name, ""}
	}
	if name, ok := strings.CutSuffix(strings.TrimSuffix(rest, "/"), "/blobs/uploads"); ok && name != "" {
		return route{endUploads, name, ""}
	}
	for _, form := range []struct {
		infix string
		end   endpoint
	}{{"/blobs/uploads/", endUpload}, {"/manifests/", endManifest}, {"/blobs/", endBlob}, {"/referrers/", endReferrers}} {
		i := strings.LastIndex(rest, form.infix)
		if i <= 0 {
			continue
		}
		name, reference := rest[:i], rest[i+len(form.infix):]
		if !strings.Contains(reference, "/") {
			return route{form.end, name, reference}
		}
	}
	return route{}
}

// tagPattern is the specification's ("Pulling manifests": <reference>).
var tagPattern = regexp.MustCompile(`^[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}$`)

// validName tells whether a repository of this name may exist here.
func validName(name string) bool {
	_, err := registry.SplitRepository("name", name)
	return err == nil
}

// asDigest reads a reference as a digest. Only algorithms that are linked in and known are taken: sha256, sha512.
func asDigest(reference string) (digest.Digest, bool) {
	d := digest.Digest(reference)
	if d.Validate() != nil {
		return "", false
	}
	a := d.Algorithm()
	return d, a == digest.SHA256 || a == digest.SHA512
}
