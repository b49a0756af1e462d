package network

import (
	"context"
	"testing"

	"github.com/google/nftables"
)

// count is how many elements the table's sets have.
func (r *rules) count() (int, error) {
	c, err := nftables.New()
	if err != nil {
		return 0, describe(err, "read packet filter")
	}
	if ok, err := r.exists(c); !ok || err != nil {
		return 0, err
	}
	n := 0
	for _, set := range r.sets() {
		elements, err := c.GetSetElements(set)
		if err != nil {
			return 0, describe(err, "read packet filter: set %s", set.Name)
		}
		n += len(elements)
	}
	return n, nil
}

// flushRules does what "nft flush ruleset" does.
func flushRules(t *testing.T) {
	t.Helper()
	c, err := nftables.New()
	must(t, err)
	c.FlushRuleset()
	must(t, c.Flush())
}

func TestFlushedRules(t *testing.T) {
	w := newWorld(t)
	ns := newNetworks(t, Options{})
	a := up(t, ns, Request{Name: "a", Ports: []PortRequest{{Port: 80, HostPort: 8080}}})
	answer(t, a.Namespace(), "tcp4", ":80")
	full := snapshotHost(t, ns)
	flushRules(t)
	must(t, up(t, ns, Request{Name: "b"}).Close()) // whoever comes next repairs it
	waitHost(t, ns, full)
	wantAnswer(t, w.outside, "tcp", hostAddr+":8080", outsideAddr)
	flushRules(t)
	must(t, a.Close())
	must(t, ns.Reclaim(context.Background(), "id-a"))
	up(t, ns, Request{Name: "c", Ports: []PortRequest{{Port: 80, HostPort: 8080}}})
}

// TestTwoRoots: state directories on one host do not touch each other's.
func TestTwoRoots(t *testing.T) {
	w := newWorld(t)
	one, two := newNetworks(t, Options{}), newNetworks(t, Options{})
	a := up(t, one, Request{Name: "a", Ports: []PortRequest{{Port: 80, HostPort: 8080}}})
	before := snapshotHost(t, one)
	b := up(t, two, Request{Name: "a", Ports: []PortRequest{{Port: 80, HostPort: 8081}}})
	if got := b.Endpoints()[0].IP4.Addr().String(); got != "172.18.0.2" {
		t.Errorf("got %s, want an address of another subnet", got)
	}
	var stop func() error
	for i, at := range []*Attachment{a, b} {
		stop = answer(t, at.Namespace(), "tcp4", ":80")
		wantAnswer(t, w.outside, "tcp", []string{hostAddr + ":8080", hostAddr + ":8081"}[i], outsideAddr)
	}
	noWay(t, a.Namespace(), "tcp", "172.18.0.2:80")
	must(t, stop())
	must(t, b.Close())
	dropAll(t, two)
	waitHost(t, one, before)
	wantAnswer(t, w.outside, "tcp", hostAddr+":8080", outsideAddr)
}
