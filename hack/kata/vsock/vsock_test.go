package vsock

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"reflect"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// guest is a guest's driver without the queues: it takes the device's packets
// and hands it its own.
type guest struct {
	t *testing.T
	d *Device
}

// next takes the device's next packet.
func (g *guest) next() packet {
	g.t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for time.Now().Before(deadline) {
		g.d.mu.Lock()
		if len(g.d.outgoing) > 0 {
			p := g.d.outgoing[0]
			g.d.outgoing = g.d.outgoing[1:]
			g.d.mu.Unlock()
			return p
		}
		g.d.mu.Unlock()
		select {
		case <-g.d.wake:
		case <-time.After(20 * time.Second):
		}
	}
	g.t.Fatal("no packet")
	return packet{}
}

// want takes the next packet, which must be for op.
func (g *guest) want(op Op) packet {
	g.t.Helper()
	p := g.next()
	if p.op != op {
		g.t.Fatalf("packet %+v, want op %d", p, op)
	}
	return p
}

// send sends a packet to the host's port, by the wire's format.
func (g *guest) send(p packet) error {
	g.t.Helper()
	p.srcCID, p.dstCID, p.kind = GuestCID, HostCID, typeStream
	decoded, err := decode(p.encode())
	if err != nil {
		g.t.Fatal(err)
	}
	return g.d.handle(decoded)
}

func (g *guest) must(p packet) {
	g.t.Helper()
	if err := g.send(p); err != nil {
		g.t.Fatal(err)
	}
}

// open opens a stream from the host, with the guest's credit.
func (g *guest) open(credit uint32) (*Stream, packet) {
	g.t.Helper()
	type result struct {
		s   *Stream
		err error
	}
	dialed := make(chan result, 1)
	go func() {
		s, err := g.d.Dial(context.Background(), 1024)
		dialed <- result{s, err}
	}()
	p := g.want(OpRequest)
	if p.dstPort != 1024 || p.dstCID != GuestCID || p.srcCID != HostCID {
		g.t.Errorf("request %+v", p)
	}
	back := packet{srcPort: p.dstPort, dstPort: p.srcPort, op: OpResponse, buffer: credit}
	g.must(back)
	r := <-dialed
	if r.err != nil {
		g.t.Fatal(r.err)
	}
	return r.s, back
}

func newGuest(t *testing.T) *guest { return &guest{t, NewDevice()} }

func TestPacket(t *testing.T) {
	p := packet{srcCID: 1 << 40, dstCID: 2, srcPort: 3, dstPort: 4, kind: 5, op: 6, flags: 7, buffer: 8, consumed: 9, data: []byte("ten")}
	got, err := decode(append(p.encode(), "beyond"...))
	if err != nil || !reflect.DeepEqual(got, p) {
		t.Errorf("%+v, %v; want %+v", got, err, p)
	}
	for _, b := range [][]byte{nil, p.encode()[:headerLen-1], p.encode()[:headerLen+2]} {
		if _, err := decode(b); !errors.Is(err, ErrPacket) {
			t.Errorf("%d bytes: %v", len(b), err)
		}
	}
}

// A writer waits for the guest's credit, and goes on when there is some.
func TestCredit(t *testing.T) {
	g := newGuest(t)
	s, p := g.open(10)
	wrote := make(chan error, 1)
	go func() {
		_, err := s.Write(bytes.Repeat([]byte("x"), 25))
		wrote <- err
	}()
	p.op, p.consumed = OpCreditUpdate, 0
	for i, n := range []int{10, 10, 5} {
		if got := g.want(OpData); len(got.data) != n {
			t.Fatalf("packet %d has %d bytes, want %d", i, len(got.data), n)
		}
		p.consumed += uint32(n)
		g.must(p)
	}
	if err := <-wrote; err != nil {
		t.Error(err)
	}
	g.d.Close()
}

// A guest that says it has room, and takes nothing, does not fill memory.
func TestWriterWaits(t *testing.T) {
	g := newGuest(t)
	s, _ := g.open(1 << 31)
	wrote := make(chan error, 1)
	go func() {
		_, err := s.Write(make([]byte, 2*maxWaiting*maxData))
		wrote <- err
	}()
	waiting := func() int {
		g.d.mu.Lock()
		defer g.d.mu.Unlock()
		return len(g.d.outgoing)
	}
	for deadline := time.Now().Add(20 * time.Second); waiting() < maxWaiting && time.Now().Before(deadline); {
		time.Sleep(time.Millisecond)
	}
	select {
	case err := <-wrote:
		t.Errorf("the writer did not wait: %v", err)
	default:
	}
	if n := waiting(); n != maxWaiting {
		t.Errorf("%d packets wait, want %d", n, maxWaiting)
	}
	g.d.Close()
	if err := <-wrote; !errors.Is(err, ErrClosed) {
		t.Error(err)
	}
}

// A reader tells the guest of its credit before the guest would have to wait.
func TestReadCredit(t *testing.T) {
	g := newGuest(t)
	s, p := g.open(1 << 20)
	p.op, p.data = OpData, make([]byte, maxData)
	for range bufferSize / maxData {
		g.must(p)
	}
	if _, err := io.ReadFull(s, make([]byte, bufferSize/2)); err != nil {
		t.Fatal(err)
	}
	if c := g.want(OpCreditUpdate); c.consumed < bufferSize/4 || c.buffer != bufferSize {
		t.Errorf("credit %+v", c)
	}
	// Beyond its credit the stream, and nothing else, ends.
	for range bufferSize/maxData + 1 {
		g.must(p)
	}
	for g.next().op != OpReset {
	}
	if _, err := io.Copy(io.Discard, s); !errors.Is(err, errCredit) {
		t.Errorf("read: %v", err)
	}
	g.d.Close()
}

func TestEnds(t *testing.T) {
	t.Run("refused", func(t *testing.T) {
		g := newGuest(t)
		dialed := make(chan error, 1)
		go func() {
			_, err := g.d.Dial(context.Background(), 9)
			dialed <- err
		}()
		p := g.want(OpRequest)
		g.must(packet{srcPort: 9, dstPort: p.srcPort, op: OpReset})
		if err := <-dialed; !errors.Is(err, ErrRefused) {
			t.Error(err)
		}
	})
	t.Run("context", func(t *testing.T) {
		g := newGuest(t)
		ctx, cancel := context.WithCancel(context.Background())
		dialed := make(chan error, 1)
		go func() {
			_, err := g.d.Dial(ctx, 9)
			dialed <- err
		}()
		g.want(OpRequest)
		cancel()
		if err := <-dialed; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		g.want(OpReset)
	})
	t.Run("guest shuts down", func(t *testing.T) {
		g := newGuest(t)
		s, p := g.open(100)
		p.op, p.data = OpData, []byte("last")
		g.must(p)
		p.op, p.data, p.flags = OpShutdown, nil, shutdownReceive|shutdownSend
		g.must(p)
		g.want(OpReset)
		if b, err := io.ReadAll(s); err != nil || string(b) != "last" {
			t.Errorf("%q, %v", b, err)
		}
		if _, err := s.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
			t.Errorf("write: %v", err)
		}
	})
	t.Run("device closes", func(t *testing.T) {
		g := newGuest(t)
		s, _ := g.open(0)
		wrote := make(chan error, 1)
		go func() {
			_, err := s.Write([]byte("x"))
			wrote <- err
		}()
		g.d.Close()
		if err := <-wrote; !errors.Is(err, ErrClosed) {
			t.Error(err)
		}
		if _, err := g.d.Dial(context.Background(), 1); !errors.Is(err, ErrClosed) {
			t.Error(err)
		}
	})
}

// The guest opens a stream to a port of the host's; others are refused.
func TestAccept(t *testing.T) {
	g := newGuest(t)
	var served sync.WaitGroup
	served.Add(1)
	g.d.Handle(7, func(s *Stream) {
		defer served.Done()
		b := make([]byte, 4)
		if _, err := io.ReadFull(s, b); err != nil || string(b) != "ping" {
			t.Errorf("%q, %v", b, err)
		}
		if _, err := s.Write([]byte("pong")); err != nil {
			t.Error(err)
		}
		s.Close()
	})
	p := packet{srcPort: 100, dstPort: 7, op: OpRequest, buffer: 1000}
	g.must(p)
	if r := g.want(OpResponse); r.srcPort != 7 || r.dstPort != 100 {
		t.Errorf("%+v", r)
	}
	p.op, p.data = OpData, []byte("ping")
	g.must(p)
	if r := g.want(OpData); string(r.data) != "pong" {
		t.Errorf("%+v", r)
	}
	g.want(OpReset)
	served.Wait()
	for _, p := range []packet{{srcPort: 1, dstPort: 8, op: OpRequest}, {srcPort: 1, dstPort: 7, op: OpData, data: []byte("x")}} {
		g.must(p)
		g.want(OpReset)
	}
}

// What a guest sends to others than the host gets no answer, and nobody.
func TestOtherAddress(t *testing.T) {
	g := newGuest(t)
	g.d.Handle(7, func(s *Stream) { s.Close(); t.Error("another's stream was taken") })
	for _, p := range []packet{
		{srcCID: GuestCID, dstCID: GuestCID + 1}, {srcCID: GuestCID + 1, dstCID: HostCID}, {srcCID: GuestCID, dstCID: GuestCID},
	} {
		p.kind, p.op, p.srcPort, p.dstPort, p.buffer = typeStream, OpRequest, 5, 7, 10
		if err := g.d.handle(p); err != nil {
			t.Error(err)
		}
	}
	g.must(packet{srcPort: 1, dstPort: 8, op: OpRequest})
	if p := g.want(OpReset); p.dstPort != 1 {
		t.Errorf("before that there was %+v", p)
	}
}

// A guest that sends and never receives is cut off before it has filled memory.
func TestFlood(t *testing.T) {
	g := newGuest(t)
	for range 2 * maxOutgoing {
		if err := g.send(packet{srcPort: 1, dstPort: 8, op: OpRequest}); err != nil {
			if !errors.Is(err, errFlood) {
				t.Error(err)
			}
			return
		}
	}
	t.Error("no end")
}

func FuzzPacket(f *testing.F) {
	p := packet{srcCID: GuestCID, dstCID: HostCID, srcPort: 5, dstPort: 7, kind: typeStream, op: OpRequest, buffer: 10}
	f.Add(p.encode())
	p.op, p.data = OpData, []byte("data")
	f.Add(p.encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := decode(b)
		if err != nil {
			return
		}
		if again := p.encode(); !bytes.Equal(again, append(b[:headerLen:headerLen], p.data...)) {
			t.Errorf("%x became %x", b, again)
		}
		d := NewDevice()
		d.Handle(7, func(s *Stream) { s.Close() })
		for range 3 { // a stream's first packet, and what comes then
			if err := d.handle(p); err != nil {
				return
			}
		}
		d.Close()
	})
}
