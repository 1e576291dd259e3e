package oci

import (
	"net/http"
	"net/url"

	"github.com/distribution/distribution/v3/registry/api/errcode"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"cumulet.io/registry/index"
)

// referrers answers GET /v2/NAME/referrers/DIGEST?artifactType=… (distribution specification, "Listing Referrers").
// A digest that nobody refers to, or that is not there, has an empty list.
func (r *Registry) referrers(w http.ResponseWriter, req *http.Request, rt route) {
	begin(w)
	if !r.allow(w, req, rt.name, "pull") || !r.allowMethods(w, req, http.MethodGet, http.MethodHead) {
		return
	}
	dgst, ok := asDigest(rt.reference)
	if !ok {
		r.fail(w, req, errcode.ErrorCodeDigestInvalid.WithMessage("the subject must be a sha256 or sha512 digest"))
		return
	}
	q := req.URL.Query()
	artifactType := q.Get("artifactType")
	found, more, err := r.cfg.Index.Referrers(req.Context(), rt.name, dgst, artifactType, digest.Digest(q.Get("last")), index.MaxPage)
	if err != nil {
		r.problem(w, req, "list referrers", err, errcode.ErrorCodeManifestUnknown)
		return
	}
	list := v1.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageIndex, Manifests: []v1.Descriptor{}}
	for _, m := range found {
		list.Manifests = append(list.Manifests, v1.Descriptor{MediaType: m.MediaType, Digest: m.Digest, Size: m.Size, ArtifactType: m.ArtifactType, Annotations: m.Annotations})
	}
	if artifactType != "" {
		w.Header().Set("OCI-Filters-Applied", "artifactType")
	}
	if more {
		next := url.Values{"last": {list.Manifests[len(list.Manifests)-1].Digest.String()}}
		if artifactType != "" {
			next.Set("artifactType", artifactType)
		}
		link(w, req, next)
	}
	writeJSON(w, v1.MediaTypeImageIndex, list)
}
