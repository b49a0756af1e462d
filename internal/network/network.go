// Package network connects containers: networks and their addresses, a
// network namespace for each container, bridges, published ports, name
// resolution.
//
// Nothing of it runs by itself. Records of networks, addresses and ports are
// rows of the store's database, taken in one transaction; what has to listen
// (name server, published ports) is served by the process that holds the
// Attachment, a container's supervisor. It knows no images and no processes: a
// container is an id, a name and what it asks for.
//
// In the host's namespace there is, for each state directory, one nftables
// table with a fixed number of rules, and sets that say which bridges, subnets
// and ports they hold for; and for each network a bridge.
//
// Invariant: an address or a port belongs to at most one container, and what a
// container has can be undone by its id alone (Reclaim), by any process, at any
// time after its own was killed.
package network

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"dhow/internal/errdef"
	"dhow/internal/store"
	"dhow/internal/sys"
)

// The networks that are always there. ModeHost and ModeNone hold no endpoints.
const (
	DefaultNetwork = "bridge"
	ModeHost       = "host"
	ModeNone       = "none"
)

// Drivers of networks.
const (
	DriverBridge  = "bridge"
	DriverMacvlan = "macvlan"
	DriverIPvlan  = "ipvlan"
)

// Pool is one subnet of a network.
type Pool struct {
	Subnet  netip.Prefix
	Range   netip.Prefix          // addresses are taken from it; zero: the whole subnet
	Gateway netip.Addr            // the bridge's own address; zero: none
	Aux     map[string]netip.Addr // addresses that are somebody else's
}

// Network is a network as it is kept.
type Network struct {
	ID       string `json:"-"` // 64 hexadecimal digits
	Name     string `json:"-"`
	Created  time.Time
	Driver   string // one of the drivers; ModeHost and ModeNone for those two
	Internal bool   // no way out
	IPv6     bool
	Pools    []Pool
	// Auto says that dhow chose the subnets, so that it may choose others when
	// the host comes to use them otherwise.
	Auto bool `json:",omitempty"`
	// Foreign says that the bridge was there before: it is left when the network
	// is removed.
	Foreign bool              `json:",omitempty"`
	Options map[string]string // com.docker.network.…
	Labels  map[string]string
}

// Default says whether n is the network of containers that ask for none. It has
// no name server, as with docker: containers on it have the host's.
func (n *Network) Default() bool { return n.Name == DefaultNetwork }

func (n *Network) record() store.NetworkRecord {
	data, err := json.Marshal(n)
	if err != nil {
		panic(err) // strings, addresses and booleans
	}
	return store.NetworkRecord{ID: n.ID, Name: n.Name, Created: n.Created, Record: data}
}

func parseNetwork(r store.NetworkRecord) (*Network, error) {
	n := &Network{}
	if err := json.Unmarshal(r.Record, n); err != nil {
		return nil, errdef.New(errdef.ErrIntegrity, "read network %s: %w", r.Name, err)
	}
	n.ID, n.Name, n.Created = r.ID, r.Name, r.Created
	return n, nil
}

// Options are what a process knows of its surroundings.
type Options struct {
	// Alive says whether a container's process or supervisor lives; about steps it
	// is not asked. What a dead one still has is taken from it when somebody else
	// needs it. Nil: all live.
	Alive func(container string) bool
	// Pasta is the program that connects an ordinary user's container; "" looks
	// in PATH, and "-" does without it.
	Pasta string
	// ResolvConf is the host's file of name servers; "" is /etc/resolv.conf.
	ResolvConf string
}

// Networks are the networks of one store. Safe for concurrent use.
type Networks struct {
	store    *store.Store
	options  Options
	rootless bool

	noTun      bool // for tests: do without /dev/net/tun
	trustPasta bool // for tests: whatever its version
}

// New returns the store's networks. Nothing is read or made yet.
func New(s *store.Store, o Options) *Networks {
	if o.ResolvConf == "" {
		o.ResolvConf = "/etc/resolv.conf"
	}
	return &Networks{store: s, options: o, rootless: sys.InUserNS()}
}

func (ns *Networks) alive(container string) bool {
	if proc, isStep := StepProc(container); isStep {
		return ns.store.ProcAlive(proc)
	}
	return ns.options.Alive == nil || ns.options.Alive(container)
}

func newID() string {
	var b [32]byte
	rand.Read(b[:]) // never fails (crypto/rand, since Go 1.24)
	return hex.EncodeToString(b[:])
}

// Inspect finds a network by id, name, or a beginning of an id. ErrNotFound,
// ErrConflict when ambiguous.
func (ns *Networks) Inspect(ctx context.Context, ref string) (*Network, error) {
	var n *Network
	look := func(tx *store.NetworkTx) error {
		r, err := tx.Network(ref)
		if err == nil {
			n, err = parseNetwork(r)
		}
		return err
	}
	err := ns.store.ViewNetworks(ctx, look)
	if errors.Is(err, errdef.ErrNotFound) {
		// The first to ask makes the networks that are always there; or another
		// process has just done so.
		if err := ns.makeDefaults(ctx); err != nil {
			return nil, err
		}
		err = ns.store.ViewNetworks(ctx, look)
	}
	if err != nil {
		return nil, errdef.WithHint(err, "\"dhow network ls\" lists the networks")
	}
	return n, nil
}

// makeDefaults adds bridge, host and none where they lack.
func (ns *Networks) makeDefaults(ctx context.Context) error {
	var lacks []string
	names := []string{DefaultNetwork, ModeHost, ModeNone}
	check := func(tx *store.NetworkTx) error {
		lacks = slices.Clone(names)
		all, err := tx.Networks()
		for _, r := range all {
			lacks = slices.DeleteFunc(lacks, func(name string) bool { return name == r.Name })
		}
		return err
	}
	if err := ns.store.ViewNetworks(ctx, check); err != nil || len(lacks) == 0 {
		return err
	}
	used, err := ns.hostPrefixes()
	if err != nil {
		return err
	}
	return ns.store.UpdateNetworks(ctx, func(tx *store.NetworkTx) error {
		if err := check(tx); err != nil {
			return err
		}
		for _, name := range lacks {
			n := &Network{ID: newID(), Name: name, Created: time.Now().UTC(), Driver: name}
			if name == DefaultNetwork {
				n.Driver, n.Auto = DriverBridge, true
				if n.Pools, err = choosePools(tx, used, false); err != nil {
					return err
				}
			}
			if err := tx.PutNetwork(n.record()); err != nil {
				return err
			}
		}
		return nil
	})
}

// choosePools finds subnets for a network that asked for none.
func choosePools(tx *store.NetworkTx, used []netip.Prefix, ipv6 bool) ([]Pool, error) {
	all, err := tx.Networks()
	if err != nil {
		return nil, err
	}
	for _, r := range all {
		n, err := parseNetwork(r)
		if err != nil {
			return nil, err
		}
		for _, p := range n.Pools {
			used = append(used, p.Subnet)
		}
	}
	subnet, err := freeSubnet4(used)
	if err != nil {
		return nil, err
	}
	pools := []Pool{{Subnet: subnet, Gateway: firstHost(subnet)}}
	if ipv6 {
		subnet := uniqueLocal(rand.Reader)
		pools = append(pools, Pool{Subnet: subnet, Gateway: firstHost(subnet)})
	}
	return pools, nil
}

// List is all networks, by name.
func (ns *Networks) List(ctx context.Context) ([]*Network, error) {
	if err := ns.makeDefaults(ctx); err != nil {
		return nil, err
	}
	var list []*Network
	err := ns.store.ViewNetworks(ctx, func(tx *store.NetworkTx) error {
		all, err := tx.Networks()
		for _, r := range all {
			n, err := parseNetwork(r)
			if err != nil {
				return err
			}
			list = append(list, n)
		}
		return err
	})
	return list, err
}

// Endpoints are the containers that are in the network now.
func (ns *Networks) Endpoints(ctx context.Context, network string) ([]Endpoint, error) {
	var list []Endpoint
	err := ns.store.ViewNetworks(ctx, func(tx *store.NetworkTx) error {
		all, err := tx.Endpoints(network)
		for _, r := range all {
			if _, isStep := StepProc(r.Container); isStep {
				continue
			}
			e, err := parseEndpoint(r)
			if err != nil {
				return err
			}
			list = append(list, *e)
		}
		return err
	})
	return list, err
}

// Endpoint is a container's place in a network.
type Endpoint struct {
	Network   string `json:"-"` // id
	Container string `json:"-"` // id
	Name      string `json:"-"` // the container's

	NetworkName string
	ID          string       // 64 hexadecimal digits
	IP4, IP6    netip.Prefix // with the subnet's length; zero: none
	Gateway4    netip.Addr   // zero: none
	Gateway6    netip.Addr
	MAC         string   // 02:42:ac:11:00:02
	Interface   string   // inside
	Publishes   bool     // published ports lead here: the host reaches it, and it is not internal
	HostLink    string   // the other end, in the host's namespace
	Aliases     []string // names beside the container's
	Links       []Link   // names that hold for this container alone
}

// Link is a name that one container has for another.
type Link struct{ Container, Alias string }

func (e *Endpoint) record() store.EndpointRecord {
	data, err := json.Marshal(e)
	if err != nil {
		panic(err) // strings and addresses
	}
	r := store.EndpointRecord{Network: e.Network, Container: e.Container, Name: e.Name, Record: data}
	if e.IP4.IsValid() {
		r.IP4 = e.IP4.Addr().String()
	}
	if e.IP6.IsValid() {
		r.IP6 = e.IP6.Addr().String()
	}
	return r
}

func parseEndpoint(r store.EndpointRecord) (*Endpoint, error) {
	e := &Endpoint{}
	if err := json.Unmarshal(r.Record, e); err != nil {
		return nil, errdef.New(errdef.ErrIntegrity, "read endpoint of %s: %w", r.Name, err)
	}
	e.Network, e.Container, e.Name = r.Network, r.Container, r.Name
	return e, nil
}

// option is a boolean option of docker's, with its default.
func (n *Network) option(name string, otherwise bool) bool {
	switch n.Options[name] {
	case "true", "1":
		return true
	case "false", "0":
		return false
	}
	return otherwise
}

// describe says what was being done when err came.
func describe(err error, format string, args ...any) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf(format+": %w", append(args, err)...)
}

// publishes says whether ports of the host lead into the network. Into an
// internal one nobody gets, and the host does not reach what is beside it.
func (n *Network) publishes() bool { return n.Driver == DriverBridge && !n.Internal }
