package vmservice

import "golang.org/x/sys/unix"

// ownMounts gives the thread a mount namespace of its own, as a shim's is.
func ownMounts() error {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return err
	}
	return unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")
}
