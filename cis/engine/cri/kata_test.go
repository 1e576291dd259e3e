package cri

import (
	"testing"

	"cumulet.io/cis"
)

// The whole life of an instance in a virtual machine.
func TestKataLife(t *testing.T) {
	b := newKataBench(t)
	b.life(t, cis.Kata)
}
