package initrd

import (
	"bytes"
	"encoding/binary"
	"errors"
	"slices"
	"testing"
)

// A kernel image's header and payload, without the code.
func image(payload []byte) []byte {
	b := make([]byte, 2*sector)
	b[offsetSectors] = 1
	copy(b[offsetMagic:], "HdrS")
	binary.LittleEndian.PutUint32(b[offsetPayload+4:], uint32(len(payload)))
	return slices.Concat(b, payload)
}

func TestUnpackKernelErrors(t *testing.T) {
	for name, c := range map[string]struct {
		image []byte
		other bool
	}{
		"empty":           {nil, true},
		"no kernel":       {bytes.Repeat([]byte("x"), 4096), true},
		"packed by gzip":  {image([]byte{0x1f, 0x8b, 8, 0, 0, 0, 0, 0}), true},
		"no payload":      {image(nil), false},
		"payload outside": {image(make([]byte, 64))[:1050], false},
		"broken":          {image([]byte{0x02, 0x21, 0x4c, 0x18, 8, 0, 0, 0, 1, 2, 3, 0, 0, 0, 0}), false},
	} {
		_, err := UnpackKernel(c.image)
		if err == nil || errors.Is(err, ErrOtherKernel) != c.other {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzUnpackKernel(f *testing.F) {
	f.Add(image([]byte{0x02, 0x21, 0x4c, 0x18, 8, 0, 0, 0, 1, 2, 3, 0, 0, 0, 0}))
	f.Fuzz(func(t *testing.T, b []byte) {
		if k, err := UnpackKernel(b); err == nil && !bootable(k) {
			t.Error("what cannot be booted is unpacked")
		}
	})
}
