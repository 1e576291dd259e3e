package attempt

import (
	"context"
	"errors"
	"net"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

func files() []Attempt {
	return []Attempt{
		{Name: "read a file of the machine by its path", Try: func(t Targets) error { return readSome(t.Secret) }},
		{Name: "read another org's volume", Try: func(t Targets) error { return readSome(t.Volume) }},
		{Name: "read another org's log", Try: func(t Targets) error { return readSome(t.Log) }},
		{Name: "open a file of the machine by its handle", Try: func(Targets) error {
			// Inode 2 is the root directory of ext4, 128 that of XFS.
			dir, err := unix.Open("/etc/hosts", unix.O_RDONLY, 0)
			if err != nil {
				return err
			}
			defer unix.Close(dir)
			fd, err := unix.OpenByHandleAt(dir, unix.NewFileHandle(1, []byte{2, 0, 0, 0, 0, 0, 0, 0}), unix.O_RDONLY)
			if err == nil {
				unix.Close(fd)
			}
			return err
		}},
		{Name: "see the machine's directories in the mount table", Try: func(t Targets) error {
			b, err := os.ReadFile("/proc/self/mountinfo")
			if err != nil {
				return err
			}
			if strings.Contains(string(b), " "+t.Secret) {
				return nil
			}
			return errors.New("not there")
		}},
		{Name: "leave through a directory kept open (/proc/self/fd)", Try: func(t Targets) error {
			all, err := os.ReadDir("/proc/self/fd")
			if err != nil {
				return err
			}
			for _, e := range all {
				if readSome("/proc/self/fd/"+e.Name()+"/../../../../../.."+t.Secret) == nil {
					return nil
				}
			}
			return errors.New("none leads out")
		}},
		{Name: "connect to containerd's socket", Try: func(t Targets) error { return dial("unix", t.Socket) }},
		{Name: "connect to an abstract socket of the machine", Try: func(t Targets) error { return dial("unix", t.Abstract) }},
	}
}

// timeout bounds an attempt that nobody answers.
const timeout = 2 * time.Second

func dial(network, address string) error {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	c, err := new(net.Dialer).DialContext(ctx, network, address)
	if err != nil {
		return err
	}
	return c.Close()
}
