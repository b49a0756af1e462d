package container

import (
	"bytes"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Hosts is the content of /etc/hosts. self are the container's own addresses;
// where there are none, its name stands for loopback. extra are "name:ip"
// pairs as --add-host takes them, already checked.
func Hosts(hostname, domainname string, self []string, extra []string) []byte {
	names := hostname
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

// publicServers are docker's last resort.
func publicServers() []string {
	return []string{"8.8.8.8", "8.8.4.4", "2001:4860:4860::8888", "2001:4860:4860::8844"}
}

// ResolvConf is the content of /etc/resolv.conf, made from the host's file;
// servers, search and options (--dns, --dns-search, --dns-option) each replace
// theirs. A container in a network namespace of its own cannot reach name
// servers on the host's loopback, so those are left out, and public ones put
// in when none is left. A search of "." means none.
func ResolvConf(host []byte, n Network, servers, search, options []string) []byte {
	var other []string
	hostServers, hostSearch, hostOptions := []string(nil), []string(nil), []string(nil)
	for line := range strings.Lines(string(host)) {
		line, _, _ = strings.Cut(strings.TrimSpace(line), "#")
		f := strings.Fields(line)
		if len(f) < 2 || f[0][0] == ';' {
			continue
		}
		switch f[0] {
		case "nameserver":
			hostServers = append(hostServers, f[1])
		case "search", "domain":
			hostSearch = f[1:] // the last one counts (resolv.conf(5))
		case "options":
			hostOptions = append(hostOptions, f[1:]...)
		default:
			other = append(other, strings.Join(f, " "))
		}
	}
	if len(servers) == 0 {
		servers = reachable(hostServers, n)
	}
	if len(search) == 0 {
		search = hostSearch
	}
	if slices.Equal(search, []string{"."}) {
		search = nil
	}
	if len(options) == 0 {
		options = hostOptions
	}
	var b bytes.Buffer
	for _, s := range servers {
		fmt.Fprintf(&b, "nameserver %s\n", s)
	}
	if len(search) > 0 {
		fmt.Fprintf(&b, "search %s\n", strings.Join(search, " "))
	}
	if len(options) > 0 {
		fmt.Fprintf(&b, "options %s\n", strings.Join(options, " "))
	}
	for _, o := range other {
		fmt.Fprintln(&b, o)
	}
	return b.Bytes()
}

// reachable are the servers that work from inside.
func reachable(servers []string, n Network) []string {
	var out []string
	for _, s := range servers {
		addr, err := netip.ParseAddr(s)
		if err == nil && (n == NetworkHost || !addr.IsLoopback()) {
			out = append(out, s)
		}
	}
	if len(out) == 0 {
		return publicServers()
	}
	return out
}

// Hostname is the content of /etc/hostname.
func Hostname(name string) []byte { return append([]byte(name), '\n') }
