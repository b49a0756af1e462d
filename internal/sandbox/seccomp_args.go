package sandbox

import (
	"math"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/net/bpf"
)

// condition compares a 64-bit argument, which classic BPF can only do in
// halves. It continues behind itself where the condition holds, and skips rest
// instructions more where it does not. The halves of an argument of a 32-bit
// ABI need no care: the kernel extends those with zeros.
func condition(arg specs.LinuxSeccompArg, rest int) []bpf.Instruction {
	hi, lo := uint32(arg.Value>>32), uint32(arg.Value)
	c := halves{index: uint32(arg.Index), rest: rest}
	switch arg.Op {
	case specs.OpEqualTo:
		c.check(high, bpf.JumpEqual, hi, next, no)
		c.check(low, bpf.JumpEqual, lo, yes, no)
	case specs.OpNotEqual:
		c.check(high, bpf.JumpEqual, hi, next, yes)
		c.check(low, bpf.JumpEqual, lo, no, yes)
	case specs.OpGreaterThan:
		c.check(high, bpf.JumpGreaterThan, hi, yes, next)
		c.check(same, bpf.JumpEqual, hi, next, no)
		c.check(low, bpf.JumpGreaterThan, lo, yes, no)
	case specs.OpGreaterEqual:
		c.check(high, bpf.JumpGreaterThan, hi, yes, next)
		c.check(same, bpf.JumpEqual, hi, next, no)
		c.check(low, bpf.JumpGreaterOrEqual, lo, yes, no)
	case specs.OpLessThan:
		c.check(high, bpf.JumpGreaterThan, hi, no, next)
		c.check(same, bpf.JumpEqual, hi, next, yes)
		c.check(low, bpf.JumpGreaterOrEqual, lo, no, yes)
	case specs.OpLessEqual:
		c.check(high, bpf.JumpGreaterThan, hi, no, next)
		c.check(same, bpf.JumpEqual, hi, next, yes)
		c.check(low, bpf.JumpGreaterThan, lo, no, yes)
	case specs.OpMaskedEqual: // Value is the mask, ValueTwo what must remain
		c.mask = &arg.Value
		c.check(high, bpf.JumpEqual, uint32(arg.ValueTwo>>32), next, no)
		c.check(low, bpf.JumpEqual, uint32(arg.ValueTwo), yes, no)
	default: // fails always: a rule that is not understood grants nothing
		c.code = append(c.code, bpf.Jump{Skip: uint32(rest)})
	}
	return c.resolve()
}

// half says which part of the argument to look at.
type half int

const (
	high half = iota
	low
	same // what is in the accumulator already
)

// outcome is where a comparison leads.
type outcome int

const (
	next outcome = iota // the following comparison
	yes                 // the condition holds
	no                  // it does not
)

// halves collects comparisons whose jumps are filled in at the end.
type halves struct {
	index uint32
	rest  int
	mask  *uint64
	code  []bpf.Instruction
	jumps []pendingJump
}

type pendingJump struct {
	at      int
	yes, no outcome
}

// check adds a comparison of half h with val.
func (c *halves) check(h half, test bpf.JumpTest, val uint32, ifTrue, ifFalse outcome) {
	if h != same {
		// Little-endian: the low half comes first.
		off, mask := dataArgs+8*c.index, uint64(math.MaxUint64)
		if h == high {
			off += 4
		}
		c.code = append(c.code, bpf.LoadAbsolute{Off: off, Size: 4})
		if c.mask != nil {
			if mask = *c.mask; h == high {
				mask >>= 32
			}
			c.code = append(c.code, bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: uint32(mask)})
		}
	}
	c.jumps = append(c.jumps, pendingJump{len(c.code), ifTrue, ifFalse})
	c.code = append(c.code, bpf.JumpIf{Cond: test, Val: val})
}

// resolve fills the jumps in. A rule has six conditions of at most seven
// instructions, so all distances fit into the eight bits there are.
func (c *halves) resolve() []bpf.Instruction {
	for _, j := range c.jumps {
		distance := func(o outcome) uint8 {
			behind := len(c.code) - j.at - 1
			switch o {
			case yes:
				return uint8(behind)
			case no:
				return uint8(behind + c.rest)
			}
			return 0
		}
		jump := c.code[j.at].(bpf.JumpIf)
		jump.SkipTrue, jump.SkipFalse = distance(j.yes), distance(j.no)
		c.code[j.at] = jump
	}
	return c.code
}
