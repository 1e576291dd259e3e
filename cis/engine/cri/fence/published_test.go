package fence_test

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"cumulet.io/cis/engine/cri/fence"
	"cumulet.io/internal/testenv"
)

// A published port of an instance is for the others of its machine, too, of whichever org, whether the machine hands
// bridged packets to the IP filter (br_netfilter) or not; the instance's other ports are not.
func TestPublishedPort(t *testing.T) {
	testenv.RequireRoot(t)
	for _, filtered := range []string{"0", "1"} {
		t.Run("bridge-nf-call-iptables="+filtered, func(t *testing.T) {
			m := newMachine(t)
			m.set(t, "net/ipv4/ip_forward", "1")
			if err := m.trySet("net/bridge/bridge-nf-call-iptables", filtered); err != nil {
				if filtered == "1" {
					t.Skipf("the kernel has no br_netfilter: %v", err)
				}
			}
			acme, friend, bank := m.cable(t, 2), m.cable(t, 3), m.cable(t, 4)
			m.within(t, func() error {
				f, err := fence.Open(fence.Config{Bridge: bridge})
				if err != nil {
					return err
				}
				for _, c := range []struct {
					of  *cable
					org string
				}{{acme, "acme"}, {friend, "acme"}, {bank, "bank"}} {
					if err := f.Admit(fence.Port{Org: c.org, Interface: c.of.outside, Addrs: []netip.Addr{netip.MustParseAddr(c.of.address)}}); err != nil {
						return err
					}
				}
				return nil
			})
			// As CNI's port mapper has it.
			m.nft(t, fmt.Sprintf("add table ip hostports; add chain ip hostports prerouting { type nat hook prerouting priority dstnat; }; "+
				"add rule ip hostports prerouting fib daddr type local tcp dport 8000 dnat to %s:80", acme.address))
			acme.serve(t, "80", "published")
			acme.serve(t, "81", "private")
			for _, c := range []struct {
				from     *cable
				to, want string
			}{
				{friend, acme.address + ":80", "published"}, {friend, acme.address + ":81", "private"},
				{friend, gateway + ":8000", "published"}, {bank, gateway + ":8000", "published"},
				{bank, acme.address + ":80", ""}, {bank, acme.address + ":81", ""},
				{bank, gateway + ":8000", "published"}, // and it opens nothing
				{bank, acme.address + ":80", ""},
			} {
				got, err := c.from.get(c.to)
				if got != c.want {
					t.Errorf("from %s %s gives %q, %v; want %q", c.from.address, c.to, got, err, c.want)
				}
			}
		})
	}
}

const (
	bridge  = "br-fence"
	gateway = "10.9.0.1"
)

// space is a network namespace of its own.
type space struct{ ns *os.File }

func newSpace(t *testing.T) space {
	t.Helper()
	made := make(chan error)
	var s space
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			s.ns, err = os.Open(fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid()))
		}
		made <- err
	}()
	if err := <-made; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.ns.Close() })
	return s
}

// do calls f in the namespace.
func (s space) do(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked
		err := unix.Setns(int(s.ns.Fd()), unix.CLONE_NEWNET)
		if err == nil {
			err = f()
		}
		done <- err
	}()
	return <-done
}

func (s space) within(t *testing.T, f func() error) {
	t.Helper()
	if err := s.do(f); err != nil {
		t.Fatal(err)
	}
}

func (s space) run(t *testing.T, program string, args ...string) {
	t.Helper()
	path := testenv.Tool(t, program)
	s.within(t, func() error {
		if out, err := exec.CommandContext(t.Context(), path, args...).CombinedOutput(); err != nil {
			return fmt.Errorf("%s %v: %w: %s", program, args, err, out)
		}
		return nil
	})
}

func (s space) ip(t *testing.T, args string) { t.Helper(); s.run(t, "ip", strings.Fields(args)...) }

func (s space) nft(t *testing.T, rules string) { t.Helper(); s.run(t, "nft", rules) }

func (s space) trySet(setting, value string) error {
	return s.do(func() error { return os.WriteFile("/proc/sys/"+setting, []byte(value), 0) })
}

func (s space) set(t *testing.T, setting, value string) {
	t.Helper()
	if err := s.trySet(setting, value); err != nil {
		t.Fatal(err)
	}
}

// machine is a namespace with a bridge for instances.
type machine struct{ space }

func newMachine(t *testing.T) machine {
	t.Helper()
	m := machine{newSpace(t)}
	m.ip(t, "link set lo up")
	m.ip(t, "link add "+bridge+" type bridge")
	m.ip(t, "addr add "+gateway+"/24 dev "+bridge)
	m.ip(t, "link set "+bridge+" up")
	return m
}

// cable is an instance's namespace, with its address, and the machine's end of the cable to it.
type cable struct {
	space
	address, outside string
}

func (m machine) cable(t *testing.T, n int) *cable {
	t.Helper()
	c := &cable{newSpace(t), fmt.Sprintf("10.9.0.%d", n), fmt.Sprintf("cable%d", n)}
	m.within(t, func() error {
		// The descriptor is that of this process, which ip(8) is a child of.
		at := fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), c.ns.Fd())
		out, err := exec.CommandContext(t.Context(), testenv.Tool(t, "ip"), "link", "add", c.outside, "type", "veth", "peer", "name", "eth0", "netns", at).CombinedOutput()
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
	m.ip(t, "link set "+c.outside+" master "+bridge+" up")
	c.ip(t, "addr add "+c.address+"/24 dev eth0")
	c.ip(t, "link set eth0 up")
	c.ip(t, "route add default via "+gateway)
	return c
}

// serve answers whoever connects.
func (c *cable) serve(t *testing.T, port, answer string) {
	t.Helper()
	var l net.Listener
	c.within(t, func() (err error) {
		l, err = (&net.ListenConfig{}).Listen(t.Context(), "tcp4", ":"+port)
		return err
	})
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return // closed
			}
			_, _ = io.WriteString(conn, answer) // whoever asked sees what came
			conn.Close()
		}
	}()
}

func (c *cable) get(address string) (answer string, err error) {
	err = c.do(func() error {
		conn, err := net.DialTimeout("tcp4", address, time.Second)
		if err != nil {
			return err
		}
		defer conn.Close()
		if err := conn.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
			return err
		}
		b, err := io.ReadAll(conn)
		answer = string(b)
		return err
	})
	return answer, err
}
