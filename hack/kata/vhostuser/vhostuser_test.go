package vhostuser

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net"
	"path/filepath"
	"sync"
	"testing"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// monitor is the other side: it has the guest's memory and speaks to a session.
type monitor struct {
	t      *testing.T
	c      *net.UnixConn
	mem    []byte
	memFD  int
	kick   [2]int
	call   [2]int
	served chan error
}

const (
	memSize   = 1 << 20
	guestAddr = 0x40000000 // the memory's, for the guest
	userAddr  = 0x7f0000000000
	queueSize = 4
)

// Where the queues' parts are in the memory, and the buffers.
func descAt(q int) int  { return 0x1000 * (q + 1) }
func availAt(q int) int { return descAt(q) + 0x400 }
func usedAt(q int) int  { return descAt(q) + 0x800 }

const buffers = 0x10000

func socketPair(t *testing.T) (a, b *net.UnixConn) {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(t.TempDir(), "s"), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if a, err = net.DialUnix("unix", nil, l.Addr().(*net.UnixAddr)); err != nil {
		t.Fatal(err)
	}
	if b, err = l.AcceptUnix(); err != nil {
		t.Fatal(err)
	}
	return a, b
}

func newMonitor(t *testing.T, d Device) *monitor {
	t.Helper()
	ours, theirs := socketPair(t)
	m := &monitor{t: t, c: ours, served: make(chan error, 1)}
	go func() { m.served <- Serve(theirs, d) }()
	var err error
	if m.memFD, err = unix.MemfdCreate("guest", unix.MFD_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	if err := unix.Ftruncate(m.memFD, memSize); err != nil {
		t.Fatal(err)
	}
	if m.mem, err = unix.Mmap(m.memFD, 0, memSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		m.c.Close()
		unix.Munmap(m.mem)
		unix.Close(m.memFD)
	})
	return m
}

// send sends a request that wants a reply, and returns the reply's payload.
func (m *monitor) send(req Request, payload []byte, fds ...int) []byte {
	m.t.Helper()
	b := le.AppendUint32(nil, uint32(req))
	b = le.AppendUint32(b, flagVersion|flagNeedReply)
	b = le.AppendUint32(b, uint32(len(payload)))
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	if _, _, err := m.c.WriteMsgUnix(append(b, payload...), oob, nil); err != nil {
		m.t.Fatal(err)
	}
	reply, err := readReply(m.c)
	if err != nil {
		m.t.Fatalf("request %d: %v", req, err)
	}
	return reply
}

func readReply(c *net.UnixConn) ([]byte, error) {
	h := make([]byte, headerLen)
	if _, err := readFull(c, h); err != nil {
		return nil, err
	}
	b := make([]byte, le.Uint32(h[8:]))
	_, err := readFull(c, b)
	return b, err
}

func readFull(c *net.UnixConn, b []byte) (int, error) {
	n := 0
	for n < len(b) {
		k, err := c.Read(b[n:])
		if err != nil {
			return n, err
		}
		n += k
	}
	return n, nil
}

func u64s(v ...uint64) []byte {
	var b []byte
	for _, x := range v {
		b = le.AppendUint64(b, x)
	}
	return b
}

func u32s(v ...uint32) []byte {
	var b []byte
	for _, x := range v {
		b = le.AppendUint32(b, x)
	}
	return b
}

// setUp does what QEMU does for a device with two queues.
func (m *monitor) setUp() {
	m.t.Helper()
	if f := le.Uint64(m.send(GetFeatures, nil)); f&featureVersion1 == 0 || f&featureProtocol == 0 {
		m.t.Errorf("features %#x", f)
	}
	m.send(SetMemTable, append(u32s(1, 0), u64s(guestAddr, memSize, userAddr, 0)...), m.memFD)
	for q := range 2 {
		var err error
		for _, fd := range []*int{&m.kick[q], &m.call[q]} {
			if *fd, err = unix.Eventfd(0, unix.EFD_CLOEXEC); err != nil {
				m.t.Fatal(err)
			}
			m.t.Cleanup(func() { unix.Close(*fd) })
		}
		m.send(SetVringNum, u32s(uint32(q), queueSize))
		m.send(SetVringBase, u32s(uint32(q), 0))
		m.send(SetVringAddr, append(u32s(uint32(q), 0), u64s(uint64(userAddr+descAt(q)), uint64(userAddr+usedAt(q)), uint64(userAddr+availAt(q)), 0)...))
		m.send(SetVringCall, u64s(uint64(q)), m.call[q])
		m.send(SetVringKick, u64s(uint64(q)), m.kick[q])
		m.send(SetVringEnable, u32s(uint32(q), 1))
	}
}

// offer puts descriptor i, of n bytes at the address, into the queue and kicks.
func (m *monitor) offer(q, i int, addr uint64, n int, flags, next uint16) {
	d := m.mem[descAt(q)+16*i:]
	le.PutUint64(d, addr)
	le.PutUint32(d[8:], uint32(n))
	le.PutUint16(d[12:], flags)
	le.PutUint16(d[14:], next)
}

func (m *monitor) publish(q, head int) {
	m.t.Helper()
	a := m.mem[availAt(q):]
	index := le.Uint16(a[2:])
	le.PutUint16(a[4+2*(int(index)%queueSize):], uint16(head))
	le.PutUint16(a[2:], index+1)
	if _, err := unix.Write(m.kick[q], u64s(1)); err != nil {
		m.t.Fatal(err)
	}
}

// waitCall waits until the device has signalled, and returns the used index.
func (m *monitor) waitCall(q int) uint16 {
	m.t.Helper()
	// The device has made the eventfd, which both share, non-blocking.
	for {
		p := []unix.PollFd{{Fd: int32(m.call[q]), Events: unix.POLLIN}}
		if _, err := unix.Poll(p, 20_000); err != nil && !errors.Is(err, unix.EINTR) {
			m.t.Fatal(err)
		} else if err == nil {
			break
		}
	}
	if _, err := unix.Read(m.call[q], make([]byte, 8)); err != nil {
		m.t.Fatalf("no call within 20 s: %v", err)
	}
	return le.Uint16(m.mem[usedAt(q)+2:])
}

// upper answers what it gets in queue 1 in upper case into the same chain's
// second buffer.
type upper struct {
	mu  sync.Mutex
	got [][]byte
}

func (*upper) Config() []byte { return []byte("config") }
func (*upper) Queues() int    { return 2 }
func (u *upper) Kicked(s *Session, queue int) error {
	for {
		some, err := s.Use(queue, func(c *Chain) int {
			u.mu.Lock()
			defer u.mu.Unlock()
			u.got = append(u.got, bytes.Clone(c.Buffers[0]))
			return copy(c.Buffers[len(c.Buffers)-1], bytes.ToUpper(c.Buffers[0]))
		})
		if err != nil {
			return err
		}
		if !some {
			s.Signal(queue)
			return nil
		}
	}
}

func TestSession(t *testing.T) {
	u := &upper{}
	m := newMonitor(t, u)
	m.setUp()
	if n := le.Uint64(m.send(GetQueueNum, nil)); n != 2 {
		t.Errorf("%d queues", n)
	}
	if b := m.send(GetConfig, append(u32s(2, 4, 0), 0, 0, 0, 0)); string(b[configHeader:]) != "nfig" {
		t.Errorf("configuration %q", b)
	}
	// More chains than the queue has places.
	for i := range 3 * queueSize {
		copy(m.mem[buffers:], "hello")
		m.offer(1, 0, guestAddr+buffers, 5, descNext, 1)
		m.offer(1, 1, guestAddr+buffers+64, 16, 2, 0)
		m.publish(1, 0)
		for m.waitCall(1) != uint16(i+1) {
		}
		if got := string(m.mem[buffers+64:][:5]); got != "HELLO" {
			t.Fatalf("chain %d: %q", i, got)
		}
		e := m.mem[usedAt(1)+4+8*(i%queueSize):]
		if head, n := le.Uint32(e), le.Uint32(e[4:]); head != 0 || n != 5 {
			t.Fatalf("chain %d: used element %d, %d bytes", i, head, n)
		}
	}
	if b := m.send(GetVringBase, u32s(1, 0)); le.Uint32(b[4:]) != 3*queueSize {
		t.Errorf("base %d", le.Uint32(b[4:]))
	}
	m.c.Close()
	if err := <-m.served; err != nil {
		t.Errorf("the end of a session: %v", err)
	}
}

// What a guest may not do ends the session, and touches nothing else.
func TestBadGuest(t *testing.T) {
	for name, f := range map[string]func(*monitor){
		"address outside the memory": func(m *monitor) { m.offer(1, 0, 0xdead0000, 5, 0, 0) },
		"address that wraps":         func(m *monitor) { m.offer(1, 0, ^uint64(0)-2, 5, 0, 0) },
		"length beyond the memory":   func(m *monitor) { m.offer(1, 0, guestAddr+memSize-4, 5, 0, 0) },
		"chain without end":          func(m *monitor) { m.offer(1, 0, guestAddr, 1, descNext, 0) },
		"descriptor beyond the queue": func(m *monitor) {
			m.offer(1, 0, guestAddr, 1, descNext, queueSize)
		},
	} {
		t.Run(name, func(t *testing.T) {
			m := newMonitor(t, &upper{})
			m.setUp()
			f(m)
			m.publish(1, 0)
			if err := <-m.served; err == nil {
				t.Error("the session ended without an error")
			}
		})
	}
}

// A queue whose size has changed is not used before its addresses are told again, which are checked against it.
func TestSizeAfterAddress(t *testing.T) {
	for _, size := range []uint32{0, 1 << 31} {
		u := &upper{}
		m := newMonitor(t, u)
		m.setUp()
		m.send(SetVringNum, u32s(1, size))
		m.offer(1, 0, guestAddr+buffers, 5, 0, 0)
		le.PutUint16(m.mem[availAt(1)+2:], 3*queueSize) // beyond what the queue had
		m.publish(1, 0)
		m.send(SetVringEnable, u32s(1, 1)) // which has the queue looked at, too
		m.c.Close()
		if err := <-m.served; err != nil {
			t.Errorf("size %d: %v", size, err)
		}
		if len(u.got) > 0 {
			t.Errorf("size %d: the device got %q", size, u.got)
		}
	}
}

func TestBadMessages(t *testing.T) {
	for name, b := range map[string][]byte{
		"version":                  u32s(1, 2, 0),
		"payload":                  u32s(1, flagVersion, maxPayload+1),
		"unknown request":          u32s(200, flagVersion, 0),
		"queue":                    append(u32s(uint32(SetVringNum), flagVersion, 8), u32s(7, 4)...),
		"short state":              append(u32s(uint32(SetVringNum), flagVersion, 4), u32s(0)...),
		"memory without its files": append(u32s(uint32(SetMemTable), flagVersion, 40), append(u32s(1, 0), u64s(0, 4096, 0, 0)...)...),
		"queue of odd size": append(append(u32s(uint32(SetVringNum), flagVersion, 8), u32s(0, 3)...),
			u32s(200, flagVersion, 0)...),
	} {
		t.Run(name, func(t *testing.T) {
			ours, theirs := socketPair(t)
			defer ours.Close()
			served := make(chan error, 1)
			go func() { served <- Serve(theirs, &upper{}) }()
			if _, err := ours.Write(b); err != nil {
				t.Fatal(err)
			}
			if err := <-served; err == nil {
				t.Error("no error")
			}
		})
	}
}

func FuzzMessages(f *testing.F) {
	f.Add(u32s(1, flagVersion, 0))
	f.Add(append(u32s(uint32(GetConfig), flagVersion, 16), u32s(0, 8, 0, 0)...))
	f.Add(append(u32s(uint32(SetVringAddr), flagVersion, 40), make([]byte, 40)...))
	f.Add(append(u32s(uint32(SetVringKick), flagVersion, 8), u64s(0x100)...))
	f.Fuzz(func(t *testing.T, b []byte) {
		ours, theirs := socketPair(t)
		served := make(chan error, 1)
		go func() { served <- Serve(theirs, &upper{}) }()
		go func() { // replies are not to hold it up
			var discard [4096]byte
			for {
				if _, err := ours.Read(discard[:]); err != nil {
					return
				}
			}
		}()
		_, _ = ours.Write(b) // fails when the session has ended
		ours.CloseWrite()
		<-served
		ours.Close()
	})
}

func FuzzMemTable(f *testing.F) {
	f.Add(append(u32s(1, 0), u64s(0, 4096, 0, 0)...))
	f.Fuzz(func(t *testing.T, b []byte) {
		regions, err := decodeMemTable(b)
		if err == nil && len(regions) != int(binary.LittleEndian.Uint32(b)) {
			t.Errorf("%d regions", len(regions))
		}
	})
}
