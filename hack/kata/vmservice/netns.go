package vmservice

import (
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"strconv"

	types "github.com/kata-containers/kata-containers/src/runtime/virtcontainers/pkg/agent/protocols"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// tap is one of the machine's interfaces, at the host's side.
type tap struct {
	file *os.File // for QEMU
	mac  string   // of the guest's side: the pod's own
}

// network is what a machine has of its pod's network namespace. Each interface
// that the pod's network (CNI) has put there is joined to a tap: whatever comes
// in at the one goes out at the other, by traffic control. The interface keeps
// its addresses, but nobody in the namespace gets what is sent to them: the guest
// does, which has the same addresses, hardware and network. Kata calls this model
// tcfilter.
type network struct {
	netns      string
	taps       []tap
	interfaces []*types.Interface
	routes     []*types.Route
	joined     []int // indexes of the interfaces
}

// joinNetwork joins the interfaces of a namespace; none for an empty path.
func joinNetwork(netns string) (*network, error) {
	n := &network{netns: netns}
	if netns == "" {
		return n, nil
	}
	if err := inNetns(netns, n.join); err != nil {
		return nil, errors.Join(err, n.leave())
	}
	return n, nil
}

// inNetns calls f on a thread of its own in the namespace.
func inNetns(path string, f func() error) error {
	ns, err := os.Open(path)
	if err != nil {
		return err
	}
	defer ns.Close()
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			result <- fmt.Errorf("enter network namespace: %w", err)
			return
		}
		result <- f()
	}()
	return <-result
}

func (n *network) join() error {
	links, err := netlink.LinkList()
	if err != nil {
		return err
	}
	for _, l := range links {
		a := l.Attrs()
		if a.Flags&net.FlagLoopback != 0 || a.Flags&net.FlagUp == 0 || l.Type() == "tuntap" {
			continue
		}
		if err := n.joinLink(l); err != nil {
			return fmt.Errorf("interface %s: %w", a.Name, err)
		}
	}
	return nil
}

func (n *network) joinLink(l netlink.Link) error {
	a := l.Attrs()
	t := &netlink.Tuntap{
		LinkAttrs: netlink.LinkAttrs{Name: fmt.Sprintf("vm%d", a.Index), MTU: a.MTU},
		Mode:      netlink.TUNTAP_MODE_TAP, Queues: 1, NonPersist: true, // it ends with QEMU
		Flags: netlink.TUNTAP_ONE_QUEUE | netlink.TUNTAP_VNET_HDR | unix.IFF_NO_PI,
	}
	if err := netlink.LinkAdd(t); err != nil {
		return fmt.Errorf("make tap: %w", err)
	}
	n.taps = append(n.taps, tap{file: t.Fds[0], mac: a.HardwareAddr.String()})
	if err := netlink.LinkSetUp(t); err != nil {
		return err
	}
	n.joined = append(n.joined, a.Index)
	for _, way := range [][2]int{{a.Index, t.Index}, {t.Index, a.Index}} {
		if err := redirect(way[0], way[1]); err != nil {
			return fmt.Errorf("redirect by traffic control: %w", err)
		}
	}
	return n.describe(l)
}

// redirect makes what comes in at one interface go out at another.
func redirect(from, to int) error {
	qdisc := &netlink.Ingress{QdiscAttrs: netlink.QdiscAttrs{LinkIndex: from, Parent: netlink.HANDLE_INGRESS}}
	if err := netlink.QdiscAdd(qdisc); err != nil && !errors.Is(err, unix.EEXIST) {
		return err
	}
	return netlink.FilterAdd(&netlink.U32{
		FilterAttrs: netlink.FilterAttrs{LinkIndex: from, Parent: netlink.MakeHandle(0xffff, 0), Protocol: unix.ETH_P_ALL},
		Actions: []netlink.Action{&netlink.MirredAction{
			ActionAttrs: netlink.ActionAttrs{Action: netlink.TC_ACT_STOLEN}, MirredAction: netlink.TCA_EGRESS_REDIR, Ifindex: to,
		}},
	})
}

// describe notes what the guest's interface is to be.
func (n *network) describe(l netlink.Link) error {
	a := l.Attrs()
	in := &types.Interface{Device: a.Name, Name: a.Name, Mtu: uint64(a.MTU), HwAddr: a.HardwareAddr.String()}
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		addrs, err := netlink.AddrList(l, family)
		if err != nil {
			return err
		}
		for _, addr := range addrs {
			if addr.IP.IsLinkLocalUnicast() && family == netlink.FAMILY_V6 {
				continue // the guest makes its own
			}
			ones, _ := addr.Mask.Size()
			kind := types.IPFamily_v4
			if family == netlink.FAMILY_V6 {
				kind = types.IPFamily_v6
			}
			in.IPAddresses = append(in.IPAddresses, &types.IPAddress{Family: kind, Address: addr.IP.String(), Mask: strconv.Itoa(ones)})
		}
		routes, err := netlink.RouteList(l, family)
		if err != nil {
			return err
		}
		n.addRoutes(a.Name, routes)
	}
	n.interfaces = append(n.interfaces, in)
	return nil
}

// addRoutes notes the routes that the guest does not make by itself. Those to a
// gateway come after those by which it is reached.
func (n *network) addRoutes(device string, routes []netlink.Route) {
	var direct, by []*types.Route
	for _, r := range routes {
		if r.Protocol == unix.RTPROT_KERNEL || r.MultiPath != nil {
			continue
		}
		rt := &types.Route{Device: device, Scope: uint32(r.Scope)}
		if r.Dst != nil {
			if ones, _ := r.Dst.Mask.Size(); ones > 0 {
				rt.Dest = r.Dst.String()
			}
		}
		if r.Src != nil {
			rt.Source = r.Src.String()
		}
		if r.Gw == nil {
			direct = append(direct, rt)
			continue
		}
		rt.Gateway = r.Gw.String()
		by = append(by, rt)
	}
	n.routes = append(append(n.routes, direct...), by...)
}

// leave undoes the joins. The namespace may be gone already, and all with it.
func (n *network) leave() error {
	if n == nil {
		return nil
	}
	for _, t := range n.taps {
		t.file.Close()
	}
	n.taps = nil
	if len(n.joined) == 0 {
		return nil
	}
	err := inNetns(n.netns, func() error {
		var errs []error
		for _, index := range n.joined {
			qdisc := &netlink.Ingress{QdiscAttrs: netlink.QdiscAttrs{LinkIndex: index, Parent: netlink.HANDLE_INGRESS}}
			if err := netlink.QdiscDel(qdisc); err != nil && !gone(err) {
				errs = append(errs, fmt.Errorf("remove redirect of interface %d: %w", index, err))
			}
		}
		return errors.Join(errs...)
	})
	if gone(err) || errors.Is(err, unix.EINVAL) { // the path is no namespace any more
		return nil
	}
	return err
}

func gone(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.EINVAL)
}
