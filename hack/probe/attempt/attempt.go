// Package attempt has the ways in which the isolation tests' probe tries to get out of its sandbox. An attempt is made
// inside, and gives its outcome in words that are the same each time.
package attempt

import (
	"errors"
	"net"
	"os"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Targets are what of the outside the probe is told to reach for. Each of them is really there.
type Targets struct {
	// Kernel is the machine's release, as uname has it.
	Kernel string
	// Files are paths of the machine: of sockets, of other orgs' volumes and logs, of a secret.
	Socket, Volume, Log, Secret string
	// Container is a container of another instance, by its id in containerd.
	Container string
	// Abstract is an abstract unix socket of the machine.
	Abstract string
	// Key is the description of a key in root's keyring of the machine.
	Key string
	// Node is the machine's address on the instances' network; NodePort and LoopbackPort have listeners, on all addresses
	// and on 127.0.0.1.
	Node                   string
	NodePort, LoopbackPort string
	// Node6 is the machine's IPv6 link-local address there, "" when it has none.
	Node6 string
	// Metadata is the address of a service at a link-local address that the machine has a route to.
	Metadata string
	// Same and Other are addresses of neighbours, of the same org and of another; Peer is a neighbour of Other's org.
	Same, Other, Peer string
	// Device is the number of the machine's disk, as 254:0.
	Device string
}

// Attempt is one way.
type Attempt struct {
	// Name says what is tried.
	Name string
	// OwnKernel tells that success means nothing where the kernel is the sandbox's own: there is nobody else's in it.
	OwnKernel bool
	// Try returns nil when it got where it should not, or what stopped it.
	Try func(t Targets) error
}

// Result is what the probe prints.
type Result struct {
	Name    string `json:"name"`
	Outcome string `json:"outcome"`
}

// Sent is the outcome of a datagram, of which only the receiver can tell whether it came.
const Sent = "sent"

// Reached is the outcome of an attempt that succeeded.
const Reached = "REACHED"

// Outcome makes the attempt.
func (a Attempt) Outcome(t Targets) string {
	err := a.Try(t)
	if err == nil {
		return Reached
	}
	var n syscall.Errno
	var ne net.Error
	switch {
	case errors.As(err, &n):
		if name := unix.ErrnoName(n); name != "" {
			return name
		}
	case errors.As(err, &ne) && ne.Timeout():
		return "no answer"
	}
	return strings.Join(strings.Fields(err.Error()), " ")
}

// All are the attempts in the order of the table.
func All() []Attempt {
	var all []Attempt
	all = append(all, kernel()...)
	all = append(all, files()...)
	all = append(all, machines()...)
	return append(all, network()...)
}

func open(path string, flags int) error {
	f, err := os.OpenFile(path, flags, 0)
	if err != nil {
		return err
	}
	return f.Close()
}

// readSome succeeds when there is something to read.
func readSome(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	b := make([]byte, 64)
	n, err := f.Read(b)
	if n > 0 {
		return nil
	}
	if err == nil || err.Error() == "EOF" {
		return errors.New("empty")
	}
	return err
}
