package network

import (
	"context"
	"os/exec"
	"strings"
	"testing"

	"github.com/google/nftables"
)

// foreignChain is somebody else's forward chain that drops everything, or lets
// another chain look first.
func foreignChain(t *testing.T, family nftables.TableFamily, table, name, first string) {
	t.Helper()
	c, err := nftables.New()
	must(t, err)
	drop := nftables.ChainPolicyDrop
	tab := c.AddTable(&nftables.Table{Name: table, Family: family})
	ch := c.AddChain(&nftables.Chain{Table: tab, Name: name, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter, Policy: &drop})
	if first != "" {
		c.AddChain(&nftables.Chain{Table: tab, Name: first})
		c.AddRule(&nftables.Rule{Table: tab, Chain: ch, Exprs: jump(first)})
	}
	must(t, c.Flush())
	t.Cleanup(func() {
		c.DelTable(tab)
		must(t, c.Flush())
	})
}

func TestForeignFirewalls(t *testing.T) {
	tests := []struct {
		name   string
		family nftables.TableFamily
		table  string
		chain  string
		first  string
		passes bool
	}{
		{"docker", nftables.TableFamilyIPv4, "filter", "FORWARD", "DOCKER-USER", true},
		{"ufw", nftables.TableFamilyIPv4, "filter", "FORWARD", "", true},
		{"firewalld", nftables.TableFamilyINet, "firewalld", "filter_FORWARD", "", true},
		{"of the user's own", nftables.TableFamilyINet, "mine", "forward", "", false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			ns := newNetworks(t, Options{})
			ctx := context.Background()
			_, err := ns.Create(ctx, CreateOptions{Name: "n"})
			must(t, err)
			answer(t, w.outside, "tcp4", ":80")
			// The other one may have been there before, or come later.
			early := up(t, ns, Request{Name: "early", Networks: []EndpointRequest{{Network: "n"}}})
			foreignChain(t, tt.family, tt.table, tt.chain, tt.first)
			noWay(t, early.Namespace(), "tcp", outsideAddr+":80")
			r := Request{Name: "a", Networks: []EndpointRequest{{Network: "n"}}, Ports: []PortRequest{{Port: 80, HostPort: 8080}}}
			a := up(t, ns, r)
			answer(t, a.Namespace(), "tcp4", ":80")
			if !tt.passes {
				if _, err := ns.Create(ctx, CreateOptions{Name: "late"}); err != nil {
					t.Fatal(err)
				}
				late := up(t, ns, Request{Name: "late", Networks: []EndpointRequest{{Network: "late"}}})
				if got := strings.Join(late.Warnings(), "\n"); !strings.Contains(got, "inet mine forward drops") || !strings.Contains(got, "nft insert rule") {
					t.Errorf("got warnings %q, want what to do", got)
				}
				return
			}
			wantAnswer(t, early.Namespace(), "tcp", outsideAddr+":80", hostAddr)
			wantAnswer(t, w.outside, "tcp", hostAddr+":8080", outsideAddr)
			if got := a.Warnings(); len(got) > 0 {
				t.Errorf("got warnings %q", got)
			}
			must(t, a.Close())
			must(t, early.Close())
			n, err := ns.Remove(ctx, "n")
			must(t, err)
			c, err := nftables.New()
			must(t, err)
			known, _, err := gates(c)
			must(t, err)
			for _, g := range known {
				if left, err := g.rulesOf(c, n.bridgeName()); err != nil || len(left) > 0 {
					t.Errorf("chain %s has %d rules of a network that is gone, %v", g.chain.Name, len(left), err)
				}
			}
		})
	}
}

// TestIPTables: iptables itself understands what we write into its chains.
func TestIPTables(t *testing.T) {
	if _, err := exec.LookPath("iptables-nft"); err != nil {
		t.Skip("needs iptables-nft")
	}
	run := func(args ...string) string {
		t.Helper()
		out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %v: %s", args, err, out)
		}
		return string(out)
	}
	w := newWorld(t)
	flushRules(t)
	t.Cleanup(func() { flushRules(t) })
	// As dockerd 20.10 sets it up.
	for _, line := range []string{"-P FORWARD DROP", "-N DOCKER-USER", "-A DOCKER-USER -j RETURN", "-A FORWARD -j DOCKER-USER",
		"-A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT", "-A FORWARD -i docker0 ! -o docker0 -j ACCEPT"} {
		run(append([]string{"iptables-nft"}, strings.Fields(line)...)...)
	}
	ns := newNetworks(t, Options{})
	answer(t, w.outside, "tcp4", ":80")
	a := up(t, ns, Request{Name: "a"})
	wantAnswer(t, a.Namespace(), "tcp", outsideAddr+":80", hostAddr)
	n, err := ns.Inspect(context.Background(), DefaultNetwork)
	must(t, err)
	br := n.bridgeName()
	want := "-N DOCKER-USER\n" +
		"-A DOCKER-USER -i " + br + " -o docker0 -j RETURN\n-A DOCKER-USER -i " + br + " -o br-+ -j RETURN\n" +
		"-A DOCKER-USER -i " + br + " -j ACCEPT\n-A DOCKER-USER -o " + br + " -j ACCEPT\n-A DOCKER-USER -j RETURN\n"
	if got := run("iptables-nft", "-S", "DOCKER-USER"); got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
}
