// Package vsock is a virtio socket device (VIRTIO 1.2, section 5.10) for one
// virtual machine, in a process of its own: streams between programs here and
// programs in the guest, with no support by this machine's kernel. A [Device]
// is served to QEMU's vhost-user-vsock-pci by package vhostuser.
//
// Each end of a stream says in every packet how much it can buffer and how much
// of what it got it has passed on ("credit"), and the other end never sends more
// than fits. So a reader that is slow makes its own stream wait and no other.
package vsock

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// Addresses that are always the same (VIRTIO 1.2, 5.10.4).
const (
	HostCID = 2
	// GuestCID is the guest's. Each device has one guest, so that all may be
	// called alike.
	GuestCID = 3
)

// Op is what a packet is for.
type Op uint16

// The operations of VIRTIO 1.2, 5.10.6.
const (
	OpRequest       Op = 1
	OpResponse      Op = 2
	OpReset         Op = 3
	OpShutdown      Op = 4
	OpData          Op = 5
	OpCreditUpdate  Op = 6
	OpCreditRequest Op = 7
)

// Flags of OpShutdown: its sender will receive, or send, no more.
const (
	shutdownReceive = 1
	shutdownSend    = 2
)

const (
	headerLen  = 44
	typeStream = 1
	// maxData is the most that a packet may carry; the guest's driver sends up
	// to 64 KiB.
	maxData = 64 << 10
)

// packet is a packet's header with its data.
type packet struct {
	srcCID, dstCID   uint64
	srcPort, dstPort uint32
	kind             uint16
	op               Op
	flags            uint32
	buffer, consumed uint32 // the sender's credit: buf_alloc and fwd_cnt
	data             []byte
}

var (
	le = binary.LittleEndian
	// ErrPacket is in every error about a packet that breaks the protocol.
	ErrPacket = errors.New("malformed vsock packet")
)

// decode reads a packet. Its data is a part of b.
func decode(b []byte) (packet, error) {
	if len(b) < headerLen {
		return packet{}, fmt.Errorf("%w: %d bytes", ErrPacket, len(b))
	}
	p := packet{
		srcCID: le.Uint64(b), dstCID: le.Uint64(b[8:]),
		srcPort: le.Uint32(b[16:]), dstPort: le.Uint32(b[20:]),
		kind: le.Uint16(b[28:]), op: Op(le.Uint16(b[30:])), flags: le.Uint32(b[32:]),
		buffer: le.Uint32(b[36:]), consumed: le.Uint32(b[40:]),
	}
	n := le.Uint32(b[24:])
	if n > maxData || int(n) > len(b)-headerLen {
		return packet{}, fmt.Errorf("%w: %d bytes of data announced, %d there", ErrPacket, n, len(b)-headerLen)
	}
	p.data = b[headerLen:][:n]
	return p, nil
}

// encode makes the packet's bytes.
func (p *packet) encode() []byte {
	b := make([]byte, 0, headerLen+len(p.data))
	b = le.AppendUint64(b, p.srcCID)
	b = le.AppendUint64(b, p.dstCID)
	b = le.AppendUint32(b, p.srcPort)
	b = le.AppendUint32(b, p.dstPort)
	b = le.AppendUint32(b, uint32(len(p.data)))
	b = le.AppendUint16(b, p.kind)
	b = le.AppendUint16(b, uint16(p.op))
	b = le.AppendUint32(b, p.flags)
	b = le.AppendUint32(b, p.buffer)
	b = le.AppendUint32(b, p.consumed)
	return append(b, p.data...)
}
