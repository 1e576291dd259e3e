package initrd

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/pierrec/lz4/v4"
)

// Offsets in a kernel image for x86, from the kernel's Documentation/arch/x86/boot.rst.
const (
	offsetSectors = 0x1f1 // of the setup code, without the first
	offsetMagic   = 0x202
	offsetPayload = 0x248 // of the compressed kernel, from the setup code's end; its length follows
	headerEnd     = 0x250
	sector        = 512
)

// maxKernel bounds an unpacked kernel, bytes.
const maxKernel = 256 << 20

// ErrOtherKernel is for a kernel that this package cannot unpack, though a machine may boot it.
var ErrOtherKernel = errors.New("no x86 kernel that is packed with LZ4 and can be booted unpacked")

// UnpackKernel returns the program in a packed kernel (bzImage). QEMU boots it by the kernel's PVH entry, and an emulated
// processor need not unpack it at each boot, which takes it a third of the time. It fails with ErrOtherKernel for kernels of
// other kinds.
func UnpackKernel(image []byte) ([]byte, error) {
	if len(image) < headerEnd || string(image[offsetMagic:offsetMagic+4]) != "HdrS" {
		return nil, ErrOtherKernel
	}
	le := binary.LittleEndian
	begin := (int64(image[offsetSectors])+1)*sector + int64(le.Uint32(image[offsetPayload:]))
	end := begin + int64(le.Uint32(image[offsetPayload+4:]))
	if end > int64(len(image)) || end-begin < 8 {
		return nil, fmt.Errorf("kernel image of %d bytes: its payload is at %d to %d", len(image), begin, end)
	}
	payload := image[begin : end-4] // the last four are the unpacked length
	if !bytes.HasPrefix(payload, []byte{0x02, 0x21, 0x4c, 0x18}) {
		return nil, ErrOtherKernel
	}
	kernel, err := io.ReadAll(io.LimitReader(lz4.NewReader(bytes.NewReader(payload)), maxKernel+1))
	if err != nil {
		return nil, fmt.Errorf("unpack kernel: %w", err)
	}
	if want := int64(le.Uint32(image[end-4:])); int64(len(kernel)) != want {
		return nil, fmt.Errorf("unpack kernel: %d bytes, want %d", len(kernel), want)
	}
	if !bootable(kernel) {
		return nil, ErrOtherKernel
	}
	return kernel, nil
}

// bootable tells whether a kernel has a PVH entry: the note XEN_ELFNOTE_PHYS32_ENTRY (xen/include/public/elfnote.h).
func bootable(kernel []byte) bool {
	const physicalEntry = 18
	f, err := elf.NewFile(bytes.NewReader(kernel))
	if err != nil {
		return false
	}
	for _, p := range f.Progs {
		if p.Type != elf.PT_NOTE {
			continue
		}
		notes, err := io.ReadAll(io.LimitReader(p.Open(), 1<<20))
		if err != nil {
			return false
		}
		for len(notes) >= 12 {
			name, desc, kind := f.ByteOrder.Uint32(notes), f.ByteOrder.Uint32(notes[4:]), f.ByteOrder.Uint32(notes[8:])
			size := 12 + (uint64(name)+3)&^3 + (uint64(desc)+3)&^3
			if size > uint64(len(notes)) {
				return false
			}
			if kind == physicalEntry && string(notes[12:12+name]) == "Xen\x00" {
				return true
			}
			notes = notes[size:]
		}
	}
	return false
}
