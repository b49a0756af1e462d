package usernet

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/link/channel"
	"gvisor.dev/gvisor/pkg/tcpip/link/ethernet"
	"gvisor.dev/gvisor/pkg/tcpip/network/arp"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
	"gvisor.dev/gvisor/pkg/waiter"
)

const (
	nic          = 1
	outQueue     = 512  // frames on their way to the container
	maxHalfOpen  = 1024 // connections being made
	stackTimeout = 10 * time.Second
	udpIdle      = 90 * time.Second      // as docker's
	refusedPause = 50 * time.Millisecond // after an error that may pass
)

// A Router is a network's gateway in a process: it ends the container's
// connections in a TCP/IP stack of its own and makes each anew with a socket of
// the process, as any program of an ordinary user may. Every supervisor has one
// for its own container, and all of a network have the same address.
//
// It routes TCP and UDP over IPv4. It answers pings itself, whoever they are for.
type Router struct {
	stack  *stack.Stack
	link   *channel.Endpoint
	addr   netip.Addr
	ctx    context.Context // its life
	cancel context.CancelFunc
	wg     sync.WaitGroup
}

// NewRouter makes the gateway of the subnet; write takes its frames.
func NewRouter(gateway netip.Prefix, mac net.HardwareAddr, mtu int, write func([]byte)) (*Router, error) {
	r := &Router{addr: gateway.Addr(), link: channel.New(outQueue, uint32(mtu), tcpip.LinkAddress(mac))}
	r.ctx, r.cancel = context.WithCancel(context.Background())
	r.stack = stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol, arp.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol, icmp.NewProtocol4},
	})
	sack := tcpip.TCPSACKEnabled(true)
	r.stack.SetTransportProtocolOption(tcp.ProtocolNumber, &sack)
	r.stack.SetTransportProtocolHandler(tcp.ProtocolNumber, tcp.NewForwarder(r.stack, 0, maxHalfOpen, r.forwardTCP).HandlePacket)
	r.stack.SetTransportProtocolHandler(udp.ProtocolNumber, udp.NewForwarder(r.stack, r.forwardUDP).HandlePacket)
	err := r.stack.CreateNIC(nic, ethernet.New(r.link))
	if err == nil {
		err = r.stack.AddProtocolAddress(nic, tcpip.ProtocolAddress{
			Protocol:          ipv4.ProtocolNumber,
			AddressWithPrefix: tcpip.AddressWithPrefix{Address: tcpip.AddrFrom4(gateway.Addr().As4()), PrefixLen: gateway.Bits()},
		}, stack.AddressProperties{})
	}
	if err == nil { // packets for all addresses come in, and go out from them
		err = r.stack.SetPromiscuousMode(nic, true)
	}
	if err == nil {
		err = r.stack.SetSpoofing(nic, true)
	}
	if err != nil {
		r.cancel()
		r.stack.Destroy()
		return nil, fmt.Errorf("make gateway: %v", err)
	}
	subnet := tcpip.AddressWithPrefix{Address: tcpip.AddrFrom4(gateway.Masked().Addr().As4()), PrefixLen: gateway.Bits()}.Subnet()
	r.stack.SetRouteTable([]tcpip.Route{{Destination: subnet, NIC: nic}})
	r.wg.Go(func() {
		for {
			pkt := r.link.ReadContext(r.ctx)
			if pkt == nil {
				return
			}
			v := pkt.ToView()
			write(v.AsSlice())
			v.Release()
			pkt.DecRef()
		}
	})
	return r, nil
}

// Close ends it, with all connections.
func (r *Router) Close() {
	r.cancel()
	r.wg.Wait()
	r.stack.Destroy()
}

// Take says whether the frame is for the router, and delivers it then. Of what
// is for everybody it takes only the question who has its own address: it would
// answer for all.
func (r *Router) Take(frame []byte) bool {
	const etherARP = 0x0806
	mac := string(r.link.LinkAddress())
	if string(frame[:6]) != mac {
		isARP := len(frame) >= 42 && frame[12] == etherARP>>8 && frame[13] == etherARP&0xff
		if !isARP || netip.AddrFrom4([4]byte(frame[38:42])) != r.addr {
			return false
		}
	}
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(frame)})
	defer pkt.DecRef()
	r.link.InjectInbound(0, pkt) // the Ethernet layer reads the protocol
	return true
}

// forwardTCP connects to where the container wants to go, and only then
// accepts, so that it sees a refusal.
func (r *Router) forwardTCP(req *tcp.ForwarderRequest) {
	to, ok := destination(req.ID())
	if !ok {
		req.Complete(true)
		return
	}
	ctx, cancel := context.WithTimeout(r.ctx, stackTimeout)
	defer cancel()
	out, err := dial(ctx, "tcp4", to.String())
	if err != nil {
		req.Complete(true)
		return
	}
	var wq waiter.Queue
	ep, terr := req.CreateEndpoint(&wq)
	req.Complete(false)
	if terr != nil {
		out.Close()
		return
	}
	in := gonet.NewTCPConn(&wq, ep)
	defer context.AfterFunc(r.ctx, func() {
		in.Close()
		out.Close()
	})()
	var wg sync.WaitGroup
	wg.Go(func() { pumpHalf(out.(*net.TCPConn), in) })
	wg.Go(func() { pumpHalf(in, out) })
	wg.Wait()
	in.Close()
	out.Close()
}

// halfCloser is a connection whose directions end one at a time.
type halfCloser interface {
	net.Conn
	CloseWrite() error
}

// pumpHalf copies one direction and passes its end on; an error ends both.
func pumpHalf(to halfCloser, from net.Conn) {
	if _, err := io.Copy(to, from); err != nil {
		to.Close()
		from.Close()
		return
	}
	_ = to.CloseWrite()
}

// forwardUDP keeps a socket for each of the container's until neither side has
// said anything for a while.
func (r *Router) forwardUDP(req *udp.ForwarderRequest) {
	to, ok := destination(req.ID())
	if !ok {
		return
	}
	var wq waiter.Queue
	ep, terr := req.CreateEndpoint(&wq)
	if terr != nil {
		return
	}
	in := gonet.NewUDPConn(&wq, ep)
	out, err := dial(r.ctx, "udp4", to.String())
	if err != nil {
		in.Close()
		return
	}
	r.wg.Go(func() {
		defer context.AfterFunc(r.ctx, func() {
			in.Close()
			out.Close()
		})()
		var wg sync.WaitGroup
		wg.Go(func() { datagrams(out, in, in, out) })
		wg.Go(func() { datagrams(in, out, in, out) })
		wg.Wait()
	})
}

// datagrams copies one direction. Each datagram keeps both directions going;
// the end of one ends the other.
func datagrams(to, from net.Conn, both ...net.Conn) {
	buf := make([]byte, 64<<10)
	for {
		_ = from.SetReadDeadline(time.Now().Add(udpIdle))
		n, err := from.Read(buf)
		if err == nil {
			_, err = to.Write(buf[:n])
			_ = to.SetReadDeadline(time.Now().Add(udpIdle))
		}
		if err != nil && (errors.Is(err, net.ErrClosed) || errors.Is(err, io.EOF) || isTimeout(err)) {
			break
		}
		if err != nil { // refused: it may come to listen yet
			time.Sleep(refusedPause)
		}
	}
	for _, c := range both {
		c.Close()
	}
}

// destination is where a packet was going. Link-local addresses are the host's
// own affair: clouds keep credentials there.
func destination(id stack.TransportEndpointID) (netip.AddrPort, bool) {
	a, ok := netip.AddrFromSlice(id.LocalAddress.AsSlice())
	if !ok || !a.Is4() || a.IsLinkLocalUnicast() || a.IsMulticast() || a.IsLoopback() || a == netip.AddrFrom4([4]byte{255, 255, 255, 255}) {
		return netip.AddrPort{}, false
	}
	return netip.AddrPortFrom(a, id.LocalPort), true
}

func dial(ctx context.Context, network, address string) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, network, address)
}

func isTimeout(err error) bool {
	var ne net.Error
	return errors.As(err, &ne) && ne.Timeout()
}
