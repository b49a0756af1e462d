package health

import (
	"net"
	"net/netip"
	"strconv"
	"strings"

	"dhow/internal/errdef"
)

// Target is a port of the container. The zero Addr is the container's own
// loopback, 127.0.0.1 and then ::1.
type Target struct {
	Addr netip.Addr
	Port uint16
}

// HTTPTarget is what a probe asks over HTTP/1.1. Certificates are not checked:
// the container is asked about itself.
type HTTPTarget struct {
	Target
	TLS    bool
	Host   string // for the Host header and TLS; "" is the address
	Path   string // with its query; begins with "/"
	Ranges []StatusRange
}

// StatusRange is the statuses First to Last.
type StatusRange struct{ First, Last int }

// GRPCTarget is what a probe asks by grpc.health.v1. Service "" is the server as
// a whole.
type GRPCTarget struct {
	Target
	Service string
}

// maxTarget bounds the text of a probe, which may stem from an image's label.
const maxTarget = 4096

// The forms that the texts of probes have, for messages.
const (
	httpForm = `want [http[s]://][HOST]:PORT[/PATH][=STATUS[-STATUS][,…]], such as ":8080/healthz=200-399"`
	tcpForm  = `want [ADDRESS]:PORT, such as ":5432"`
	grpcForm = `want [ADDRESS]:PORT[/SERVICE], such as ":9000"`
)

// ParseHTTP reads [http[s]://][HOST]:PORT[/PATH][=RANGES]. HOST is an address,
// or a name that only the request carries: the probe goes to the container in
// any case. Without RANGES a status of 200 to 399 is success.
func ParseHTTP(s string) (*HTTPTarget, error) {
	invalid := func(why string) error {
		return errdef.WithHint(errdef.New(errdef.ErrInvalid, "http probe %.100q: %s", s, why), "%s", httpForm)
	}
	if len(s) > maxTarget {
		return nil, invalid("it is too long")
	}
	t := &HTTPTarget{Path: "/", Ranges: []StatusRange{{200, 399}}}
	rest, ranges, ok := cutRanges(s)
	if ok {
		t.Ranges = ranges
	}
	if scheme, after, ok := strings.Cut(rest, "://"); ok {
		switch strings.ToLower(scheme) {
		case "http":
		case "https":
			t.TLS = true
		default:
			return nil, invalid("the scheme is neither http nor https")
		}
		rest = after
	}
	host := rest
	if i := strings.IndexAny(rest, "/?"); i >= 0 {
		host, t.Path = rest[:i], rest[i:]
		if t.Path[0] == '?' {
			t.Path = "/" + t.Path
		}
	}
	if strings.ContainsFunc(t.Path, func(r rune) bool { return r <= ' ' || r == 0x7f || r == '#' }) {
		return nil, invalid("the path has a space, a control character or a fragment")
	}
	if !strings.Contains(host, ":") || strings.HasSuffix(host, "]") {
		switch {
		case host == "":
			return nil, invalid("there is no port")
		case rest == s: // no scheme
			return nil, invalid("there is no port")
		case t.TLS:
			host += ":443"
		default:
			host += ":80"
		}
	}
	name, err := t.parse(host)
	if err != nil {
		return nil, invalid(err.Error())
	}
	t.Host = name
	return t, nil
}

// cutRanges takes "=200-299,404" off the end of a text.
func cutRanges(s string) (rest string, ranges []StatusRange, ok bool) {
	i := strings.LastIndexByte(s, '=')
	if i < 0 {
		return s, nil, false
	}
	for part := range strings.SplitSeq(s[i+1:], ",") {
		first, last, dash := strings.Cut(part, "-")
		if !dash {
			last = first
		}
		a, okA := parseStatus(first)
		b, okB := parseStatus(last)
		if !okA || !okB || a > b {
			return s, nil, false
		}
		ranges = append(ranges, StatusRange{a, b})
	}
	return s[:i], ranges, true
}

// parseStatus reads a status of three digits.
func parseStatus(s string) (int, bool) {
	n, err := strconv.ParseUint(s, 10, 16)
	return int(n), err == nil && len(s) == 3 && n >= 100
}

// ParseTCP reads [ADDRESS]:PORT.
func ParseTCP(s string) (*Target, error) {
	t := &Target{}
	name, err := t.parse(s)
	if err == nil && name != "" {
		err = errNotAddress
	}
	if err != nil {
		return nil, errdef.WithHint(errdef.New(errdef.ErrInvalid, "tcp probe %.100q: %w", s, err), "%s", tcpForm)
	}
	return t, nil
}

// ParseGRPC reads [ADDRESS]:PORT[/SERVICE].
func ParseGRPC(s string) (*GRPCTarget, error) {
	host, service, _ := strings.Cut(s, "/")
	t := &GRPCTarget{Service: service}
	name, err := t.parse(host)
	switch {
	case err != nil:
	case len(s) > maxTarget:
		err = errdef.New(errdef.ErrInvalid, "it is too long")
	case name != "":
		err = errNotAddress
	}
	if err != nil {
		return nil, errdef.WithHint(errdef.New(errdef.ErrInvalid, "grpc probe %.100q: %w", s, err), "%s", grpcForm)
	}
	return t, nil
}

// errNotAddress says why a name is refused: it would have to be looked up
// somewhere, and a probe asks the container alone.
var errNotAddress = errdef.New(errdef.ErrInvalid, "the host is a name, not an address of the container")

// parse reads "[host]:port". A host that is no address is returned, but for
// localhost.
func (t *Target) parse(s string) (name string, err error) {
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		return "", errdef.New(errdef.ErrInvalid, "there is no port")
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || n == 0 {
		return "", errdef.New(errdef.ErrInvalid, "the port is not a number from 1 to 65535")
	}
	t.Port = uint16(n)
	if host == "" || strings.EqualFold(host, "localhost") {
		return "", nil
	}
	if a, err := netip.ParseAddr(host); err == nil {
		t.Addr = a
		return "", checkName(a.Zone()) // a zone may be any text
	}
	return host, checkName(host)
}

// checkName refuses what cannot stand in the head of a request.
func checkName(host string) error {
	for _, r := range host {
		if (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '-' && r != '.' && r != '_' {
			return errdef.New(errdef.ErrInvalid, "the host has the character %q", r)
		}
	}
	return nil
}

// addresses are where to try to connect, in order.
func (t Target) addresses() []netip.AddrPort {
	if t.Addr.IsValid() {
		return []netip.AddrPort{netip.AddrPortFrom(t.Addr, t.Port)}
	}
	return []netip.AddrPort{
		netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), t.Port),
		netip.AddrPortFrom(netip.IPv6Loopback(), t.Port),
	}
}

// String is the address and port, "localhost" for the loopback.
func (t Target) String() string {
	if t.Addr.IsValid() {
		return netip.AddrPortFrom(t.Addr, t.Port).String()
	}
	return "localhost:" + strconv.Itoa(int(t.Port))
}

// authority is what the Host header says.
func (t *HTTPTarget) authority() string {
	if t.Host != "" {
		return net.JoinHostPort(t.Host, strconv.Itoa(int(t.Port)))
	}
	return t.Target.String()
}

// String is the target as a URL.
func (t *HTTPTarget) String() string {
	scheme := "http://"
	if t.TLS {
		scheme = "https://"
	}
	return scheme + t.authority() + t.Path
}

// accepts says whether the status is a success.
func (t *HTTPTarget) accepts(status int) bool {
	for _, r := range t.Ranges {
		if r.First <= status && status <= r.Last {
			return true
		}
	}
	return false
}

// String is "grpc address/service".
func (t *GRPCTarget) String() string {
	if t.Service == "" {
		return "grpc " + t.Target.String()
	}
	return "grpc " + t.Target.String() + "/" + t.Service
}
