// Command kata-agent is the first process of a virtual machine of kata-vmservice.
package main

import (
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/mdlayher/vsock"
	"golang.org/x/sys/unix"

	"cumulet.io/hack/kata/agent"
	"cumulet.io/hack/kata/agent/guest"
	"cumulet.io/hack/kata/boot"
	"cumulet.io/hack/kata/sharing"
)

// shareDir is where the guest has the directory that the host shares.
const shareDir = "/run/share"

func main() {
	guest.Main(func(log *slog.Logger) (guest.Agent, error) {
		// No flags: containers have their root file systems here.
		if err := guest.Boot(boot.Mount{Source: sharing.Tag, Target: shareDir, FSType: "virtiofs"}); err != nil {
			return nil, err
		}
		return agent.New(host{}, shareDir, guest.CgroupRoot, log)
	})
}

// host asks the VM service, at the host's end of the socket device.
type host struct{}

// dialBound is how long the service may take to answer: Linux gives a connection 2 s, which a host with much else to do
// can let pass.
const dialBound = time.Minute

func (host) Call(req sharing.Request) (sharing.Response, error) {
	began := time.Now()
	c, err := vsock.Dial(vsock.Host, sharing.Port, nil)
	for errors.Is(err, unix.ETIMEDOUT) && time.Since(began) < dialBound {
		c, err = vsock.Dial(vsock.Host, sharing.Port, nil)
	}
	if err != nil {
		return sharing.Response{}, fmt.Errorf("reach the VM service: %w", err)
	}
	defer c.Close()
	return sharing.Call(c, req)
}
