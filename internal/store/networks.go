package store

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"dhow/internal/errdef"

	"zombiezen.com/go/sqlite"
)

// NetworkRecord is one network. What Record says is package network's affair.
type NetworkRecord struct {
	ID      string // 64 hexadecimal digits
	Name    string // no other network's
	Created time.Time
	Record  json.RawMessage
}

// EndpointRecord is a container's place in a network, as long as it runs there.
type EndpointRecord struct {
	Network   string // id
	Container string // id
	Name      string // the container's
	IP4, IP6  string // "" for none; no other endpoint of the network has them
	Record    json.RawMessage
}

// PortRecord is a port of the host that a container has.
type PortRecord struct {
	Proto     string // tcp, udp, sctp
	IP        string // of the host; 0.0.0.0 and :: are all
	Port      uint16
	Container string // id
	Record    json.RawMessage
}

// NetworkTx reads and changes networks, endpoints and ports. It is valid only
// in the function that it is given to.
type NetworkTx struct{ c *sqlite.Conn }

// UpdateNetworks runs f in one transaction: what it reads is true until what it
// writes is visible, and its error undoes all of it. So an address or a port
// that f finds free is its own.
func (s *Store) UpdateNetworks(ctx context.Context, f func(*NetworkTx) error) error {
	return s.db.write(ctx, func(c *sqlite.Conn) error { return f(&NetworkTx{c}) })
}

// ViewNetworks runs f, which only reads; each of its calls may see another
// moment.
func (s *Store) ViewNetworks(ctx context.Context, f func(*NetworkTx) error) error {
	return s.db.read(ctx, func(c *sqlite.Conn) error { return f(&NetworkTx{c}) })
}

// Network finds a network by its id, its name, or a beginning of an id that no
// other shares, in this order. ErrNotFound; ErrConflict when ambiguous.
func (t *NetworkTx) Network(ref string) (NetworkRecord, error) {
	found, err := t.networks("id = ?1 OR name = ?1 ORDER BY id = ?1 DESC", ref)
	if err != nil || len(found) > 0 {
		return first(found), err
	}
	if ref != "" {
		if found, err = t.networks("id >= ?1 AND id < ?1 || 'g'", ref); err != nil {
			return NetworkRecord{}, err
		}
	}
	switch len(found) {
	case 0:
		return NetworkRecord{}, errdef.New(errdef.ErrNotFound, "network %s not found", ref)
	case 1:
		return found[0], nil
	}
	return NetworkRecord{}, errdef.New(errdef.ErrConflict, "network %s: more than one id begins so", ref)
}

func first(found []NetworkRecord) NetworkRecord {
	if len(found) == 0 {
		return NetworkRecord{}
	}
	return found[0]
}

// Networks are all of them, by name.
func (t *NetworkTx) Networks() ([]NetworkRecord, error) { return t.networks("1 ORDER BY name") }

func (t *NetworkTx) networks(where string, args ...any) (list []NetworkRecord, err error) {
	err = query(t.c, "SELECT id, name, created, record FROM networks WHERE "+where, func(st *sqlite.Stmt) error {
		list = append(list, NetworkRecord{ID: st.ColumnText(0), Name: st.ColumnText(1), Created: timeAt(st, 2), Record: bytesAt(st, 3)})
		return nil
	}, args...)
	if err != nil {
		return nil, fmt.Errorf("read networks: %w", err)
	}
	return list, nil
}

// PutNetwork adds the network, or replaces the one of that id. ErrConflict when
// another has its name.
func (t *NetworkTx) PutNetwork(n NetworkRecord) error {
	err := execute(t.c, `INSERT INTO networks (id, name, created, record) VALUES (?, ?, ?, ?)
		ON CONFLICT (id) DO UPDATE SET name = excluded.name, record = excluded.record`,
		n.ID, n.Name, stamp(orNow(n.Created)), []byte(n.Record))
	if unique(err) {
		return errdef.New(errdef.ErrConflict, "network with name %s already exists", n.Name)
	}
	if err != nil {
		return fmt.Errorf("put network %s: %w", n.Name, err)
	}
	return nil
}

// RemoveNetwork removes the record; it is no error when there is none. Whether
// the network has endpoints the caller has looked up in the same transaction.
func (t *NetworkTx) RemoveNetwork(id string) error {
	if err := execute(t.c, "DELETE FROM networks WHERE id = ?", id); err != nil {
		return fmt.Errorf("remove network %s: %w", id, err)
	}
	return nil
}

// Endpoints are those of a network, by the container's name.
func (t *NetworkTx) Endpoints(network string) ([]EndpointRecord, error) {
	return t.endpoints("network = ? ORDER BY name", network)
}

// EndpointsOf are those of a container.
func (t *NetworkTx) EndpointsOf(container string) ([]EndpointRecord, error) {
	return t.endpoints("container = ? ORDER BY network", container)
}

// AllEndpoints are those of all networks.
func (t *NetworkTx) AllEndpoints() ([]EndpointRecord, error) { return t.endpoints("1") }

func (t *NetworkTx) endpoints(where string, args ...any) (list []EndpointRecord, err error) {
	err = query(t.c, "SELECT network, container, name, ip4, ip6, record FROM endpoints WHERE "+where, func(st *sqlite.Stmt) error {
		list = append(list, EndpointRecord{
			Network: st.ColumnText(0), Container: st.ColumnText(1), Name: st.ColumnText(2),
			IP4: st.ColumnText(3), IP6: st.ColumnText(4), Record: bytesAt(st, 5),
		})
		return nil
	}, args...)
	if err != nil {
		return nil, fmt.Errorf("read endpoints: %w", err)
	}
	return list, nil
}

// Addresses are those that the network's endpoints have, of both families.
func (t *NetworkTx) Addresses(network string) (list []string, err error) {
	err = query(t.c, "SELECT ip4, ip6 FROM endpoints WHERE network = ?", func(st *sqlite.Stmt) error {
		for col := range 2 {
			if ip := st.ColumnText(col); ip != "" {
				list = append(list, ip)
			}
		}
		return nil
	}, network)
	if err != nil {
		return nil, fmt.Errorf("read addresses: %w", err)
	}
	return list, nil
}

// PutEndpoint adds the endpoint, or replaces that of its container in its
// network. ErrConflict when another has one of its addresses.
func (t *NetworkTx) PutEndpoint(e EndpointRecord) error {
	err := execute(t.c, `INSERT INTO endpoints (network, container, name, ip4, ip6, record) VALUES (?, ?, ?, ?, ?, ?)
		ON CONFLICT (network, container) DO UPDATE SET name = excluded.name, ip4 = excluded.ip4, ip6 = excluded.ip6, record = excluded.record`,
		e.Network, e.Container, e.Name, orNull(e.IP4), orNull(e.IP6), []byte(e.Record))
	if unique(err) {
		return errdef.New(errdef.ErrConflict, "address already in use: %s %s", e.IP4, e.IP6)
	}
	if err != nil {
		return fmt.Errorf("put endpoint of %s: %w", e.Name, err)
	}
	return nil
}

// RemoveEndpoint removes a container from a network; it is no error when it is
// not there.
func (t *NetworkTx) RemoveEndpoint(network, container string) error {
	if err := execute(t.c, "DELETE FROM endpoints WHERE network = ? AND container = ?", network, container); err != nil {
		return fmt.Errorf("remove endpoint: %w", err)
	}
	return nil
}

// RemoveContainer removes a container's endpoints and ports.
func (t *NetworkTx) RemoveContainer(container string) error {
	for _, table := range []string{"endpoints", "ports"} {
		if err := execute(t.c, "DELETE FROM "+table+" WHERE container = ?", container); err != nil {
			return fmt.Errorf("remove %s of %s: %w", table, container, err)
		}
	}
	return nil
}

// Ports are all that containers have.
func (t *NetworkTx) Ports() ([]PortRecord, error) { return t.ports("1") }

// PortsOf are those of a container.
func (t *NetworkTx) PortsOf(container string) ([]PortRecord, error) {
	return t.ports("container = ? ORDER BY proto, port, ip", container)
}

func (t *NetworkTx) ports(where string, args ...any) (list []PortRecord, err error) {
	err = query(t.c, "SELECT proto, ip, port, container, record FROM ports WHERE "+where, func(st *sqlite.Stmt) error {
		list = append(list, PortRecord{
			Proto: st.ColumnText(0), IP: st.ColumnText(1), Port: uint16(st.ColumnInt(2)), Container: st.ColumnText(3), Record: bytesAt(st, 4),
		})
		return nil
	}, args...)
	if err != nil {
		return nil, fmt.Errorf("read ports: %w", err)
	}
	return list, nil
}

// PutPort adds the port. ErrConflict when a container has it.
func (t *NetworkTx) PutPort(p PortRecord) error {
	err := execute(t.c, "INSERT INTO ports (proto, ip, port, container, record) VALUES (?, ?, ?, ?, ?)",
		p.Proto, p.IP, int(p.Port), p.Container, []byte(p.Record))
	if unique(err) {
		return errdef.New(errdef.ErrConflict, "port is already allocated")
	}
	if err != nil {
		return fmt.Errorf("put port %d: %w", p.Port, err)
	}
	return nil
}

// RemovePort removes one port; it is no error when nobody has it.
func (t *NetworkTx) RemovePort(proto, ip string, port uint16) error {
	if err := execute(t.c, "DELETE FROM ports WHERE proto = ? AND ip = ? AND port = ?", proto, ip, int(port)); err != nil {
		return fmt.Errorf("remove port %d: %w", port, err)
	}
	return nil
}

// unique says whether a statement failed because a row like it is there.
func unique(err error) bool {
	code := sqlite.ErrCode(err)
	return code == sqlite.ResultConstraintUnique || code == sqlite.ResultConstraintPrimaryKey
}

func orNull(s string) any {
	if s == "" {
		return nil
	}
	return s
}
