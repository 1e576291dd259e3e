package cri

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	rt "k8s.io/cri-api/pkg/apis/runtime/v1"

	"cumulet.io/cis"
)

// mountsFor makes what a container mounts and completes its configuration. It also makes the log's directory.
func (v *volumes) mountsFor(p *plan, container string, attempt int, logDir string) error {
	if !fileName(container) {
		return fmt.Errorf("container name %q is not a name", container)
	}
	if err := os.MkdirAll(filepath.Join(logDir, container), 0o755); err != nil {
		return fmt.Errorf("make log directory: %w", err)
	}
	own := map[string]bool{}
	for i, m := range p.spec.Mounts {
		host := v.path(m.Volume)
		if m.SubPath != "" {
			var err error
			if host, err = v.subPath(container, i, m); err != nil {
				return fmt.Errorf("mount %s: subPath %q: %w", m.Path, m.SubPath, err)
			}
		}
		own[path.Clean(m.Path)] = true
		p.config.Mounts = append(p.config.Mounts, &rt.Mount{HostPath: host, ContainerPath: m.Path, Readonly: m.ReadOnly})
	}
	if !own["/etc/hosts"] {
		p.config.Mounts = append(p.config.Mounts, &rt.Mount{HostPath: filepath.Join(v.dir, "hosts"), ContainerPath: "/etc/hosts"})
	}
	if at := messageMount(p.spec); at != "" && !own[path.Clean(at)] {
		file, err := v.messageFile(container, attempt)
		if err != nil {
			return fmt.Errorf("make termination message file: %w", err)
		}
		p.config.Mounts = append(p.config.Mounts, &rt.Mount{HostPath: file, ContainerPath: at})
	}
	return nil
}

func messageMount(c *cis.Container) string {
	if c.TerminationMessagePath != "" {
		return c.TerminationMessagePath
	}
	return corev1.TerminationMessagePathDefault
}

// subPath gives a host path for a part of a volume. A container may have put symbolic links into the volume; none can
// lead out of it: the part is opened beneath the volume by the kernel's own rule (RESOLVE_BENEATH), and what was opened
// is bind-mounted, so nothing can be exchanged afterwards.
func (v *volumes) subPath(container string, n int, m cis.Mount) (string, error) {
	if !filepath.IsLocal(m.SubPath) {
		return "", errors.New("must be relative and stay inside the volume")
	}
	root, err := unix.Open(v.path(m.Volume), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", err
	}
	defer unix.Close(root)
	fd, err := openBeneath(root, filepath.Clean(m.SubPath))
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return "", err
	}
	at := filepath.Join(v.dir, "subpaths", container, strconv.Itoa(n))
	if err := os.MkdirAll(filepath.Dir(at), 0o711); err != nil {
		return "", err
	}
	if err := unix.Unmount(at, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	if err := os.Remove(at); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		err = os.Mkdir(at, 0o755)
	} else {
		err = os.WriteFile(at, nil, 0o644)
	}
	if err != nil {
		return "", err
	}
	if err := unix.Mount(fmt.Sprintf("/proc/self/fd/%d", fd), at, "", unix.MS_BIND, ""); err != nil {
		return "", fmt.Errorf("bind: %w", err)
	}
	return at, nil
}

// openBeneath opens rel below root, and makes the directories that are missing.
func openBeneath(root int, rel string) (int, error) {
	how := unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_MAGICLINKS}
	open := func(p string, flags uint64) (int, error) {
		h := how
		h.Flags |= flags
		for {
			fd, err := unix.Openat2(root, p, &h)
			if !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR) {
				return fd, err
			}
		}
	}
	fd, err := open(rel, 0)
	if !errors.Is(err, unix.ENOENT) {
		return fd, err
	}
	elems := strings.Split(rel, "/")
	for i := range elems {
		p := strings.Join(elems[:i+1], "/")
		fd, err := open(p, unix.O_DIRECTORY)
		if err == nil {
			if i == len(elems)-1 {
				return fd, nil
			}
			unix.Close(fd)
			continue
		}
		if !errors.Is(err, unix.ENOENT) {
			return -1, err
		}
		parent := root
		if i > 0 {
			if parent, err = open(strings.Join(elems[:i], "/"), unix.O_DIRECTORY); err != nil {
				return -1, err
			}
		}
		err = unix.Mkdirat(parent, elems[i], 0o750)
		var st unix.Stat_t
		if err == nil && unix.Fstat(parent, &st) == nil {
			// As its parent: the group of the volume, and open to whoever may write there.
			err = errors.Join(unix.Fchownat(parent, elems[i], int(st.Uid), int(st.Gid), unix.AT_SYMLINK_NOFOLLOW),
				unix.Fchmodat(parent, elems[i], st.Mode&0o7777, 0))
		}
		if parent != root {
			unix.Close(parent)
		}
		if err != nil && !errors.Is(err, unix.EEXIST) {
			return -1, err
		}
	}
	return open(rel, 0)
}
