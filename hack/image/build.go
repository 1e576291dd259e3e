package main

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// Spec says what an image holds and how it runs.
type Spec struct {
	Entrypoint, Cmd, Env []string
	User, WorkingDir     string
	Arch                 string
	Labels               map[string]string
	Entries              []Entry
}

// Entry is one path of the image's file system: a regular file copied from
// Source, a directory when Dir is set, or a symlink to Target. Parent
// directories are made as needed, mode 0755. Everything belongs to root.
type Entry struct {
	Path   string // absolute, in the image
	Source string // file on this machine
	Target string // symlink target, any text
	Dir    bool
	Mode   int64 // permission bits of a directory, sticky bit included; a file keeps its source's
}

// epoch is the time of every file, so that equal input gives equal bytes.
var epoch = time.Unix(0, 0).UTC()

// Build makes an image of one layer.
func Build(spec Spec) (v1.Image, error) {
	raw, err := layerTar(spec.Entries)
	if err != nil {
		return nil, err
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(raw)), nil
	})
	if err != nil {
		return nil, fmt.Errorf("layer: %w", err)
	}
	img, err := mutate.Append(empty.Image, mutate.Addendum{
		Layer:   layer,
		History: v1.History{Created: v1.Time{Time: epoch}, CreatedBy: "cumulet hack/image"},
	})
	if err != nil {
		return nil, fmt.Errorf("append layer: %w", err)
	}
	file, err := img.ConfigFile()
	if err != nil {
		return nil, fmt.Errorf("config: %w", err)
	}
	file = file.DeepCopy()
	file.OS, file.Architecture, file.Created = "linux", spec.Arch, v1.Time{Time: epoch}
	file.Config = v1.Config{
		Entrypoint: spec.Entrypoint, Cmd: spec.Cmd, Env: spec.Env,
		User: spec.User, WorkingDir: spec.WorkingDir, Labels: spec.Labels,
	}
	return mutate.ConfigFile(img, file)
}

// layerTar writes the entries, parents first and each path once.
func layerTar(entries []Entry) ([]byte, error) {
	all := map[string]Entry{}
	for _, e := range entries {
		if !path.IsAbs(e.Path) || path.Clean(e.Path) != e.Path || e.Path == "/" {
			return nil, fmt.Errorf("path %q: want a clean absolute path in the image", e.Path)
		}
		if _, dup := all[e.Path]; dup {
			return nil, fmt.Errorf("path %q is given twice", e.Path)
		}
		all[e.Path] = e
	}
	for _, e := range entries {
		for dir := path.Dir(e.Path); dir != "/"; dir = path.Dir(dir) {
			have, ok := all[dir]
			if !ok {
				all[dir] = Entry{Path: dir, Dir: true, Mode: 0o755}
			} else if !have.Dir {
				return nil, fmt.Errorf("path %q: %q is not a directory", e.Path, dir)
			}
		}
	}
	paths := make([]string, 0, len(all))
	for p := range all {
		paths = append(paths, p)
	}
	slices.Sort(paths)

	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, p := range paths {
		if err := writeEntry(w, all[p]); err != nil {
			return nil, fmt.Errorf("%s: %w", p, err)
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return buf.Bytes(), nil
}

func writeEntry(w *tar.Writer, e Entry) error {
	h := &tar.Header{Name: strings.TrimPrefix(e.Path, "/"), ModTime: epoch, Format: tar.FormatPAX}
	switch {
	case e.Dir:
		h.Typeflag, h.Name = tar.TypeDir, h.Name+"/"
		h.Mode = e.Mode
		return w.WriteHeader(h)
	case e.Target != "":
		h.Typeflag, h.Linkname, h.Mode = tar.TypeSymlink, e.Target, 0o777
		return w.WriteHeader(h)
	}
	f, err := os.Open(e.Source)
	if err != nil {
		return err
	}
	defer f.Close() // only read from
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("%s: not a regular file", e.Source)
	}
	h.Typeflag, h.Size, h.Mode = tar.TypeReg, info.Size(), int64(info.Mode().Perm())
	if err := w.WriteHeader(h); err != nil {
		return err
	}
	_, err = io.Copy(w, f)
	return err
}

// parseDir reads PATH:MODE with the mode in octal, the sticky bit included.
func parseDir(s string) (string, int64, error) {
	p, m, ok := strings.Cut(s, ":")
	mode, err := strconv.ParseInt(m, 8, 13)
	if !ok || err != nil || mode < 0 {
		return "", 0, errors.New("-dir " + strconv.Quote(s) + ": want PATH:MODE with the mode in octal")
	}
	return p, mode, nil
}
