package sandbox

import (
	"cmp"
	"encoding/binary"
	"math"
	"runtime"
	"slices"
	"sort"

	"dhow/internal/errdef"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

//go:generate go run syscalls_generate.go

// The filter that a seccomp profile becomes (seccomp(2), "Filters"):
//
//	architecture? --> none of the profile's: kill the process
//	   |
//	   v  one of these for each architecture
//	binary search over ranges of call numbers
//	   |
//	   v
//	return an action, or compare arguments and then return one
//
// It is compiled at every start, which takes about 0.1 ms: less than finding
// and checking a stored copy.

// syscallNumbers is a system call's number in each ABI, -1 where it has none.
type syscallNumbers struct {
	name string
	nr   [5]int32 // by abi
}

// abi is a column of syscallTable.
type abi int

const (
	abiAMD64 abi = iota
	abi386
	abiARM64
	abiARM
	abiX32 // shares AUDIT_ARCH_X86_64, told by a bit in the number
)

// x32Bit marks a call of the x32 ABI.
const x32Bit = 0x40000000

// struct seccomp_data: int nr; u32 arch; u64 instruction_pointer; u64 args[6].
const (
	dataNr   = 0
	dataArch = 4
	dataArgs = 16
)

// buildFilter compiles the spec's seccomp profile into the plan.
func (b *builder) buildFilter() error {
	prog, err := compileFilter(b.spec.Linux.Seccomp)
	if err != nil || prog == nil {
		return err
	}
	raw, err := bpf.Assemble(prog)
	if err != nil {
		return errdef.New(errdef.ErrInvalid, "compile the seccomp profile: %w", err)
	}
	if len(raw) > unix.BPF_MAXINSNS {
		return errdef.New(errdef.ErrInvalid, "compile the seccomp profile: got %d instructions, the kernel takes %d", len(raw), unix.BPF_MAXINSNS)
	}
	buf := make([]byte, 0, 8*len(raw))
	for _, ins := range raw { // struct sock_filter
		buf = binary.NativeEndian.AppendUint16(buf, ins.Op)
		buf = append(buf, ins.Jt, ins.Jf)
		buf = binary.NativeEndian.AppendUint32(buf, ins.K)
	}
	b.plan.Filter = buf
	b.plan.FilterFlags, err = filterFlags(b.spec.Linux.Seccomp)
	return err
}

// filterFlags are the flags of seccomp(2). Without any in the profile the
// speculation mitigations that a filter switches on are not wanted, as runc.
func filterFlags(p *specs.LinuxSeccomp) (uint64, error) {
	if p.Flags == nil {
		return unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW, nil
	}
	var flags uint64
	for _, f := range p.Flags {
		switch f {
		case specs.LinuxSeccompFlagLog:
			flags |= unix.SECCOMP_FILTER_FLAG_LOG
		case specs.LinuxSeccompFlagSpecAllow:
			flags |= unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW
		case "SECCOMP_FILTER_FLAG_TSYNC": // one thread loads it, and exec leaves only that one
		default:
			return 0, errdef.New(errdef.ErrUnsupported, "compile the seccomp profile: flag %s", f)
		}
	}
	return flags, nil
}

// auditArch is what seccomp_data.arch says for an architecture of a profile,
// and how calls are numbered there.
func auditArch(a specs.Arch) (uint32, abi, bool) {
	switch a {
	case specs.ArchX86_64:
		return unix.AUDIT_ARCH_X86_64, abiAMD64, true
	case specs.ArchX32:
		return unix.AUDIT_ARCH_X86_64, abiX32, true
	case specs.ArchX86:
		return unix.AUDIT_ARCH_I386, abi386, true
	case specs.ArchAARCH64:
		return unix.AUDIT_ARCH_AARCH64, abiARM64, true
	case specs.ArchARM:
		return unix.AUDIT_ARCH_ARM, abiARM, true
	}
	return 0, 0, false
}

// nativeArch is what a profile without architectures is for.
func nativeArch() specs.Arch {
	if runtime.GOARCH == "arm64" {
		return specs.ArchAARCH64
	}
	return specs.ArchX86_64
}

// compileFilter makes the filter; nil for no profile.
func compileFilter(p *specs.LinuxSeccomp) ([]bpf.Instruction, error) {
	if p == nil {
		return nil, nil
	}
	c := filterCompiler{profile: p}
	var err error
	if c.fallback, err = action(p.DefaultAction, p.DefaultErrnoRet); err != nil {
		return nil, err
	}
	if err := c.readRules(); err != nil {
		return nil, err
	}
	arches := p.Architectures
	if !slices.Contains(arches, nativeArch()) {
		arches = append(slices.Clip(arches), nativeArch())
	}
	abis := map[uint32][]abi{}
	var order []uint32
	for _, a := range arches {
		audit, n, ok := auditArch(a)
		if !ok {
			continue // of another machine: such a call cannot come
		}
		if abis[audit] == nil {
			order = append(order, audit)
		}
		abis[audit] = append(abis[audit], n)
	}
	prog := []bpf.Instruction{bpf.LoadAbsolute{Off: dataArch, Size: 4}}
	for _, audit := range order {
		body := append([]bpf.Instruction{bpf.LoadAbsolute{Off: dataNr, Size: 4}}, search(c.ranges(abis[audit]))...)
		prog = append(prog,
			bpf.JumpIf{Cond: bpf.JumpEqual, Val: audit, SkipTrue: 1},
			bpf.Jump{Skip: uint32(len(body))})
		prog = append(prog, body...)
	}
	return append(prog, ret(unix.SECCOMP_RET_KILL_PROCESS)), nil
}

func ret(action uint32) bpf.Instruction { return bpf.RetConstant{Val: action} }

// action is a seccomp return value.
func action(a specs.LinuxSeccompAction, errno *uint) (uint32, error) {
	data := uint32(unix.EPERM)
	if errno != nil {
		if *errno > math.MaxUint16 {
			return 0, errdef.New(errdef.ErrInvalid, "compile the seccomp profile: errno %d", *errno)
		}
		data = uint32(*errno)
	}
	switch a {
	case specs.ActKill, specs.ActKillThread:
		return unix.SECCOMP_RET_KILL_THREAD, nil
	case specs.ActKillProcess:
		return unix.SECCOMP_RET_KILL_PROCESS, nil
	case specs.ActTrap:
		return unix.SECCOMP_RET_TRAP, nil
	case specs.ActErrno:
		return unix.SECCOMP_RET_ERRNO | data, nil
	case specs.ActTrace:
		return unix.SECCOMP_RET_TRACE | data, nil
	case specs.ActAllow:
		return unix.SECCOMP_RET_ALLOW, nil
	case specs.ActLog:
		return unix.SECCOMP_RET_LOG, nil
	case specs.ActNotify:
		return 0, errdef.New(errdef.ErrUnsupported, "compile the seccomp profile: %s needs an agent", a)
	}
	return 0, errdef.New(errdef.ErrInvalid, "compile the seccomp profile: unknown action %q", a)
}

// rule is what happens to a call whose arguments fulfil all conditions.
type rule struct {
	action uint32
	conds  []specs.LinuxSeccompArg
}

type filterCompiler struct {
	profile  *specs.LinuxSeccomp
	fallback uint32           // the default action
	rules    map[int32][]rule // by index into syscallTable
}

// readRules sorts the profile's rules by call. Rules that say what happens
// anyway are left out, and so are names that no architecture knows. Several
// conditions on one argument are alternatives, as runc takes them.
func (c *filterCompiler) readRules() error {
	c.rules = make(map[int32][]rule, 512)
	for _, s := range c.profile.Syscalls {
		act, err := action(s.Action, s.ErrnoRet)
		if err != nil {
			return err
		}
		if act == c.fallback {
			continue
		}
		add := []rule{{act, s.Args}}
		var seen [6]bool
		for _, a := range s.Args {
			if a.Index > 5 {
				return errdef.New(errdef.ErrInvalid, "compile the seccomp profile: argument %d of %v", a.Index, s.Names)
			}
			if seen[a.Index] {
				add = nil
				for _, one := range s.Args {
					add = append(add, rule{act, []specs.LinuxSeccompArg{one}})
				}
				break
			}
			seen[a.Index] = true
		}
		for _, name := range s.Names {
			i, ok := slices.BinarySearchFunc(syscallTable, name, func(e syscallNumbers, name string) int {
				return cmp.Compare(e.name, name)
			})
			if ok {
				c.rules[int32(i)] = append(c.rules[int32(i)], add...)
			}
		}
	}
	return nil
}

// numberRange says what happens to calls from start up to the next range.
type numberRange struct {
	start uint32
	rules []rule // nil: only fallback
	// fallback is the action where no rule fits; rules with no conditions are
	// turned into it.
	fallback uint32
}

func (r numberRange) plain() bool { return len(r.rules) == 0 }

// ranges lists what happens to every number, in order. Neighbours that are
// treated alike are one range.
func (c *filterCompiler) ranges(abis []abi) []numberRange {
	slices.Sort(abis) // x32 above amd64
	var out []numberRange
	add := func(r numberRange) {
		if n := len(out); n > 0 && out[n-1].plain() && r.plain() && out[n-1].fallback == r.fallback {
			return
		}
		out = append(out, r)
	}
	beyond := uint32(0)
	for _, a := range abis {
		base := uint32(0)
		if a == abiX32 {
			base = x32Bit
			if beyond == 0 {
				add(numberRange{fallback: unix.SECCOMP_RET_KILL_PROCESS}) // amd64 itself is not allowed
			}
		}
		beyond = c.numbers(a, base, add)
	}
	if slices.Contains(abis, abiAMD64) && !slices.Contains(abis, abiX32) {
		add(numberRange{start: x32Bit, fallback: unix.SECCOMP_RET_KILL_PROCESS})
		// -1 is what a tracer leaves of a call it wants skipped.
		add(numberRange{start: math.MaxUint32, fallback: c.fallback})
	}
	return out
}

// numbers adds the ranges of one ABI and returns the first number after them.
func (c *filterCompiler) numbers(a abi, base uint32, add func(numberRange)) uint32 {
	type call struct {
		nr    uint32
		index int32
	}
	calls := make([]call, 0, len(c.rules))
	for i := range c.rules {
		if nr := syscallTable[i].nr[a]; nr >= 0 {
			calls = append(calls, call{base + uint32(nr), i})
		}
	}
	sort.Slice(calls, func(i, j int) bool { return calls[i].nr < calls[j].nr })
	next := base
	for _, s := range calls {
		if s.nr > next {
			add(numberRange{start: next, fallback: c.fallback})
		}
		r := numberRange{start: s.nr, fallback: c.fallback, rules: c.rules[s.index]}
		for _, one := range r.rules {
			if len(one.conds) == 0 { // nothing else matters then
				r.rules, r.fallback = nil, one.action
				break
			}
		}
		add(r)
		next = s.nr + 1
	}
	// A call that is newer than the profile is told to be missing, not
	// forbidden: libraries then fall back to an older one, as they do with runc.
	after := c.fallback
	if after&unix.SECCOMP_RET_ACTION_FULL == unix.SECCOMP_RET_ERRNO {
		after = unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)
	}
	add(numberRange{start: next, fallback: after})
	return next
}

// search is a binary search of the number in the accumulator.
func search(ranges []numberRange) []bpf.Instruction {
	if len(ranges) == 1 {
		return ranges[0].code()
	}
	mid := len(ranges) / 2
	below, above := search(ranges[:mid]), search(ranges[mid:])
	at := bpf.JumpIf{Cond: bpf.JumpGreaterOrEqual, Val: ranges[mid].start}
	code := make([]bpf.Instruction, 0, len(below)+len(above)+2)
	if len(below) <= math.MaxUint8 {
		at.SkipTrue = uint8(len(below))
		code = append(code, at)
	} else { // a conditional jump reaches 255 instructions
		at.SkipFalse = 1
		code = append(code, at, bpf.Jump{Skip: uint32(len(below))})
	}
	return append(append(code, below...), above...)
}

// code compares the arguments with each rule in turn.
func (r numberRange) code() []bpf.Instruction {
	var code []bpf.Instruction
	for _, one := range r.rules {
		code = append(code, one.code()...)
	}
	return append(code, ret(r.fallback))
}

// code returns the action, or falls through where a condition fails.
func (r rule) code() []bpf.Instruction {
	code := []bpf.Instruction{ret(r.action)}
	for _, cond := range slices.Backward(r.conds) {
		code = append(condition(cond, len(code)), code...)
	}
	return code
}
