// Command guest-init is the first process of the virtual machines that Kata's
// own QEMU driver starts: the agent of package qemuagent, in the place of Kata's,
// which is a Rust program.
package main

import (
	"log/slog"

	"cumulet.io/hack/kata/agent/guest"
	"cumulet.io/hack/kata/host/qemuagent"
)

func main() {
	guest.Main(func(log *slog.Logger) (guest.Agent, error) {
		if err := guest.Boot(); err != nil {
			return nil, err
		}
		return qemuagent.New(guest.CgroupRoot, log)
	})
}
