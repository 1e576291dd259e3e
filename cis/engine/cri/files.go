package cri

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"cumulet.io/cis"
)

// The names that a files volume uses for itself; no file may begin with "..".
const (
	dataLink    = "..data"
	dataLinkTmp = "..data_tmp"
	dataPrefix  = "..v-"
)

// writeFiles makes dir hold exactly files, so that a reader sees all old or all new ones: the files are written to a
// new directory, and the symbolic link ..data, through which every name goes, is renamed to it (the scheme of
// Kubernetes' AtomicWriter, so programs that watch for it work).
func writeFiles(dir string, files []cis.File, group *int64) error {
	tops := map[string]bool{}
	for _, f := range files {
		if !filepath.IsLocal(f.Path) || filepath.Clean(f.Path) != f.Path || strings.HasPrefix(f.Path, "..") || f.Path == "." {
			return fmt.Errorf("file path %q is not relative and clean", f.Path)
		}
		top, _, _ := strings.Cut(f.Path, "/")
		tops[top] = true
	}
	data, err := os.MkdirTemp(dir, dataPrefix)
	if err != nil {
		return err
	}
	if err := fill(data, files, group); err != nil {
		return errors.Join(err, os.RemoveAll(data))
	}
	tmp := filepath.Join(dir, dataLinkTmp)
	if err := os.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.Symlink(filepath.Base(data), tmp); err != nil {
		return err
	}
	if err := os.Rename(tmp, filepath.Join(dir, dataLink)); err != nil {
		return err
	}
	for top := range tops {
		if err := os.Symlink(filepath.Join(dataLink, top), filepath.Join(dir, top)); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	return tidy(dir, tops, filepath.Base(data))
}

// tidy removes names that are no longer, the old data, and data of writes that were cut off.
func tidy(dir string, tops map[string]bool, current string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		name := e.Name()
		switch {
		case strings.HasPrefix(name, dataPrefix) && name != current:
			err = errors.Join(err, os.RemoveAll(filepath.Join(dir, name)))
		case !strings.HasPrefix(name, "..") && !tops[name]:
			err = errors.Join(err, os.Remove(filepath.Join(dir, name)))
		}
	}
	return err
}

func fill(data string, files []cis.File, group *int64) error {
	gid := -1
	if group != nil {
		gid = int(*group)
	}
	if err := own(data, 0o755, gid, group != nil); err != nil {
		return err
	}
	for _, f := range files {
		path := filepath.Join(data, f.Path)
		for d := data; ; {
			rest, _ := filepath.Rel(d, filepath.Dir(path))
			if rest == "." || rest == "" {
				break
			}
			first, _, _ := strings.Cut(rest, "/")
			d = filepath.Join(d, first)
			if err := os.Mkdir(d, 0o755); err != nil {
				if errors.Is(err, fs.ErrExist) {
					continue
				}
				return err
			}
			if err := own(d, 0o755, gid, group != nil); err != nil {
				return err
			}
		}
		mode := os.FileMode(f.Mode).Perm()
		if f.Mode == 0 {
			mode = 0o644
		}
		if group != nil {
			mode |= 0o440
		}
		if err := os.WriteFile(path, f.Data, 0o600); err != nil {
			return err
		}
		if err := own(path, mode, gid, false); err != nil {
			return err
		}
	}
	return nil
}

// own sets owner and mode; chown comes first because it clears set-id bits.
func own(path string, mode os.FileMode, gid int, setgid bool) error {
	if gid >= 0 {
		if err := os.Chown(path, -1, gid); err != nil {
			return err
		}
	}
	if setgid {
		mode |= os.ModeSetgid
	}
	return os.Chmod(path, mode)
}
