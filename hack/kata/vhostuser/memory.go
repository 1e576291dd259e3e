package vhostuser

import (
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// errAddress is in every error about an address that is not the guest's memory.
var errAddress = errors.New("address outside the guest's memory")

// region is a part of the guest's memory, mapped here.
type region struct {
	guest, user uint64 // its addresses for the guest and for the monitor
	bytes       []byte
}

type memory []region

// mapMemory maps the regions and closes their file descriptors.
func mapMemory(infos []regionInfo, fds []int) (memory, error) {
	defer closeFDs(fds)
	if len(fds) != len(infos) {
		return nil, fmt.Errorf("%w: %d regions with %d file descriptors", ErrMessage, len(infos), len(fds))
	}
	var m memory
	for i, r := range infos {
		if r.size == 0 || r.size > 1<<40 || r.guest+r.size < r.guest || r.user+r.size < r.user {
			m.unmap()
			return nil, fmt.Errorf("%w: region of %d bytes at %#x", ErrMessage, r.size, r.guest)
		}
		b, err := unix.Mmap(fds[i], int64(r.offset), int(r.size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
		if err != nil {
			m.unmap()
			return nil, fmt.Errorf("map guest memory at %#x: %w", r.guest, err)
		}
		m = append(m, region{r.guest, r.user, b})
	}
	return m, nil
}

func (m memory) unmap() {
	for _, r := range m {
		// Fails only for what was not mapped.
		_ = unix.Munmap(r.bytes)
	}
}

// guest returns n bytes at a guest physical address, which must be in one region.
func (m memory) guest(addr, n uint64) ([]byte, error) {
	for _, r := range m {
		if addr >= r.guest && addr-r.guest <= uint64(len(r.bytes)) && n <= uint64(len(r.bytes))-(addr-r.guest) {
			return r.bytes[addr-r.guest:][:n:n], nil
		}
	}
	return nil, fmt.Errorf("%w: %d bytes at %#x", errAddress, n, addr)
}

// user is guest for an address in the monitor's own space.
func (m memory) user(addr, n uint64) ([]byte, error) {
	for _, r := range m {
		if addr >= r.user && addr-r.user <= uint64(len(r.bytes)) && n <= uint64(len(r.bytes))-(addr-r.user) {
			return r.bytes[addr-r.user:][:n:n], nil
		}
	}
	return nil, fmt.Errorf("%w: %d bytes at monitor address %#x", errAddress, n, addr)
}

// word returns the 32-bit word at the start of b, for atomic use. Rings are
// aligned to at least 4 bytes (VIRTIO 1.2, 2.7), which the caller has checked.
func word(b []byte) *uint32 { return (*uint32)(unsafe.Pointer(&b[0])) }
