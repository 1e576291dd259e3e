package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"

	types "github.com/kata-containers/kata-containers/src/runtime/virtcontainers/pkg/agent/protocols"
	pb "github.com/kata-containers/kata-containers/src/runtime/virtcontainers/pkg/agent/protocols/grpc"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// UpdateInterface makes the machine's interface with the given hardware address
// what the pod's is: its name, MTU and addresses.
func (a *Agent) UpdateInterface(_ context.Context, r *pb.UpdateInterfaceRequest) (*types.Interface, error) {
	in := r.Interface
	if in == nil {
		return nil, status.Error(codes.InvalidArgument, "no interface")
	}
	links, err := netlink.LinkList()
	if err != nil {
		return nil, err
	}
	for _, l := range links {
		if strings.EqualFold(l.Attrs().HardwareAddr.String(), in.HwAddr) {
			return in, setInterface(l, in)
		}
	}
	return nil, status.Errorf(codes.NotFound, "no interface with address %s", in.HwAddr)
}

func setInterface(l netlink.Link, in *types.Interface) error {
	// An interface that is up cannot be renamed.
	if err := netlink.LinkSetDown(l); err != nil {
		return err
	}
	if in.Name != "" && in.Name != l.Attrs().Name {
		if err := netlink.LinkSetName(l, in.Name); err != nil {
			return fmt.Errorf("name interface %s: %w", in.Name, err)
		}
	}
	if in.Mtu > 0 {
		if err := netlink.LinkSetMTU(l, int(in.Mtu)); err != nil {
			return fmt.Errorf("set MTU %d: %w", in.Mtu, err)
		}
	}
	for _, ip := range in.IPAddresses {
		addr, err := netlink.ParseAddr(ip.Address + "/" + ip.Mask)
		if err != nil {
			return status.Errorf(codes.InvalidArgument, "address: %v", err)
		}
		// The pod's network has seen to it that nobody else has the address.
		if addr.IP.To4() == nil {
			addr.Flags |= unix.IFA_F_NODAD
		}
		if err := netlink.AddrReplace(l, addr); err != nil {
			return fmt.Errorf("set address %s: %w", addr, err)
		}
	}
	return netlink.LinkSetUp(l)
}

// UpdateRoutes adds routes, in the order given.
func (a *Agent) UpdateRoutes(_ context.Context, r *pb.UpdateRoutesRequest) (*pb.Routes, error) {
	for _, rt := range r.GetRoutes().GetRoutes() {
		if err := addRoute(rt); err != nil {
			return nil, fmt.Errorf("route to %q by %q: %w", rt.Dest, rt.Gateway, err)
		}
	}
	return r.Routes, nil
}

func addRoute(rt *types.Route) error {
	l, err := netlink.LinkByName(rt.Device)
	if err != nil {
		return err
	}
	route := &netlink.Route{LinkIndex: l.Attrs().Index, Scope: netlink.Scope(rt.Scope), Flags: int(rt.Flags)}
	if rt.Gateway != "" {
		if route.Gw = net.ParseIP(rt.Gateway); route.Gw == nil {
			return status.Errorf(codes.InvalidArgument, "gateway %q", rt.Gateway)
		}
	}
	if rt.Source != "" {
		if route.Src = net.ParseIP(rt.Source); route.Src == nil {
			return status.Errorf(codes.InvalidArgument, "source %q", rt.Source)
		}
	}
	if rt.Dest != "" {
		if _, route.Dst, err = net.ParseCIDR(rt.Dest); err != nil {
			return status.Errorf(codes.InvalidArgument, "destination: %v", err)
		}
	}
	// The kernel itself has made those to an interface's own network.
	if err := netlink.RouteReplace(route); err != nil && !errors.Is(err, unix.EEXIST) {
		return err
	}
	return nil
}

// ListInterfaces lists the machine's interfaces.
func (a *Agent) ListInterfaces(context.Context, *pb.ListInterfacesRequest) (*pb.Interfaces, error) {
	links, err := netlink.LinkList()
	if err != nil {
		return nil, err
	}
	all := &pb.Interfaces{}
	for _, l := range links {
		at := l.Attrs()
		in := &types.Interface{Device: at.Name, Name: at.Name, Mtu: uint64(at.MTU), HwAddr: at.HardwareAddr.String(), Type: l.Type()}
		addrs, err := netlink.AddrList(l, netlink.FAMILY_ALL)
		if err != nil {
			return nil, err
		}
		for _, addr := range addrs {
			ones, _ := addr.Mask.Size()
			in.IPAddresses = append(in.IPAddresses, &types.IPAddress{Address: addr.IP.String(), Mask: fmt.Sprint(ones)})
		}
		all.Interfaces = append(all.Interfaces, in)
	}
	return all, nil
}

// ListRoutes lists the machine's routes.
func (a *Agent) ListRoutes(context.Context, *pb.ListRoutesRequest) (*pb.Routes, error) {
	routes, err := netlink.RouteList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return nil, err
	}
	all := &pb.Routes{}
	for _, r := range routes {
		l, err := netlink.LinkByIndex(r.LinkIndex)
		if err != nil {
			continue // gone meanwhile
		}
		rt := &types.Route{Device: l.Attrs().Name, Scope: uint32(r.Scope)}
		if r.Dst != nil {
			rt.Dest = r.Dst.String()
		}
		if r.Gw != nil {
			rt.Gateway = r.Gw.String()
		}
		all.Routes = append(all.Routes, rt)
	}
	return all, nil
}
