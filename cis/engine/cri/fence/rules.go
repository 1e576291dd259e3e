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
//	ports      interfaces of admitted instances
//	addresses  interface and address of an admitted instance
//	orgs       address of an admitted instance -> its org's number; its comment is the org's name
//	members    number of an org and address of an instance of it
//	open       the machine's ports that instances may reach
//
// An org's number becomes the packet's mark for as long as it is looked up. It could be kept in a register alone; but then
// nft(8) does not understand the rules, and fails when it lists them.
const (
	setPorts     = "ports"
	setAddresses = "addresses"
	setOrgs      = "orgs"
	setMembers   = "members"
	setOpen      = "open"
)

// Registers of 16 bytes each.
const (
	reg1 = unix.NFT_REG_1
	reg2 = unix.NFT_REG_2
	reg4 = unix.NFT_REG_4
)

// published is the mark of a packet to or from a published port, until it is bridged or routed. No org has this number.
const published = 1<<32 - 1

// hookBridge is the priority of a bridge's filter, ahead of what hands bridged packets to the IP filter.
const hookBridge = -200

// linkLocal is 169.254.0.0/16 (RFC 3927), where clouds have their metadata service.
var linkLocal = netip.MustParsePrefix("169.254.0.0/16")

// tables are the handles of the rules' tables and sets.
type tables struct {
	bridge, inet        *nftables.Table
	ports, addresses    *nftables.Set
	frOrgs, frMembers   *nftables.Set
	orgs, members, open *nftables.Set
}

func (f *Fence) tables() tables {
	name := tableName(f.config.Bridge)
	t := tables{bridge: &nftables.Table{Name: name, Family: nftables.TableFamilyBridge}, inet: &nftables.Table{Name: name, Family: nftables.TableFamilyINet}}
	member := nftables.MustConcatSetType(nftables.TypeMark, nftables.TypeIPAddr)
	org := func(t *nftables.Table) *nftables.Set {
		return &nftables.Set{Table: t, Name: setOrgs, IsMap: true, KeyType: nftables.TypeIPAddr, DataType: nftables.TypeMark}
	}
	t.ports = &nftables.Set{Table: t.bridge, Name: setPorts, KeyType: nftables.TypeIFName}
	t.addresses = &nftables.Set{Table: t.bridge, Name: setAddresses, KeyType: nftables.MustConcatSetType(nftables.TypeIFName, nftables.TypeIPAddr)}
	t.frMembers = &nftables.Set{Table: t.bridge, Name: setMembers, KeyType: member}
	t.frOrgs, t.orgs = org(t.bridge), org(t.inet)
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
		interfaces, err := elements(conn, t, setAddresses)
		if err != nil {
			return err
		}
		orgs, err := elements(conn, t, setOrgs)
		if err != nil {
			return err
		}
		names := map[netip.Addr]string{}
		for _, e := range orgs {
			if len(e.Key) == 4 && len(e.Val) == 4 && e.Comment != "" {
				names[netip.AddrFrom4([4]byte(e.Key))] = e.Comment
				f.orgs[e.Comment] = binaryutil.NativeEndian.Uint32(e.Val)
			}
		}
		for _, e := range interfaces {
			if len(e.Key) != ifNameSize+4 {
				continue
			}
			iface, _, _ := bytes.Cut(e.Key[:ifNameSize], []byte{0})
			if a := netip.AddrFrom4([4]byte(e.Key[ifNameSize:])); names[a] != "" {
				f.ports[a] = place{string(iface), names[a]}
			}
		}
	}
	return nil
}

// elements are a set's; none when there is no such set, as in tables of another version.
func elements(conn *nftables.Conn, t *nftables.Table, name string) ([]nftables.SetElement, error) {
	sets, err := conn.GetSets(t)
	if err != nil {
		return nil, err
	}
	for _, s := range sets {
		if s.Name == name {
			return conn.GetSetElements(s)
		}
	}
	return nil, nil
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
	for _, set := range []*nftables.Set{t.ports, t.addresses, t.frOrgs, t.frMembers, t.orgs, t.members, t.open} {
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
	b := &batch{conn: conn, t: t, number: f.number}
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
		return join([][]expr.Any{in, network(offset, reg2), lookup(t.addresses, reg1, false)})
	}

	// What an instance sends must have its own address.
	pre := chain("own-address", nftables.ChainHookPrerouting)
	rule(pre, in, lookup(t.ports, reg1, true), accept())
	rule(pre, etherType(unix.ETH_P_IP), sender(ipSource), accept())
	rule(pre, etherType(unix.ETH_P_ARP), sender(arpSender), accept())
	rule(pre, drop())

	// From instance to instance goes IPv4 within an org; and ARP, whose sender is known. A machine that hands bridged packets
	// to the IP filter (bridge-nf-call-iptables) bridges also what is translated to an instance, instead of routing it.
	fwd := chain("same-org", nftables.ChainHookForward)
	rule(fwd, in, lookup(t.ports, reg1, false), meta(expr.MetaKeyMARK, reg1), equal(binaryutil.NativeEndian.PutUint32(published)), mark(0), accept())
	rule(fwd, in, lookup(t.ports, reg1, false), etherType(unix.ETH_P_IP), network(ipSource, reg1), lookupMap(t.frOrgs), setMark())
	rule(fwd, in, lookup(t.ports, reg1, false), etherType(unix.ETH_P_IP), member(t.frMembers), mark(0), accept())
	rule(fwd, in, lookup(t.ports, reg1, false), etherType(unix.ETH_P_ARP), accept())
	rule(fwd, in, lookup(t.ports, reg1, false), drop())
	rule(fwd, meta(expr.MetaKeyOIFNAME, reg1), lookup(t.ports, reg1, false), drop())
}

func (f *Fence) inetRules(conn *nftables.Conn, t tables) {
	chain := func(name string, kind nftables.ChainType, hook *nftables.ChainHook, priority *nftables.ChainPriority) *nftables.Chain {
		accept := nftables.ChainPolicyAccept
		return conn.AddChain(&nftables.Chain{Name: name, Table: t.inet, Type: kind, Hooknum: hook, Priority: priority, Policy: &accept})
	}
	rule := func(c *nftables.Chain, exprs ...[]expr.Any) {
		conn.AddRule(&nftables.Rule{Table: t.inet, Chain: c, Exprs: join(exprs)})
	}
	device := func(key expr.MetaKey, op expr.CmpOp) []expr.Any {
		return append(meta(key, reg1), &expr.Cmp{Op: op, Register: reg1, Data: ifname(f.config.Bridge)})
	}
	elsewhere := device(expr.MetaKeyIIFNAME, expr.CmpOpNeq)
	ipv4 := append(meta(expr.MetaKeyNFPROTO, reg1), equal([]byte{unix.NFPROTO_IPV4})...)
	known := connection(expr.CtKeySTATE, expr.CtStateBitESTABLISHED|expr.CtStateBitRELATED)
	translated := connection(expr.CtKeySTATUS, 1<<5) // IPS_DST_NAT of the kernel's ip_conntrack_status

	// The machine answers ping and the open ports.
	input := chain("machine", nftables.ChainTypeFilter, nftables.ChainHookInput, nftables.ChainPriorityFilter)
	rule(input, elsewhere, accept())
	rule(input, known, accept())
	rule(input, ipv4, meta(expr.MetaKeyL4PROTO, reg1), equal([]byte{unix.IPPROTO_ICMP}), accept())
	// A protocol and a port as one key: each has 4 bytes, so they are next to each other in the small registers.
	rule(input, ipv4, []expr.Any{&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg1},
		&expr.Payload{DestRegister: unix.NFT_REG32_01, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2}},
		lookup(t.open, reg1, false), accept())
	rule(input, drop())

	// What is routed back to the bridge goes as what is bridged; a published port is for everybody.
	fwd := chain("routed", nftables.ChainTypeFilter, nftables.ChainHookForward, nftables.ChainPriorityFilter)
	rule(fwd, elsewhere, accept())
	rule(fwd, known, accept())
	rule(fwd, meta(expr.MetaKeyNFPROTO, reg1), []expr.Any{&expr.Cmp{Op: expr.CmpOpNeq, Register: reg1, Data: []byte{unix.NFPROTO_IPV4}}}, drop())
	rule(fwd, network(ipDestination, reg1), []expr.Any{
		&expr.Bitwise{SourceRegister: reg1, DestRegister: reg1, Len: 4, Mask: []byte{255, 255, 0, 0}, Xor: make([]byte, 4)},
	}, equal(linkLocal.Addr().AsSlice()), drop())
	rule(fwd, device(expr.MetaKeyOIFNAME, expr.CmpOpNeq), accept())
	rule(fwd, translated, mark(0), accept())
	rule(fwd, mark(0))
	rule(fwd, ipv4, network(ipSource, reg1), lookupMap(t.orgs), setMark())
	rule(fwd, ipv4, member(t.members), mark(0), accept())
	rule(fwd, drop())

	// What one instance sends to a published port of another comes from the machine's address, so that the answers come by
	// way of the machine, which translates them back. The mark is for where it is bridged.
	bridge := device(expr.MetaKeyIIFNAME, expr.CmpOpEq)
	pre := chain("published", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, nftables.ChainPriorityRef(*nftables.ChainPriorityNATDest+1))
	rule(pre, bridge, ipv4, translated, network(ipDestination, reg1), lookupMap(t.orgs), mark(published))
	post := chain("published-source", nftables.ChainTypeNAT, nftables.ChainHookPostrouting, nftables.ChainPriorityNATSource)
	rule(post, device(expr.MetaKeyOIFNAME, expr.CmpOpEq), ipv4, translated, network(ipSource, reg1), lookupMap(t.orgs), []expr.Any{&expr.Masq{}})
}
