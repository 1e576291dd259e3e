package main

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// writeDocker writes an archive in the format of docker save, whole or not at
// all.
func writeDocker(out, tag string, img v1.Image) error {
	ref, err := name.NewTag(tag, name.StrictValidation)
	if err != nil {
		return fmt.Errorf("-tag: %w", err)
	}
	f, err := os.CreateTemp(filepath.Dir(out), "."+filepath.Base(out)+".*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // gone already when renamed
	if err := tarball.Write(ref, img, f); err != nil {
		f.Close() // the write's error matters more
		return fmt.Errorf("write %s: %w", out, err)
	}
	if err := f.Chmod(0o644); err != nil {
		f.Close() // likewise
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	return os.Rename(f.Name(), out)
}

// writeOCI writes an OCI image layout into a directory that does not exist yet.
func writeOCI(out, tag string, img v1.Image) error {
	if _, err := name.NewTag(tag, name.StrictValidation); err != nil {
		return fmt.Errorf("-tag: %w", err)
	}
	if _, err := os.Stat(out); err == nil {
		return fmt.Errorf("%s exists already", out)
	}
	l, err := layout.Write(out, empty.Index)
	if err != nil {
		return fmt.Errorf("write %s: %w", out, err)
	}
	err = l.AppendImage(img, layout.WithAnnotations(map[string]string{"org.opencontainers.image.ref.name": tag}))
	if err != nil {
		return fmt.Errorf("write %s: %w", out, err)
	}
	return nil
}
