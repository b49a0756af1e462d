package network

import (
	"dhow/internal/network/nameserver"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Registers. A register of 16 bytes, 1 to 4, is four of 4 bytes, 8 to 23; a key
// of several parts lies in consecutive ones.
const (
	reg   = unix.NFT_REG_1
	reg32 = unix.NFT_REG32_00
)

// rule is a packet filter's rule in the making.
type rule []expr.Any

func with(parts ...rule) rule {
	var all rule
	for _, p := range parts {
		all = append(all, p...)
	}
	return all
}

func load(key expr.MetaKey) rule { return rule{&expr.Meta{Key: key, Register: reg}} }

// inSet holds when the first register is in the set.
func inSet(s *nftables.Set) rule { return rule{&expr.Lookup{SourceRegister: reg, SetName: s.Name}} }

func notInSet(s *nftables.Set) rule {
	return rule{&expr.Lookup{SourceRegister: reg, SetName: s.Name, Invert: true}}
}

func equals(data []byte) rule {
	return rule{&expr.Cmp{Op: expr.CmpOpEq, Register: reg, Data: data}}
}

// ofFamily holds for packets of IPv4 or IPv6.
func ofFamily(fam int) rule {
	proto := byte(unix.NFPROTO_IPV4)
	if fam == 6 {
		proto = unix.NFPROTO_IPV6
	}
	return with(load(expr.MetaKeyNFPROTO), equals([]byte{proto}))
}

// addr loads the source or destination address.
func addr(fam int, source bool, register uint32) rule {
	offset, length := uint32(16), uint32(4)
	switch {
	case fam == 4 && source:
		offset = 12
	case fam == 6 && source:
		offset, length = 8, 16
	case fam == 6:
		offset, length = 24, 16
	}
	return rule{&expr.Payload{DestRegister: register, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: length}}
}

// local holds for packets to one of the host's own addresses.
func local() rule {
	return with(rule{&expr.Fib{Register: reg, FlagDADDR: true, ResultADDRTYPE: true}},
		equals(binaryutil.NativeEndian.PutUint32(unix.RTN_LOCAL)))
}

// ctBits holds when one of the bits is set in what is known of the connection.
func ctBits(key expr.CtKey, bits uint32) rule {
	zero := make([]byte, 4)
	return rule{
		&expr.Ct{Register: reg, Key: key},
		&expr.Bitwise{SourceRegister: reg, DestRegister: reg, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(bits), Xor: zero},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: reg, Data: zero},
	}
}

// Bits of connection tracking (linux/netfilter/nf_conntrack_common.h).
const (
	ctEstablished = 1 << 1
	ctRelated     = 1 << 2
	ctDNAT        = 1 << 5 // IPS_DST_NAT
)

func verdict(kind expr.VerdictKind) rule { return rule{&expr.Verdict{Kind: kind}} }

func jump(chain string) rule { return rule{&expr.Verdict{Kind: expr.VerdictJump, Chain: chain}} }

func masquerade() rule { return rule{&expr.Masq{}} }

// dnat sends the packet to the address and port that the map has for its
// protocol, its destination address (where one is true) and its port.
func dnat(fam int, one bool, to *nftables.Set) rule {
	next := uint32(reg32 + 1) // behind the protocol
	key := load(expr.MetaKeyL4PROTO)
	if one {
		key = with(key, addr(fam, false, next))
		next += uint32(addrLen(fam) / 4)
	}
	key = append(key, &expr.Payload{DestRegister: next, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Lookup{SourceRegister: reg, DestRegister: reg, IsDestRegSet: true, SetName: to.Name})
	family := uint32(unix.NFPROTO_IPV4)
	if fam == 6 {
		family = unix.NFPROTO_IPV6
	}
	return append(key, &expr.NAT{Type: expr.NATTypeDestNAT, Family: family, RegAddrMin: reg, RegProtoMin: reg32 + uint32(addrLen(fam)/4), Specified: true})
}

func addrLen(fam int) int {
	if fam == 4 {
		return 4
	}
	return 16
}

// chains adds the table's chains and rules, as drawn above type rules.
func (r *rules) chains(c *nftables.Conn, sets map[string]*nftables.Set) {
	chain := func(name string, kind nftables.ChainType, hook *nftables.ChainHook, priority *nftables.ChainPriority, list ...rule) {
		ch := c.AddChain(&nftables.Chain{Table: r.table, Name: name, Type: kind, Hooknum: hook, Priority: priority})
		for _, exprs := range list {
			c.AddRule(&nftables.Rule{Table: r.table, Chain: ch, Exprs: exprs})
		}
	}
	var publish, srcnat []rule
	for _, fam := range []int{4, 6} {
		publish = append(publish,
			with(ofFamily(fam), dnat(fam, true, sets[famSet("one", fam)])),
			with(ofFamily(fam), dnat(fam, false, sets[famSet("any", fam)])))
		srcnat = append(srcnat,
			with(ofFamily(fam), addr(fam, true, reg), inSet(sets[famSet("subnet", fam)]), ctBits(expr.CtKeySTATUS, ctDNAT), masquerade()),
			with(ofFamily(fam), addr(fam, true, reg), inSet(sets[famSet("masq", fam)]), load(expr.MetaKeyOIFNAME), notInSet(sets[setBridges]), masquerade()))
	}
	same := with(load(expr.MetaKeyIIFNAME), rule{&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: reg + 1}}, inSet(sets[setSame]), verdict(expr.VerdictAccept))

	chain("publish", "", nil, nil, publish...)
	chain("prerouting", nftables.ChainTypeNAT, nftables.ChainHookPrerouting, nftables.ChainPriorityNATDest, with(local(), jump("publish")))
	chain("output", nftables.ChainTypeNAT, nftables.ChainHookOutput, nftables.ChainPriorityNATDest,
		with(loopback(4), verdict(expr.VerdictReturn)), // served by the supervisor
		with(loopback(6), verdict(expr.VerdictReturn)),
		with(local(), jump("publish")))
	chain("postrouting", nftables.ChainTypeNAT, nftables.ChainHookPostrouting, nftables.ChainPriorityNATSource, srcnat...)
	chain("into", "", nil, nil,
		with(ctBits(expr.CtKeySTATE, ctEstablished|ctRelated), verdict(expr.VerdictAccept)),
		same,
		with(ctBits(expr.CtKeySTATUS, ctDNAT), verdict(expr.VerdictAccept)),
		verdict(expr.VerdictDrop))
	chain("forward", nftables.ChainTypeFilter, nftables.ChainHookForward, nftables.ChainPriorityFilter,
		with(load(expr.MetaKeyOIFNAME), inSet(sets[setBridges]), jump("into")),
		with(load(expr.MetaKeyIIFNAME), inSet(sets[setInternal]), verdict(expr.VerdictDrop)))
}

// loopback holds for packets to 127.0.0.0/8 or ::1.
func loopback(fam int) rule {
	if fam == 6 {
		one := make([]byte, 16)
		one[15] = 1
		return with(ofFamily(6), addr(6, false, reg), equals(one))
	}
	return with(ofFamily(4), rule{&expr.Payload{DestRegister: reg, Base: expr.PayloadBaseNetworkHeader, Offset: 16, Len: 1}}, equals([]byte{127}))
}

// redirectNames sends what the calling thread's namespace asks of the name
// server's well-known port to the ports that it has.
func redirectNames(udp, tcp uint16, again bool) error {
	c, err := nftables.New()
	if err != nil {
		return describe(err, "set packet filter of the container")
	}
	table := &nftables.Table{Name: "dhow-names", Family: nftables.TableFamilyIPv4}
	if again {
		c.AddTable(table)
		c.DelTable(table)
	}
	c.AddTable(table)
	chain := c.AddChain(&nftables.Chain{Table: table, Name: "output", Type: nftables.ChainTypeNAT,
		Hooknum: nftables.ChainHookOutput, Priority: nftables.ChainPriorityNATDest})
	server := nameServerAddr().AsSlice()
	for proto, port := range map[byte]uint16{unix.IPPROTO_UDP: udp, unix.IPPROTO_TCP: tcp} {
		c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: with(
			load(expr.MetaKeyL4PROTO), equals([]byte{proto}), addr(4, false, reg), equals(server),
			rule{
				&expr.Payload{DestRegister: reg, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
				&expr.Cmp{Op: expr.CmpOpEq, Register: reg, Data: binaryutil.BigEndian.PutUint16(nameserver.Port)},
				&expr.Immediate{Register: reg, Data: server},
				&expr.Immediate{Register: reg + 1, Data: binaryutil.BigEndian.PutUint16(port)},
				&expr.NAT{Type: expr.NATTypeDestNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: reg, RegProtoMin: reg + 1, Specified: true},
			})})
	}
	return describe(c.Flush(), "set packet filter of the container")
}
