package agent

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	pb "github.com/kata-containers/kata-containers/src/runtime/virtcontainers/pkg/agent/protocols/grpc"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"
)

// copyRoot is what CopyFile may write below.
const copyRoot = "/run/kata-containers"

// CopyFile writes a part of a file of a volume, a directory or a link. Where the
// host shares its volumes nothing needs to be copied: the container gets the
// volume itself.
func (a *Agent) CopyFile(_ context.Context, r *pb.CopyFileRequest) (*emptypb.Empty, error) {
	if filepath.Clean(r.Path) != r.Path || !strings.HasPrefix(r.Path, copyRoot+"/") {
		return nil, status.Errorf(codes.InvalidArgument, "path %q is not below %s", r.Path, copyRoot)
	}
	if a.files != nil && strings.HasPrefix(r.Path, copiedDir+"/") {
		return done(), nil
	}
	return done(), copyFile(r)
}

func copyFile(r *pb.CopyFileRequest) error {
	if err := os.MkdirAll(filepath.Dir(r.Path), os.FileMode(r.DirMode)&fs.ModePerm|0o700); err != nil {
		return err
	}
	perm := os.FileMode(r.FileMode) & fs.ModePerm
	switch r.FileMode & unix.S_IFMT {
	case unix.S_IFDIR:
		if err := os.Mkdir(r.Path, perm|0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	case unix.S_IFLNK:
		// A new link takes an old one's place in one step: that is how a
		// volume's update becomes visible.
		tmp := r.Path + ".new"
		if err := os.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if err := os.Symlink(string(r.Data), tmp); err != nil {
			return err
		}
		if err := os.Lchown(tmp, int(r.Uid), int(r.Gid)); err != nil {
			return err
		}
		return os.Rename(tmp, r.Path)
	case unix.S_IFREG:
		if err := writePart(r, perm); err != nil {
			return err
		}
	default:
		return status.Errorf(codes.InvalidArgument, "%s: file type %o", r.Path, r.FileMode&unix.S_IFMT)
	}
	return os.Lchown(r.Path, int(r.Uid), int(r.Gid))
}

func writePart(r *pb.CopyFileRequest, perm os.FileMode) error {
	if r.Offset < 0 || r.FileSize < 0 || r.Offset+int64(len(r.Data)) > r.FileSize {
		return status.Errorf(codes.InvalidArgument, "%s: %d bytes at %d of %d", r.Path, len(r.Data), r.Offset, r.FileSize)
	}
	f, err := os.OpenFile(r.Path, os.O_CREATE|os.O_WRONLY|unix.O_NOFOLLOW, perm)
	if err != nil {
		return err
	}
	defer f.Close()
	if r.Offset == 0 {
		if err := f.Truncate(0); err != nil {
			return err
		}
	}
	if _, err := f.WriteAt(r.Data, r.Offset); err != nil {
		return err
	}
	return f.Chmod(perm)
}
