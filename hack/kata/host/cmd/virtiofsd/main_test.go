package main

import (
	"strings"
	"testing"
)

func TestTranslate(t *testing.T) {
	for _, c := range []struct{ args, want string }{
		{"--syslog --cache=auto --shared-dir=/run/x/shared --fd=3 --thread-pool-size=1 --announce-submounts",
			"-f --syslog -o cache=auto -o source=/run/x/shared --fd=3 --thread-pool-size=1 -o announce_submounts"},
		{"--cache=never", "-f -o cache=none"},
		{"--cache=metadata", ""},
		{"--shared-dir=/a,b", ""},
		{"--sandbox=none", ""},
	} {
		got, err := translate(strings.Fields(c.args))
		if strings.Join(got, " ") != c.want || (err != nil) != (c.want == "") {
			t.Errorf("%s: %q, %v; want %q", c.args, got, err, c.want)
		}
	}
}
