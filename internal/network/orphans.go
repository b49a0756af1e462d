package network

import (
	"encoding/binary"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// States of a TCP connection that need no ending (include/net/tcp_states.h).
const (
	tcpTimeWait = 6
	tcpClose    = 7
	tcpListen   = 10
)

// abortConnections ends the TCP connections of the calling thread's namespace.
// Those that a container's processes left unfinished would keep the namespace,
// and its links, until the kernel gives up sending: minutes. Where it cannot be
// done (a kernel without INET_DIAG_DESTROY) it comes to that.
func abortConnections() {
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		sockets, err := netlink.SocketDiagTCP(family)
		if err != nil {
			continue
		}
		for _, s := range sockets {
			if s.State == tcpTimeWait || s.State == tcpClose || s.State == tcpListen {
				continue
			}
			req := nl.NewNetlinkRequest(nl.SOCK_DESTROY, unix.NLM_F_ACK)
			req.AddRawData(diagRequest(family, &s.ID))
			_, _ = req.Execute(unix.NETLINK_INET_DIAG, 0) // it may have ended meanwhile
		}
	}
}

// diagRequest names one socket (struct inet_diag_req_v2, linux/inet_diag.h).
func diagRequest(family uint8, id *netlink.SocketID) []byte {
	b := make([]byte, 56)
	b[0], b[1] = family, unix.IPPROTO_TCP
	binary.NativeEndian.PutUint32(b[4:], 0xffffffff) // any state
	binary.BigEndian.PutUint16(b[8:], id.SourcePort)
	binary.BigEndian.PutUint16(b[10:], id.DestinationPort)
	source, destination := id.Source.To16(), id.Destination.To16()
	if family == unix.AF_INET {
		source, destination = id.Source.To4(), id.Destination.To4()
	}
	copy(b[12:28], source)
	copy(b[28:44], destination)
	binary.NativeEndian.PutUint32(b[44:], id.Interface)
	binary.NativeEndian.PutUint32(b[48:], id.Cookie[0])
	binary.NativeEndian.PutUint32(b[52:], id.Cookie[1])
	return b
}
