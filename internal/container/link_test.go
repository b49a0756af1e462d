package container

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/moby/moby/api/types/network"
)

func TestLinkEnvironment(t *testing.T) {
	l := Link{Parent: "web", Alias: "my-db", Addr: netip.MustParseAddr("172.17.0.2"), Ports: network.PortSet{},
		Env: []string{"PATH=/bin", "HOME=/root", "PASSWORD=a=b", "broken"}}
	for _, p := range []string{"53/udp", "81/tcp", "80/tcp", "443/tcp"} {
		l.Ports[network.MustParsePort(p)] = struct{}{}
	}
	want := []string{
		"MY_DB_PORT=tcp://172.17.0.2:80",
		"MY_DB_PORT_80_TCP_START=tcp://172.17.0.2:80",
		"MY_DB_PORT_80_TCP_ADDR=172.17.0.2",
		"MY_DB_PORT_80_TCP_PROTO=tcp",
		"MY_DB_PORT_80_TCP_PORT_START=80",
		"MY_DB_PORT_80_TCP_END=tcp://172.17.0.2:81",
		"MY_DB_PORT_80_TCP_PORT_END=81",
		"MY_DB_PORT_80_TCP=tcp://172.17.0.2:80",
		"MY_DB_PORT_80_TCP_ADDR=172.17.0.2",
		"MY_DB_PORT_80_TCP_PORT=80",
		"MY_DB_PORT_80_TCP_PROTO=tcp",
		"MY_DB_PORT_81_TCP=tcp://172.17.0.2:81",
		"MY_DB_PORT_81_TCP_ADDR=172.17.0.2",
		"MY_DB_PORT_81_TCP_PORT=81",
		"MY_DB_PORT_81_TCP_PROTO=tcp",
		"MY_DB_PORT_443_TCP=tcp://172.17.0.2:443",
		"MY_DB_PORT_443_TCP_ADDR=172.17.0.2",
		"MY_DB_PORT_443_TCP_PORT=443",
		"MY_DB_PORT_443_TCP_PROTO=tcp",
		"MY_DB_PORT_53_UDP=udp://172.17.0.2:53",
		"MY_DB_PORT_53_UDP_ADDR=172.17.0.2",
		"MY_DB_PORT_53_UDP_PORT=53",
		"MY_DB_PORT_53_UDP_PROTO=udp",
		"MY_DB_NAME=/web/my-db",
		"MY_DB_ENV_PASSWORD=a=b",
	}
	if diff := cmp.Diff(l.Environment(), want); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(Link{Parent: "a", Alias: "b"}.Environment(), []string{"B_NAME=/a/b"}); diff != "" {
		t.Error(diff)
	}
}
