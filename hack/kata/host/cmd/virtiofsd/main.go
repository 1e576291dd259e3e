// Command virtiofsd has the command line of the virtiofsd that Kata's releases
// bring, which is a Rust program, and runs the virtiofsd of QEMU 7.2 in its
// place: the two serve the same protocol by other names of options.
package main

import (
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// daemon is where Debian 12 has it (qemu-system-common).
const daemon = "/usr/lib/qemu/virtiofsd"

func main() {
	args, err := translate(os.Args[1:])
	if err == nil {
		err = unix.Exec(daemon, append([]string{daemon}, args...), os.Environ())
	}
	fmt.Fprintln(os.Stderr, "virtiofsd:", err)
	os.Exit(1)
}

// translate gives an option's name in QEMU's virtiofsd. One that it does not
// know is an error: what Kata asks for is done or refused.
func translate(args []string) ([]string, error) {
	out := []string{"-f"}
	for _, a := range args {
		name, value, _ := strings.Cut(a, "=")
		switch name {
		case "--syslog", "--fd", "--thread-pool-size":
			out = append(out, a)
		case "--shared-dir":
			if strings.Contains(value, ",") {
				return nil, fmt.Errorf("%s: QEMU's virtiofsd takes no comma", a)
			}
			out = append(out, "-o", "source="+value)
		case "--cache":
			mode := map[string]string{"auto": "auto", "always": "always", "never": "none"}[value]
			if mode == "" {
				return nil, fmt.Errorf("%s: QEMU's virtiofsd has auto, always and never", a)
			}
			out = append(out, "-o", "cache="+mode)
		case "--announce-submounts":
			out = append(out, "-o", "announce_submounts")
		default:
			return nil, fmt.Errorf("option %s is not known", a)
		}
	}
	return out, nil
}
