package inside

import (
	"fmt"
	"os"

	pb "github.com/kata-containers/kata-containers/src/runtime/virtcontainers/pkg/agent/protocols/grpc"
	"golang.org/x/sys/unix"
)

// openTerminal makes a terminal of the container's own devpts, hands its master
// to the agent and makes its slave the process's controlling terminal.
func openTerminal(p *pb.Process, socket *os.File, console bool) error {
	master, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open /dev/ptmx: %w", err)
	}
	defer unix.Close(master)
	n, err := unix.IoctlGetInt(master, unix.TIOCGPTN)
	if err != nil {
		return fmt.Errorf("number of terminal: %w", err)
	}
	if err := unix.IoctlSetPointerInt(master, unix.TIOCSPTLCK, 0); err != nil {
		return fmt.Errorf("unlock terminal: %w", err)
	}
	name := fmt.Sprintf("/dev/pts/%d", n)
	slave, err := unix.Open(name, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open terminal: %w", err)
	}
	defer unix.Close(slave)
	if p.User != nil {
		if err := unix.Fchown(slave, int(p.User.UID), -1); err != nil {
			return fmt.Errorf("give away terminal: %w", err)
		}
	}
	if s := p.ConsoleSize; s != nil && s.Height > 0 && s.Width > 0 {
		size := &unix.Winsize{Row: uint16(s.Height), Col: uint16(s.Width)}
		if err := unix.IoctlSetWinsize(slave, unix.TIOCSWINSZ, size); err != nil {
			return fmt.Errorf("set size of terminal: %w", err)
		}
	}
	if err := unix.Sendmsg(int(socket.Fd()), []byte{'\n'}, unix.UnixRights(master), nil, 0); err != nil {
		return fmt.Errorf("hand terminal to the agent: %w", err)
	}
	if console {
		if err := bindFile(name, "/dev/console"); err != nil {
			return err
		}
	}
	// The process leads a session already: the agent starts it so.
	if err := unix.IoctlSetInt(slave, unix.TIOCSCTTY, 0); err != nil {
		return fmt.Errorf("set controlling terminal: %w", err)
	}
	for fd := range 3 {
		if err := unix.Dup3(slave, fd, 0); err != nil {
			return fmt.Errorf("set file descriptor %d: %w", fd, err)
		}
	}
	return nil
}

// bindFile bind-mounts a file over another, which is made if it is not there.
func bindFile(from, to string) error {
	f, err := os.OpenFile(to, os.O_CREATE|os.O_RDONLY|unix.O_NOCTTY|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0o666)
	if err != nil && !os.IsExist(err) {
		if _, err2 := os.Lstat(to); err2 != nil {
			return err
		}
	}
	if f != nil {
		f.Close()
	}
	if err := unix.Mount(from, to, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind %s to %s: %w", from, to, err)
	}
	return nil
}
