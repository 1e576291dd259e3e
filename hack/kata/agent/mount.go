package agent

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	pb "github.com/kata-containers/kata-containers/src/runtime/virtcontainers/pkg/agent/protocols/grpc"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"cumulet.io/hack/kata/agent/inside"
)

// mountStorages mounts what the shim wants to be in the guest, not in a
// container: memory for /dev/shm and for emptyDirs, shared directories.
func mountStorages(storages []*pb.Storage) error {
	for _, s := range storages {
		if err := mountStorage(s); err != nil {
			return fmt.Errorf("storage at %s: %w", s.MountPoint, err)
		}
	}
	return nil
}

func mountStorage(s *pb.Storage) error {
	switch s.Driver {
	case "local": // a directory of the guest's, with its mode as an option
		mode := os.FileMode(0o777)
		for _, o := range s.Options {
			if v, ok := strings.CutPrefix(o, "mode="); ok {
				m, err := strconv.ParseUint(v, 8, 32)
				if err != nil {
					return status.Errorf(codes.InvalidArgument, "option %q: %v", o, err)
				}
				mode = os.FileMode(m) & 0o777
			}
		}
		if err := os.MkdirAll(s.MountPoint, mode); err != nil {
			return err
		}
		return os.Chmod(s.MountPoint, mode) // whatever the umask
	case "ephemeral", "overlayfs", "virtio-fs", "watchable-bind":
	default:
		return status.Errorf(codes.Unimplemented, "driver %q", s.Driver)
	}
	// Several containers may have the same one.
	if mounted, err := isMountPoint(s.MountPoint); err != nil || mounted {
		return err
	}
	if err := os.MkdirAll(s.MountPoint, 0o755); err != nil {
		return err
	}
	o := inside.ParseOptions(s.Options)
	if s.Fstype == "bind" {
		o.Flags |= unix.MS_BIND
	}
	if err := unix.Mount(s.Source, s.MountPoint, s.Fstype, o.Flags, o.Data); err != nil {
		return fmt.Errorf("mount %s: %w", s.Fstype, err)
	}
	return nil
}

func isMountPoint(path string) (bool, error) {
	var at, above unix.Stat_t
	if err := unix.Stat(path, &at); err != nil {
		if os.IsNotExist(err) {
			return false, nil
		}
		return false, err
	}
	if err := unix.Stat(filepath.Dir(path), &above); err != nil {
		return false, err
	}
	return at.Dev != above.Dev, nil
}
