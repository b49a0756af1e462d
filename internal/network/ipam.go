package network

import (
	"encoding/binary"
	"fmt"
	"io"
	"iter"
	"net/netip"

	"dhow/internal/errdef"
)

// docker's default pools, in docker's order, so that a machine without docker
// has the addresses that scripts know.
func defaultPools() iter.Seq[netip.Prefix] {
	return func(yield func(netip.Prefix) bool) {
		for second := 17; second < 32; second++ {
			if !yield(netip.PrefixFrom(netip.AddrFrom4([4]byte{172, byte(second), 0, 0}), 16)) {
				return
			}
		}
		for third := 0; third < 256; third += 16 {
			if !yield(netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 168, byte(third), 0}), 20)) {
				return
			}
		}
		// Where the host uses all of these, parts of its own are better than none.
		for third := 0; third < 256; third++ {
			for second := 64; second < 128; second++ {
				if !yield(netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(second), byte(third), 0}), 24)) {
					return
				}
			}
		}
	}
}

// freeSubnet4 is the first default subnet that none of used overlaps.
func freeSubnet4(used []netip.Prefix) (netip.Prefix, error) {
	for p := range defaultPools() {
		if _, taken := overlapping(p, used); !taken {
			return p, nil
		}
	}
	return netip.Prefix{}, errdef.WithHint(errdef.New(errdef.ErrConflict, "all predefined address pools have been fully subnetted"),
		"choose one with --subnet")
}

// overlapping finds one of used that shares addresses with p.
func overlapping(p netip.Prefix, used []netip.Prefix) (netip.Prefix, bool) {
	for _, u := range used {
		if u.Bits() > 0 && u.Overlaps(p) { // a default route is no use of addresses
			return u, true
		}
	}
	return netip.Prefix{}, false
}

// uniqueLocal is a random /64 of fd00::/8 (RFC 4193).
func uniqueLocal(random io.Reader) netip.Prefix {
	var b [16]byte
	if _, err := io.ReadFull(random, b[1:8]); err != nil {
		panic(err) // crypto/rand never fails
	}
	b[0] = 0xfd
	return netip.PrefixFrom(netip.AddrFrom16(b), 64)
}

// firstHost is the first address of a subnet that a machine may have.
func firstHost(p netip.Prefix) netip.Addr {
	if p.Bits() >= p.Addr().BitLen()-1 {
		return p.Masked().Addr() // RFC 3021: no network and broadcast addresses
	}
	return p.Masked().Addr().Next()
}

// lastAddr is the last address of a subnet.
func lastAddr(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	for i := range b {
		switch have := p.Bits() - 8*i; {
		case have <= 0:
			b[i] = 0xff
		case have < 8:
			b[i] |= 0xff >> have
		}
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

// reserved says whether the address is not a machine's: the first and the last
// of an IPv4 subnet, the first of an IPv6 subnet (the routers' anycast address).
func reserved(p netip.Prefix, a netip.Addr) bool {
	if p.Bits() >= a.BitLen()-1 {
		return false
	}
	return a == p.Masked().Addr() || a.Is4() && a == lastAddr(p)
}

// free is the lowest address of the pool that is nobody's. ErrConflict when
// there is none.
func (p Pool) free(taken map[netip.Addr]bool) (netip.Addr, error) {
	from := p.Subnet.Masked()
	if p.Range.IsValid() {
		from = p.Range.Masked()
	}
	// The taken ones are finite, so this ends even in a /64.
	for a := from.Addr(); from.Contains(a); a = a.Next() {
		if !taken[a] && !p.excluded(a) {
			return a, nil
		}
	}
	return netip.Addr{}, errdef.New(errdef.ErrConflict, "no available IPv%d addresses on this network's address pool %s", family(from.Addr()), from)
}

// excluded says whether an address of the subnet is never a container's.
func (p Pool) excluded(a netip.Addr) bool {
	if a == p.Gateway || reserved(p.Subnet, a) {
		return true
	}
	for _, aux := range p.Aux {
		if a == aux {
			return true
		}
	}
	return false
}

// static checks an address that somebody asks for. ErrInvalid, ErrConflict.
func (p Pool) static(a netip.Addr, taken map[netip.Addr]bool) error {
	switch {
	case !p.Subnet.Contains(a):
		return errdef.New(errdef.ErrInvalid, "address %s is not in the subnet %s", a, p.Subnet)
	case p.excluded(a), taken[a]:
		return errdef.New(errdef.ErrConflict, "address already in use: %s", a)
	}
	return nil
}

func family(a netip.Addr) int {
	if a.Is4() {
		return 4
	}
	return 6
}

// macOf is docker's Ethernet address for an IPv4 address. The same address
// always comes with the same one, so that what neighbours remember stays true.
func macOf(a netip.Addr) string {
	var b [6]byte
	b[0], b[1] = 0x02, 0x42
	if a.Is4() {
		v4 := a.As4()
		copy(b[2:], v4[:])
	} else {
		v6 := a.As16()
		binary.BigEndian.PutUint32(b[2:], binary.BigEndian.Uint32(v6[12:])^binary.BigEndian.Uint32(v6[8:]))
	}
	return fmt.Sprintf("%02x:%02x:%02x:%02x:%02x:%02x", b[0], b[1], b[2], b[3], b[4], b[5])
}
