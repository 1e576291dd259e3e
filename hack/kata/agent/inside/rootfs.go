package inside

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	securejoin "github.com/cyphar/filepath-securejoin"
	pb "github.com/kata-containers/kata-containers/src/runtime/virtcontainers/pkg/agent/protocols/grpc"
	"golang.org/x/sys/unix"
)

// build makes the container's file system and makes it this process's root.
func build(spec *pb.Spec) error {
	if spec.Root == nil || spec.Root.Path == "" {
		return errors.New("the container has no root")
	}
	if err := unix.Unshare(unix.CLONE_NEWCGROUP); err != nil {
		return fmt.Errorf("unshare cgroups: %w", err)
	}
	root := spec.Root.Path
	if err := unix.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	// pivot_root wants a mount point.
	if err := unix.Mount(root, root, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("bind root %s: %w", root, err)
	}
	for _, m := range spec.Mounts {
		if err := mountIn(root, m); err != nil {
			return fmt.Errorf("mount %s: %w", m.Destination, err)
		}
	}
	if err := makeDevices(root, spec); err != nil {
		return err
	}
	return pivot(root)
}

// pivot makes root the root of this mount namespace and drops the former one.
func pivot(root string) error {
	if err := unix.Chdir(root); err != nil {
		return err
	}
	// The former root ends up mounted over the new one (pivot_root(2), NOTES).
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("pivot root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("leave the guest's root: %w", err)
	}
	return unix.Chdir("/")
}

// mountIn mounts m below root. Links in the image are followed within it only.
func mountIn(root string, m *pb.Mount) error {
	o := ParseOptions(m.Options)
	if m.Type == "bind" {
		o.Flags |= unix.MS_BIND
	}
	source, fstype := m.Source, m.Type
	switch {
	case fstype == "cgroup": // the guest has version 2 alone
		source, fstype, o.Data = "cgroup2", "cgroup2", ""
	case o.Flags&unix.MS_BIND != 0:
		fstype = ""
	}
	target, err := target(root, m.Destination, source, o.Flags&unix.MS_BIND != 0)
	if err != nil {
		return err
	}
	defer target.Close()
	at := fmt.Sprintf("/proc/self/fd/%d", target.Fd())
	if err := unix.Mount(source, at, fstype, o.Flags, o.Data); err != nil {
		return fmt.Errorf("%s of %s: %w", m.Type, source, err)
	}
	// What is mounted now is another file than the one that is open.
	over, err := securejoin.OpenInRoot(root, m.Destination)
	if err != nil {
		return err
	}
	defer over.Close()
	at = fmt.Sprintf("/proc/self/fd/%d", over.Fd())
	const change = unix.MS_RDONLY | unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	if o.Flags&unix.MS_BIND != 0 && o.Flags&change != 0 {
		// A bind mount takes its flags in a second step.
		if err := unix.Mount("", at, "", o.Flags&^unix.MS_REC|unix.MS_REMOUNT, ""); err != nil {
			return fmt.Errorf("remount: %w", err)
		}
	}
	for _, p := range o.Propagation {
		if err := unix.Mount("", at, "", p, ""); err != nil {
			return fmt.Errorf("set propagation: %w", err)
		}
	}
	return nil
}

// target opens the place to mount at, and makes it where the image lacks it.
func target(root, destination, source string, bind bool) (*os.File, error) {
	dir := true
	if bind {
		info, err := os.Stat(source)
		if err != nil {
			return nil, err
		}
		dir = info.IsDir()
	}
	if dir {
		f, err := mkdirIn(root, destination, 0o755)
		if err != nil {
			return nil, fmt.Errorf("make mount point: %w", err)
		}
		return f, nil
	}
	if f, err := securejoin.OpenInRoot(root, destination); err == nil {
		return f, nil
	}
	parent, err := mkdirIn(root, filepath.Dir(destination), 0o755)
	if err != nil {
		return nil, fmt.Errorf("make mount point: %w", err)
	}
	defer parent.Close()
	fd, err := unix.Openat(int(parent.Fd()), filepath.Base(destination), unix.O_CREAT|unix.O_EXCL|unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0o644)
	if err != nil {
		return nil, fmt.Errorf("make mount point: %w", err)
	}
	return os.NewFile(uintptr(fd), destination), nil
}

// device is a node that every container has (OCI runtime specification for
// Linux, "Default Devices").
type device struct {
	name         string
	major, minor uint32
}

var defaultDevices = []device{
	{"null", 1, 3}, {"zero", 1, 5}, {"full", 1, 7}, {"random", 1, 8}, {"urandom", 1, 9}, {"tty", 5, 0},
}

var defaultLinks = map[string]string{
	"fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2", "ptmx": "pts/ptmx",
}

func makeDevices(root string, spec *pb.Spec) error {
	dev, err := mkdirIn(root, "/dev", 0o755)
	if err != nil {
		return fmt.Errorf("make /dev: %w", err)
	}
	defer dev.Close()
	for _, d := range defaultDevices {
		if err := makeNode(int(dev.Fd()), d.name, unix.S_IFCHR|0o666, d.major, d.minor, 0, 0); err != nil {
			return err
		}
	}
	for name, to := range defaultLinks {
		if err := unix.Symlinkat(to, int(dev.Fd()), name); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("link /dev/%s: %w", name, err)
		}
	}
	if spec.Linux == nil {
		return nil
	}
	for _, d := range spec.Linux.Devices {
		if err := makeDevice(root, d); err != nil {
			return fmt.Errorf("device %s: %w", d.Path, err)
		}
	}
	return nil
}

// mkdirIn opens a directory below root, made where it is missing.
func mkdirIn(root, dir string, perm os.FileMode) (*os.File, error) {
	r, err := os.OpenFile(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return securejoin.MkdirAllHandle(r, dir, perm)
}

func makeDevice(root string, d *pb.LinuxDevice) error {
	kind := map[string]uint32{"c": unix.S_IFCHR, "u": unix.S_IFCHR, "b": unix.S_IFBLK, "p": unix.S_IFIFO}[d.Type]
	if kind == 0 {
		return fmt.Errorf("type %q", d.Type)
	}
	parent, err := mkdirIn(root, filepath.Dir(d.Path), 0o755)
	if err != nil {
		return err
	}
	defer parent.Close()
	return makeNode(int(parent.Fd()), filepath.Base(d.Path), kind|d.FileMode&0o7777, uint32(d.Major), uint32(d.Minor), d.UID, d.GID)
}

func makeNode(dir int, name string, mode, major, minor, uid, gid uint32) error {
	err := unix.Mknodat(dir, name, mode, int(unix.Mkdev(major, minor)))
	if errors.Is(err, unix.EEXIST) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("make node %s: %w", name, err)
	}
	if err := unix.Fchownat(dir, name, int(uid), int(gid), unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("node %s: %w", name, err)
	}
	return unix.Fchmodat(dir, name, mode&0o7777, 0) // whatever the umask
}

// restrict makes read-only and hides what the specification says, in the new root.
func restrict(spec *pb.Spec) error {
	if l := spec.Linux; l != nil {
		for name, value := range l.Sysctl {
			if err := os.WriteFile("/proc/sys/"+strings.ReplaceAll(name, ".", "/"), []byte(value), 0); err != nil {
				return fmt.Errorf("set sysctl %s: %w", name, err)
			}
		}
		for _, p := range l.ReadonlyPaths {
			if err := readonly(p); err != nil && !errors.Is(err, unix.ENOENT) {
				return fmt.Errorf("make %s read-only: %w", p, err)
			}
		}
		for _, p := range l.MaskedPaths {
			if err := mask(p); err != nil && !errors.Is(err, unix.ENOENT) {
				return fmt.Errorf("hide %s: %w", p, err)
			}
		}
	}
	if spec.Root.Readonly {
		if err := unix.Mount("", "/", "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
			return fmt.Errorf("make the root read-only: %w", err)
		}
	}
	return nil
}

func readonly(path string) error {
	if err := unix.Mount(path, path, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return err
	}
	// What is locked in the mount below must stay so.
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return err
	}
	kept := uintptr(st.Flags) & (unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC)
	return unix.Mount("", path, "", kept|unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, "")
}

func mask(path string) error {
	err := unix.Mount("/dev/null", path, "", unix.MS_BIND, "")
	if errors.Is(err, unix.ENOTDIR) {
		return unix.Mount("tmpfs", path, "tmpfs", unix.MS_RDONLY, "size=0k")
	}
	return err
}
