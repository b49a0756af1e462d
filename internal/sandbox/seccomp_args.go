package sandbox

import (
	"slices"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/net/bpf"
)

// condition compares a 64-bit argument, which classic BPF can only do in
// halves. It leads to what was written last where the condition holds, and
// skips rest instructions where it does not. The halves of an argument of a 32-bit
// ABI need no care: the kernel extends those with zeros.
func (p *program) condition(arg specs.LinuxSeccompArg, rest int) {
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
		p.add(bpf.Jump{Skip: uint32(rest)})
	}
	c.write(p)
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

// halves collects the comparisons of one condition.
type halves struct {
	index uint32
	rest  int
	mask  *uint64
	tests []halfTest
}

// halfTest compares half h of the argument with val.
type halfTest struct {
	h       half
	test    bpf.JumpTest
	val     uint32
	ifTrue  outcome
	ifFalse outcome
}

func (c *halves) check(h half, test bpf.JumpTest, val uint32, ifTrue, ifFalse outcome) {
	c.tests = append(c.tests, halfTest{h, test, val, ifTrue, ifFalse})
}

// write adds the comparisons, last one first. A rule has at most six
// conditions of seven instructions, so that all distances fit into the eight
// bits of a conditional jump.
func (c *halves) write(p *program) {
	end := p.len()
	for _, t := range slices.Backward(c.tests) {
		distance := func(o outcome) uint8 {
			switch o {
			case yes:
				return uint8(p.len() - end)
			case no:
				return uint8(p.len() - end + c.rest)
			}
			return 0
		}
		p.add(bpf.JumpIf{Cond: t.test, Val: t.val, SkipTrue: distance(t.ifTrue), SkipFalse: distance(t.ifFalse)})
		if t.h != same {
			c.load(p, t.h)
		}
	}
}

// load brings a half of the argument into the accumulator. The machine is
// little-endian: the low half comes first.
func (c *halves) load(p *program, h half) {
	off, shift := dataArgs+8*c.index, 0
	if h == high {
		off, shift = off+4, 32
	}
	if c.mask != nil {
		p.add(bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: uint32(*c.mask >> shift)})
	}
	p.load(off)
}
