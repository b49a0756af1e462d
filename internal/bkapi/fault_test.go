package bkapi

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"dhow/internal/testkit"

	controlapi "github.com/moby/buildkit/api/services/control"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/client/llb"
	"github.com/moby/buildkit/solver/pb"
	"github.com/opencontainers/go-digest"
	"github.com/tonistiigi/fsutil"
	"google.golang.org/grpc/codes"
)

// running tells whether a process has the word among its arguments.
func running(t *testing.T, word string) bool {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	must(t, err)
	for _, name := range files {
		line, err := os.ReadFile(name)
		if err == nil && bytes.Contains(line, []byte(word)) { // else it has ended
			return true
		}
	}
	return false
}

// TestClientCutOff: the connection of a client breaks while a step of its build
// runs. The step is killed, the record tells of it, and the server lives on.
func TestClientCutOff(t *testing.T) {
	root, c := serveWith(t, Options{})
	addr := filepath.Join(filepath.Dir(root), "s")
	var mu sync.Mutex
	var conns []net.Conn // guarded by mu
	cut, err := client.New(t.Context(), "", client.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
		var d net.Dialer
		conn, err := d.DialContext(ctx, "unix", addr)
		mu.Lock()
		defer mu.Unlock()
		conns = append(conns, conn)
		return conn, err
	}))
	must(t, err)
	defer cut.Close()

	word := fmt.Sprintf("cut-off-%d", os.Getpid())
	st := llb.Local("prog", llb.SharedKeyHint("x")).Run(llb.Args([]string{"/prog", "wait", word})).Root()
	def, err := st.Marshal(t.Context())
	must(t, err)
	mounts := map[string]fsutil.FS{"prog": program(t)}
	ended := make(chan error, 1)
	go func() {
		_, err := cut.Solve(t.Context(), def, client.SolveOpt{Ref: "cutoffcutoff", LocalMounts: mounts}, nil)
		ended <- err
	}()
	testkit.Until(t, "the step begins", func() bool { return running(t, word) })
	mu.Lock()
	for _, conn := range conns {
		must(t, conn.Close())
	}
	mu.Unlock()
	broken := time.Now()
	testkit.Until(t, "the step is killed", func() bool { return !running(t, word) })
	t.Logf("the step was killed %s after the connection broke", time.Since(broken).Round(time.Millisecond))
	if err := <-ended; err == nil {
		t.Error("the client's call succeeded without a connection")
	}
	var record *controlapi.BuildHistoryRecord
	testkit.Until(t, "the build ends", func() bool {
		for _, e := range events(t, c, &controlapi.BuildHistoryRequest{Ref: "cutoffcutoff"}) {
			record = e.Record
		}
		return record.GetCompletedAt() != nil
	})
	if got := codes.Code(record.GetError().GetCode()); got != codes.Canceled {
		t.Errorf("got the end %s, want %s", got, codes.Canceled)
	}
	// What the build held is free again: the same step, which ends now.
	_, err = solve(t, c, runs(t, "PATH"), client.SolveOpt{LocalMounts: mounts})
	must(t, err)
	usage, err := c.DiskUsage(t.Context())
	must(t, err)
	for _, u := range usage {
		if u.InUse {
			t.Errorf("%s is still in use", u.ID)
		}
	}
}

// TestMalformedDefinitions: what no client should send is answered with an error.
func TestMalformedDefinitions(t *testing.T) {
	c := serve(t)
	raw := func(op *pb.Op) []byte {
		b, err := op.MarshalVT()
		must(t, err)
		return b
	}
	source := raw(&pb.Op{Op: &pb.Op_Source{Source: &pb.SourceOp{Identifier: "local://x"}}})
	input := func(b []byte, i int64) *pb.Input {
		return &pb.Input{Digest: digest.FromBytes(b).String(), Index: i}
	}
	top := func(in ...*pb.Input) []byte { return raw(&pb.Op{Inputs: in}) }
	exec := func(m *pb.Mount) []byte {
		return raw(&pb.Op{Inputs: []*pb.Input{input(source, 0)}, Op: &pb.Op_Exec{Exec: &pb.ExecOp{Meta: &pb.Meta{Args: []string{"x"}, Cwd: "/"}, Mounts: []*pb.Mount{m}}}})
	}
	// A vertex names its inputs by their digests, so that no definition has a cycle;
	// this one is as long as a cycle would seem.
	var deep [][]byte
	mkdir := &pb.FileAction{Input: 0, Output: 0, SecondaryInput: -1, Action: &pb.FileAction_Mkdir{Mkdir: &pb.FileActionMkDir{Path: "/d", Mode: 0o755}}}
	for last := source; len(deep) < 20000; last = deep[len(deep)-1] {
		deep = append(deep, raw(&pb.Op{Inputs: []*pb.Input{input(last, 0)}, Op: &pb.Op_File{File: &pb.FileOp{Actions: []*pb.FileAction{mkdir}}}}))
	}
	bad := exec(&pb.Mount{Dest: "/", Input: 7})
	for name, test := range map[string]struct {
		def  [][]byte
		want string
	}{
		"nothing":        {[][]byte{{}}, ""},
		"no operation":   {[][]byte{[]byte("\xff\xff\xff"), top()}, "decode operation 0"},
		"missing digest": {[][]byte{top(&pb.Input{Digest: digest.FromString("nowhere").String()})}, "is missing"},
		"bad digest":     {[][]byte{top(&pb.Input{Digest: "sha256:../../../etc"})}, "is missing"},
		"output":         {[][]byte{source, top(input(source, 3))}, "output 3"},
		"negative":       {[][]byte{source, top(input(source, -1))}, "output index"},
		"mount's input":  {[][]byte{source, bad, top(input(bad, 0))}, "input 7"},
		"deep":           {append(append([][]byte{source}, deep...), top(input(deep[len(deep)-1], 0))), "no session"},
	} {
		_, err := c.ControlClient().Solve(t.Context(), &controlapi.SolveRequest{Ref: "bad " + name, Definition: &pb.Definition{Def: test.def}})
		if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: got %.200v, want %q", name, err, test.want)
		}
	}
	if _, err := c.ListWorkers(t.Context()); err != nil {
		t.Errorf("after that: %v", err)
	}
}
