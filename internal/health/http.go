package health

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
)

// maxHeader bounds what a server may say before its answer's body.
const maxHeader = 64 << 10

// httpProbe asks over HTTP/1.1 on a connection of its own: a server that takes
// no new ones is not healthy. Redirects are answers like others.
type httpProbe struct {
	target HTTPTarget
	dial   Dialer
}

// Probe writes the request by hand. net/http's Transport would do the same with
// two goroutines and a pool more.
func (p *httpProbe) Probe(ctx context.Context) (int, string, error) {
	conn, err := p.target.connect(ctx, p.dial)
	if err != nil {
		return failure(ctx, err)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	if p.target.TLS {
		c, err := p.handshake(ctx, conn)
		if err != nil {
			return failure(ctx, err)
		}
		conn = c
	}
	if _, err := io.WriteString(conn, p.request()); err != nil {
		return failure(ctx, err)
	}
	limited := &io.LimitedReader{R: conn, N: maxHeader + MaxOutput}
	resp, err := http.ReadResponse(bufio.NewReaderSize(limited, 4096), &http.Request{Method: http.MethodGet})
	if err != nil {
		return failure(ctx, fmt.Errorf("%s: no answer in HTTP: %w", &p.target, err))
	}
	defer resp.Body.Close()
	// One byte more than is kept, so that a cut shows.
	body, err := io.ReadAll(io.LimitReader(resp.Body, MaxOutput+1))
	if err != nil && ctx.Err() != nil {
		return failure(ctx, err)
	}
	out := "HTTP " + resp.Status
	if len(body) > 0 {
		out += "\n" + strings.ToValidUTF8(string(body), "\uFFFD")
	}
	if !p.target.accepts(resp.StatusCode) {
		return 1, bound(out), nil
	}
	return 0, bound(out), nil
}

// request is the whole request.
func (p *httpProbe) request() string {
	return "GET " + p.target.Path + " HTTP/1.1\r\nHost: " + p.target.authority() +
		"\r\nUser-Agent: dhow-health\r\nAccept: */*\r\nConnection: close\r\n\r\n"
}

// handshake speaks TLS with whoever answers.
func (p *httpProbe) handshake(ctx context.Context, conn net.Conn) (net.Conn, error) {
	c := tls.Client(conn, &tls.Config{
		// The container is asked about itself, over its own loopback; its certificate
		// is for the names that others call it.
		InsecureSkipVerify: true,
		ServerName:         (&url.URL{Host: p.target.authority()}).Hostname(),
		NextProtos:         []string{"http/1.1"},
	})
	if err := c.HandshakeContext(ctx); err != nil {
		return nil, fmt.Errorf("%s: TLS: %w", &p.target, err)
	}
	return c, nil
}
