package qemuagent

import (
	"testing"

	pb "github.com/kata-containers/kata-containers/src/runtime/virtcontainers/pkg/agent/protocols/grpc"
)

func TestMoved(t *testing.T) {
	for path, want := range map[string]string{
		driverShare:                        share,
		driverShare + "/":                  share + "/",
		driverShare + "/0123/rootfs":       share + "/0123/rootfs",
		driverShare + "-of-others/x":       driverShare + "-of-others/x",
		"/run/kata-containers/sandbox/shm": "/run/kata-containers/sandbox/shm",
		"kataShared":                       "kataShared",
		"":                                 "",
	} {
		if got := moved(path); got != want {
			t.Errorf("%q is at %q, want %q", path, got, want)
		}
	}
	s := &pb.Storage{Driver: "virtio-fs", Source: "kataShared", MountPoint: driverShare + "/"}
	if moveStorages([]*pb.Storage{s}); s.Source != "kataShared" || s.MountPoint != share+"/" {
		t.Errorf("the storage is %v", s)
	}
}
