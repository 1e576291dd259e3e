package vsock

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"

	"cumulet.io/hack/kata/vhostuser"
)

// The device's queues: what the guest receives, and what it sends. The third
// one, of events, is the monitor's own.
const (
	queueReceive = 0
	queueSend    = 1
)

const (
	maxStreams = 128
	// maxWaiting bounds the packets that wait for the guest until writers have
	// to, however much room the guest says it has.
	maxWaiting = 256
	// maxOutgoing bounds the packets that wait for the guest to receive: far
	// more than a guest that does so leaves there.
	maxOutgoing = 16384
)

// Errors that a caller may tell apart.
var (
	// ErrClosed says that the device, and with it every stream, has ended.
	ErrClosed = errors.New("vsock device closed")
	// ErrRefused says that nothing in the guest listens at the port.
	ErrRefused = errors.New("connection refused by the guest")
	errCredit  = errors.New("the guest has sent more than there was room for")
	errFlood   = errors.New("the guest does not receive what is for it")
)

type key struct{ host, guest uint32 }

// Device is the socket device of one guest. All its methods may be called by
// any goroutine.
type Device struct {
	mu       sync.Mutex
	changed  *sync.Cond // anything below, or in a stream, has changed
	streams  map[key]*Stream
	accept   map[uint32]func(*Stream)
	outgoing []packet
	nextPort uint32
	session  *vhostuser.Session
	closed   bool
	wake     chan struct{} // there is something in outgoing
}

// NewDevice returns a device that no guest has yet.
func NewDevice() *Device {
	d := &Device{streams: map[key]*Stream{}, accept: map[uint32]func(*Stream){}, nextPort: 1 << 30, wake: make(chan struct{}, 1)}
	d.changed = sync.NewCond(&d.mu)
	return d
}

// Handle has f serve each stream that the guest opens to the port, in a
// goroutine of its own. f closes the stream.
func (d *Device) Handle(port uint32, f func(*Stream)) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.accept[port] = f
}

// Serve serves the device to the monitor at the other end of c until it leaves
// or the device is closed.
func (d *Device) Serve(c *net.UnixConn) error {
	done, pumped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(pumped)
		for {
			select {
			case <-d.wake:
				d.pump(c)
			case <-done:
				return
			}
		}
	}()
	err := vhostuser.Serve(c, d)
	d.Close()
	close(done)
	<-pumped
	return err
}

// pump hands on what is in outgoing since the guest last kicked a queue.
func (d *Device) pump(c io.Closer) {
	d.mu.Lock()
	s := d.session
	d.mu.Unlock()
	if s == nil {
		return // the guest's driver has not started yet
	}
	if err := d.flush(s); err != nil {
		c.Close()
	}
}

// Close ends the device and every stream.
func (d *Device) Close() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.closed = true
	for k, s := range d.streams {
		s.end(ErrClosed)
		delete(d.streams, k)
	}
	d.changed.Broadcast()
}

// Dial opens a stream to a port of the guest.
func (d *Device) Dial(ctx context.Context, port uint32) (*Stream, error) {
	stop := context.AfterFunc(ctx, func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.changed.Broadcast()
	})
	defer stop()
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return nil, ErrClosed
	}
	if len(d.streams) >= maxStreams {
		return nil, fmt.Errorf("%d vsock streams are open already", maxStreams)
	}
	d.nextPort++
	s := &Stream{d: d, key: key{host: d.nextPort, guest: port}}
	d.streams[s.key] = s
	d.send(s, OpRequest, 0, nil)
	for !s.open && s.err == nil && ctx.Err() == nil {
		d.changed.Wait()
	}
	switch {
	case s.err != nil:
		return nil, s.err
	case !s.open:
		d.drop(s, ctx.Err())
		return nil, ctx.Err()
	}
	return s, nil
}

// Config implements vhostuser.Device: the guest's CID (VIRTIO 1.2, 5.10.4).
func (d *Device) Config() []byte { return le.AppendUint64(nil, GuestCID) }

// Queues implements vhostuser.Device.
func (d *Device) Queues() int { return 2 }

// Kicked implements vhostuser.Device.
func (d *Device) Kicked(s *vhostuser.Session, queue int) error {
	if queue == queueSend {
		return d.take(s)
	}
	d.mu.Lock()
	d.session = s
	d.mu.Unlock()
	return d.flush(s)
}

// take handles all that the guest has sent.
func (d *Device) take(s *vhostuser.Session) error {
	for {
		var b []byte
		var bad error
		some, err := s.Use(queueSend, func(c *vhostuser.Chain) int {
			if n := c.Len(); n > headerLen+maxData {
				bad = fmt.Errorf("%w: %d bytes", ErrPacket, n)
				return 0
			}
			for _, part := range c.Buffers {
				b = append(b, part...) // a copy, which the guest cannot change
			}
			return 0
		})
		if err = errors.Join(err, bad); err != nil {
			return err
		}
		if !some {
			break
		}
		p, err := decode(b)
		if err != nil {
			return err
		}
		if err := d.handle(p); err != nil {
			return err
		}
	}
	s.Signal(queueSend)
	return d.flush(s)
}

// flush gives the guest as much of what is for it as it has buffers for.
func (d *Device) flush(s *vhostuser.Session) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	sent := false
	for len(d.outgoing) > 0 {
		p := &d.outgoing[0]
		whole := true
		some, err := s.Use(queueReceive, func(c *vhostuser.Chain) int {
			part := *p
			room := max(c.Len()-headerLen, 0)
			if len(part.data) > room {
				part.data, whole = part.data[:room], false
				p.data = p.data[room:]
			}
			b := part.encode()
			n := len(b)
			for _, buffer := range c.Buffers {
				b = b[copy(buffer, b):]
			}
			return n - len(b)
		})
		if err != nil {
			return err
		}
		if !some {
			break
		}
		sent = true
		if whole {
			d.outgoing[0] = packet{}
			d.outgoing = d.outgoing[1:]
		}
	}
	if sent {
		s.Signal(queueReceive)
		d.changed.Broadcast()
	}
	return nil
}

// send queues a packet of the stream's. The lock is held.
func (d *Device) send(s *Stream, op Op, flags uint32, data []byte) {
	d.outgoing = append(d.outgoing, packet{
		srcCID: HostCID, dstCID: GuestCID, srcPort: s.key.host, dstPort: s.key.guest,
		kind: typeStream, op: op, flags: flags, buffer: bufferSize, consumed: s.consumed, data: data,
	})
	s.told = s.consumed
	select {
	case d.wake <- struct{}{}:
	default: // it will be seen
	}
}

// drop ends a stream and tells the guest. The lock is held.
func (d *Device) drop(s *Stream, err error) {
	if d.streams[s.key] == s {
		delete(d.streams, s.key)
		d.send(s, OpReset, 0, nil)
	}
	s.end(err)
}

// handle does what a packet of the guest's says.
func (d *Device) handle(p packet) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.outgoing) > maxOutgoing {
		return errFlood
	}
	if p.srcCID != GuestCID || p.dstCID != HostCID {
		return nil // there is nobody else here: as the kernel's own device, no answer
	}
	k := key{host: p.dstPort, guest: p.srcPort}
	s := d.streams[k]
	if p.kind != typeStream || s == nil {
		return d.stranger(k, p)
	}
	s.peerBuffer, s.peerConsumed = p.buffer, p.consumed
	defer d.changed.Broadcast()
	switch p.op {
	case OpResponse:
		s.open = true
	case OpData:
		if !s.receive(p.data) {
			d.drop(s, errCredit)
		}
	case OpCreditRequest:
		d.send(s, OpCreditUpdate, 0, nil)
	case OpShutdown:
		s.peerDone = s.peerDone || p.flags&shutdownSend != 0
		s.peerDeaf = s.peerDeaf || p.flags&shutdownReceive != 0
		if s.peerDone && s.peerDeaf {
			d.drop(s, io.EOF)
		}
	case OpReset:
		delete(d.streams, k)
		if s.open {
			s.end(io.EOF)
		} else {
			s.end(ErrRefused)
		}
	}
	return nil
}

// stranger handles a packet of no stream: a new one's first, or a mistake. The
// lock is held.
func (d *Device) stranger(k key, p packet) error {
	if p.op == OpReset {
		return nil
	}
	s := &Stream{d: d, key: k, peerBuffer: p.buffer, peerConsumed: p.consumed}
	f := d.accept[k.host]
	if p.op != OpRequest || p.kind != typeStream || f == nil || d.streams[k] != nil || len(d.streams) >= maxStreams || d.closed {
		d.send(s, OpReset, 0, nil)
		return nil
	}
	s.open = true
	d.streams[k] = s
	d.send(s, OpResponse, 0, nil)
	go f(s)
	return nil
}
