package network

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"dhow/internal/errdef"
	"dhow/internal/store"
)

// helperRace connects containers over and over, and says what each got. With a
// port that everybody wants, it says who got it.
func helperRace() {
	var who string
	var rounds int
	fmt.Sscan(os.Getenv("DHOW_TEST_ARGS"), &who, &rounds)
	s, err := store.Open(context.Background(), os.Getenv("DHOW_TEST_ROOT"))
	if err != nil {
		panic(err)
	}
	defer s.Close()
	ns := New(s, Options{})
	ns.rootless = false
	var all []*Attachment
	for i := range rounds {
		r := Request{Container: fmt.Sprint(who, i), Name: fmt.Sprint(who, i), Ports: []PortRequest{{Port: 80, HostPort: uint16(9000 + i)}, {Port: 81}}}
		a, err := ns.Up(context.Background(), r)
		if errors.Is(err, errdef.ErrConflict) && strings.Contains(err.Error(), "port is already allocated") {
			r.Ports = r.Ports[1:]
			a, err = ns.Up(context.Background(), r)
		} else if err == nil {
			fmt.Println("port", r.Ports[0].HostPort)
		}
		if err != nil {
			panic(err)
		}
		fmt.Println("ip", a.Endpoints()[0].IP4.Addr())
		for _, p := range a.Ports() {
			if p.Port == 81 && p.HostIP.Is4() {
				fmt.Println("port", p.HostPort)
			}
		}
		all = append(all, a)
	}
	fmt.Println("done")
	bufio.NewReader(os.Stdin).ReadString('\n') // until everybody has all of theirs
	for _, a := range all {
		if err := a.Close(); err != nil {
			panic(err)
		}
	}
}

// TestRaces lets processes want the same addresses and ports at once, the first
// of them on a machine with nothing yet.
func TestRaces(t *testing.T) {
	newWorld(t)
	root := t.TempDir()
	const procs, rounds = 4, 8
	taken := map[string]string{}
	var lines []*bufio.Scanner
	var finish []func()
	for i := range procs {
		cmd, stderr := helper(t, "race", root, string(rune('a'+i)), fmt.Sprint(rounds))
		in, err := cmd.StdinPipe()
		must(t, err)
		out, err := cmd.StdoutPipe()
		must(t, err)
		must(t, cmd.Start())
		lines = append(lines, bufio.NewScanner(out))
		finish = append(finish, func() {
			in.Close()
			if err := cmd.Wait(); err != nil {
				t.Errorf("process %d: %v: %s", i, err, stderr)
			}
		})
	}
	for i, sc := range lines {
		for sc.Scan() && sc.Text() != "done" {
			if other, ok := taken[sc.Text()]; ok {
				t.Errorf("%s: processes %s and %d both have it", sc.Text(), other, i)
			}
			taken[sc.Text()] = fmt.Sprint(i)
		}
	}
	if want := procs*rounds*2 + rounds; len(taken) != want { // an address and a port each, and every port that all want
		t.Errorf("got %d addresses and ports, want %d", len(taken), want)
	}
	for _, f := range finish {
		f()
	}
	s, err := store.Open(context.Background(), root)
	must(t, err)
	t.Cleanup(func() { must(t, s.Close()) })
	ns := New(s, Options{})
	ns.rootless = false
	t.Cleanup(func() { dropAll(t, ns) })
	must(t, s.ViewNetworks(context.Background(), func(tx *store.NetworkTx) error {
		endpoints, err := tx.AllEndpoints()
		must(t, err)
		ports, err := tx.Ports()
		if len(endpoints)+len(ports) > 0 {
			t.Errorf("left behind: %v %v", endpoints, ports)
		}
		return err
	}))
}
