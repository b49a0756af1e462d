// Package nameserver answers a container's questions for names (RFC 1035, over
// UDP and TCP): names that its owner knows from what the owner says, all others
// by asking name servers outside.
//
// It knows no networks and no containers, and opens no socket to serve: it is
// given those.
//
// Invariant: every answer belongs to a question, and fits what the client takes.
package nameserver

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

const (
	// Names come and go with containers; docker says 600 and lets clients ask
	// dead addresses for as long.
	answerTTL  = 5
	maxQueries = 1024 // at once; what is more is dropped, and asked again
	maxUDP     = 512  // RFC 1035, 4.2.1, without EDNS
	// A client of TCP that says nothing is left.
	tcpIdle = 10 * time.Second
	// After a failed accept: out of descriptors, likely, and some will be closed.
	acceptPause = 50 * time.Millisecond
)

// Config is where answers come from.
type Config struct {
	// Lookup finds the addresses of a name, which is in lower case and without a
	// dot at its end. known says whether there is such a name, with or without an
	// address of one family.
	Lookup func(ctx context.Context, name string) (ips []netip.Addr, known bool)
	// Reverse finds the name of an address.
	Reverse func(ctx context.Context, ip netip.Addr) (name string, known bool)
	// Forward asks outside; see Ask.
	Forward func(ctx context.Context, query []byte, tcp bool) ([]byte, error)
}

// Server serves one container.
type Server struct {
	config Config
	udp    *net.UDPConn
	tcp    *net.TCPListener
	cancel context.CancelFunc
	slots  chan struct{}
	wg     sync.WaitGroup
}

// Serve answers what comes to the sockets, which it owns from now on, until
// Close.
func Serve(udp *net.UDPConn, tcp *net.TCPListener, c Config) *Server {
	ctx, cancel := context.WithCancel(context.Background())
	s := &Server{config: c, udp: udp, tcp: tcp, cancel: cancel, slots: make(chan struct{}, maxQueries)}
	s.wg.Go(func() { s.serveUDP(ctx) })
	s.wg.Go(func() { s.serveTCP(ctx) })
	return s
}

// Close stops it and waits for the questions that are being answered.
func (s *Server) Close() error {
	s.cancel()
	err := errors.Join(s.udp.Close(), s.tcp.Close())
	s.wg.Wait()
	return err
}

func (s *Server) serveUDP(ctx context.Context) {
	buf := make([]byte, 4096) // a question is far smaller
	for {
		n, from, err := s.udp.ReadFromUDPAddrPort(buf)
		if err != nil {
			if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return
			}
			continue
		}
		select {
		case s.slots <- struct{}{}:
		default:
			continue
		}
		query := append([]byte(nil), buf[:n]...)
		s.wg.Go(func() {
			defer func() { <-s.slots }()
			if answer := s.answer(ctx, query, false); answer != nil {
				_, _ = s.udp.WriteToUDPAddrPort(answer, from)
			}
		})
	}
}

func (s *Server) serveTCP(ctx context.Context) {
	for {
		c, err := s.tcp.AcceptTCP()
		if err != nil {
			if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return
			}
			time.Sleep(acceptPause)
			continue
		}
		select {
		case s.slots <- struct{}{}:
		default:
			c.Close()
			continue
		}
		s.wg.Go(func() {
			defer func() { <-s.slots }()
			defer c.Close()
			defer context.AfterFunc(ctx, func() { c.Close() })()
			s.serveConn(ctx, c)
		})
	}
}

// serveConn answers questions on one connection, one after the other.
func (s *Server) serveConn(ctx context.Context, c net.Conn) {
	for {
		_ = c.SetDeadline(time.Now().Add(tcpIdle))
		query, err := readTCP(c)
		if err != nil {
			return
		}
		answer := s.answer(ctx, query, true)
		if answer == nil || writeTCP(c, answer) != nil {
			return
		}
	}
}

// readTCP reads one message with its length before it (RFC 1035, 4.2.2).
func readTCP(c io.Reader) ([]byte, error) {
	var length [2]byte
	if _, err := io.ReadFull(c, length[:]); err != nil {
		return nil, err
	}
	msg := make([]byte, binary.BigEndian.Uint16(length[:]))
	_, err := io.ReadFull(c, msg)
	return msg, err
}

func writeTCP(c io.Writer, msg []byte) error {
	if len(msg) > 0xffff {
		return fmt.Errorf("a message of %d bytes", len(msg))
	}
	_, err := c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(msg))), msg...))
	return err
}

// answer answers one question; nil is no answer at all, for what is no question.
func (s *Server) answer(ctx context.Context, query []byte, tcp bool) []byte {
	q, err := parseQuery(query)
	if err != nil || q.header.Response {
		return nil
	}
	if q.header.OpCode != 0 {
		return q.reply(dnsmessage.RCodeNotImplemented, nil)
	}
	if answer := s.local(ctx, q); answer != nil {
		if limit := q.udpSize; !tcp && len(answer) > limit {
			return q.truncated()
		}
		return answer
	}
	answer, err := s.config.Forward(ctx, query, tcp)
	if err != nil {
		return q.reply(dnsmessage.RCodeServerFailure, nil)
	}
	return answer
}

// local answers from the records, nil when they know nothing of the name.
func (s *Server) local(ctx context.Context, q *dnsQuery) []byte {
	name := strings.ToLower(strings.TrimSuffix(q.question.Name.String(), "."))
	if q.question.Type == dnsmessage.TypePTR {
		ip, ok := parseReverse(name)
		if !ok {
			return nil
		}
		target, ok := s.config.Reverse(ctx, ip)
		if !ok {
			return nil
		}
		to, err := dnsmessage.NewName(target + ".")
		if err != nil {
			return nil
		}
		return q.reply(dnsmessage.RCodeSuccess, []dnsmessage.ResourceBody{&dnsmessage.PTRResource{PTR: to}})
	}
	ips, known := s.config.Lookup(ctx, name)
	if !known {
		return nil
	}
	rand.Shuffle(len(ips), func(i, j int) { ips[i], ips[j] = ips[j], ips[i] })
	var bodies []dnsmessage.ResourceBody
	for _, ip := range ips {
		switch {
		case ip.Is4() && q.question.Type == dnsmessage.TypeA:
			bodies = append(bodies, &dnsmessage.AResource{A: ip.As4()})
		case ip.Is6() && q.question.Type == dnsmessage.TypeAAAA:
			bodies = append(bodies, &dnsmessage.AAAAResource{AAAA: ip.As16()})
		}
	}
	// No records of that type is an answer too: asked outside, a name of ours
	// would not exist, and clients that ask for both families would believe it.
	return q.reply(dnsmessage.RCodeSuccess, bodies)
}

// dnsQuery is one question.
type dnsQuery struct {
	header   dnsmessage.Header
	question dnsmessage.Question
	udpSize  int // what the client takes without TCP
}

// parseQuery reads a message with one question.
func parseQuery(msg []byte) (*dnsQuery, error) {
	var p dnsmessage.Parser
	q := &dnsQuery{udpSize: maxUDP}
	var err error
	if q.header, err = p.Start(msg); err != nil {
		return nil, err
	}
	if q.question, err = p.Question(); err != nil {
		return nil, err
	}
	if err := p.SkipAllQuestions(); err != nil {
		return nil, err
	}
	if p.SkipAllAnswers() != nil || p.SkipAllAuthorities() != nil {
		return q, nil
	}
	for range 8 { // an OPT record is the first, as a rule, and the only one
		h, err := p.AdditionalHeader()
		if err != nil {
			break
		}
		if h.Type == dnsmessage.TypeOPT { // RFC 6891, 6.2.3: the class is a size
			q.udpSize = max(maxUDP, int(h.Class))
			break
		}
		if p.SkipAdditional() != nil {
			break
		}
	}
	return q, nil
}

// reply builds an answer to the question.
func (q *dnsQuery) reply(code dnsmessage.RCode, bodies []dnsmessage.ResourceBody) []byte {
	m := dnsmessage.Message{
		Header: dnsmessage.Header{
			ID: q.header.ID, Response: true, OpCode: q.header.OpCode, RecursionDesired: q.header.RecursionDesired,
			RecursionAvailable: true, RCode: code,
		},
		Questions: []dnsmessage.Question{q.question},
	}
	for _, b := range bodies {
		m.Answers = append(m.Answers, dnsmessage.Resource{
			Header: dnsmessage.ResourceHeader{Name: q.question.Name, Class: dnsmessage.ClassINET, TTL: answerTTL}, Body: b,
		})
	}
	msg, err := m.Pack()
	if err != nil {
		return nil
	}
	return msg
}

// truncated tells the client to ask again on TCP.
func (q *dnsQuery) truncated() []byte {
	msg := q.reply(dnsmessage.RCodeSuccess, nil)
	if len(msg) > 2 {
		msg[2] |= 2 // TC (RFC 1035, 4.1.1)
	}
	return msg
}

// parseReverse reads the address from a name below in-addr.arpa or ip6.arpa.
func parseReverse(name string) (netip.Addr, bool) {
	if rest, ok := strings.CutSuffix(name, ".in-addr.arpa"); ok {
		parts := strings.Split(rest, ".")
		if len(parts) != 4 {
			return netip.Addr{}, false
		}
		a, err := netip.ParseAddr(parts[3] + "." + parts[2] + "." + parts[1] + "." + parts[0])
		return a, err == nil && a.Is4()
	}
	rest, ok := strings.CutSuffix(name, ".ip6.arpa")
	if !ok || len(rest) != 63 {
		return netip.Addr{}, false
	}
	var b strings.Builder
	for i := len(rest) - 1; i >= 0; i -= 2 {
		b.WriteByte(rest[i])
		if n := (len(rest) - 1 - i) / 2; n%4 == 3 && n < 31 {
			b.WriteByte(':')
		}
		if i > 0 && rest[i-1] != '.' {
			return netip.Addr{}, false
		}
	}
	a, err := netip.ParseAddr(b.String())
	return a, err == nil && a.Is6()
}
