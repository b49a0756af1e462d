package network

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"golang.org/x/sys/unix"
)

// The host's packet filter has one table a state directory. Its rules are
// always the same; what they hold for stands in sets, so that packets cost the
// same however many networks and ports there are, and a start or an end changes
// a few elements at most.
//
//	table inet dhow-<8 digits of the default network's id> {
//	  chain prerouting   nat  dstnat: fib daddr type local → publish
//	  chain output       nat:         not to loopback, fib daddr type local → publish
//	  chain publish                   dnat by one4, any4, one6, any6
//	  chain postrouting  nat  srcnat: from subnet4/6, ct status dnat → masquerade    (hairpin)
//	                                  from masq4/6, not to a bridge  → masquerade
//	  chain forward      filter:      to a bridge → into; from an internal one → drop
//	  chain into                      established, same bridge, or published → accept; else drop
//	}
//
// The last rule keeps networks apart from each other and from whoever would
// route packets to a container's address from outside.
type rules struct {
	table *nftables.Table
}

// newRules names the table by the default network, which every state directory
// has one of.
func newRules(defaultNetwork string) *rules {
	return &rules{&nftables.Table{Name: "dhow-" + defaultNetwork[:8], Family: nftables.TableFamilyINet}}
}

// A bridgeRule is what the table says of one network.
type bridgeRule struct {
	name     string
	subnets  []netip.Prefix
	masq     bool
	internal bool
	icc      bool
}

// A forward sends what comes for a port of the host to a container.
type forward struct {
	proto  uint8
	ip     netip.Addr // of the host; unspecified: all of that family
	port   uint16
	to     netip.Addr // of that family
	toPort uint16
}

const (
	setBridges  = "bridges"
	setInternal = "internal"
	setSame     = "same"
)

func famSet(name string, fam int) string { return fmt.Sprint(name, fam) }

// sets declares the table's sets, empty. Keys of several parts are padded to
// four bytes each.
func (r *rules) sets() map[string]*nftables.Set {
	sets := map[string]*nftables.Set{}
	add := func(s *nftables.Set) {
		s.Table = r.table
		sets[s.Name] = s
	}
	// The byte order is how nft shows the names.
	add(&nftables.Set{Name: setBridges, KeyType: nftables.TypeIFName, KeyByteOrder: binaryutil.NativeEndian})
	add(&nftables.Set{Name: setInternal, KeyType: nftables.TypeIFName, KeyByteOrder: binaryutil.NativeEndian})
	add(&nftables.Set{Name: setSame, KeyType: nftables.MustConcatSetType(nftables.TypeIFName, nftables.TypeIFName), Concatenation: true})
	for _, fam := range []int{4, 6} {
		addr := nftables.TypeIPAddr
		if fam == 6 {
			addr = nftables.TypeIP6Addr
		}
		add(&nftables.Set{Name: famSet("subnet", fam), KeyType: addr, Interval: true})
		add(&nftables.Set{Name: famSet("masq", fam), KeyType: addr, Interval: true})
		to := nftables.MustConcatSetType(addr, nftables.TypeInetService)
		add(&nftables.Set{Name: famSet("any", fam), IsMap: true, Concatenation: true, DataType: to,
			KeyType: nftables.MustConcatSetType(nftables.TypeInetProto, nftables.TypeInetService)})
		add(&nftables.Set{Name: famSet("one", fam), IsMap: true, Concatenation: true, DataType: to,
			KeyType: nftables.MustConcatSetType(nftables.TypeInetProto, addr, nftables.TypeInetService)})
	}
	return sets
}

// replace makes the table hold for exactly these, whatever it held for before,
// in one transaction of the kernel.
func (r *rules) replace(bridges []bridgeRule, forwards []forward) error {
	c, err := nftables.New()
	if err != nil {
		return describe(err, "set packet filter")
	}
	c.AddTable(r.table)
	c.DelTable(r.table)
	c.AddTable(r.table)
	sets := r.sets()
	for _, name := range slices.Sorted(maps.Keys(sets)) {
		elements := append(bridgeElements(name, bridges), forwardElements(name, forwards)...)
		if err := c.AddSet(sets[name], elements); err != nil {
			return describe(err, "set packet filter: set %s", name)
		}
	}
	r.chains(c, sets)
	if err := c.Flush(); err != nil {
		return describe(err, "set packet filter")
	}
	return nil
}

// bridgeElements are what the bridges put into the set of that name.
func bridgeElements(set string, bridges []bridgeRule) []nftables.SetElement {
	var keys [][]byte
	var list []nftables.SetElement
	for _, b := range bridges {
		name := ifname(b.name)
		switch {
		case set == setBridges, set == setInternal && b.internal:
			keys = append(keys, name)
		case set == setSame && b.icc:
			keys = append(keys, slices.Concat(name, name))
		}
		for _, p := range b.subnets {
			fam := family(p.Addr())
			if set == famSet("subnet", fam) || set == famSet("masq", fam) && b.masq {
				list = append(list, nftables.SetElement{Key: p.Masked().Addr().AsSlice()},
					nftables.SetElement{Key: lastAddr(p).Next().AsSlice(), IntervalEnd: true})
			}
		}
	}
	for _, k := range keys {
		list = append(list, nftables.SetElement{Key: k})
	}
	return list
}

// forwardElements are what the published ports put into the set of that name.
func forwardElements(set string, forwards []forward) []nftables.SetElement {
	var list []nftables.SetElement
	for _, f := range forwards {
		if name, e := f.element(); name == set {
			list = append(list, e)
		}
	}
	return list
}

// element is the forward as an element of a map, and the map's name.
func (f forward) element() (set string, e nftables.SetElement) {
	fam := family(f.to)
	e.Val = slices.Concat(f.to.AsSlice(), port4(f.toPort))
	if f.ip.IsUnspecified() {
		e.Key = slices.Concat([]byte{f.proto, 0, 0, 0}, port4(f.port))
		return famSet("any", fam), e
	}
	e.Key = slices.Concat([]byte{f.proto, 0, 0, 0}, f.ip.AsSlice(), port4(f.port))
	return famSet("one", fam), e
}

// port4 is a port as part of a key.
func port4(p uint16) []byte { return []byte{byte(p >> 8), byte(p), 0, 0} }

// ifname is a device's name as a register holds it.
func ifname(name string) []byte {
	b := make([]byte, unix.IFNAMSIZ)
	copy(b, name)
	return b
}

// publish adds forwards to the table.
func (r *rules) publish(forwards []forward) error {
	return r.change(forwards, (*nftables.Conn).SetAddElements)
}

// unpublish removes them.
func (r *rules) unpublish(forwards []forward) error {
	return r.change(forwards, (*nftables.Conn).SetDeleteElements)
}

func (r *rules) change(forwards []forward, do func(*nftables.Conn, *nftables.Set, []nftables.SetElement) error) error {
	if len(forwards) == 0 {
		return nil
	}
	c, err := nftables.New()
	if err != nil {
		return describe(err, "set packet filter")
	}
	for name, set := range r.sets() {
		if elements := forwardElements(name, forwards); len(elements) > 0 {
			if err := do(c, set, elements); err != nil {
				return describe(err, "set packet filter: set %s", name)
			}
		}
	}
	if err := c.Flush(); err != nil {
		return describe(err, "set packet filter")
	}
	return nil
}

// holds says whether the table is there and knows the bridge. Somebody may have
// flushed the rule set.
func (r *rules) holds(bridge string) (bool, error) {
	c, err := nftables.New()
	if err != nil {
		return false, describe(err, "read packet filter")
	}
	if ok, err := r.exists(c); !ok || err != nil {
		return false, err
	}
	elements, err := c.GetSetElements(r.sets()[setBridges])
	if err != nil {
		return false, describe(err, "read packet filter")
	}
	name := ifname(bridge)
	return slices.ContainsFunc(elements, func(e nftables.SetElement) bool { return bytes.Equal(e.Key, name) }), nil
}

// exists asks for the table: what is asked of a set that is not there fails
// without saying so (google/nftables v0.3.0 drops the errno).
func (r *rules) exists(c *nftables.Conn) (bool, error) {
	_, err := c.ListTableOfFamily(r.table.Name, r.table.Family)
	if errors.Is(err, unix.ENOENT) {
		return false, nil
	}
	return err == nil, describe(err, "read packet filter")
}

// remove removes the table; it is no error when there is none.
func (r *rules) remove() error {
	c, err := nftables.New()
	if err != nil {
		return describe(err, "remove packet filter")
	}
	c.AddTable(r.table)
	c.DelTable(r.table)
	if err := c.Flush(); err != nil {
		return describe(err, "remove packet filter")
	}
	return nil
}
