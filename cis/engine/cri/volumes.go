package cri

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"cumulet.io/cis"
	"cumulet.io/internal/mounts"
	"cumulet.io/internal/problem"
)

// volumes keeps an instance's files on the node:
//
//	<dir>/volumes/<name>              a volume
//	<dir>/subpaths/<container>/<n>    a bind mount of a part of a volume
//	<dir>/message/<container>/<n>     the termination message of attempt n
//	<dir>/hosts                       the instance's /etc/hosts
//
// Its methods do I/O and may be called by any goroutine.
type volumes struct {
	dir string
	mu  sync.Mutex
	// newer holds files that replaced those of the spec.
	newer map[string]*cis.FilesVolume
}

func (v *volumes) path(name string) string { return filepath.Join(v.dir, "volumes", name) }

// prepare makes every volume of the spec; what is there already stays.
func (v *volumes) prepare(spec *cis.Spec) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	var fsGroup *int64
	if spec.SecurityContext != nil {
		fsGroup = spec.SecurityContext.FSGroup
	}
	for i := range spec.Volumes {
		vol := &spec.Volumes[i]
		if !fileName(vol.Name) {
			return fmt.Errorf("volume %q: not a name", vol.Name)
		}
		var err error
		switch {
		case vol.EmptyDir != nil:
			err = makeEmptyDir(v.path(vol.Name), vol.EmptyDir, fsGroup)
		case vol.Files != nil:
			files := vol.Files
			if n := v.newer[vol.Name]; n != nil {
				files = n
			}
			err = makeFiles(v.path(vol.Name), files, fsGroup)
		default:
			err = errors.New("neither emptyDir nor files")
		}
		if err != nil {
			return fmt.Errorf("make volume %q: %w", vol.Name, err)
		}
	}
	return nil
}

// update replaces the files of a volume. Before the volume is made, they are kept for then.
func (v *volumes) update(spec *cis.Spec, name string, files *cis.FilesVolume) error {
	i := slices.IndexFunc(spec.Volumes, func(x cis.Volume) bool { return x.Name == name })
	if i < 0 || spec.Volumes[i].Files == nil {
		return problem.New(problem.ErrNotFound, "the instance has no files volume %q", name)
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.newer == nil {
		v.newer = map[string]*cis.FilesVolume{}
	}
	if _, err := os.Lstat(v.path(name)); err == nil {
		var fsGroup *int64
		if spec.SecurityContext != nil {
			fsGroup = spec.SecurityContext.FSGroup
		}
		if err := writeFiles(v.path(name), files.Files, fsGroup); err != nil {
			return fmt.Errorf("update volume %q: %w", name, err)
		}
	}
	v.newer[name] = files
	return nil
}

func fileName(s string) bool {
	return s != "" && s != "." && s != ".." && !strings.ContainsAny(s, "/\x00") && len(s) < 256
}

func makeEmptyDir(dir string, e *cis.EmptyDir, fsGroup *int64) error {
	if err := os.MkdirAll(dir, 0o777); err != nil {
		return err
	}
	if e.Memory {
		opts := "mode=0777"
		if e.SizeLimitBytes > 0 {
			opts += fmt.Sprintf(",size=%d", e.SizeLimitBytes)
		}
		if err := mountTmpfs(dir, opts, 0); err != nil {
			return err
		}
	}
	mode := os.FileMode(0o777)
	if fsGroup != nil {
		if err := os.Chown(dir, -1, int(*fsGroup)); err != nil {
			return err
		}
		mode |= os.ModeSetgid
	}
	return os.Chmod(dir, mode)
}

// makeFiles makes a FilesVolume; a secret one is kept in memory, so that it never gets on a disk.
func makeFiles(dir string, f *cis.FilesVolume, fsGroup *int64) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if f.Secret {
		if err := mountTmpfs(dir, "mode=0755,size=16m", unix.MS_NODEV|unix.MS_NOEXEC|unix.MS_NOSUID); err != nil {
			return err
		}
	}
	return writeFiles(dir, f.Files, fsGroup)
}

// mountTmpfs mounts an empty tmpfs unless something is mounted there already.
func mountTmpfs(dir, opts string, flags uintptr) error {
	if mounted, err := isMountPoint(dir); err != nil || mounted {
		return err
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", flags, opts); err != nil {
		return fmt.Errorf("mount tmpfs: %w", err)
	}
	return nil
}

func isMountPoint(dir string) (bool, error) {
	var a, b unix.Stat_t
	if err := unix.Lstat(dir, &a); err != nil {
		return false, err
	}
	if err := unix.Lstat(filepath.Dir(dir), &b); err != nil {
		return false, err
	}
	return a.Dev != b.Dev, nil
}

// writeHosts writes the instance's /etc/hosts. It is written in place, because containers have it mounted.
func (v *volumes) writeHosts(spec *cis.Spec, host string, ips []string) error {
	var b bytes.Buffer
	b.WriteString("# Managed by the platform.\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n" +
		"fe00::0\tip6-localnet\nfe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n")
	for _, ip := range ips {
		if spec.Domain != "" {
			fmt.Fprintf(&b, "%s\t%s.%s\t%s\n", ip, host, spec.Domain, host)
		} else {
			fmt.Fprintf(&b, "%s\t%s\n", ip, host)
		}
	}
	if len(spec.HostAliases) > 0 {
		b.WriteString("\n# Host aliases of the instance.\n")
	}
	for _, h := range spec.HostAliases {
		fmt.Fprintf(&b, "%s\t%s\n", h.IP, strings.Join(h.Hostnames, "\t"))
	}
	if err := os.WriteFile(filepath.Join(v.dir, "hosts"), b.Bytes(), 0o644); err != nil {
		return fmt.Errorf("write hosts file: %w", err)
	}
	return nil
}

// messageFile makes the file for the termination message of an attempt.
func (v *volumes) messageFile(container string, attempt int) (string, error) {
	dir := filepath.Join(v.dir, "message", container)
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return "", err
	}
	path := v.messagePath(container, attempt)
	if err := os.WriteFile(path, nil, 0o666); err != nil {
		return "", err
	}
	return path, os.Chmod(path, 0o666)
}

func (v *volumes) messagePath(container string, attempt int) string {
	return filepath.Join(v.dir, "message", container, fmt.Sprint(attempt))
}

// remove removes everything but the state file.
func (v *volumes) remove() error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if err := mounts.Unmount(v.dir); err != nil {
		return err
	}
	var err error
	for _, d := range []string{"volumes", "subpaths", "message", "hosts"} {
		err = errors.Join(err, os.RemoveAll(filepath.Join(v.dir, d)))
	}
	return err
}
