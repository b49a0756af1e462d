package container

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/moby/moby/api/types/network"
)

// Link is what a container on the default network hears of one that it links to.
type Link struct {
	Parent, Alias string // the container that links, and its name for the other
	Addr          netip.Addr
	Ports         network.PortSet // that the other exposes
	Env           []string        // the other's
}

// Environment is what docker tells in variables: the first port, runs of ports,
// each port, the link's name, the other's variables.
func (l Link) Environment() []string {
	prefix := strings.ToUpper(strings.ReplaceAll(l.Alias, "-", "_")) + "_"
	var env []string
	add := func(name, format string, args ...any) {
		env = append(env, prefix+name+"="+fmt.Sprintf(format, args...))
	}
	url := func(p network.Port) string {
		return fmt.Sprintf("%s://%s", p.Proto(), netip.AddrPortFrom(l.Addr, p.Num()))
	}
	ports := l.sortedPorts()
	if len(ports) > 0 {
		add("PORT", "%s", url(ports[0]))
	}
	for i := 0; i < len(ports); {
		last := i
		for last+1 < len(ports) && ports[last+1].Proto() == ports[i].Proto() && ports[last+1].Num() == ports[last].Num()+1 {
			last++
		}
		if last > i {
			name := fmt.Sprintf("PORT_%d_%s_", ports[i].Num(), strings.ToUpper(string(ports[i].Proto())))
			add(name+"START", "%s", url(ports[i]))
			add(name+"ADDR", "%s", l.Addr)
			add(name+"PROTO", "%s", ports[i].Proto())
			add(name+"PORT_START", "%d", ports[i].Num())
			add(name+"END", "%s", url(ports[last]))
			add(name+"PORT_END", "%d", ports[last].Num())
		}
		i = last + 1
	}
	for _, p := range ports {
		name := fmt.Sprintf("PORT_%d_%s", p.Num(), strings.ToUpper(string(p.Proto())))
		add(name, "%s", url(p))
		add(name+"_ADDR", "%s", l.Addr)
		add(name+"_PORT", "%d", p.Num())
		add(name+"_PROTO", "%s", p.Proto())
	}
	add("NAME", "/%s/%s", l.Parent, l.Alias)
	for _, v := range l.Env {
		if name, value, ok := strings.Cut(v, "="); ok && name != "HOME" && name != "PATH" {
			add("ENV_"+name, "%s", value)
		}
	}
	return env
}

// sortedPorts are the exposed ones: TCP first, then by number.
func (l Link) sortedPorts() []network.Port {
	var ports []network.Port
	for p := range l.Ports {
		ports = append(ports, p)
	}
	slices.SortFunc(ports, func(a, b network.Port) int {
		return cmp.Or(cmp.Compare(protoOrder(a), protoOrder(b)), strings.Compare(string(a.Proto()), string(b.Proto())), cmp.Compare(a.Num(), b.Num()))
	})
	return ports
}

func protoOrder(p network.Port) int {
	if p.Proto() == network.TCP {
		return 0
	}
	return 1
}
