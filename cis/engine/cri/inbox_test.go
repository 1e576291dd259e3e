package cri

import (
	"net"
	"slices"
	"sync"
	"testing"
)

// inbox keeps the datagrams that come to an address.
type inbox struct {
	mu   sync.Mutex
	text []string
}

func newInbox(t *testing.T, addr string) *inbox {
	t.Helper()
	c, err := net.ListenPacket("udp4", addr)
	if err != nil {
		t.Fatal(err)
	}
	in, done := &inbox{}, make(chan struct{})
	go func() {
		defer close(done)
		b := make([]byte, 1500)
		for {
			n, _, err := c.ReadFrom(b)
			if err != nil {
				return
			}
			in.mu.Lock()
			in.text = append(in.text, string(b[:n]))
			in.mu.Unlock()
		}
	}()
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		<-done
	})
	return in
}

func (i *inbox) has(text string) bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	return slices.Contains(i.text, text)
}
