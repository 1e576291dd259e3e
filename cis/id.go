package cis

import (
	"crypto/rand"
	"time"
)

const idAlphabet = "0123456789abcdefghijklmnopqrstuv"

// NewID makes an instance id: "i-", ten characters of milliseconds since 1970 and ten random ones (50 bits each), so
// that ids sort by creation time and never meet.
func NewID(now time.Time) string {
	id := [22]byte{0: 'i', 1: '-'}
	ms := uint64(now.UnixMilli()) //nolint:gosec // a clock before 1970 still gives a valid id
	for i := 11; i >= 2; i-- {
		id[i] = idAlphabet[ms&31]
		ms >>= 5
	}
	_, _ = rand.Read(id[12:]) //nolint:errcheck // crypto/rand.Read never fails
	for i := 12; i < len(id); i++ {
		id[i] = idAlphabet[id[i]&31]
	}
	return string(id[:])
}
