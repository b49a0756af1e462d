package nameserver

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// Port is where name servers are.
const Port = 53

const (
	// The C library waits 5 s for an answer: whatever comes later is not heard.
	forwardTimeout = 4500 * time.Millisecond
	// The next server is asked as well when one is silent for so long.
	forwardPatience = 1 * time.Second
	maxAnswer       = 64 << 10
)

// Upstream is a name server outside and the way to it.
type Upstream struct {
	Addr netip.Addr
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
}

// Ask sends the question to the servers, one after the other, each as soon as
// the one before fails or is silent for a while. The first answer that says
// something counts; a server's "I cannot" (SERVFAIL, REFUSED) only when nobody
// has a better one.
func Ask(ctx context.Context, servers []Upstream, query []byte, tcp bool) ([]byte, error) {
	if len(servers) == 0 {
		return nil, errors.New("there are no name servers")
	}
	ctx, cancel := context.WithTimeout(ctx, forwardTimeout)
	defer cancel()
	type result struct {
		msg []byte
		err error
	}
	results := make(chan result, len(servers))
	next := func() {
		s := servers[0]
		servers = servers[1:]
		go func() {
			msg, err := s.exchange(ctx, query, tcp)
			results <- result{msg, err}
		}()
	}
	var poor []byte
	var failed error
	next()
	for pending := 1; pending > 0; {
		patience := time.NewTimer(forwardPatience)
		select {
		case r := <-results:
			pending--
			switch {
			case r.err != nil:
				failed = r.err
			case useful(r.msg):
				patience.Stop()
				return r.msg, nil
			default:
				poor = r.msg
			}
		case <-patience.C:
		}
		patience.Stop()
		if len(servers) > 0 {
			next()
			pending++
		}
	}
	if poor != nil {
		return poor, nil
	}
	return nil, failed
}

// useful says whether a server could answer.
func useful(msg []byte) bool {
	var p dnsmessage.Parser
	h, err := p.Start(msg)
	return err == nil && h.RCode != dnsmessage.RCodeServerFailure && h.RCode != dnsmessage.RCodeRefused
}

// exchange asks one server.
func (s Upstream) exchange(ctx context.Context, query []byte, tcp bool) ([]byte, error) {
	network := "udp"
	if tcp {
		network = "tcp"
	}
	c, err := s.Dial(ctx, network, netip.AddrPortFrom(s.Addr, Port).String())
	if err != nil {
		return nil, err
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.Close() })()
	if tcp {
		if err := writeTCP(c, query); err != nil {
			return nil, err
		}
		msg, err := readTCP(c)
		if err == nil && !isAnswer(query, msg) {
			err = errors.New("an answer to something else")
		}
		return msg, err
	}
	if _, err := c.Write(query); err != nil {
		return nil, err
	}
	buf := make([]byte, maxAnswer)
	for {
		n, err := c.Read(buf)
		if err != nil {
			return nil, err
		}
		if isAnswer(query, buf[:n]) { // else somebody guesses
			return buf[:n:n], nil
		}
	}
}

// isAnswer says whether msg answers the query: its id and its question.
func isAnswer(query, msg []byte) bool {
	var p, q dnsmessage.Parser
	hp, err1 := p.Start(query)
	hq, err2 := q.Start(msg)
	if err1 != nil || err2 != nil || hp.ID != hq.ID || !hq.Response {
		return false
	}
	asked, err := p.Question()
	if err != nil {
		return false
	}
	answered, err := q.Question()
	if errors.Is(err, dnsmessage.ErrSectionDone) { // an error may come without it
		return hq.RCode != dnsmessage.RCodeSuccess
	}
	return err == nil && answered.Type == asked.Type && answered.Class == asked.Class
}
