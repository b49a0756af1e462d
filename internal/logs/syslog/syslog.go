// Package syslog sends lines to syslog servers: RFC 3164 and RFC 5424 messages
// over udp (RFC 5426), tcp (RFC 6587), TLS (RFC 5425) and the sockets of the
// machine itself. It has docker's formats and framing, byte for byte but for the
// time, which is the line's and not that of sending. The protocol has no answers.
//
// There is no kept client library that sends other times than now; the format is
// a handful of fields.
//
// Invariant: one line is one message, whatever is in it.
package syslog

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"dhow/internal/logs/driver"
)

// facilities are in the order of their numbers (RFC 5424, section 6.2.1); 12 to
// 15 have no names.
var facilities = []string{"kern", "user", "mail", "daemon", "auth", "syslog", "lpr", "news", "uucp", "cron", "authpriv", "ftp",
	"", "", "", "", "local0", "local1", "local2", "local3", "local4", "local5", "local6", "local7"}

const (
	facilityDaemon = 3
	severityError  = 3 // RFC 5424, section 6.2.1
	severityInfo   = 6
	secure         = "tcp+tls"
)

// Kind describes the driver.
func Kind() driver.Kind {
	return driver.Kind{
		Options: driver.Describing(map[string]func(string) error{
			"syslog-address":         checkAddress,
			"syslog-facility":        checkFacility,
			"syslog-format":          driver.OneOf("rfc3164", "rfc5424", "rfc5424micro"),
			"syslog-tls-ca-cert":     nil,
			"syslog-tls-cert":        nil,
			"syslog-tls-key":         nil,
			"syslog-tls-skip-verify": driver.Boolean,
		}),
		Open: open,
		Delivery: func(driver.Options) driver.Delivery {
			// What docker cuts lines at, and about what servers take.
			return driver.Delivery{Line: 16 << 10, Unacknowledged: true}
		},
	}
}

// address is where to send: networks to try, each with an address.
type address struct{ network, address string }

func parseAddress(text string) ([]address, error) {
	if text == "" {
		var local []address
		for _, network := range []string{"unixgram", "unix"} {
			for _, path := range []string{"/dev/log", "/var/run/syslog", "/var/run/log"} {
				local = append(local, address{network, path})
			}
		}
		return local, nil
	}
	u, err := url.Parse(text)
	if err != nil {
		return nil, err
	}
	switch u.Scheme {
	case "unix", "unixgram":
		if u.Path == "" {
			return nil, fmt.Errorf("want %s:///path", u.Scheme)
		}
		return []address{{u.Scheme, u.Path}}, nil
	case "udp", "tcp", secure:
	default:
		return nil, fmt.Errorf("want udp://, tcp://, tcp+tls://, unix:// or unixgram://")
	}
	if u.Hostname() == "" {
		return nil, fmt.Errorf("want %s://host:port", u.Scheme)
	}
	port := u.Port()
	if port == "" {
		port = "514"
	}
	return []address{{u.Scheme, net.JoinHostPort(u.Hostname(), port)}}, nil
}

func checkAddress(v string) error {
	_, err := parseAddress(v)
	return err
}

func parseFacility(v string) (int, error) {
	if v == "" {
		return facilityDaemon, nil
	}
	if i := slices.Index(facilities, v); i >= 0 {
		return i, nil
	}
	if n, err := strconv.Atoi(v); err == nil && n >= 0 && n < len(facilities) {
		return n, nil
	}
	return 0, fmt.Errorf("want a facility such as daemon or local0, or a number from 0 to 23")
}

func checkFacility(v string) error {
	_, err := parseFacility(v)
	return err
}

// sender is connected to one of its addresses.
type sender struct {
	addresses []address
	tls       *tls.Config
	conn      driver.Conn
	format    string
	counted   bool // octet counting (RFC 5425, section 4.3.1) instead of a newline
	facility  int
	tag       string // as the formats want it
	host      string
	pid       string
	buf       []byte
}

func open(info driver.Info, o driver.Options) (driver.Sender, error) {
	s := &sender{format: o["syslog-format"], pid: strconv.Itoa(os.Getpid())}
	var err error
	if s.addresses, err = parseAddress(o["syslog-address"]); err != nil {
		return nil, err
	}
	if s.facility, err = parseFacility(o["syslog-facility"]); err != nil {
		return nil, err
	}
	if s.tag, err = info.Tag(o, "{{.ID}}"); err != nil {
		return nil, err
	}
	if s.host, err = os.Hostname(); err != nil {
		return nil, err
	}
	if s.addresses[0].network == secure {
		s.tls, err = driver.TLSFiles(o["syslog-tls-ca-cert"], o["syslog-tls-cert"], o["syslog-tls-key"], o.Bool("syslog-tls-skip-verify"))
		if err != nil {
			return nil, err
		}
		s.counted = strings.HasPrefix(s.format, "rfc5424")
	}
	return s, nil
}

func (s *sender) Send(ctx context.Context, batch []driver.Record) (int, error) {
	if err := s.connect(ctx); err != nil {
		return 0, err
	}
	if s.conn.Network == "udp" || s.conn.Network == "unixgram" {
		return s.datagrams(ctx, batch)
	}
	s.buf = s.buf[:0]
	for _, r := range batch {
		s.buf = s.frame(s.buf, r)
	}
	if err := s.conn.Write(ctx, s.buf); err != nil {
		return 0, err
	}
	return 0, s.conn.Drain(ctx)
}

func (s *sender) datagrams(ctx context.Context, batch []driver.Record) (int, error) {
	for i, r := range batch {
		s.buf = s.frame(s.buf[:0], r)
		if len(s.buf) == 0 {
			continue
		}
		if err := s.conn.Write(ctx, s.buf); err != nil {
			s.conn.Close()
			return i, err
		}
	}
	return len(batch), nil
}

// connect keeps the connection, or connects to the first address that works.
func (s *sender) connect(ctx context.Context) error {
	if s.conn.Address != "" {
		if _, err := s.conn.Dial(ctx); err == nil || len(s.addresses) == 1 {
			return err
		}
	}
	var first error
	for _, a := range s.addresses {
		s.conn = driver.Conn{Network: a.network, Address: a.address, TLS: s.tls, Unacknowledged: true}
		if a.network == secure {
			s.conn.Network = "tcp"
		}
		_, err := s.conn.Dial(ctx)
		if err == nil {
			return nil
		}
		if first == nil {
			first = err
		}
	}
	return first
}

// frame appends the message of a record. Empty lines have none, as with docker.
func (s *sender) frame(dst []byte, r driver.Record) []byte {
	if len(r.Line) == 0 {
		return dst
	}
	if !s.counted {
		return append(s.message(dst, r), '\n')
	}
	start := len(dst)
	dst = s.message(dst, r)
	prefix := strconv.AppendInt(nil, int64(len(dst)-start), 10)
	return slices.Insert(dst, start, append(prefix, ' ')...)
}

func (s *sender) message(dst []byte, r driver.Record) []byte {
	severity := severityInfo
	if r.Stream == driver.Stderr {
		severity = severityError
	}
	dst = append(dst, '<')
	dst = strconv.AppendInt(dst, int64(s.facility*8+severity), 10)
	dst = append(dst, '>')
	switch s.format {
	case "": // of the C library: no host
		dst = r.Time.Local().AppendFormat(dst, time.Stamp)
		return s.legacy(append(dst, ' '), r.Line)
	case "rfc3164": // section 4.1
		dst = r.Time.Local().AppendFormat(dst, time.Stamp)
		dst = append(dst, ' ')
		dst = append(dst, s.host...)
		return s.legacy(append(dst, ' '), r.Line)
	}
	layout := time.RFC3339
	if s.format == "rfc5424micro" {
		layout = "2006-01-02T15:04:05.000000Z07:00"
	}
	dst = append(dst, "1 "...) // RFC 5424, section 6
	dst = r.Time.Local().AppendFormat(dst, layout)
	for _, field := range []string{printable(s.host, 255), printable(s.tag, 48), s.pid, printable(s.tag, 32), "-"} {
		dst = append(dst, ' ')
		dst = append(dst, field...)
	}
	dst = append(dst, ' ')
	return append(dst, r.Line...)
}

func (s *sender) legacy(dst, line []byte) []byte {
	dst = append(dst, s.tag...)
	dst = append(dst, '[')
	dst = append(dst, s.pid...)
	dst = append(dst, "]: "...)
	return append(dst, line...)
}

// printable makes a field of RFC 5424: printable ASCII without spaces, of a
// bounded length.
func printable(s string, longest int) string {
	if s == "" {
		return "-"
	}
	field := []byte(s)[:min(len(s), longest)]
	for i, c := range field {
		if c <= ' ' || c >= 0x7f {
			field[i] = '_'
		}
	}
	return string(field)
}

// End is driver.Conn's.
func (s *sender) End(ctx context.Context) bool { return s.conn.End(ctx) }

// Told is driver.Conn's.
func (s *sender) Told() (written, unread int64) { return s.conn.Told() }

func (s *sender) Close() error { return s.conn.Close() }
