package vmservice

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// Of several services one serves the socket; when it ends the next does, and
// there is no moment without.
func TestSyslogIsHandedOver(t *testing.T) {
	dir := t.TempDir()
	socket, lock := filepath.Join(dir, "log"), filepath.Join(dir, "lock")
	say := func() error {
		c, err := net.Dial("unixgram", socket)
		if err != nil {
			return err
		}
		defer c.Close()
		_, err = c.Write([]byte("hello"))
		return err
	}
	var stops []func()
	for range 3 {
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- serveSyslogAt(ctx, socket, lock, filepath.Join(dir, "out")) }()
		stops = append(stops, func() {
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
		})
	}
	for deadline := time.Now().Add(20 * time.Second); say() != nil; {
		if time.Now().After(deadline) {
			t.Fatal("nobody serves")
		}
		time.Sleep(time.Millisecond)
	}
	for _, stop := range stops[:2] {
		stop()
		if err := say(); err != nil {
			t.Errorf("after a service has ended: %v", err)
		}
	}
	stops[2]()
	if _, err := os.Stat(socket); !os.IsNotExist(err) {
		t.Errorf("the socket stays: %v", err)
	}
	if b, err := os.ReadFile(filepath.Join(dir, "out")); err != nil || len(b) == 0 {
		t.Errorf("%q, %v", b, err)
	}
}

// The machine's own is left alone.
func TestSyslogOfTheMachine(t *testing.T) {
	dir := t.TempDir()
	socket := filepath.Join(dir, "log")
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if err := serveSyslogAt(ctx, socket, filepath.Join(dir, "lock"), filepath.Join(dir, "out")); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "out")); !os.IsNotExist(err) {
		t.Errorf("it was served by another: %v", err)
	}
}
