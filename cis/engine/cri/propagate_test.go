package cri

import "testing"

func TestSharedMount(t *testing.T) {
	const info = "1 0 8:1 / / rw,relatime shared:1 - ext4 /dev/a rw\n" +
		"2 1 8:2 / /var rw - ext4 /dev/b rw\n" +
		"3 2 8:2 /x /var/lib/a\\040b rw,noatime master:7 shared:9 - ext4 /dev/b rw\n" +
		"4 1 8:3 / /srv rw shared:3 - ext4 /dev/c rw\n" +
		"5 4 8:4 / /srv rw - ext4 /dev/d rw\n"
	for dir, want := range map[string]bool{"/": true, "/home/x": true, "/var": false, "/var/lib": false, "/var/lib/a b/c": true, "/variable": true, "/srv/x": false} {
		if got := sharedMount(info, dir); got != want {
			t.Errorf("%s: %v", dir, got)
		}
	}
}
