package network

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// A packet has to pass every table's forward chain: what one accepts, another
// may still drop. Docker, ufw and firewalld drop what they do not know, so their
// chains are told of our bridges. What goes on there is then our table's
// business, except that docker keeps its own networks to itself.
//
//	ip, ip6  filter     DOCKER-USER, where docker is, else FORWARD     (docker, ufw, iptables-nft)
//	inet     firewalld  filter_FORWARD                                 (firewalld)
//
// Rules are written as iptables-nft writes them, so that iptables can show them.
const (
	dockerUser       = "DOCKER-USER"
	forwardChain     = "FORWARD"
	firewalldTable   = "firewalld"
	firewalldForward = "filter_FORWARD"
)

// gate is a chain of somebody else's that our bridges' packets have to pass.
type gate struct {
	table *nftables.Table
	chain *nftables.Chain
}

// gates finds them, and the chains that drop what comes and that we do not know.
func gates(c *nftables.Conn) (known []gate, unknown []*nftables.Chain, err error) {
	chains, err := c.ListChains()
	if err != nil {
		return nil, nil, describe(err, "read packet filter")
	}
	for _, ch := range chains {
		if ch.Hooknum == nil || *ch.Hooknum != *nftables.ChainHookForward || strings.HasPrefix(ch.Table.Name, "dhow-") {
			continue
		}
		drops := ch.Policy != nil && *ch.Policy == nftables.ChainPolicyDrop
		ip := ch.Table.Family == nftables.TableFamilyIPv4 || ch.Table.Family == nftables.TableFamilyIPv6
		switch {
		case ip && ch.Table.Name == "filter" && ch.Name == forwardChain:
			if !drops {
				continue
			}
			i := slices.IndexFunc(chains, func(o *nftables.Chain) bool {
				return o.Name == dockerUser && o.Table.Name == "filter" && o.Table.Family == ch.Table.Family
			})
			if i >= 0 {
				ch = chains[i]
			}
			known = append(known, gate{ch.Table, ch})
		case ch.Table.Name == firewalldTable && ch.Name == firewalldForward:
			known = append(known, gate{ch.Table, ch})
		case drops && (ip || ch.Table.Family == nftables.TableFamilyINet):
			unknown = append(unknown, ch)
		}
	}
	return known, unknown, nil
}

// admitted says whether all gates know the bridge.
func admitted(bridge string) (bool, error) {
	c, err := nftables.New()
	if err != nil {
		return false, describe(err, "read packet filter")
	}
	known, _, err := gates(c)
	if err != nil {
		return false, err
	}
	for _, g := range known {
		mine, err := g.rulesOf(c, bridge)
		if err != nil || len(mine) == 0 {
			return false, err
		}
	}
	return true, nil
}

// admit tells the gates of the bridge. What it could not do it returns as
// sentences for the user.
func admit(bridge string) (warnings []string, err error) {
	c, err := nftables.New()
	if err != nil {
		return nil, describe(err, "set packet filter")
	}
	known, unknown, err := gates(c)
	if err != nil {
		return nil, err
	}
	for _, g := range known {
		mine, err := g.rulesOf(c, bridge)
		if err != nil {
			return warnings, err
		}
		if len(mine) > 0 {
			continue
		}
		list := admission(bridge)
		for _, exprs := range slices.Backward(list) { // each before the one inserted last
			c.InsertRule(&nftables.Rule{Table: g.table, Chain: g.chain, Exprs: exprs})
		}
		err = c.Flush()
		if errors.Is(err, unix.EPERM) && g.table.Name == firewalldTable { // firewalld 2.1 owns its table
			warnings = append(warnings, fmt.Sprintf("firewalld lets nothing through to %s: firewall-cmd --permanent --zone=trusted --add-interface=%s && firewall-cmd --reload", bridge, bridge))
			continue
		}
		if err != nil {
			return warnings, describe(err, "let %s through chain %s", bridge, g.chain.Name)
		}
	}
	for _, ch := range unknown {
		name := fmt.Sprintf("%s %s %s", familyName(ch.Table.Family), ch.Table.Name, ch.Name)
		warnings = append(warnings, fmt.Sprintf("the packet filter's chain %s drops what %s forwards: nft insert rule %s iifname %s accept; nft insert rule %s oifname %s accept", name, bridge, name, bridge, name, bridge))
	}
	return warnings, nil
}

// expel takes the bridge out of the gates.
func expel(bridge string) error {
	c, err := nftables.New()
	if err != nil {
		return describe(err, "set packet filter")
	}
	known, _, err := gates(c)
	if err != nil {
		return err
	}
	for _, g := range known {
		mine, err := g.rulesOf(c, bridge)
		if err != nil {
			return err
		}
		for _, r := range mine {
			if err := c.DelRule(r); err != nil {
				return describe(err, "take %s out of chain %s", bridge, g.chain.Name)
			}
		}
	}
	return describe(c.Flush(), "take %s out of the packet filter", bridge)
}

// admission are the rules for a bridge. Docker's networks are left to docker's
// further rules.
func admission(bridge string) []rule {
	in, out := device(expr.MetaKeyIIFNAME, bridge), device(expr.MetaKeyOIFNAME, bridge)
	end := func(kind expr.VerdictKind) rule { return rule{&expr.Counter{}, &expr.Verdict{Kind: kind}} }
	return []rule{
		with(in, device(expr.MetaKeyOIFNAME, "docker0"), end(expr.VerdictReturn)),
		with(in, prefix(expr.MetaKeyOIFNAME, "br-"), end(expr.VerdictReturn)),
		with(in, end(expr.VerdictAccept)),
		with(out, end(expr.VerdictAccept)),
	}
}

func device(key expr.MetaKey, name string) rule {
	return with(load(key), equals(append([]byte(name), 0)))
}

func prefix(key expr.MetaKey, name string) rule { return with(load(key), equals([]byte(name))) }

// rulesOf are the gate's rules that name the bridge.
func (g gate) rulesOf(c *nftables.Conn, bridge string) ([]*nftables.Rule, error) {
	all, err := c.GetRules(g.table, g.chain)
	if err != nil {
		return nil, describe(err, "read chain %s", g.chain.Name)
	}
	var mine []*nftables.Rule
	for _, r := range all {
		for _, e := range r.Exprs {
			if cmp, ok := e.(*expr.Cmp); ok && bytes.Equal(bytes.TrimRight(cmp.Data, "\x00"), []byte(bridge)) {
				mine = append(mine, r)
				break
			}
		}
	}
	return mine, nil
}

func familyName(f nftables.TableFamily) string {
	switch f {
	case nftables.TableFamilyIPv4:
		return "ip"
	case nftables.TableFamilyIPv6:
		return "ip6"
	}
	return "inet"
}
