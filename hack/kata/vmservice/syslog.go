package vmservice

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Kata's shim does not start on a machine without a syslog socket, as a container
// often is. ServeSyslog has the machine have one.
const (
	syslogSocket = "/dev/log"
	syslogLock   = "/run/cumulet-kata-syslog.lock"
	// handOver is how long a service that ends still answers when another may
	// take the socket's place.
	handOver = 300 * time.Millisecond
	// maxSyslog bounds the file that the messages go to.
	maxSyslog = 64 << 20
)

// ServeSyslog serves the machine's syslog socket where nobody does, and writes
// what comes to a file, until ctx ends. Of several services one does; when it
// ends another takes over.
func ServeSyslog(ctx context.Context, file string) error {
	lock, err := os.OpenFile(syslogLock, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer lock.Close()
	for {
		err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			break
		}
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return fmt.Errorf("lock %s: %w", syslogLock, err)
		}
		select {
		case <-time.After(handOver / 10):
		case <-ctx.Done():
			return nil
		}
	}
	if c, err := (&net.Dialer{}).DialContext(ctx, "unixgram", syslogSocket); err == nil {
		c.Close() // the machine's own
		<-ctx.Done()
		return nil
	}
	return serveSyslog(ctx, lock, file)
}

func serveSyslog(ctx context.Context, lock *os.File, file string) error {
	out, err := os.OpenFile(file, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer out.Close()
	at := fmt.Sprintf("%s.%d", syslogSocket, os.Getpid())
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: at, Net: "unixgram"})
	if err != nil {
		return err
	}
	var ours unix.Stat_t
	if err := errors.Join(unix.Stat(at, &ours), os.Rename(at, syslogSocket)); err != nil {
		l.Close()
		return err
	}
	stop := context.AfterFunc(ctx, func() {
		lock.Close() // another takes the socket's place
		time.Sleep(handOver)
		l.Close()
	})
	defer stop()
	b := make([]byte, 64<<10)
	for written := 0; ; {
		n, err := l.Read(b)
		if err != nil {
			break
		}
		if written += n; written < maxSyslog {
			if _, err := out.Write(append(b[:n:n], '\n')); err != nil {
				break
			}
		}
	}
	var now unix.Stat_t
	if err := unix.Stat(syslogSocket, &now); err == nil && now.Ino == ours.Ino && now.Dev == ours.Dev {
		return os.Remove(syslogSocket)
	}
	return nil
}
