// Probe tries to get out of the sandbox that it runs in, and says how far it came. It is the program of the isolation
// tests' image (cis/engine/cri): static, with nothing beside it.
//
//	probe attempts          every attempt, one JSON object of package attempt a line, with the targets in $PROBE
//	probe listen PORT       a neighbour: answers TCP, and prints each datagram and connection that it gets
//
// It must run only where it cannot do harm: in a sandbox of a test's own.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"

	"cumulet.io/hack/probe/attempt"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "probe:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	switch {
	case len(args) == 1 && args[0] == "attempts":
		var t attempt.Targets
		if err := json.Unmarshal([]byte(os.Getenv("PROBE")), &t); err != nil {
			return fmt.Errorf("$PROBE: %w", err)
		}
		out := json.NewEncoder(os.Stdout)
		for _, a := range attempt.All() {
			if err := out.Encode(attempt.Result{Name: a.Name, Outcome: a.Outcome(t)}); err != nil {
				return err
			}
		}
		return nil
	case len(args) == 2 && args[0] == "listen":
		return listen(args[1])
	}
	return errors.New("usage: probe attempts | probe listen PORT")
}

// listen prints what comes in, until it is killed.
func listen(port string) error {
	var lc net.ListenConfig
	l, err := lc.Listen(context.Background(), "tcp4", ":"+port)
	if err != nil {
		return err
	}
	u, err := lc.ListenPacket(context.Background(), "udp4", ":"+port)
	if err != nil {
		return err
	}
	go func() {
		b := make([]byte, 1500)
		for {
			n, from, err := u.ReadFrom(b)
			if err != nil {
				return
			}
			fmt.Printf("datagram %q from %s\n", b[:n], from)
		}
	}()
	fmt.Println("listening")
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		fmt.Printf("connection from %s\n", c.RemoteAddr())
		fmt.Fprintln(c, "neighbour")
		c.Close()
	}
}
