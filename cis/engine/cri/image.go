package cri

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/distribution/reference"
	corev1 "k8s.io/api/core/v1"
	rt "k8s.io/cri-api/pkg/apis/runtime/v1"

	"cumulet.io/cis"
)

// imageInfo is an image that is on the node.
type imageInfo struct {
	// id is containerd's name of it, the digest of its configuration; ref the repository digest.
	id, ref string
	// uid is the image's numeric user, username the one by name; both empty means root.
	uid      *int64
	username string
}

// imageState is where an actor is with one image of its spec.
type imageState struct {
	info *imageInfo
	busy bool
	try  time.Time
	wait time.Duration
	// reason and message are those of the waiting containers.
	reason, message string
}

// resolveImages gets every image of the spec onto the node, once per life of the instance: a restarted container runs
// the same digest.
func (a *actor) resolveImages() {
	for _, c := range a.containers {
		s := a.images[c.spec.Image]
		if s == nil {
			s = &imageState{}
			a.images[c.spec.Image] = s
		}
		if s.info != nil || s.busy {
			continue
		}
		if now := time.Now(); now.Before(s.try) {
			if s.reason == "ErrImagePull" && s.wait > 0 {
				s.reason = "ImagePullBackOff"
				a.info(c.spec.Name, "BackOff", fmt.Sprintf("Back-off pulling image %q", c.spec.Image))
				s.message = fmt.Sprintf("Back-off pulling image %q: %s", c.spec.Image, s.message)
			}
			a.later(s.try)
			continue
		}
		a.getImage(c, s)
	}
}

func (a *actor) getImage(c *container, s *imageState) {
	s.busy = true
	image, name, pinned := c.spec.Image, c.spec.Name, c.rec.ImageID
	pinnedRef := c.rec.ImageRef
	policy := pullPolicy(c.spec)
	auth := a.spec.RegistryAuth
	a.do(a.makeCtx, func(ctx context.Context) func() {
		info, reason, err := a.obtain(ctx, obtainRequest{image: image, container: name, pinned: pinned, pinnedRef: pinnedRef, policy: policy, auth: auth})
		return func() {
			s.busy = false
			if err == nil {
				s.info, s.reason, s.message, s.wait = info, "", "", 0
				return
			}
			if a.makeCtx.Err() != nil {
				return
			}
			s.wait = a.e.cfg.PullBackoff.next(s.wait)
			s.try = time.Now().Add(s.wait)
			s.reason, s.message = reason, message(err)
			a.log.Warn("image not available", "image", image, "reason", reason, "error", err)
			a.warn(name, "Failed", fmt.Sprintf("Failed to pull image %q: %s", image, message(err)))
			a.warn(name, "Failed", "Error: "+reason)
		}
	})
}

// pullPolicy is the spec's, or Always for the tag latest and IfNotPresent for others, as core/v1 has it.
func pullPolicy(c *cis.Container) corev1.PullPolicy {
	if c.ImagePullPolicy != "" {
		return c.ImagePullPolicy
	}
	if n, err := reference.ParseDockerRef(c.Image); err == nil {
		if _, ok := n.(reference.Canonical); ok {
			return corev1.PullIfNotPresent
		}
		if t, ok := n.(reference.Tagged); ok && t.Tag() == "latest" {
			return corev1.PullAlways
		}
	}
	return corev1.PullIfNotPresent
}

type obtainRequest struct {
	image, container, pinned, pinnedRef string
	policy                              corev1.PullPolicy
	auth                                []cis.RegistryAuth
}

// obtain finds an image on the node or pulls it. An image that the instance has run before is looked for by its digest.
func (a *actor) obtain(ctx context.Context, r obtainRequest) (*imageInfo, string, error) {
	named, err := reference.ParseDockerRef(r.image)
	if err != nil {
		return nil, "InvalidImageName", fmt.Errorf("image name %q is not valid: %w", r.image, err)
	}
	pull := r.image
	if r.pinned != "" {
		if info, err := a.e.imageStatus(ctx, r.pinned, named); info != nil || err != nil {
			return info, "ErrImagePull", err
		}
		if strings.Contains(r.pinnedRef, "@") {
			pull = r.pinnedRef
		}
	} else if r.policy != corev1.PullAlways {
		// The full name: a short one could be taken for an image's id, and so name an image of anyone.
		if info, err := a.e.imageStatus(ctx, named.String(), named); err != nil {
			return nil, "ErrImagePull", err
		} else if info != nil && a.e.grants.allows(a.org, named.Name()) {
			a.post(func() {
				a.info(r.container, "Pulled", fmt.Sprintf("Container image %q already present on machine", r.image))
			})
			return info, "", nil
		}
	}
	if r.policy == corev1.PullNever {
		return nil, "ErrImageNeverPull", fmt.Errorf("container image %q is not present with pull policy of Never", r.image)
	}
	select {
	case a.e.pulls <- struct{}{}:
		defer func() { <-a.e.pulls }()
	case <-ctx.Done():
		return nil, "ErrImagePull", ctx.Err()
	}
	a.post(func() { a.info(r.container, "Pulling", fmt.Sprintf("Pulling image %q", r.image)) })
	began := time.Now()
	if err := a.e.grants.pulling(named.Name()); err != nil {
		return nil, "ErrImagePull", err
	}
	auth, err := a.e.credential(ctx, a.org, r.image, named, r.auth)
	if err != nil {
		return nil, "ErrImagePull", fmt.Errorf("get pull credential: %w", err)
	}
	p, err := a.e.image.PullImage(ctx, &rt.PullImageRequest{Image: &rt.ImageSpec{Image: pull, UserSpecifiedImage: r.image}, Auth: auth})
	if err != nil {
		return nil, "ErrImagePull", err
	}
	if err := a.e.grants.pulled(a.org, named.Name()); err != nil {
		return nil, "ErrImagePull", err
	}
	info, err := a.e.imageStatus(ctx, p.ImageRef, named)
	if err == nil && info == nil {
		err = fmt.Errorf("image %q is gone right after its pull", r.image)
	}
	if err != nil {
		return nil, "ErrImagePull", err
	}
	a.post(func() {
		a.info(r.container, "Pulled", fmt.Sprintf("Successfully pulled image %q in %s", r.image, time.Since(began).Round(time.Millisecond)))
	})
	return info, "", nil
}

func (a *actor) post(f func()) { a.box.post(f) }

// imageStatus looks up an image on the node; nil when it is not there.
func (e *Engine) imageStatus(ctx context.Context, image string, named reference.Named) (*imageInfo, error) {
	r, err := e.image.ImageStatus(ctx, &rt.ImageStatusRequest{Image: &rt.ImageSpec{Image: image}})
	if err != nil {
		return nil, fmt.Errorf("look up image: %w", err)
	}
	img := r.GetImage()
	if img == nil {
		return nil, nil
	}
	info := &imageInfo{id: img.Id, ref: img.Id, username: img.Username}
	if img.Uid != nil {
		info.uid = &img.Uid.Value
	}
	// The repository digest of the repository asked for; an image may be known under several.
	for i, d := range img.RepoDigests {
		if i == 0 || strings.HasPrefix(d, named.Name()+"@") {
			info.ref = d
		}
	}
	return info, nil
}

// credential finds the credential for an image: the spec's by longest matching prefix, else the platform's own.
func (e *Engine) credential(ctx context.Context, org, image string, named reference.Named, auths []cis.RegistryAuth) (*rt.AuthConfig, error) {
	if a := matchAuth(named, auths); a != nil {
		return authConfig(a), nil
	}
	if e.cfg.PullAuth == nil {
		return nil, nil
	}
	own, err := e.cfg.PullAuth(ctx, org, []string{image})
	if err != nil {
		return nil, err
	}
	return authConfig(matchAuth(named, own)), nil
}

func authConfig(a *cis.RegistryAuth) *rt.AuthConfig {
	if a == nil {
		return nil
	}
	return &rt.AuthConfig{Username: a.Username, Password: a.Password}
}

// matchAuth picks the credential whose server, as "host[:port][/path]", is the longest prefix of the image's name, cut
// at path elements.
func matchAuth(named reference.Named, auths []cis.RegistryAuth) *cis.RegistryAuth {
	name := named.Name()
	var best *cis.RegistryAuth
	bestLen := -1
	for i := range auths {
		server := authServer(auths[i].Server)
		if (name == server || strings.HasPrefix(name, server+"/")) && len(server) > bestLen {
			best, bestLen = &auths[i], len(server)
		}
	}
	return best
}

// authServer normalizes a server as Docker configurations write it.
func authServer(s string) string {
	s = strings.TrimPrefix(strings.TrimPrefix(s, "https://"), "http://")
	s = strings.TrimSuffix(s, "/")
	host, path, _ := strings.Cut(s, "/")
	if slices.Contains([]string{"index.docker.io", "registry-1.docker.io"}, host) {
		host = "docker.io"
	}
	if path == "" || path == "v1" || path == "v2" {
		return host
	}
	return host + "/" + path
}
