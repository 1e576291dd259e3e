package testenv

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// A slot is a number that one test at a time has on this machine, and with it
// what would clash between packages tested in parallel: a directory with a short
// path, a subnet, a bridge. It is held by a lock that ends with the process, so
// whoever gets it next may remove what it finds in the slot's name.
type slot struct {
	number int
	dir    string // not made yet
	subnet netip.Prefix
	bridge string
	cgroup string // the name of a top-level cgroup
}

// Each of the slots has a /22: a thousand addresses.
const slots = 64

// slotRoot holds the slots' locks and directories.
const slotRoot = "/tmp/cumulet-test"

// NetworkEnv is a network of the test's own on this machine, for a server that
// makes it. Nothing is made yet.
type NetworkEnv struct {
	Bridge string
	Subnet netip.Prefix // with a thousand addresses, the first one being the bridge's
}

// Network reserves the names of a network until the test ends. Containerd has
// its own already.
func Network(t testing.TB) NetworkEnv {
	t.Helper()
	s := takeSlot(t, false)
	return NetworkEnv{Bridge: s.bridge, Subnet: s.subnet}
}

func makeSlot(n int) slot {
	return slot{
		number: n,
		dir:    filepath.Join(slotRoot, fmt.Sprint(n)),
		subnet: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 213, byte(4 * n), 0}), 22),
		bridge: fmt.Sprintf("cutest%d", n),
		cgroup: fmt.Sprintf("cutest%d", n),
	}
}

// takeSlot takes a free slot until the test ends; it must be called before
// anything whose cleanup uses the slot is registered. To heal, it first tries
// the slots in which a killed run has left its directory; else it avoids them.
func takeSlot(t testing.TB, heal bool) slot {
	t.Helper()
	if err := os.Mkdir(slotRoot, 0o711); err != nil && !errors.Is(err, os.ErrExist) {
		t.Fatalf("take a test slot: %v", err)
	}
	var st unix.Stat_t
	if err := unix.Lstat(slotRoot, &st); err != nil {
		t.Fatalf("take a test slot: %v", err)
	}
	if st.Uid != uint32(os.Geteuid()) || st.Mode&unix.S_IFMT != unix.S_IFDIR {
		t.Fatalf("take a test slot: %s is not a directory of this user", slotRoot)
	}
	order := rand.Perm(slots)
	left := func(n int) bool {
		_, err := os.Stat(makeSlot(n).dir)
		return err == nil
	}
	slices.SortStableFunc(order, func(a, b int) int {
		if left(a) == left(b) {
			return 0
		}
		if left(a) == heal {
			return -1
		}
		return 1
	})
	for _, n := range order {
		s := makeSlot(n)
		lock, err := os.OpenFile(s.dir+".lock", os.O_CREATE|os.O_RDWR, 0o600)
		if err != nil {
			t.Fatalf("take a test slot: %v", err)
		}
		if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil || s.foreign() {
			lock.Close() // never written to
			continue
		}
		t.Cleanup(func() { lock.Close() })
		return s
	}
	t.Fatalf("take a test slot: all %d are in use", slots)
	return slot{}
}

// foreign is whether another interface than the slot's own has an address in
// its subnet.
func (s slot) foreign() bool {
	interfaces, err := net.Interfaces()
	if err != nil {
		return true
	}
	for _, i := range interfaces {
		addrs, err := i.Addrs()
		if err != nil || i.Name == s.bridge {
			continue
		}
		for _, a := range addrs {
			p, err := netip.ParsePrefix(a.String())
			if err == nil && p.Overlaps(s.subnet) {
				return true
			}
		}
	}
	return false
}
