package container

import (
	"bytes"
	"fmt"
	"strings"

	"dhow/internal/network/nameserver"
)

// Hosts is the content of /etc/hosts. self are the container's own addresses;
// where there are none, its name stands for loopback. extra are "name:ip"
// pairs as --add-host takes them, already checked.
func Hosts(hostname, domainname string, self []string, extra []string) []byte {
	names := hostname
	if first, _, dotted := strings.Cut(hostname, "."); dotted && domainname == "" {
		names += " " + first
	}
	if domainname != "" && hostname != "" {
		names = hostname + "." + domainname + " " + hostname
	}
	local := "localhost"
	if len(self) == 0 && names != "" {
		local += " " + names
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, "127.0.0.1\t%s\n::1\tlocalhost ip6-localhost ip6-loopback\n", local)
	b.WriteString("fe00::\tip6-localnet\nff00::\tip6-mcastprefix\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n")
	for _, e := range extra {
		name, ip, _ := strings.Cut(e, ":")
		fmt.Fprintf(&b, "%s\t%s\n", ip, name)
	}
	for _, ip := range self {
		fmt.Fprintf(&b, "%s\t%s\n", ip, names)
	}
	return b.Bytes()
}

// HostHosts is the host's own /etc/hosts with "name:ip" entries behind it.
func HostHosts(own []byte, extra []string) []byte {
	own = bytes.Clone(own)
	if len(own) > 0 && own[len(own)-1] != '\n' {
		own = append(own, '\n')
	}
	for _, e := range extra {
		name, ip, _ := strings.Cut(e, ":")
		if ip == "host-gateway" {
			ip = "127.0.0.1" // the host is itself
		}
		own = fmt.Appendf(own, "%s\t%s\n", ip, name)
	}
	return own
}

// ResolvConf is the content of /etc/resolv.conf, made from the host's file;
// servers, search and options of c (--dns, --dns-search, --dns-option) each replace
// theirs. A container in a network namespace of its own cannot reach name
// servers on the host's loopback, so those are left out, and public ones put
// in when none is left. A search of "." means none.
func ResolvConf(host []byte, n Network, c nameserver.Conf) []byte {
	below := nameserver.ParseConf(host)
	if n != NetworkHost || len(below.Servers) == 0 {
		below.Servers = below.Reachable()
	}
	return c.Over(below).Text()
}

// Hostname is the content of /etc/hostname.
func Hostname(name string) []byte { return append([]byte(name), '\n') }
