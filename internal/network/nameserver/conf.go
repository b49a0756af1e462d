package nameserver

import (
	"bytes"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Conf is what resolv.conf(5) says.
type Conf struct {
	Servers         []netip.Addr
	Search, Options []string
	Other           []string // lines that are none of these
}

// ParseConf reads what it can, as the C library does.
func ParseConf(data []byte) Conf {
	var c Conf
	for line := range strings.Lines(string(data)) {
		line, _, _ = strings.Cut(line, "#")
		f := strings.Fields(line)
		if len(f) < 2 || f[0][0] == ';' {
			continue
		}
		switch f[0] {
		case "nameserver":
			if a, err := netip.ParseAddr(f[1]); err == nil {
				c.Servers = append(c.Servers, a)
			}
		case "search", "domain":
			c.Search = f[1:] // the last one counts
		case "options":
			c.Options = append(c.Options, f[1:]...)
		default:
			c.Other = append(c.Other, strings.Join(f, " "))
		}
	}
	return c
}

// Over is c with what is missing from below. A search of "." is none.
func (c Conf) Over(below Conf) Conf {
	if len(c.Servers) == 0 {
		c.Servers = below.Servers
	}
	if len(c.Search) == 0 {
		c.Search = below.Search
	}
	if slices.Equal(c.Search, []string{"."}) {
		c.Search = nil
	}
	if len(c.Options) == 0 {
		c.Options = below.Options
	}
	if len(c.Other) == 0 {
		c.Other = below.Other
	}
	return c
}

// Reachable are the servers that are not on the machine's own loopback; public
// ones where there are none, docker's.
func (c Conf) Reachable() []netip.Addr {
	list := slices.DeleteFunc(slices.Clone(c.Servers), netip.Addr.IsLoopback)
	if len(list) > 0 {
		return list
	}
	for _, s := range []string{"8.8.8.8", "8.8.4.4", "2001:4860:4860::8888", "2001:4860:4860::8844"} {
		list = append(list, netip.MustParseAddr(s))
	}
	return list
}

// Text is the file.
func (c Conf) Text() []byte {
	var b bytes.Buffer
	for _, s := range c.Servers {
		fmt.Fprintf(&b, "nameserver %s\n", s)
	}
	if len(c.Search) > 0 {
		fmt.Fprintf(&b, "search %s\n", strings.Join(c.Search, " "))
	}
	if len(c.Options) > 0 {
		fmt.Fprintf(&b, "options %s\n", strings.Join(c.Options, " "))
	}
	for _, line := range c.Other {
		fmt.Fprintln(&b, line)
	}
	return b.Bytes()
}
