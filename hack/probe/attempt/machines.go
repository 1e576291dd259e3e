package attempt

import (
	"encoding/json"
	"errors"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// Of the tests' virtual machines (hack/kata): the port of a guest's agent, the port of the machine at which a guest asks for
// its containers' files, and the name of the directory that has them.
const (
	agentPort   = 1024
	sharingPort = 1025
	sharingTag  = "cumulet"
)

// machines are attempts at the virtual machines of others, and at what serves them.
func machines() []Attempt {
	return []Attempt{
		{Name: "reach the agent of another virtual machine by vsock", Try: func(Targets) error {
			// The address of a machine is a number; the first are the machine's own, and of nobody.
			err := errors.New("no address")
			for cid := uint32(unix.VMADDR_CID_HOST) + 1; cid < 16; cid++ {
				var fd int
				if fd, err = vsock(cid, agentPort); err == nil {
					return unix.Close(fd)
				}
			}
			return err
		}},
		{Name: "ask the machine for another instance's files by vsock", Try: func(t Targets) error {
			fd, err := vsock(unix.VMADDR_CID_HOST, sharingPort)
			if err != nil {
				return err
			}
			f := os.NewFile(uintptr(fd), "vsock")
			defer f.Close()
			if err := json.NewEncoder(f).Encode(map[string]string{"container": t.Container}); err != nil {
				return err
			}
			var answer struct {
				Error string `json:"error"`
			}
			if err := json.NewDecoder(f).Decode(&answer); err != nil {
				return err
			}
			if strings.HasPrefix(answer.Error, "no container") {
				return errors.New("refused")
			}
			if answer.Error != "" {
				return errors.New(answer.Error)
			}
			return nil
		}},
		{Name: "mount the directory that the machine shares with a guest", Try: func(Targets) error {
			if err := os.MkdirAll("/probe-share", 0o755); err != nil {
				return err
			}
			return unix.Mount(sharingTag, "/probe-share", "virtiofs", 0, "")
		}},
	}
}

// vsock connects to a port of a machine.
func vsock(cid, port uint32) (int, error) {
	fd, err := unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	wait := unix.NsecToTimeval(int64(timeout) / 10)
	if err := unix.SetsockoptTimeval(fd, unix.AF_VSOCK, unix.SO_VM_SOCKETS_CONNECT_TIMEOUT, &wait); err != nil {
		unix.Close(fd)
		return -1, err
	}
	if err := unix.Connect(fd, &unix.SockaddrVM{CID: cid, Port: port}); err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}
