package fence

import (
	"bytes"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// The sets, by name, in the tables of both families:
//
//	ports    interfaces of admitted instances
//	senders  interface and address of an admitted instance -> its org
//	orgs     address of an admitted instance -> its org
//	members  org and address of an instance of it
//	open     the machine's ports that instances may reach
const (
	setPorts   = "ports"
	setSenders = "senders"
	setOrgs    = "orgs"
	setMembers = "members"
	setOpen    = "open"
)

// Registers of 16 bytes each.
const (
	reg1 = unix.NFT_REG_1
	reg2 = unix.NFT_REG_2
	reg3 = unix.NFT_REG_3
	reg4 = unix.NFT_REG_4
)

// hookBridge is the priority of a bridge's filter, ahead of what hands bridged packets to the IP filter.
const hookBridge = -200

// linkLocal is 169.254.0.0/16 (RFC 3927), where clouds have their metadata service.
var linkLocal = netip.MustParsePrefix("169.254.0.0/16")

// tables are the handles of the rules' tables and sets.
type tables struct {
	bridge, inet              *nftables.Table
	ports, senders, frMembers *nftables.Set
	orgs, members, open       *nftables.Set
}

func (f *Fence) tables() tables {
	name := tableName(f.config.Bridge)
	t := tables{bridge: &nftables.Table{Name: name, Family: nftables.TableFamilyBridge}, inet: &nftables.Table{Name: name, Family: nftables.TableFamilyINet}}
	member := nftables.MustConcatSetType(nftables.TypeIP6Addr, nftables.TypeIPAddr)
	t.ports = &nftables.Set{Table: t.bridge, Name: setPorts, KeyType: nftables.TypeIFName}
	t.senders = &nftables.Set{Table: t.bridge, Name: setSenders, IsMap: true, KeyType: nftables.MustConcatSetType(nftables.TypeIFName, nftables.TypeIPAddr), DataType: nftables.TypeIP6Addr}
	t.frMembers = &nftables.Set{Table: t.bridge, Name: setMembers, KeyType: member}
	t.orgs = &nftables.Set{Table: t.inet, Name: setOrgs, IsMap: true, KeyType: nftables.TypeIPAddr, DataType: nftables.TypeIP6Addr}
	t.members = &nftables.Set{Table: t.inet, Name: setMembers, KeyType: member}
	t.open = &nftables.Set{Table: t.inet, Name: setOpen, KeyType: nftables.MustConcatSetType(nftables.TypeInetProto, nftables.TypeInetService)}
	return t
}

// recall reads who was admitted.
func (f *Fence) recall() error {
	conn, err := nftables.New()
	if err != nil {
		return err
	}
	all, err := conn.ListTablesOfFamily(nftables.TableFamilyBridge)
	if err != nil {
		return err
	}
	for _, t := range all {
		if t.Name != tableName(f.config.Bridge) {
			continue
		}
		set, err := conn.GetSetByName(t, setSenders)
		if err != nil {
			return err
		}
		elements, err := conn.GetSetElements(set)
		if err != nil {
			return err
		}
		for _, e := range elements {
			if len(e.Key) != ifNameSize+4 || len(e.Val) != len(orgID{}) {
				continue
			}
			iface, _, _ := bytes.Cut(e.Key[:ifNameSize], []byte{0})
			f.ports[netip.AddrFrom4([4]byte(e.Key[ifNameSize:]))] = place{string(iface), orgID(e.Val)}
		}
	}
	return nil
}

// rebuild replaces both tables by new ones with what is admitted, as one transaction.
func (f *Fence) rebuild() error {
	conn, err := nftables.New()
	if err != nil {
		return err
	}
	t := f.tables()
	for _, table := range []*nftables.Table{t.bridge, t.inet} {
		conn.AddTable(table) // there must be one to delete
		conn.DelTable(table)
		conn.AddTable(table)
	}
	for _, set := range []*nftables.Set{t.ports, t.senders, t.frMembers, t.orgs, t.members, t.open} {
		var elements []nftables.SetElement
		if set == t.open {
			for _, p := range f.config.NodePorts {
				elements = append(elements, nftables.SetElement{Key: append(protocol(p), port(p.Port)...)})
			}
		}
		if err := conn.AddSet(set, elements); err != nil {
			return err
		}
	}
	f.bridgeRules(conn, t)
	f.inetRules(conn, t)
	b := &batch{conn: conn, t: t}
	for a, p := range f.ports {
		b.add(a, p)
	}
	return b.commit()
}

func (f *Fence) bridgeRules(conn *nftables.Conn, t tables) {
	chain := func(name string, hook *nftables.ChainHook) *nftables.Chain {
		accept := nftables.ChainPolicyAccept
		return conn.AddChain(&nftables.Chain{Name: name, Table: t.bridge, Type: nftables.ChainTypeFilter, Hooknum: hook,
			Priority: nftables.ChainPriorityRef(hookBridge), Policy: &accept})
	}
	rule := func(c *nftables.Chain, exprs ...[]expr.Any) {
		conn.AddRule(&nftables.Rule{Table: t.bridge, Chain: c, Exprs: join(exprs)})
	}
	in := meta(expr.MetaKeyIIFNAME, reg1)
	sender := func(offset uint32) []expr.Any {
		return join([][]expr.Any{in, network(offset, reg2), lookupMap(t.senders, reg1, reg3)})
	}

	// What an instance sends must have its own address.
	pre := chain("own-address", nftables.ChainHookPrerouting)
	rule(pre, in, lookup(t.ports, reg1, true), accept())
	rule(pre, etherType(unix.ETH_P_IP), sender(ipSource), accept())
	rule(pre, etherType(unix.ETH_P_ARP), sender(arpSender), accept())
	rule(pre, drop())

	// From instance to instance goes IPv4 within an org; and ARP, whose sender is known.
	fwd := chain("same-org", nftables.ChainHookForward)
	rule(fwd, etherType(unix.ETH_P_IP), sender(ipSource), network(ipDestination, reg4), lookup(t.frMembers, reg3, false), accept())
	rule(fwd, in, lookup(t.ports, reg1, false), etherType(unix.ETH_P_ARP), accept())
	rule(fwd, in, lookup(t.ports, reg1, false), drop())
	rule(fwd, meta(expr.MetaKeyOIFNAME, reg1), lookup(t.ports, reg1, false), drop())
}

func (f *Fence) inetRules(conn *nftables.Conn, t tables) {
	chain := func(name string, hook *nftables.ChainHook) *nftables.Chain {
		accept := nftables.ChainPolicyAccept
		return conn.AddChain(&nftables.Chain{Name: name, Table: t.inet, Type: nftables.ChainTypeFilter, Hooknum: hook,
			Priority: nftables.ChainPriorityFilter, Policy: &accept})
	}
	rule := func(c *nftables.Chain, exprs ...[]expr.Any) {
		conn.AddRule(&nftables.Rule{Table: t.inet, Chain: c, Exprs: join(exprs)})
	}
	device := func(key expr.MetaKey, op expr.CmpOp) []expr.Any {
		return append(meta(key, reg1), &expr.Cmp{Op: op, Register: reg1, Data: ifname(f.config.Bridge)})
	}
	elsewhere := device(expr.MetaKeyIIFNAME, expr.CmpOpNeq)
	ipv4 := append(meta(expr.MetaKeyNFPROTO, reg1), equal([]byte{unix.NFPROTO_IPV4})...)
	known := []expr.Any{
		&expr.Ct{Register: reg1, Key: expr.CtKeySTATE},
		&expr.Bitwise{SourceRegister: reg1, DestRegister: reg1, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(expr.CtStateBitESTABLISHED | expr.CtStateBitRELATED), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: reg1, Data: make([]byte, 4)},
	}

	// The machine answers ping and the open ports.
	input := chain("machine", nftables.ChainHookInput)
	rule(input, elsewhere, accept())
	rule(input, known, accept())
	rule(input, ipv4, meta(expr.MetaKeyL4PROTO, reg1), equal([]byte{unix.IPPROTO_ICMP}), accept())
	// A protocol and a port as one key: each has 4 bytes, so they are next to each other in the small registers.
	rule(input, ipv4, []expr.Any{&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg1},
		&expr.Payload{DestRegister: unix.NFT_REG32_01, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2}},
		lookup(t.open, reg1, false), accept())
	rule(input, drop())

	// What is routed back to the bridge goes as what is bridged; a published port is for everybody.
	fwd := chain("routed", nftables.ChainHookForward)
	rule(fwd, elsewhere, accept())
	rule(fwd, known, accept())
	rule(fwd, meta(expr.MetaKeyNFPROTO, reg1), []expr.Any{&expr.Cmp{Op: expr.CmpOpNeq, Register: reg1, Data: []byte{unix.NFPROTO_IPV4}}}, drop())
	rule(fwd, network(ipDestination, reg1), []expr.Any{
		&expr.Bitwise{SourceRegister: reg1, DestRegister: reg1, Len: 4, Mask: []byte{255, 255, 0, 0}, Xor: make([]byte, 4)},
	}, equal(linkLocal.Addr().AsSlice()), drop())
	rule(fwd, device(expr.MetaKeyOIFNAME, expr.CmpOpNeq), accept())
	const translated = 1 << 5 // IPS_DST_NAT of the kernel's ip_conntrack_status
	rule(fwd, []expr.Any{
		&expr.Ct{Register: reg1, Key: expr.CtKeySTATUS},
		&expr.Bitwise{SourceRegister: reg1, DestRegister: reg1, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(translated), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: reg1, Data: make([]byte, 4)},
	}, accept())
	rule(fwd, network(ipSource, reg1), lookupMap(t.orgs, reg1, reg3), network(ipDestination, reg4), lookup(t.members, reg3, false), accept())
	rule(fwd, drop())
}
