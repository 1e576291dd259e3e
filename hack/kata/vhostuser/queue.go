package vhostuser

import (
	"fmt"
	"os"
	"sync/atomic"
)

// Bits of a descriptor's and of a ring's flags.
const (
	descNext        = 1
	availNoInterupt = 1
)

// queue is a split virtqueue. Its three parts are views of the guest's memory.
type queue struct {
	size              uint32
	addr              *vringAddr // as sent; resolved by bind
	desc, avail, used []byte
	last              uint16 // what we have taken from avail
	usedIndex         uint16 // what we have put into used
	kick, call        *os.File
	enabled           bool
}

// bind resolves the queue's addresses in the memory. The sizes of the parts are
// those of VIRTIO 1.2, 2.7.
func (q *queue) bind(m memory) error {
	q.desc, q.avail, q.used = nil, nil, nil
	if q.addr == nil || len(m) == 0 {
		return nil
	}
	if q.size == 0 || q.size > 1<<15 || q.size&(q.size-1) != 0 {
		return fmt.Errorf("%w: queue of %d descriptors", ErrMessage, q.size)
	}
	if q.addr.desc%16 != 0 || q.addr.avail%4 != 0 || q.addr.used%4 != 0 {
		return fmt.Errorf("%w: queue at unaligned addresses %#x %#x %#x", ErrMessage, q.addr.desc, q.addr.avail, q.addr.used)
	}
	n := uint64(q.size)
	desc, err := m.user(q.addr.desc, 16*n)
	if err != nil {
		return err
	}
	avail, err := m.user(q.addr.avail, 4+2*n)
	if err != nil {
		return err
	}
	used, err := m.user(q.addr.used, 4+8*n)
	if err != nil {
		return err
	}
	q.desc, q.avail, q.used = desc, avail, used
	q.usedIndex = uint16(atomic.LoadUint32(word(used)) >> 16)
	return nil
}

func (q *queue) ready() bool { return q.enabled && q.used != nil }

// Chain is a chain of buffers that the guest has put into a queue.
type Chain struct {
	head uint16
	// Buffers are the guest's memory: it may change them at any time.
	Buffers [][]byte
}

// Len is how many bytes the buffers have.
func (c *Chain) Len() int {
	n := 0
	for _, b := range c.Buffers {
		n += len(b)
	}
	return n
}

// pop takes the next chain; nil where there is none.
func (q *queue) pop(m memory) (*Chain, error) {
	if !q.ready() {
		return nil, nil
	}
	if index := uint16(atomic.LoadUint32(word(q.avail)) >> 16); index == q.last {
		return nil, nil
	}
	c := &Chain{head: le.Uint16(q.avail[4+2*(uint32(q.last)%q.size):])}
	q.last++
	i := uint32(c.head)
	for range q.size {
		if i >= q.size {
			return nil, fmt.Errorf("%w: descriptor %d of %d", errAddress, i, q.size)
		}
		d := q.desc[16*i:][:16]
		b, err := m.guest(le.Uint64(d), uint64(le.Uint32(d[8:])))
		if err != nil {
			return nil, err
		}
		c.Buffers = append(c.Buffers, b)
		if le.Uint16(d[12:])&descNext == 0 {
			return c, nil
		}
		i = uint32(le.Uint16(d[14:]))
	}
	return nil, fmt.Errorf("%w: chain without end from descriptor %d", ErrMessage, c.head)
}

// push gives a chain back with n bytes written into it.
func (q *queue) push(c *Chain, n int) {
	if !q.ready() {
		return
	}
	e := q.used[4+8*(uint32(q.usedIndex)%q.size):]
	le.PutUint32(e, uint32(c.head))
	le.PutUint32(e[4:], uint32(n))
	q.usedIndex++
	// The store publishes the entry; the ring's flags, its lower half, stay 0.
	atomic.StoreUint32(word(q.used), uint32(q.usedIndex)<<16)
}

// signal tells the guest of what was pushed, unless it asked not to be told.
func (q *queue) signal() {
	if q.call == nil || !q.ready() || atomic.LoadUint32(word(q.avail))&availNoInterupt != 0 {
		return
	}
	// An eventfd's counter is full only if nobody ever reads it.
	_, _ = q.call.Write([]byte{1, 0, 0, 0, 0, 0, 0, 0})
}

func (q *queue) close() {
	q.enabled = false
	for _, f := range []*os.File{q.kick, q.call} {
		if f != nil {
			f.Close()
		}
	}
	q.kick, q.call = nil, nil
}
