package fence_test

import (
	"maps"
	"net/netip"
	"os/exec"
	"strings"
	"testing"

	"cumulet.io/cis/engine/cri/fence"
	"cumulet.io/internal/testenv"
)

// What is admitted outlives the process that admitted it; what is retired, or whose address another gets, does not.
func TestFence(t *testing.T) {
	testenv.RequireRoot(t)
	net := testenv.Network(t)
	if err := fence.Remove(net.Bridge); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := fence.Remove(net.Bridge); err != nil {
			t.Error(err)
		}
	})
	a, b := netip.MustParseAddr("10.213.0.2"), netip.MustParseAddr("10.213.0.3")
	config := fence.Config{Bridge: net.Bridge, NodePorts: []fence.NodePort{{Port: 443}, {UDP: true, Port: 53}}}
	open := func() *fence.Fence {
		t.Helper()
		f, err := fence.Open(config)
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	is := func(f *fence.Fence, want map[netip.Addr]string) {
		t.Helper()
		for _, got := range []map[netip.Addr]string{f.Places(), open().Places()} { // the second as the kernel has it
			if !maps.Equal(got, want) {
				t.Fatalf("admitted are %v, want %v", got, want)
			}
		}
	}
	f := open()
	is(f, nil)
	for range 2 { // again is fine
		if err := f.Admit(fence.Port{Org: "acme", Interface: "veth1", Addrs: []netip.Addr{a}}); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Admit(fence.Port{Org: "bank", Interface: "veth2", Addrs: []netip.Addr{b, netip.MustParseAddr("fd00::1")}}); err != nil {
		t.Fatal(err)
	}
	is(f, map[netip.Addr]string{a: fence.Place("veth1", "acme"), b: fence.Place("veth2", "bank")})
	// An operator's nft lists the rules as what they are.
	for family, wants := range map[string][]string{"bridge": {"ip saddr map @orgs", "meta mark . ip daddr @members", `comment "acme"`},
		"inet": {"ip saddr map @orgs", "meta mark . ip daddr @members", "0xa9fe0000", "443"}} {
		out, err := exec.CommandContext(t.Context(), testenv.Tool(t, "nft"), "list", "table", family, "cumulet-"+net.Bridge).CombinedOutput()
		for _, want := range wants {
			if err != nil || !strings.Contains(string(out), want) {
				t.Errorf("nft list table lacks %q: %v\n%s", want, err, out)
				break
			}
		}
	}
	f = open()
	if err := f.Admit(fence.Port{Org: "bank", Interface: "veth3", Addrs: []netip.Addr{a}}); err != nil {
		t.Fatal(err)
	}
	is(f, map[netip.Addr]string{a: fence.Place("veth3", "bank"), b: fence.Place("veth2", "bank")})
	for range 2 {
		if err := f.Retire([]netip.Addr{a}); err != nil {
			t.Fatal(err)
		}
	}
	is(f, map[netip.Addr]string{b: fence.Place("veth2", "bank")})
	for range 2 {
		if err := fence.Remove(net.Bridge); err != nil {
			t.Fatal(err)
		}
	}
	is(open(), nil)
	for _, p := range []fence.Port{{}, {Org: "acme"}, {Org: "acme", Interface: "a-name-that-is-too-long"}} {
		if f.Admit(p) == nil {
			t.Errorf("admitted %+v", p)
		}
	}
	if _, err := fence.Open(fence.Config{}); err == nil {
		t.Error("opened without a bridge")
	}
}
