package inside

import (
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	pb "github.com/kata-containers/kata-containers/src/runtime/virtcontainers/pkg/agent/protocols/grpc"
	"golang.org/x/sys/unix"
)

func TestParseOptions(t *testing.T) {
	for options, want := range map[string]Options{
		"":                      {},
		"rbind,ro,rprivate":     {Flags: unix.MS_BIND | unix.MS_REC | unix.MS_RDONLY, Propagation: []uintptr{unix.MS_PRIVATE | unix.MS_REC}},
		"ro,rw":                 {},
		"nosuid,suid,noexec":    {Flags: unix.MS_NOEXEC},
		"mode=755,size=1k,ro":   {Flags: unix.MS_RDONLY, Data: "mode=755,size=1k"},
		"defaults,dev,relatime": {Flags: unix.MS_RELATIME},
	} {
		if got := ParseOptions(strings.Split(options, ",")); !reflect.DeepEqual(got, want) {
			t.Errorf("%q: %+v, want %+v", options, got, want)
		}
	}
}

func TestCapabilityMask(t *testing.T) {
	if got, want := capabilityMask([]string{"CAP_CHOWN", "CAP_NET_RAW", "CAP_CHECKPOINT_RESTORE", "CAP_NEW"}), uint64(1|1<<13|1<<40); got != want {
		t.Errorf("%#x, want %#x", got, want)
	}
	if capabilities[unix.CAP_LAST_CAP] != "CHECKPOINT_RESTORE" || capabilities[unix.CAP_SYS_ADMIN] != "SYS_ADMIN" {
		t.Error("the table's order is not the kernel's")
	}
}

func TestLookup(t *testing.T) {
	t.Setenv("PATH", os.Getenv("PATH")) // which lookup changes
	dir := t.TempDir()
	program := filepath.Join(dir, "prog")
	if err := os.WriteFile(program, nil, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args, env []string
		want, err string
	}{
		{[]string{"prog"}, []string{"PATH=/none:" + dir}, program, ""},
		{[]string{program}, nil, program, ""},
		{[]string{"prog"}, nil, "", `exec: "prog": executable file not found in $PATH`},
		{[]string{"/no/prog"}, nil, "", "no such file or directory"},
		{nil, nil, "", "no arguments"},
	} {
		got, err := lookup(&pb.Process{Args: c.args, Env: c.env})
		if got != c.want || (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("%q with %q: %q, %v", c.args, c.env, got, err)
		}
	}
}

// A mount point is made inside the root, wherever the image's links lead.
func TestTargetStaysInRoot(t *testing.T) {
	root, outside := t.TempDir(), t.TempDir()
	for link, to := range map[string]string{"abs": outside, "rel": "../../../../" + outside} {
		if err := os.Symlink(to, filepath.Join(root, link)); err != nil {
			t.Fatal(err)
		}
	}
	source := filepath.Join(outside, "source")
	if err := os.WriteFile(source, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, destination := range []string{"/abs/x", "/rel/x", "/../../x", "/new/deep/x"} {
		for _, bind := range []bool{true, false} {
			f, err := target(root, destination+map[bool]string{true: "file", false: "dir"}[bind], source, bind)
			if err != nil {
				continue // a link to nothing in the root is refused, too
			}
			at, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", f.Fd()))
			f.Close()
			if err != nil || !strings.HasPrefix(at, root+"/") {
				t.Errorf("%s is made at %s, %v", destination, at, err)
			}
		}
	}
	left, err := os.ReadDir(outside)
	if err != nil || len(left) != 1 {
		t.Errorf("outside of the root there is %v, %v", left, err)
	}
	if _, err := os.Stat(filepath.Join(root, "new/deep/xdir")); err != nil {
		t.Error(err)
	}
}
