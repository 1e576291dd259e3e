// Package guest makes a booted kernel ready for the agent, its first process.
package guest

import (
	"fmt"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"cumulet.io/hack/kata/boot"
	"cumulet.io/hack/kata/sharing"
)

// ShareDir is where the guest has the directory that the host shares.
const ShareDir = "/run/share"

// CgroupRoot is where the guest has its cgroups, of version 2.
const CgroupRoot = "/sys/fs/cgroup"

// Boot mounts what a kernel offers, loads the modules, mounts the shared
// directory and raises the loopback interface.
func Boot() error {
	// A bind mount of the root over itself is one that containers can leave.
	const at = "/run"
	if err := unix.Mount("/", at, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind root: %w", err)
	}
	if err := boot.Enter(at); err != nil {
		return err
	}
	tmp := boot.Mount{Source: "tmp", Target: "/tmp", FSType: "tmpfs", Flags: unix.MS_NOSUID | unix.MS_NODEV, Data: "mode=1777"}
	if err := boot.All(append(boot.Kernel(""), tmp)); err != nil {
		return err
	}
	if err := boot.Output(); err != nil {
		return err
	}
	if err := boot.Modules(); err != nil {
		return err
	}
	// No flags: containers have their root file systems here.
	if err := (boot.Mount{Source: sharing.Tag, Target: ShareDir, FSType: "virtiofs"}).Do(); err != nil {
		return err
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find lo: %w", err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return fmt.Errorf("raise lo: %w", err)
	}
	return nil
}
