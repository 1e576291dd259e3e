package attempt

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

var errSent = errors.New(Sent)

// The payloads by which a neighbour and the machine tell what came.
const (
	SaysHello    = "hello"
	SaysSpoofed  = "spoofed"
	SaysRouted   = "routed"
	SaysLoopback = "loopback"
)

func network() []Attempt {
	return []Attempt{
		{Name: "reach a port of the machine", Try: func(t Targets) error { return dial("tcp4", net.JoinHostPort(t.Node, t.NodePort)) }},
		{Name: "reach a port of the machine's loopback", Try: func(t Targets) error { return dial("tcp4", "127.0.0.1:"+t.LoopbackPort) }},
		{Name: "reach the machine's loopback by a frame of its own making", Try: func(t Targets) error {
			return frame(t.Node, "", "127.0.0.1:"+t.LoopbackPort, SaysLoopback)
		}},
		{Name: "reach the machine over IPv6", Try: func(t Targets) error {
			if t.Node6 == "" {
				return errors.New("the machine has no IPv6 there")
			}
			return dial("tcp6", "["+t.Node6+"%eth0]:"+t.NodePort)
		}},
		{Name: "reach the node's metadata service", Try: func(t Targets) error { return dial("tcp4", t.Metadata) }},
		{Name: "reach another org's instance", Try: func(t Targets) error { return dial("tcp4", t.Other) }},
		{Name: "send a datagram to another org's instance", Try: func(t Targets) error { return datagram(t.Other) }},
		{Name: "the same, under the address of another of that org", Try: func(t Targets) error {
			return frame(host(t.Other), host(t.Peer), t.Other, SaysSpoofed)
		}},
		{Name: "the same, by way of the machine", Try: func(t Targets) error { return frame(t.Node, "", t.Other, SaysRouted) }},
		{Name: "send a datagram within the org (allowed)", Try: func(t Targets) error { return datagram(t.Same) }},
	}
}

func host(address string) string {
	h, _, _ := strings.Cut(address, ":")
	return h
}

func datagram(to string) error {
	c, err := new(net.Dialer).DialContext(context.Background(), "udp4", to)
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err := c.Write([]byte(SaysHello)); err != nil {
		return err
	}
	return errSent
}

// frame sends a UDP datagram in an Ethernet frame of its own making to the station that has the address via; from is the
// sender's address, "" for the own.
func frame(via, from, to, payload string) error {
	link, err := net.InterfaceByName("eth0")
	if err != nil {
		return err
	}
	addrs, err := link.Addrs()
	if err != nil {
		return err
	}
	source, dest := netip.Addr{}, netip.MustParseAddrPort(to)
	for _, a := range addrs {
		if p, err := netip.ParsePrefix(a.String()); err == nil && p.Addr().Is4() {
			source = p.Addr()
		}
	}
	if from != "" {
		source = netip.MustParseAddr(from)
	}
	station, err := neighbour(via)
	if err != nil {
		station = net.HardwareAddr{255, 255, 255, 255, 255, 255} // whoever it is
	}
	b := append(append(append([]byte{}, station...), link.HardwareAddr...), 8, 0)
	b = append(b, udp(source, dest, payload)...)
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.Sendto(fd, b, 0, &unix.SockaddrLinklayer{Protocol: 8, Ifindex: link.Index, Halen: 6}); err != nil {
		return err
	}
	return errSent
}

// neighbour gives the hardware address of a station of which the kernel has been made to ask.
func neighbour(ip string) (net.HardwareAddr, error) {
	_ = dial("tcp4", net.JoinHostPort(ip, "9")) // whatever comes of it
	b, err := os.ReadFile("/proc/net/arp")
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) >= 4 && f[0] == ip {
			return net.ParseMAC(f[3])
		}
	}
	return nil, errors.New("no such neighbour")
}

// udp makes an IPv4 packet (RFC 791) with a datagram (RFC 768) without a checksum.
func udp(from netip.Addr, to netip.AddrPort, payload string) []byte {
	b := make([]byte, 28, 28+len(payload))
	b[0], b[8], b[9] = 0x45, 64, unix.IPPROTO_UDP
	binary.BigEndian.PutUint16(b[2:], uint16(28+len(payload)))
	copy(b[12:], from.AsSlice())
	copy(b[16:], to.Addr().AsSlice())
	var sum uint32
	for i := 0; i < 20; i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	binary.BigEndian.PutUint16(b[10:], ^uint16(sum))
	binary.BigEndian.PutUint16(b[20:], 40000)
	binary.BigEndian.PutUint16(b[22:], to.Port())
	binary.BigEndian.PutUint16(b[24:], uint16(8+len(payload)))
	return append(b, payload...)
}
