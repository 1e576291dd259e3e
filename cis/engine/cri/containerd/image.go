package containerd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/distribution/reference"
	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// criNamespace is containerd's namespace for everything that CRI sees.
const criNamespace = "k8s.io"

// Labels that CRI itself sets on images: one for those it knows, one for those
// that no garbage collection removes.
const (
	labelManaged = "io.cri-containerd.image"
	labelPinned  = "io.cri-containerd.pinned"
)

// ErrNoImage is the answer to an archive that lacks the image sought, or has no
// image with a name at all.
var ErrNoImage = errors.New("no such image in the archive")

// ImportImages loads every named image of a local docker or OCI archive and
// unpacks it, so that CRI runs it with no registry. Pinned images are never
// garbage. It returns the images' references, sorted. Loading an archive again
// replaces images of the same name.
func (d *Daemon) ImportImages(ctx context.Context, archive string, pinned bool) ([]string, error) {
	refs, err := d.importImages(ctx, archive, pinned)
	if err != nil {
		return nil, fmt.Errorf("import images of %s: %w", archive, err)
	}
	return refs, nil
}

func (d *Daemon) importImages(ctx context.Context, archive string, pinned bool) ([]string, error) {
	f, err := os.Open(archive)
	if err != nil {
		return nil, err
	}
	defer f.Close() // only read from
	c, err := client.New(d.Socket())
	if err != nil {
		return nil, err
	}
	defer c.Close() // nothing is in flight
	ctx = namespaces.WithNamespace(ctx, criNamespace)
	labels := map[string]string{labelManaged: "managed"}
	if pinned {
		labels[labelPinned] = "pinned"
	}
	images, err := c.Import(ctx, f, client.WithImageLabels(labels), client.WithImageRefTranslator(normalizeRef))
	if err != nil {
		return nil, err
	}
	if len(images) == 0 {
		return nil, ErrNoImage
	}
	var refs []string
	for _, i := range images {
		if err := client.NewImage(c, i).Unpack(ctx, ""); err != nil {
			return nil, fmt.Errorf("unpack %s: %w", i.Name, err)
		}
		refs = append(refs, i.Name)
	}
	slices.Sort(refs)
	return refs, nil
}

// normalizeRef is how CRI writes a reference out. A name that is none (an OCI
// layout may hold a bare tag) yields no image.
func normalizeRef(ref string) string {
	named, err := reference.ParseDockerRef(ref)
	if err != nil {
		return ""
	}
	return named.String()
}

// ensureSandboxImage imports the sandbox image unless CRI has it, and waits
// until CRI has seen it: CRI learns of an import by an event.
func (d *Daemon) ensureSandboxImage(ctx context.Context, images runtimev1.ImageServiceClient) error {
	if d.config.SandboxArchive == "" {
		return nil // CRI pulls it
	}
	want := normalizeRef(d.config.SandboxImage)
	if want == "" {
		return fmt.Errorf("%q is not an image reference", d.config.SandboxImage)
	}
	known := func() (bool, error) {
		r, err := images.ImageStatus(ctx, &runtimev1.ImageStatusRequest{Image: &runtimev1.ImageSpec{Image: want}})
		return r.GetImage() != nil, err
	}
	if ok, err := known(); err != nil || ok {
		return err
	}
	refs, err := d.ImportImages(ctx, d.config.SandboxArchive, true)
	if err != nil {
		return err
	}
	if !slices.Contains(refs, want) {
		return fmt.Errorf("%w: %s has %q, not the sandbox image %s", ErrNoImage, d.config.SandboxArchive, refs, want)
	}
	for {
		if ok, err := known(); err != nil || ok {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("CRI has not seen the imported image: %w", ctx.Err())
		case <-time.After(10 * time.Millisecond):
		}
	}
}
