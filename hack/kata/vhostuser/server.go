package vhostuser

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// Features of every such device.
const (
	featureVersion1  = 1 << 32 // VIRTIO_F_VERSION_1
	featureProtocol  = 1 << 30 // VHOST_USER_F_PROTOCOL_FEATURES
	protocolReplyAck = 1 << 3
	protocolConfig   = 1 << 9
	configHeader     = 12 // GET_CONFIG's offset, size and flags
	maxConfig        = 256
)

// Device is what is offered to the guest.
type Device interface {
	// Config is the device's configuration space.
	Config() []byte
	// Queues is how many queues it has.
	Queues() int
	// Kicked is called when the guest may have put something into the queue, by
	// one goroutine a queue. An error ends the session.
	Kicked(s *Session, queue int) error
}

// Session is a connection with a monitor. Its methods may be called by any
// goroutine.
type Session struct {
	device  Device
	conn    *net.UnixConn
	kickers sync.WaitGroup

	mu     sync.Mutex // guards the guest's memory against being unmapped, too
	memory memory
	queues []queue
	failed error
}

// Serve speaks with the monitor until it leaves, the connection is closed or one
// of them breaks the protocol. It closes the connection. A monitor that leaves
// is no error.
func Serve(c *net.UnixConn, d Device) error {
	s := &Session{device: d, conn: c, queues: make([]queue, d.Queues())}
	err := s.serve()
	c.Close()
	s.mu.Lock()
	for i := range s.queues {
		s.queues[i].close()
	}
	s.mu.Unlock()
	s.kickers.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.memory.unmap()
	s.memory = nil
	for i := range s.queues {
		s.queues[i].used = nil
	}
	if s.failed != nil {
		return s.failed
	}
	if errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) || errors.Is(err, unix.ECONNRESET) {
		return nil
	}
	return err
}

func (s *Session) serve() error {
	for {
		m, err := readMessage(s.conn)
		if err != nil {
			return err
		}
		reply, err := s.handle(&m)
		closeFDs(m.FDs) // those that nobody took
		if err != nil {
			return fmt.Errorf("vhost-user request %d: %w", m.Request, err)
		}
		if reply == nil && m.Flags&flagNeedReply != 0 {
			reply = make([]byte, 8) // success
		}
		if reply != nil {
			if _, err := s.conn.Write(encode(m.Request, reply)); err != nil {
				return err
			}
		}
	}
}

// handle does what a message asks and returns the reply's payload, if it has one.
func (s *Session) handle(m *Message) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch m.Request {
	case GetFeatures:
		return le.AppendUint64(nil, featureVersion1|featureProtocol), nil
	case GetProtocolFeatures:
		return le.AppendUint64(nil, protocolReplyAck|protocolConfig), nil
	case GetQueueNum:
		return le.AppendUint64(nil, uint64(len(s.queues))), nil
	case GetConfig:
		return s.config(m.Payload)
	case SetMemTable:
		return nil, s.setMemory(m)
	case SetVringNum, SetVringBase, SetVringEnable, GetVringBase:
		return s.vringState(m)
	case SetVringAddr:
		a, err := decodeVringAddr(m.Payload)
		if err != nil {
			return nil, err
		}
		q, err := s.queue(a.queue)
		if err != nil {
			return nil, err
		}
		q.addr = &a
		return nil, q.bind(s.memory)
	case SetVringKick, SetVringCall:
		return nil, s.vringFD(m)
	case SetFeatures, SetProtocolFeatures, SetOwner, ResetOwner, SetVringErr:
		return nil, nil
	default:
		return nil, fmt.Errorf("%w: unknown request", ErrMessage)
	}
}

func (s *Session) queue(i int) (*queue, error) {
	if i >= len(s.queues) {
		return nil, fmt.Errorf("%w: queue %d, of %d", ErrMessage, i, len(s.queues))
	}
	return &s.queues[i], nil
}

func (s *Session) config(b []byte) ([]byte, error) {
	if len(b) < configHeader {
		return nil, fmt.Errorf("%w: configuration request of %d bytes", ErrMessage, len(b))
	}
	offset, size := le.Uint32(b), le.Uint32(b[4:])
	if size > maxConfig || offset > maxConfig {
		return nil, fmt.Errorf("%w: %d bytes of configuration at %d", ErrMessage, size, offset)
	}
	reply := make([]byte, configHeader+size)
	copy(reply, b[:configHeader])
	if config := s.device.Config(); int(offset) < len(config) {
		copy(reply[configHeader:], config[offset:])
	}
	return reply, nil
}

func (s *Session) setMemory(m *Message) error {
	infos, err := decodeMemTable(m.Payload)
	if err != nil {
		return err
	}
	fds := m.FDs
	m.FDs = nil
	mem, err := mapMemory(infos, fds)
	if err != nil {
		return err
	}
	s.memory.unmap()
	s.memory = mem
	for i := range s.queues {
		if err := s.queues[i].bind(mem); err != nil {
			return err
		}
	}
	return nil
}

func (s *Session) vringState(m *Message) ([]byte, error) {
	i, value, err := decodeVringState(m.Payload)
	if err != nil {
		return nil, err
	}
	q, err := s.queue(i)
	if err != nil {
		return nil, err
	}
	switch m.Request {
	case SetVringNum:
		q.size = value
		q.addr, q.desc, q.avail, q.used = nil, nil, nil, nil // their lengths are by the size
	case SetVringBase:
		q.last = uint16(value)
	case SetVringEnable:
		q.enabled = value != 0
		if q.enabled && q.kick != nil {
			s.wake(i)
		}
	case GetVringBase: // stops the queue
		q.close()
		return le.AppendUint32(le.AppendUint32(nil, uint32(i)), uint32(q.last)), nil
	}
	return nil, nil
}

func (s *Session) vringFD(m *Message) error {
	i, err := decodeVringFD(m.Payload)
	if err != nil {
		return err
	}
	q, err := s.queue(i)
	if err != nil {
		return err
	}
	var f *os.File
	if len(m.FDs) > 0 {
		fd := m.FDs[0]
		if err := unix.SetNonblock(fd, true); err != nil {
			return err
		}
		f, m.FDs = os.NewFile(uintptr(fd), "eventfd"), m.FDs[1:]
	}
	at := &q.call
	if m.Request == SetVringKick {
		at = &q.kick
	}
	if *at != nil {
		(*at).Close()
	}
	*at = f
	if f != nil && m.Request == SetVringKick {
		s.kickers.Add(1)
		go s.kicked(i, f)
	}
	return nil
}

// wake has the queue's goroutine look at it. The lock is held.
func (s *Session) wake(i int) {
	// An eventfd's counter is full only if nobody ever reads it.
	_, _ = s.queues[i].kick.Write([]byte{1, 0, 0, 0, 0, 0, 0, 0})
}

// kicked calls the device each time that the guest kicks the queue.
func (s *Session) kicked(i int, f *os.File) {
	defer s.kickers.Done()
	b := make([]byte, 8)
	for {
		if _, err := f.Read(b); err != nil {
			return // closed
		}
		if err := s.device.Kicked(s, i); err != nil {
			s.mu.Lock()
			s.failed = err
			s.mu.Unlock()
			s.conn.Close()
			return
		}
	}
}

// Use takes the next chain of the queue and has f use it; f returns how many
// bytes it has written into it. It is false where the guest has none. The guest
// hears of it with the next Signal.
func (s *Session) Use(queue int, f func(*Chain) int) (bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	q := &s.queues[queue]
	c, err := q.pop(s.memory)
	if c == nil || err != nil {
		return false, err
	}
	q.push(c, f(c))
	return true, nil
}

// Signal tells the guest of the chains that were used.
func (s *Session) Signal(queue int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.queues[queue].signal()
}
