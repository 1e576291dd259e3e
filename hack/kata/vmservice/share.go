package vmservice

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"sync"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"cumulet.io/hack/kata/sharing"
	"cumulet.io/hack/kata/vsock"
)

// Where containerd's CRI says in a container's annotations which sandbox it is
// of; a sandbox names itself.
const annotationSandbox = "io.kubernetes.cri.sandbox-id"

// shares is the directory that a machine's guest has of the host:
//
//	<container>/root  its root file system
//	<container>/<n>   the source of its mount n
//
// All are mounts in the shim's mount namespace, so that the directory itself
// holds nothing but places to mount at.
type shares struct {
	vm      string
	dir     string
	bundles string
	space   *space

	mu         sync.Mutex
	containers map[string][]string // what is mounted
	closed     bool
}

// serve answers one request of the guest's.
func (s *shares) serve(c *vsock.Stream) {
	defer c.Close()
	var req sharing.Request
	var resp sharing.Response
	err := sharing.Decode(c, &req)
	if err == nil {
		resp, err = s.handle(req)
	}
	if err != nil {
		resp = sharing.Response{Error: err.Error()}
	}
	if err := json.NewEncoder(c).Encode(resp); err != nil {
		return // the guest is gone
	}
	// The guest closes the stream when it has read the answer.
	_, _ = io.Copy(io.Discard, c)
}

func (s *shares) handle(req sharing.Request) (sharing.Response, error) {
	if !validID.MatchString(req.Container) {
		return sharing.Response{}, fmt.Errorf("container id %q", req.Container)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return sharing.Response{}, errors.New("the machine is being stopped")
	}
	if req.Release {
		return sharing.Response{}, s.release(req.Container)
	}
	return s.share(req.Container)
}

// spec reads the container's specification from its bundle, and refuses another
// sandbox's.
func (s *shares) spec(id string) (*specs.Spec, string, error) {
	bundle := filepath.Join(s.bundles, id)
	b, err := os.ReadFile(filepath.Join(bundle, "config.json"))
	if err != nil {
		return nil, "", fmt.Errorf("no container %s of this sandbox", id)
	}
	var spec specs.Spec
	if err := json.Unmarshal(b, &spec); err != nil {
		return nil, "", fmt.Errorf("container %s: %w", id, err)
	}
	if id != s.vm && spec.Annotations[annotationSandbox] != s.vm {
		return nil, "", fmt.Errorf("no container %s of this sandbox", id)
	}
	return &spec, bundle, nil
}

func (s *shares) share(id string) (sharing.Response, error) {
	spec, bundle, err := s.spec(id)
	if err != nil {
		return sharing.Response{}, err
	}
	if s.containers == nil {
		s.containers = map[string][]string{}
	}
	if _, ok := s.containers[id]; ok {
		return sharing.Response{}, fmt.Errorf("container %s is shared already", id)
	}
	s.containers[id] = nil
	resp := sharing.Response{Root: path.Join(id, "root"), Mounts: map[string]string{}}
	root := filepath.Join(bundle, "rootfs")
	if spec.Root != nil && spec.Root.Path != "" {
		root = spec.Root.Path
		if !filepath.IsAbs(root) {
			root = filepath.Join(bundle, root)
		}
	}
	err = s.bind(id, root, "root", false)
	for i, m := range spec.Mounts {
		if err != nil {
			break
		}
		if m.Type != "bind" || !shareable(m) {
			continue
		}
		name := strconv.Itoa(i)
		if err = s.bind(id, m.Source, name, readOnly(m)); err != nil {
			err = fmt.Errorf("mount %s: %w", m.Destination, err)
		}
		resp.Mounts[path.Clean(m.Destination)] = path.Join(id, name)
	}
	if err != nil {
		return sharing.Response{}, errors.Join(err, s.release(id))
	}
	return resp, nil
}

// shareable is whether a mount's source is a directory or a regular file.
func shareable(m specs.Mount) bool {
	info, err := os.Stat(m.Source)
	return err == nil && (info.IsDir() || info.Mode().IsRegular()) && m.Destination != "/dev/shm"
}

func readOnly(m specs.Mount) bool {
	ro := false
	for _, o := range m.Options {
		switch o {
		case "ro":
			ro = true
		case "rw":
			ro = false
		}
	}
	return ro
}

// bind mounts a source of the shim's namespace in the shared directory.
func (s *shares) bind(id, source, name string, ro bool) error {
	target := filepath.Join(s.dir, id, name)
	if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil {
		return err
	}
	return s.space.do(func() error {
		info, err := os.Stat(source)
		if err != nil {
			return err
		}
		if info.IsDir() {
			err = os.Mkdir(target, 0o755)
		} else {
			err = os.WriteFile(target, nil, 0o644)
		}
		if err != nil {
			return err
		}
		if err := unix.Mount(source, target, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
			return fmt.Errorf("bind %s: %w", source, err)
		}
		s.containers[id] = append(s.containers[id], target)
		if !ro {
			return nil
		}
		// Host and guest both hold to it: the guest is not trusted to.
		attr := &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
		if err := unix.MountSetattr(unix.AT_FDCWD, target, unix.AT_RECURSIVE, attr); err != nil {
			return fmt.Errorf("make %s read-only: %w", source, err)
		}
		return nil
	})
}

// release unmounts what a container has. The lock is held.
func (s *shares) release(id string) error {
	targets, ok := s.containers[id]
	if !ok {
		return nil
	}
	delete(s.containers, id)
	var errs []error
	for _, t := range targets {
		errs = append(errs, s.space.do(func() error {
			return unix.Unmount(t, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		}))
	}
	return errors.Join(append(errs, removeShare(filepath.Join(s.dir, id)))...)
}

// releaseAll releases every container and shares no more.
func (s *shares) releaseAll() error {
	if s == nil {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	var errs []error
	for id := range s.containers {
		errs = append(errs, s.release(id))
	}
	return errors.Join(errs...)
}

// removeShare removes a container's directory of the share. It deletes nothing
// that has content: should anything be mounted there still, that is another's.
func removeShare(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		at := filepath.Join(dir, e.Name())
		if info, err := e.Info(); err == nil && info.Mode().IsRegular() && info.Size() > 0 {
			return fmt.Errorf("%s has content", at)
		}
		if err := os.Remove(at); err != nil {
			return err
		}
	}
	return os.Remove(dir)
}

// removeDir removes a machine's directory.
func removeDir(dir string) error {
	containers, err := os.ReadDir(filepath.Join(dir, shareDir))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, c := range containers {
		if err := removeShare(filepath.Join(dir, shareDir, c.Name())); err != nil {
			return err
		}
	}
	if err := os.Remove(filepath.Join(dir, shareDir)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return os.RemoveAll(dir)
}

// clean removes what a service that was killed has left. Its machines are gone
// with it.
func clean(state string) error {
	dirs, err := os.ReadDir(state)
	if err != nil {
		return err
	}
	for _, d := range dirs {
		if err := removeDir(filepath.Join(state, d.Name())); err != nil {
			return err
		}
	}
	return nil
}
