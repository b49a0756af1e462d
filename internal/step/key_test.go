package step

import (
	"context"
	"testing"

	"dhow/internal/testkit"

	"github.com/moby/buildkit/solver/pb"
)

// TestExecKey says which changes of a step make it another one.
func TestExecKey(t *testing.T) {
	base := func() *pb.ExecOp {
		return &pb.ExecOp{
			Meta: &pb.Meta{Args: []string{"make"}, Env: []string{"A=1"}, Cwd: "/", ExtraHosts: []*pb.HostIP{{Host: "h", IP: "1.2.3.4"}}},
			Mounts: []*pb.Mount{
				{Dest: "/", Input: 0, Output: 0},
				{Dest: "/src", Input: 1, Output: -1, Selector: "/a", Readonly: true},
				{Dest: "/cache", Input: -1, Output: -1, MountType: pb.MountType_CACHE, CacheOpt: &pb.CacheOpt{ID: "c"}},
				{Dest: "/run/secrets/s", Input: -1, Output: -1, MountType: pb.MountType_SECRET, SecretOpt: &pb.SecretOpt{ID: "s"}},
			},
		}
	}
	key := func(op *pb.ExecOp, p *pb.Platform) string {
		t.Helper()
		v := vertex(op, 2)
		v.Op.Platform = p
		e, err := New(&Deps{Allow: []string{"network.host", "security.insecure"}}, v, op)
		if err != nil {
			t.Fatal(err)
		}
		cm, err := e.CacheMap(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		return cm.Digest.String()
	}
	want := key(base(), nil)
	for name, tt := range map[string]struct {
		change func(*pb.ExecOp)
		same   bool
	}{
		"nothing":           {func(*pb.ExecOp) {}, true},
		"proxy":             {func(op *pb.ExecOp) { op.Meta.ProxyEnv = &pb.ProxyEnv{HttpProxy: "x"} }, true},
		"address of a host": {func(op *pb.ExecOp) { op.Meta.ExtraHosts[0].IP = "5.6.7.8" }, true},
		"cache id":          {func(op *pb.ExecOp) { op.Mounts[2].CacheOpt.ID = "d" }, true},
		"cache sharing":     {func(op *pb.ExecOp) { op.Mounts[2].CacheOpt.Sharing = pb.CacheSharingOpt_LOCKED }, true},
		"name of a host":    {func(op *pb.ExecOp) { op.Meta.ExtraHosts[0].Host = "i" }, false},
		"command":           {func(op *pb.ExecOp) { op.Meta.Args = []string{"make", "all"} }, false},
		"environment":       {func(op *pb.ExecOp) { op.Meta.Env = []string{"A=2"} }, false},
		"directory":         {func(op *pb.ExecOp) { op.Meta.Cwd = "/x" }, false},
		"user":              {func(op *pb.ExecOp) { op.Meta.User = "1" }, false},
		"target of a cache": {func(op *pb.ExecOp) { op.Mounts[2].Dest = "/other" }, false},
		"selector":          {func(op *pb.ExecOp) { op.Mounts[1].Selector = "/b" }, false},
		"id of a secret":    {func(op *pb.ExecOp) { op.Mounts[3].SecretOpt.ID = "t" }, false},
		"network":           {func(op *pb.ExecOp) { op.Network = pb.NetMode_NONE }, false},
		"security":          {func(op *pb.ExecOp) { op.Security = pb.SecurityMode_INSECURE }, false},
		"exit codes":        {func(op *pb.ExecOp) { op.Meta.ValidExitCodes = []int32{1} }, false},
	} {
		op := base()
		tt.change(op)
		if got := key(op, nil); (got == want) != tt.same {
			t.Errorf("%s: equal keys: got %v, want %v", name, got == want, tt.same)
		}
	}
	if key(base(), &pb.Platform{OS: "linux", Architecture: "riscv64"}) == want {
		t.Error("another platform has the same key")
	}
}

// TestMountDeps says what of each input is part of a step's key.
func TestMountDeps(t *testing.T) {
	root := &pb.Mount{Dest: "/", Input: 0, Output: 0}
	for name, tt := range map[string]struct {
		mounts []*pb.Mount
		want   []dep
	}{
		"root":               {[]*pb.Mount{root}, []dep{{false, []string{"/"}}, {}}},
		"read only":          {[]*pb.Mount{root, {Dest: "/s", Input: 1, Output: -1, Readonly: true, Selector: "a"}}, []dep{{false, []string{"/"}}, {true, []string{"/a"}}}},
		"discarded":          {[]*pb.Mount{root, {Dest: "/s", Input: 1, Output: -1, Selector: "/a/../b"}}, []dep{{false, []string{"/"}}, {true, []string{"/b"}}}},
		"kept, a part":       {[]*pb.Mount{root, {Dest: "/s", Input: 1, Output: 1, Selector: "/a"}}, []dep{{false, []string{"/"}}, {false, []string{"/a"}}}},
		"kept, all":          {[]*pb.Mount{root, {Dest: "/s", Input: 1, Output: 1}}, []dep{{false, []string{"/"}}, {true, []string{"/"}}}},
		"off":                {[]*pb.Mount{root, {Dest: "/s", Input: 1, Output: -1, ContentCache: pb.MountContentCache_OFF}}, []dep{{false, []string{"/"}}, {false, []string{"/"}}}},
		"several":            {[]*pb.Mount{root, {Dest: "/s", Input: 1, Output: -1, Selector: "/b"}, {Dest: "/t", Input: 1, Output: -1, Selector: "/a"}, {Dest: "/u", Input: 1, Output: -1, Selector: "/a"}}, []dep{{false, []string{"/"}}, {true, []string{"/a", "/b"}}}},
		"one of them is all": {[]*pb.Mount{root, {Dest: "/s", Input: 1, Output: -1, Selector: "/b"}, {Dest: "/t", Input: 1, Output: -1}}, []dep{{false, []string{"/"}}, {true, []string{"/"}}}},
		"root and mount":     {[]*pb.Mount{root, {Dest: "/s", Input: 0, Output: -1, Selector: "/b"}}, []dep{{false, []string{"/"}}, {}}},
		"cache base":         {[]*pb.Mount{root, {Dest: "/s", Input: 1, Output: -1, Selector: "/c", MountType: pb.MountType_CACHE, CacheOpt: &pb.CacheOpt{}}}, []dep{{false, []string{"/"}}, {true, []string{"/c"}}}},
	} {
		got, err := mountDeps(tt.mounts, 2)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		for i := range got {
			if got[i].content != tt.want[i].content {
				t.Errorf("%s: input %d by content: got %v", name, i, got[i].content)
			}
			testkit.Equal(t, got[i].selectors, tt.want[i].selectors)
		}
	}
}

func TestBinfmt(t *testing.T) {
	// As Debian's qemu-user-binfmt registers it.
	const arm64 = "enabled\ninterpreter /usr/libexec/qemu-binfmt/aarch64-binfmt-P\nflags: POCF\noffset 0\n" +
		"magic 7f454c460201010000000000000000000200b700\nmask ffffffffffffff00fffffffffffffffffeffffff\n"
	b, ok := parseBinfmt(arm64)
	if !ok || !b.fixed || b.interpreter != "/usr/libexec/qemu-binfmt/aarch64-binfmt-P" {
		t.Fatalf("got %+v, %v", b, ok)
	}
	for arch, want := range map[string]bool{"arm64": true, "arm": false, "riscv64": false, "s390x": false, "amd64": false} {
		h, ok := elfHeader(arch)
		if !ok {
			t.Fatalf("%s is unknown", arch)
		}
		if got := b.takes(h); got != want {
			t.Errorf("%s: got %v", arch, got)
		}
	}
	for _, text := range []string{"", "disabled\nmagic 7f\n", "enabled\nextension .exe\n", "enabled\noffset -1\nmagic 7f\n", "enabled\nmagic zz\n"} {
		if b, ok := parseBinfmt(text); ok {
			t.Errorf("%q: got %+v", text, b)
		}
	}
	if _, ok := elfHeader("z80"); ok {
		t.Error("z80 is known")
	}
}
