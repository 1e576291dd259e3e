package vmservice

import (
	"maps"
	"testing"
)

func TestCountingCgroups(t *testing.T) {
	for list, want := range map[string]map[string]string{
		"": {},
		"9:name=systemd:/a\n8:pids:/a/b\n4:memory:/a/b:c\n3:cpuset:/a\n2:cpu,cpuacct:/a\n0::/x\n": {"pids": "/a/b", "memory": "/a/b:c"},
		"0::/system.slice/x.service\n": {},
		"bad\n1:worse":                 {},
	} {
		if got := countingCgroups(list); !maps.Equal(got, want) {
			t.Errorf("%q: %v, want %v", list, got, want)
		}
	}
}
