package vsock

import (
	"errors"
	"io"
	"net"
)

// bufferSize is what a stream buffers of what the guest sends.
const bufferSize = 256 << 10

// Stream is a connection between a port of the host and one of the guest. It
// may be read by one goroutine while another writes to it.
type Stream struct {
	d   *Device
	key key

	// All below is guarded by the device's lock.
	open                     bool
	err                      error // why it has ended
	received                 []byte
	consumed                 uint32 // bytes taken out of received, ever (fwd_cnt)
	told                     uint32 // the last consumed that the guest knows
	sent                     uint32 // bytes sent, ever
	peerBuffer, peerConsumed uint32
	peerDone, peerDeaf       bool // the guest sends, or receives, no more
}

// Read reads what the guest has sent; io.EOF after its last byte.
func (s *Stream) Read(b []byte) (int, error) {
	d := s.d
	d.mu.Lock()
	defer d.mu.Unlock()
	for len(s.received) == 0 && s.err == nil && !s.peerDone {
		d.changed.Wait()
	}
	if len(s.received) == 0 {
		if s.err != nil {
			return 0, s.err
		}
		return 0, io.EOF
	}
	n := copy(b, s.received)
	if s.received = s.received[n:]; len(s.received) == 0 {
		s.received = nil
	}
	s.consumed += uint32(n)
	// The guest need not hear of every byte, only before it would wait.
	if s.err == nil && s.consumed-s.told > bufferSize/4 {
		d.send(s, OpCreditUpdate, 0, nil)
	}
	return n, nil
}

// Write sends to the guest as fast as it has room.
func (s *Stream) Write(b []byte) (int, error) {
	d := s.d
	d.mu.Lock()
	defer d.mu.Unlock()
	n := 0
	for n < len(b) {
		room := s.room()
		if s.err != nil {
			if errors.Is(s.err, io.EOF) {
				return n, net.ErrClosed
			}
			return n, s.err
		}
		if s.peerDeaf {
			return n, net.ErrClosed
		}
		if room == 0 || len(d.outgoing) >= maxWaiting {
			d.changed.Wait()
			continue
		}
		k := min(len(b)-n, room, maxData)
		d.send(s, OpData, 0, append([]byte(nil), b[n:n+k]...))
		s.sent += uint32(k)
		n += k
	}
	return n, nil
}

// room is how much the guest can buffer more. A guest that claims to have
// taken more than was sent has none.
func (s *Stream) room() int {
	flying := s.sent - s.peerConsumed
	if flying > s.peerBuffer {
		return 0
	}
	return int(s.peerBuffer - flying)
}

// Close ends the stream.
func (s *Stream) Close() error {
	s.d.mu.Lock()
	defer s.d.mu.Unlock()
	s.d.drop(s, net.ErrClosed)
	return nil
}

// receive buffers data of the guest's. It is false where there is no room. The
// lock is held.
func (s *Stream) receive(b []byte) bool {
	if len(s.received)+len(b) > bufferSize {
		return false
	}
	s.received = append(s.received, b...)
	return true
}

// end marks the stream as ended. The lock is held.
func (s *Stream) end(err error) {
	if s.err == nil {
		s.err = err
	}
	s.d.changed.Broadcast()
}

// Relay copies between the stream and c in both directions until either ends,
// and closes both.
func Relay(s *Stream, c net.Conn) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		// Why a relay ends is the ends' business.
		_, _ = io.Copy(struct{ io.Writer }{c}, s)
		c.Close()
	}()
	_, _ = io.Copy(s, struct{ io.Reader }{c})
	s.Close()
	<-done
}
