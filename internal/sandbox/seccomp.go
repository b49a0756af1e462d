package sandbox

import (
	"cmp"
	"encoding/binary"
	"math"
	"runtime"
	"slices"

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
	if j := b.cfg.Join; j != nil {
		if f := j.lastFilter.Load(); f != nil && f.profile == b.spec.Linux.Seccomp {
			b.plan.Filter, b.plan.FilterFlags = f.code, f.flags
			return nil
		}
	}
	err := b.compileFilter()
	if j := b.cfg.Join; j != nil && err == nil {
		j.lastFilter.Store(&filter{b.spec.Linux.Seccomp, b.plan.Filter, b.plan.FilterFlags})
	}
	return err
}

// filter is a profile as the kernel takes it. Nobody changes a profile that was
// given to Start.
type filter struct {
	profile *specs.LinuxSeccomp
	code    []byte
	flags   uint64
}

func (b *builder) compileFilter() error {
	raw, err := compileFilter(b.spec.Linux.Seccomp)
	if err != nil || raw == nil {
		return err
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
func compileFilter(p *specs.LinuxSeccomp) ([]bpf.RawInstruction, error) {
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
	// Written backwards: the jumps of BPF lead forward, to what is there then.
	out := &program{code: make([]bpf.RawInstruction, 0, 1024)}
	out.ret(unix.SECCOMP_RET_KILL_PROCESS)
	for _, audit := range slices.Backward(order) {
		end := out.len()
		out.search(c.ranges(abis[audit]))
		out.load(dataNr)
		out.add(bpf.Jump{Skip: uint32(out.len() - end)})
		out.add(bpf.JumpIf{Cond: bpf.JumpEqual, Val: audit, SkipTrue: 1})
	}
	out.load(dataArch)
	slices.Reverse(out.code)
	return out.code, out.err
}

// program is BPF code in reverse order.
type program struct {
	code []bpf.RawInstruction
	err  error
}

func (p *program) len() int { return len(p.code) }

func (p *program) add(ins interface {
	Assemble() (bpf.RawInstruction, error)
}) {
	raw, err := ins.Assemble()
	p.code, p.err = append(p.code, raw), cmp.Or(p.err, err)
}

func (p *program) load(off uint32)   { p.add(bpf.LoadAbsolute{Off: off, Size: 4}) }
func (p *program) ret(action uint32) { p.add(bpf.RetConstant{Val: action}) }

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
	fallback uint32   // the default action
	rules    [][]rule // by index into syscallTable
}

// readRules sorts the profile's rules by call. Rules that say what happens
// anyway are left out, and so are names that no architecture knows. Several
// conditions on one argument are alternatives, as runc takes them.
func (c *filterCompiler) readRules() error {
	c.rules = make([][]rule, len(syscallTable))
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
			if ok && c.rules[i] == nil {
				c.rules[i] = add
			} else if ok {
				c.rules[i] = slices.Concat(c.rules[i], add)
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
	out := make([]numberRange, 0, 256)
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
	next := base
	for _, s := range c.calls(a) {
		nr := base + uint32(s.nr)
		if nr > next {
			add(numberRange{start: next, fallback: c.fallback})
		}
		r := numberRange{start: nr, fallback: c.fallback, rules: c.rules[s.index]}
		for _, one := range r.rules {
			if len(one.conds) == 0 { // nothing else matters then
				r.rules, r.fallback = nil, one.action
				break
			}
		}
		add(r)
		next = nr + 1
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

// call is a system call that has rules.
type call struct {
	nr    int32
	index int // into syscallTable
}

// calls lists the calls of one ABI that have rules, by number. All numbers but
// ARM's private ones are small, so that they are put in place, not sorted.
func (c *filterCompiler) calls(a abi) []call {
	var place [1024]int16 // index + 1 by number
	var large []call
	n := 0
	for i, rules := range c.rules {
		nr := syscallTable[i].nr[a]
		switch {
		case rules == nil || nr < 0:
		case int(nr) < len(place):
			place[nr] = int16(i + 1)
			n++
		default:
			large = append(large, call{nr, i})
		}
	}
	out := make([]call, 0, n+len(large))
	for nr, i := range place {
		if i != 0 {
			out = append(out, call{int32(nr), int(i) - 1})
		}
	}
	slices.SortFunc(large, func(a, b call) int { return cmp.Compare(a.nr, b.nr) })
	return append(out, large...)
}

// search is a binary search of the number in the accumulator.
func (p *program) search(ranges []numberRange) {
	if len(ranges) == 1 {
		p.action(ranges[0])
		return
	}
	mid := len(ranges) / 2
	p.search(ranges[mid:])
	above := p.len()
	p.search(ranges[:mid])
	below := p.len() - above
	if below <= math.MaxUint8 {
		p.add(bpf.JumpIf{Cond: bpf.JumpGreaterOrEqual, Val: ranges[mid].start, SkipTrue: uint8(below)})
		return
	}
	p.add(bpf.Jump{Skip: uint32(below)}) // a conditional jump reaches 255 instructions
	p.add(bpf.JumpIf{Cond: bpf.JumpGreaterOrEqual, Val: ranges[mid].start, SkipFalse: 1})
}

// action compares the arguments with each rule in turn.
func (p *program) action(r numberRange) {
	p.ret(r.fallback)
	for _, one := range slices.Backward(r.rules) {
		end := p.len()
		p.ret(one.action)
		for _, cond := range slices.Backward(one.conds) {
			p.condition(cond, p.len()-end)
		}
	}
}
