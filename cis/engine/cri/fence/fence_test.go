package fence

import (
	"net/netip"
	"testing"

	"cumulet.io/internal/testenv"
)

// What is admitted outlives the process that admitted it; what is retired, or whose address another gets, does not.
func TestFence(t *testing.T) {
	testenv.RequireRoot(t)
	net := testenv.Network(t)
	if err := Remove(net.Bridge); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := Remove(net.Bridge); err != nil {
			t.Error(err)
		}
	})
	a, b := netip.MustParseAddr("10.213.0.2"), netip.MustParseAddr("10.213.0.3")
	config := Config{Bridge: net.Bridge, NodePorts: []NodePort{{Port: 443}, {UDP: true, Port: 53}}}
	open := func() *Fence {
		t.Helper()
		f, err := Open(config)
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	is := func(f *Fence, want map[netip.Addr]place) {
		t.Helper()
		got := open() // as the kernel has it
		for _, ports := range []map[netip.Addr]place{f.ports, got.ports} {
			if len(ports) != len(want) {
				t.Fatalf("admitted are %v, want %v", ports, want)
			}
			for addr, p := range want {
				if ports[addr] != p {
					t.Fatalf("%s is %v, want %v", addr, ports[addr], p)
				}
			}
		}
	}
	f := open()
	is(f, nil)
	for range 2 { // again is fine
		if err := f.Admit(Port{Org: "acme", Interface: "veth1", Addrs: []netip.Addr{a}}); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Admit(Port{Org: "bank", Interface: "veth2", Addrs: []netip.Addr{b, netip.MustParseAddr("fd00::1")}}); err != nil {
		t.Fatal(err)
	}
	is(f, map[netip.Addr]place{a: {"veth1", idOf("acme")}, b: {"veth2", idOf("bank")}})
	f = open()
	if err := f.Admit(Port{Org: "bank", Interface: "veth3", Addrs: []netip.Addr{a}}); err != nil {
		t.Fatal(err)
	}
	is(f, map[netip.Addr]place{a: {"veth3", idOf("bank")}, b: {"veth2", idOf("bank")}})
	for range 2 {
		if err := f.Retire([]netip.Addr{a}); err != nil {
			t.Fatal(err)
		}
	}
	is(f, map[netip.Addr]place{b: {"veth2", idOf("bank")}})
	for range 2 {
		if err := Remove(net.Bridge); err != nil {
			t.Fatal(err)
		}
	}
	is(open(), nil)
	for _, p := range []Port{{}, {Org: "acme"}, {Org: "acme", Interface: "a-name-that-is-too-long"}} {
		if f.Admit(p) == nil {
			t.Errorf("admitted %+v", p)
		}
	}
	if _, err := Open(Config{}); err == nil {
		t.Error("opened without a bridge")
	}
}
