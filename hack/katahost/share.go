package main

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// serveCommand is the argument by which this program becomes the file server.
const serveCommand = "serve-files"

// serve serves this machine's root file system, of which nothing can be written
// to, at the socket that is file descriptor 3, with the directories of args,
// wherever they are mounted from. It becomes virtiofsd and returns an error only.
//
// It runs in a mount namespace of its own, with nothing else in it: a copy of
// other mounts would keep them alive when their owners unmount them.
func serve(args []string) error {
	if len(args) < 2 {
		return errors.New("want a directory to mount at, and those to show")
	}
	at, dirs := args[0], args[1:]
	// Go has made the namespace's mounts private ones.
	if err := unix.Mount("/", at, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind /: %w", err)
	}
	var root, st unix.Stat_t
	if err := unix.Stat("/", &root); err != nil {
		return err
	}
	for _, d := range dirs {
		if err := unix.Stat(d, &st); err != nil {
			return fmt.Errorf("%s: %w", d, err)
		}
		if st.Dev == root.Dev {
			continue
		}
		// The place may exist only where the other file system is mounted.
		if err := os.MkdirAll(at+d, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(d, at+d, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("bind %s: %w", d, err)
		}
	}
	ro := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
	if err := unix.MountSetattr(unix.AT_FDCWD, at, unix.AT_RECURSIVE, &ro); err != nil {
		return fmt.Errorf("make the share read-only: %w", err)
	}
	if err := unix.Chdir(at); err != nil {
		return err
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("enter the share: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("leave what is not shared: %w", err)
	}
	if err := unix.Chdir("/"); err != nil {
		return err
	}
	if err := unix.Mount("proc", "/proc", "proc", 0, ""); err != nil { // virtiofsd works by /proc/self/fd
		return fmt.Errorf("mount proc: %w", err)
	}
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return err
	}
	a := strings.Fields(virtiofsd + " -f --fd=3 -o source=/ -o sandbox=chroot -o cache=always -o no_xattr -o log_level=warn")
	a = append(a, fmt.Sprintf("--rlimit-nofile=%d", limit.Max))
	return fmt.Errorf("%s: %w", virtiofsd, unix.Exec(virtiofsd, a, os.Environ()))
}
