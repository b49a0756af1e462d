package sandbox

import (
	"encoding/binary"
	"runtime"
	"slices"
	"testing"

	"github.com/moby/profiles/seccomp"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// seccompData is struct seccomp_data as the BPF machine of x/net reads it:
// big-endian words, while the offsets are those of a little-endian kernel.
func seccompData(arch, nr uint32, args ...uint64) []byte {
	b := make([]byte, 64)
	binary.BigEndian.PutUint32(b[0:], nr)
	binary.BigEndian.PutUint32(b[4:], arch)
	for i, a := range args {
		binary.BigEndian.PutUint32(b[16+8*i:], uint32(a))
		binary.BigEndian.PutUint32(b[20+8*i:], uint32(a>>32))
	}
	return b
}

func newVM(t testing.TB, p *specs.LinuxSeccomp) func(arch, nr uint32, args ...uint64) uint32 {
	t.Helper()
	raw, err := compileFilter(p)
	if err != nil {
		t.Fatal(err)
	}
	prog, ok := bpf.Disassemble(raw)
	if !ok {
		t.Fatal("the filter has instructions that BPF does not")
	}
	vm, err := bpf.NewVM(prog)
	if err != nil {
		t.Fatal(err)
	}
	return func(arch, nr uint32, args ...uint64) uint32 {
		got, err := vm.Run(seccompData(arch, nr, args...))
		if err != nil {
			t.Fatal(err)
		}
		return uint32(got)
	}
}

// holds is the meaning of a condition.
func holds(c specs.LinuxSeccompArg, arg uint64) bool {
	switch c.Op {
	case specs.OpEqualTo:
		return arg == c.Value
	case specs.OpNotEqual:
		return arg != c.Value
	case specs.OpLessThan:
		return arg < c.Value
	case specs.OpLessEqual:
		return arg <= c.Value
	case specs.OpGreaterThan:
		return arg > c.Value
	case specs.OpGreaterEqual:
		return arg >= c.Value
	case specs.OpMaskedEqual:
		return arg&c.Value == c.ValueTwo
	}
	return false
}

// meaning evaluates a profile by its text: the first unconditional rule for
// the name, else the first whose conditions all hold, else the default.
func meaning(t testing.TB, p *specs.LinuxSeccomp, name string, args []uint64) uint32 {
	t.Helper()
	want, err := action(p.DefaultAction, p.DefaultErrnoRet)
	if err != nil {
		t.Fatal(err)
	}
	found := false
	for _, s := range p.Syscalls {
		act, _ := action(s.Action, s.ErrnoRet)
		if !slices.Contains(s.Names, name) {
			continue
		}
		if len(s.Args) == 0 {
			return act
		}
		all := true
		for _, c := range s.Args {
			all = all && holds(c, args[c.Index])
		}
		if all && !found {
			want, found = act, true
		}
	}
	return want
}

// Every number of every architecture, with interesting arguments, against the
// text of docker's profile.
func TestFilterMeansTheProfile(t *testing.T) {
	audits := map[abi]uint32{abiAMD64: unix.AUDIT_ARCH_X86_64, abi386: unix.AUDIT_ARCH_I386, abiX32: unix.AUDIT_ARCH_X86_64}
	if runtime.GOARCH == "arm64" {
		audits = map[abi]uint32{abiARM64: unix.AUDIT_ARCH_AARCH64, abiARM: unix.AUDIT_ARCH_ARM}
	}
	values := []uint64{0, 1, 2, 3, 7, 8, 38, 39, 40, 41, 0x20000, 0x20008, 0xffffffff, 1 << 32, 1<<32 | 8,
		unix.CLONE_NEWUSER, unix.CLONE_NEWNS | 17, 17, 0x7e020000, 1 << 63}
	for _, caps := range [][]string{testCaps, append([]string{"CAP_SYS_ADMIN"}, testCaps...), Capabilities()} {
		spec := testSpec("true")
		spec.Process.Capabilities.Bounding = caps
		p, err := seccomp.GetDefaultProfile(spec)
		if err != nil {
			t.Fatal(err)
		}
		run := newVM(t, p)
		for a, audit := range audits {
			base := uint32(0)
			if a == abiX32 {
				base = x32Bit
			}
			names, last := byNumber(p, a)
			for nr := uint32(0); nr < 1100; nr++ {
				for _, v := range values {
					args := []uint64{v, 0, 0, 0, 0, 0}
					want := uint32(unix.SECCOMP_RET_ERRNO | unix.ENOSYS)
					if nr <= last {
						want = uint32(unix.SECCOMP_RET_ERRNO | unix.EPERM)
					}
					if name, ok := names[nr]; ok {
						want = meaning(t, p, name, args)
					}
					if got := run(audit, base+nr, args...); got != want {
						t.Fatalf("abi %d call %d (%s) argument %#x: got %#x, want %#x", a, nr, names[nr], v, got, want)
					}
				}
			}
		}
		if got := run(unix.AUDIT_ARCH_PPC64LE, 1); got != unix.SECCOMP_RET_KILL_PROCESS {
			t.Errorf("foreign architecture: got %#x, want the process killed", got)
		}
	}
}

// byNumber is the calls that p names by number, and the highest number.
func byNumber(p *specs.LinuxSeccomp, a abi) (map[uint32]string, uint32) {
	names, last := map[uint32]string{}, uint32(0)
	for _, e := range syscallTable {
		if e.nr[a] < 0 || e.nr[a] > 1100 {
			continue
		}
		for _, s := range p.Syscalls {
			if slices.Contains(s.Names, e.name) {
				names[uint32(e.nr[a])] = e.name
				last = max(last, uint32(e.nr[a]))
			}
		}
	}
	return names, last
}

// Each comparison at the edges of the 32-bit halves it is made of.
func TestFilterComparesArguments(t *testing.T) {
	values := []uint64{0, 1, 5, 0x7fffffff, 0x80000000, 0xffffffff, 1 << 32, 1<<32 + 5, 5 << 32, 5<<32 + 4, 5<<32 + 5, 5<<32 + 6, 6 << 32, 1<<64 - 1}
	for _, op := range []specs.LinuxSeccompOperator{specs.OpEqualTo, specs.OpNotEqual, specs.OpLessThan, specs.OpLessEqual,
		specs.OpGreaterThan, specs.OpGreaterEqual, specs.OpMaskedEqual} {
		for _, value := range values {
			for _, two := range []uint64{0, 5, value} {
				conds := []specs.LinuxSeccompArg{{Index: 2, Value: value, ValueTwo: two, Op: op}, {Index: 5, Value: 9, Op: specs.OpEqualTo}}
				run := newVM(t, &specs.LinuxSeccomp{DefaultAction: specs.ActErrno, Syscalls: []specs.LinuxSyscall{
					{Names: []string{"read", "no_such_call"}, Action: specs.ActAllow, Args: conds},
					{Names: []string{"read"}, Action: specs.ActLog, Args: []specs.LinuxSeccompArg{{Index: 0, Value: 3, Op: specs.OpEqualTo}}},
				}})
				for _, v := range values {
					for _, last := range []uint64{9, 8} {
						want := uint32(unix.SECCOMP_RET_LOG)
						if holds(conds[0], v) && last == 9 {
							want = unix.SECCOMP_RET_ALLOW
						}
						audit, nr := uint32(unix.AUDIT_ARCH_X86_64), uint32(unix.SYS_READ)
						if runtime.GOARCH == "arm64" {
							audit = unix.AUDIT_ARCH_AARCH64
						}
						if got := run(audit, nr, 3, 0, v, 0, 0, last); got != want {
							t.Fatalf("%s %#x %#x of %#x: got %#x, want %#x", op, value, two, v, got, want)
						}
					}
				}
			}
		}
	}
}

func TestFilterRefuses(t *testing.T) {
	bad := uint(1 << 16)
	for _, p := range []specs.LinuxSeccomp{
		{DefaultAction: "SCMP_ACT_WHATEVER"},
		{DefaultAction: specs.ActErrno, DefaultErrnoRet: &bad},
		{DefaultAction: specs.ActAllow, Syscalls: []specs.LinuxSyscall{{Names: []string{"read"}, Action: specs.ActNotify}}},
		{DefaultAction: specs.ActAllow, Syscalls: []specs.LinuxSyscall{{Names: []string{"read"}, Action: specs.ActErrno,
			Args: []specs.LinuxSeccompArg{{Index: 6, Op: specs.OpEqualTo}}}}},
	} {
		if _, err := compileFilter(&p); err == nil {
			t.Errorf("%+v: got no error", p)
		}
	}
}

// Without x32 in the profile, its calls must not slip through under the
// numbers of amd64's.
func TestFilterKillsX32(t *testing.T) {
	if runtime.GOARCH != "amd64" {
		t.Skip("x32 is an ABI of amd64")
	}
	run := newVM(t, &specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Architectures: []specs.Arch{specs.ArchX86_64}})
	if got := run(unix.AUDIT_ARCH_X86_64, x32Bit+1); got != unix.SECCOMP_RET_KILL_PROCESS {
		t.Errorf("x32 call: got %#x, want the process killed", got)
	}
	if got := run(unix.AUDIT_ARCH_X86_64, 1<<32-1); got != unix.SECCOMP_RET_ALLOW {
		t.Errorf("call -1: got %#x, want the default", got)
	}
}

func TestSyscallTable(t *testing.T) {
	if !slices.IsSortedFunc(syscallTable, func(a, b syscallNumbers) int {
		if a.name < b.name {
			return -1
		}
		return 1
	}) {
		t.Error("syscallTable is not sorted")
	}
	find := func(name string) [5]int32 {
		for _, e := range syscallTable {
			if e.name == name {
				return e.nr
			}
		}
		return [5]int32{}
	}
	for name, want := range map[string][5]int32{
		"read":       {0, 3, 63, 3, 0},
		"execve":     {59, 11, 221, 11, 520},
		"preadv2":    {286 + 41, 378, 286, 392, 546},
		"socketcall": {-1, 102, -1, -1, -1},
		"openat2":    {437, 437, 437, 437, 437},
	} {
		if got := find(name); got != want {
			t.Errorf("%s: got %v, want %v", name, got, want)
		}
	}
}

func BenchmarkFilter(b *testing.B) {
	spec := testSpec("true")
	for b.Loop() {
		p, err := seccomp.GetDefaultProfile(spec)
		if err != nil {
			b.Fatal(err)
		}
		spec.Linux.Seccomp = p
		bu := builder{spec: spec}
		if err := bu.buildFilter(); err != nil {
			b.Fatal(err)
		}
	}
}
