package fence

import (
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Offsets of addresses in the network header: IPv4 (RFC 791), ARP for Ethernet and IPv4 (RFC 826).
const (
	ipSource      = 12
	ipDestination = 16
	arpSender     = 14
)

func join(parts [][]expr.Any) []expr.Any {
	var all []expr.Any
	for _, p := range parts {
		all = append(all, p...)
	}
	return all
}

func meta(key expr.MetaKey, reg uint32) []expr.Any {
	return []expr.Any{&expr.Meta{Key: key, Register: reg}}
}

// equal compares register 1.
func equal(data []byte) []expr.Any {
	return []expr.Any{&expr.Cmp{Op: expr.CmpOpEq, Register: reg1, Data: data}}
}

// etherType uses register 4, so that a test of it may stand between others.
func etherType(t uint16) []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyPROTOCOL, Register: reg4}, &expr.Cmp{Op: expr.CmpOpEq, Register: reg4, Data: binaryutil.BigEndian.PutUint16(t)}}
}

// network loads an address of the network header.
func network(offset, reg uint32) []expr.Any {
	return []expr.Any{&expr.Payload{DestRegister: reg, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: 4}}
}

func lookup(s *nftables.Set, reg uint32, invert bool) []expr.Any {
	return []expr.Any{&expr.Lookup{SourceRegister: reg, SetName: s.Name, SetID: s.ID, Invert: invert}}
}

// lookupMap replaces register 1 by what the map has for it.
func lookupMap(s *nftables.Set) []expr.Any {
	return []expr.Any{&expr.Lookup{SourceRegister: reg1, DestRegister: reg1, IsDestRegSet: true, SetName: s.Name, SetID: s.ID}}
}

// setMark makes register 1 the packet's mark.
func setMark() []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyMARK, SourceRegister: true, Register: reg1}}
}

// mark makes a number the packet's mark; 0 is none.
func mark(n uint32) []expr.Any {
	return append([]expr.Any{&expr.Immediate{Register: reg1, Data: binaryutil.NativeEndian.PutUint32(n)}}, setMark()...)
}

// connection tests whether any of the bits is set of what is known of the packet's connection.
func connection(key expr.CtKey, bits uint32) []expr.Any {
	return []expr.Any{
		&expr.Ct{Register: reg1, Key: key},
		&expr.Bitwise{SourceRegister: reg1, DestRegister: reg1, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(bits), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: reg1, Data: make([]byte, 4)},
	}
}

// member tests whether the packet goes to an instance of the org that is its mark.
func member(s *nftables.Set) []expr.Any {
	return join([][]expr.Any{meta(expr.MetaKeyMARK, reg1), network(ipDestination, unix.NFT_REG32_01), lookup(s, reg1, false)})
}

func accept() []expr.Any { return []expr.Any{&expr.Verdict{Kind: expr.VerdictAccept}} }

func drop() []expr.Any { return []expr.Any{&expr.Counter{}, &expr.Verdict{Kind: expr.VerdictDrop}} }

func ifname(s string) []byte { return append([]byte(s), make([]byte, ifNameSize-len(s))...) }

// protocol and port are a key's parts, each padded to 4 bytes as the registers are.
func protocol(p NodePort) []byte {
	if p.UDP {
		return []byte{unix.IPPROTO_UDP, 0, 0, 0}
	}
	return []byte{unix.IPPROTO_TCP, 0, 0, 0}
}

func port(n uint16) []byte { return append(binaryutil.BigEndian.PutUint16(n), 0, 0) }

// batch is a transaction on the sets.
type batch struct {
	conn   *nftables.Conn
	t      tables
	number func(org string) uint32
	err    error
	used   bool
}

func (f *Fence) begin() (*batch, error) {
	conn, err := nftables.New()
	if err != nil {
		return nil, err
	}
	return &batch{conn: conn, t: f.tables(), number: f.number}, nil
}

// elements are a place's in each set.
func (b *batch) elements(a netip.Addr, p place) map[*nftables.Set]nftables.SetElement {
	ip, dev, org := a.AsSlice(), ifname(p.iface), binaryutil.NativeEndian.PutUint32(b.number(p.org))
	member := append(append([]byte{}, org...), ip...)
	named := nftables.SetElement{Key: ip, Val: org, Comment: p.org}
	return map[*nftables.Set]nftables.SetElement{
		b.t.ports:     {Key: dev},
		b.t.addresses: {Key: append(append([]byte{}, dev...), ip...)},
		b.t.frOrgs:    named,
		b.t.frMembers: {Key: member},
		b.t.orgs:      named,
		b.t.members:   {Key: member},
	}
}

func (b *batch) add(a netip.Addr, p place) {
	for set, e := range b.elements(a, p) {
		b.note(b.conn.SetAddElements(set, []nftables.SetElement{e}))
	}
}

func (b *batch) remove(a netip.Addr, p place) {
	for set, e := range b.elements(a, p) {
		b.note(b.conn.SetDeleteElements(set, []nftables.SetElement{e}))
	}
}

func (b *batch) note(err error) {
	b.used = true
	if b.err == nil {
		b.err = err
	}
}

func (b *batch) commit() error {
	if b.err != nil {
		return b.err
	}
	if !b.used && b.t.ports.ID == 0 {
		return nil // nothing to do
	}
	return b.conn.Flush()
}
