// Package vhostuser is the device's side of vhost-user: the protocol by which a
// virtual machine monitor hands a virtio device's queues to another process.
//
// The monitor connects to a Unix socket and sends messages, one after the other:
// the features, the guest's memory as file descriptors, and for each queue its
// addresses and two eventfds, "kick" (the guest has put something into it) and
// "call" (we have). From then on the two sides meet in the guest's memory alone.
// [Serve] speaks for a [Device], which uses its queues by [Session.Use].
//
// It is what a device without multiqueue, migration or an IOMMU needs, which is
// a small part of QEMU's docs/interop/vhost-user.rst, the source of every number
// here. Split virtqueues are those of the VIRTIO 1.2 specification, section 2.7.
// The guest is not trusted: no address of its is used unchecked.
package vhostuser

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"

	"golang.org/x/sys/unix"
)

// Request is a message's type.
type Request uint32

// The requests that the monitor sends for such a device.
const (
	GetFeatures         Request = 1
	SetFeatures         Request = 2
	SetOwner            Request = 3
	ResetOwner          Request = 4
	SetMemTable         Request = 5
	SetVringNum         Request = 8
	SetVringAddr        Request = 9
	SetVringBase        Request = 10
	GetVringBase        Request = 11
	SetVringKick        Request = 12
	SetVringCall        Request = 13
	SetVringErr         Request = 14
	GetProtocolFeatures Request = 15
	SetProtocolFeatures Request = 16
	GetQueueNum         Request = 17
	SetVringEnable      Request = 18
	GetConfig           Request = 24
)

// Bits of a message's flags.
const (
	flagVersion   = 1
	flagReply     = 1 << 2
	flagNeedReply = 1 << 3
)

const (
	headerLen  = 12
	maxPayload = 4096 // more than the largest request has
	maxFDs     = 8    // what SET_MEM_TABLE may carry
)

// Message is a request with its payload and the file descriptors that came with
// it, which belong to whoever has the message.
type Message struct {
	Request Request
	Flags   uint32
	Payload []byte
	FDs     []int
}

var le = binary.LittleEndian

// ErrMessage is in every error about a message that breaks the protocol.
var ErrMessage = errors.New("malformed vhost-user message")

// decodeHeader returns a message without its payload, and the payload's length.
func decodeHeader(b []byte) (Message, int, error) {
	m := Message{Request: Request(le.Uint32(b)), Flags: le.Uint32(b[4:])}
	if m.Flags&3 != flagVersion {
		return m, 0, fmt.Errorf("%w: version %d, want 1", ErrMessage, m.Flags&3)
	}
	n := le.Uint32(b[8:])
	if n > maxPayload {
		return m, 0, fmt.Errorf("%w: request %d has %d bytes, more than %d", ErrMessage, m.Request, n, maxPayload)
	}
	return m, int(n), nil
}

// encode makes a reply's bytes.
func encode(req Request, payload []byte) []byte {
	b := le.AppendUint32(make([]byte, 0, headerLen+len(payload)), uint32(req))
	b = le.AppendUint32(b, flagVersion|flagReply)
	b = le.AppendUint32(b, uint32(len(payload)))
	return append(b, payload...)
}

// readMessage reads the next message. File descriptors come with the header.
func readMessage(c *net.UnixConn) (Message, error) {
	header, oob := make([]byte, headerLen), make([]byte, unix.CmsgSpace(maxFDs*4))
	n, oobn, _, _, err := c.ReadMsgUnix(header, oob)
	if err == nil && n == 0 {
		err = io.EOF
	}
	if err != nil {
		return Message{}, err
	}
	fds, err := parseFDs(oob[:oobn])
	if err != nil {
		return Message{}, err
	}
	if _, err := io.ReadFull(c, header[n:]); err != nil {
		closeFDs(fds)
		return Message{}, fmt.Errorf("read header: %w", err)
	}
	m, size, err := decodeHeader(header)
	if err != nil {
		closeFDs(fds)
		return m, err
	}
	m.FDs, m.Payload = fds, make([]byte, size)
	if _, err := io.ReadFull(c, m.Payload); err != nil {
		closeFDs(fds)
		return m, fmt.Errorf("read payload of request %d: %w", m.Request, err)
	}
	return m, nil
}

func parseFDs(oob []byte) ([]int, error) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, fmt.Errorf("%w: ancillary data: %w", ErrMessage, err)
	}
	var fds []int
	for i := range messages {
		got, err := unix.ParseUnixRights(&messages[i])
		if err != nil {
			continue // not file descriptors
		}
		fds = append(fds, got...)
	}
	for _, fd := range fds {
		unix.CloseOnExec(fd)
	}
	return fds, nil
}

func closeFDs(fds []int) {
	for _, fd := range fds {
		unix.Close(fd)
	}
}

// regionInfo is one region of SET_MEM_TABLE: guest physical address, size, the
// monitor's own virtual address, and where it begins in its file.
type regionInfo struct{ guest, size, user, offset uint64 }

func decodeMemTable(b []byte) ([]regionInfo, error) {
	if len(b) < 8 {
		return nil, fmt.Errorf("%w: memory table of %d bytes", ErrMessage, len(b))
	}
	n := int(le.Uint32(b))
	if n > maxFDs || len(b) < 8+32*n {
		return nil, fmt.Errorf("%w: memory table of %d bytes has %d regions", ErrMessage, len(b), n)
	}
	regions := make([]regionInfo, n)
	for i := range regions {
		r := b[8+32*i:]
		regions[i] = regionInfo{le.Uint64(r), le.Uint64(r[8:]), le.Uint64(r[16:]), le.Uint64(r[24:])}
	}
	return regions, nil
}

// vringState is the payload of SET_VRING_NUM, _BASE and _ENABLE.
func decodeVringState(b []byte) (queue int, value uint32, err error) {
	if len(b) < 8 {
		return 0, 0, fmt.Errorf("%w: queue state of %d bytes", ErrMessage, len(b))
	}
	return int(le.Uint32(b) & 0xff), le.Uint32(b[4:]), nil
}

// vringAddr is the payload of SET_VRING_ADDR, in the monitor's addresses.
type vringAddr struct {
	queue             int
	desc, used, avail uint64
}

func decodeVringAddr(b []byte) (vringAddr, error) {
	if len(b) < 40 {
		return vringAddr{}, fmt.Errorf("%w: queue addresses of %d bytes", ErrMessage, len(b))
	}
	return vringAddr{int(le.Uint32(b) & 0xff), le.Uint64(b[8:]), le.Uint64(b[16:]), le.Uint64(b[24:])}, nil
}

// decodeVringFD reads the payload of SET_VRING_KICK and _CALL, whose bit 8 says
// that no file descriptor comes.
func decodeVringFD(b []byte) (queue int, err error) {
	if len(b) < 8 {
		return 0, fmt.Errorf("%w: queue eventfd of %d bytes", ErrMessage, len(b))
	}
	return int(le.Uint64(b) & 0xff), nil
}
