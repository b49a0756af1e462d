package buildcontext

import (
	"math/bits"
	"strings"
	"unicode/utf8"

	"dhow/internal/errdef"

	"github.com/moby/patternmatcher"
)

// A pattern is compiled to a short program that is run over a path one
// component at a time, so that a directory's progress is shared by everything
// below it and "no path below this directory can match" is plain to see: no
// step is left to stand on.
//
// moby/patternmatcher defines what a pattern means, including where that is
// surprising: "**" not at the end is "(.*/)?" wherever it stands and swallows
// the slash behind it, "." does not match a newline, "**" at the very start of
// otherwise literal text is a plain suffix test, and a negated class matches a
// slash. The program reproduces that; FuzzMatcher holds the two against each
// other. What the program has no steps for (see plain) is handed to
// patternmatcher itself, one path at a time.
type pattern struct {
	exception bool // "!"
	steps     []step
	start     set    // before the first component
	inert     set    // steps that need a slash to get any further
	lone      string // steps end in this literal: see matchName

	// opaque, when not nil, decides instead of steps.
	opaque *opaque
}

// set holds the steps at which a match may stand, one bit each; the bit after
// the last step stands for a match.
type set = uint64

// maxSteps leaves a bit of a set for "matched".
const maxSteps = 63

type step struct {
	op  stepOp
	lit string // opLit: never has a slash but as its last byte
	cls *class // opClass
	nl  bool   // opEnter, opInside, opRest: newlines are matched too
}

type stepOp uint8

const (
	opLit    stepOp = iota // the bytes of lit
	opAny                  // one character but a slash
	opStar                 // any run of characters but slashes
	opClass                // one character of cls
	opEnter                // the start of "(.*/)?": nothing, or go inside
	opInside               // within "(.*/)?": left only behind a slash
	opRest                 // ".*"
)

// class is a bracket expression.
type class struct {
	negated bool
	ranges  [][2]rune
}

func (c *class) has(r rune) bool {
	for _, x := range c.ranges {
		if x[0] <= r && r <= x[1] {
			return !c.negated
		}
	}
	return c.negated
}

// compile compiles one pattern in patternmatcher's cleaned form, without "!".
func compile(text string, exception bool) (pattern, error) {
	p := pattern{exception: exception}
	if steps, ok := plain(text); ok {
		p.steps = steps
		p.start = p.close(1)
		for i, s := range steps {
			if s.op == opEnter || s.op == opInside {
				p.inert |= 1 << i
			}
		}
		if s := steps[len(steps)-1]; s.op == opLit {
			p.lone = s.lit
		}
		return p, nil
	}
	o, err := newOpaque(text)
	if err != nil {
		return pattern{}, err
	}
	p.opaque = o
	return p, nil
}

// special are the characters that make patternmatcher go by a regular
// expression; without them it compares bytes, before a final "**" a prefix,
// behind a leading "**" a suffix. Only then do newlines match, and only then
// are the leaks literal: those it forgets to escape for the expression.
const (
	special = `*?[]\`
	leaks   = `^|{}`
)

// plain turns a pattern into steps; ok is false when it holds something whose
// meaning is left to patternmatcher: escapes, a bracket that does not close,
// leaks, text that is not UTF-8, and such.
func plain(text string) (steps []step, ok bool) {
	if text == "" || !utf8.ValidString(text) || strings.ContainsAny(text, "\x00\ufeff\ufffd") {
		return nil, false
	}
	if tail, found := strings.CutPrefix(text, "**"); found && !strings.ContainsAny(tail, special) {
		// "**/x" is x in any directory, "**x" whatever ends in x.
		if inside, found := strings.CutPrefix(tail, "/"); found {
			steps = []step{{op: opEnter, nl: true}, {op: opInside, nl: true}}
			tail = inside
		} else {
			steps = []step{{op: opRest, nl: true}}
		}
		steps = append(steps, literals(tail)...)
		return steps, len(steps) <= maxSteps
	}
	if head, found := strings.CutSuffix(text, "**"); found && !strings.ContainsAny(head, special) {
		steps = append(literals(head), step{op: opRest, nl: true})
		return steps, len(steps) <= maxSteps
	}
	if !strings.ContainsAny(text, special) {
		steps = literals(text)
		return steps, len(steps) <= maxSteps
	}
	return wildcards(text)
}

// wildcards is plain for patterns that are regular expressions.
func wildcards(text string) (steps []step, ok bool) {
	for i := 0; i < len(text); {
		switch text[i] {
		case '*':
			n := starLen(text[i:])
			switch {
			case n == 1:
				steps = append(steps, step{op: opStar})
			case i+n == len(text):
				steps = append(steps, step{op: opRest})
			default:
				steps = append(steps, step{op: opEnter}, step{op: opInside})
			}
			i += n
		case '?':
			steps = append(steps, step{op: opAny})
			i++
		case '[':
			c, n := parseClass(text[i:])
			if n == 0 {
				return nil, false
			}
			steps = append(steps, step{op: opClass, cls: c})
			i += n
		case ']', '^', '|', '{', '}', '\\':
			return nil, false
		default:
			n := strings.IndexAny(text[i:], special+leaks)
			if n < 0 {
				n = len(text) - i
			}
			steps = append(steps, literals(text[i:i+n])...)
			i += n
		}
	}
	return steps, len(steps) <= maxSteps
}

// starLen returns how much of text, which starts with "*", is one token: "*",
// "**" or "**/".
func starLen(text string) int {
	if strings.HasPrefix(text, "**/") {
		return 3
	}
	if strings.HasPrefix(text, "**") {
		return 2
	}
	return 1
}

// literals cuts text behind every slash, so that a match never stands within a
// literal where one component ends and the next begins.
func literals(text string) []step {
	var steps []step
	for _, part := range strings.SplitAfter(text, "/") {
		if part != "" {
			steps = append(steps, step{op: opLit, lit: part})
		}
	}
	return steps
}

// classSyntax are the characters that mean something else than themselves
// within brackets, to patternmatcher or to the expression it makes.
const classSyntax = `*?[^-:&~\`

// parseClass reads a bracket expression of plain characters and ranges at the
// start of text and returns its length, or 0 when it is anything else.
func parseClass(text string) (*class, int) {
	end := strings.IndexByte(text, ']')
	if end < 0 {
		return nil, 0
	}
	body := []rune(text[1:end])
	c := &class{}
	if len(body) > 0 && body[0] == '^' {
		c.negated = true
		body = body[1:]
	}
	if len(body) == 0 {
		return nil, 0
	}
	for i := 0; i < len(body); {
		lo := body[i]
		if strings.ContainsRune(classSyntax, lo) {
			return nil, 0
		}
		hi := lo
		if i++; i < len(body) && body[i] == '-' {
			if i+1 == len(body) || strings.ContainsRune(classSyntax, body[i+1]) {
				return nil, 0
			}
			hi = body[i+1]
			i += 2
		}
		if lo > hi {
			return nil, 0
		}
		c.ranges = append(c.ranges, [2]rune{lo, hi})
	}
	return c, end + 1
}

// accept is the bit that stands for a match.
func (p *pattern) accept() set { return 1 << len(p.steps) }

// close adds the steps that are reached without reading anything.
func (p *pattern) close(s set) set {
	for todo := s; todo != 0; {
		i := bits.TrailingZeros64(todo)
		todo &^= 1 << i
		if i == len(p.steps) {
			break
		}
		var next set
		switch p.steps[i].op {
		case opEnter:
			next = 0b110 << i
		case opStar, opRest:
			next = 0b10 << i
		}
		// Steps are only ever reached forwards: one pass, low to high.
		todo |= next &^ s
		s |= next
	}
	return s
}

// advance reads text from the steps in s and returns where that leads; s and
// the result are closed.
func (p *pattern) advance(s set, text string) set {
	var few [128]set
	at := few[:]
	if len(text) >= len(few) {
		at = make([]set, len(text)+1)
	}
	at[0] = s
	for i := 0; i < len(text); {
		c, width := rune(text[i]), 1
		if c >= utf8.RuneSelf {
			c, width = utf8.DecodeRuneInString(text[i:])
		}
		for todo := at[i]; todo != 0; todo &= todo - 1 {
			j := bits.TrailingZeros64(todo)
			if j == len(p.steps) {
				break
			}
			st := &p.steps[j]
			if st.op == opLit {
				if strings.HasPrefix(text[i:], st.lit) {
					at[i+len(st.lit)] |= p.close(1 << (j + 1))
				}
				continue
			}
			if next := st.read(c) << j; next != 0 {
				at[i+width] |= p.close(next)
			}
		}
		// Positions inside a character hold nothing: skip to the next one
		// that may, which for a literal's end is always a character's end.
		i += width
	}
	return at[len(text)]
}

// read returns what the step becomes after the character c: bit 0 is the step
// itself, bit 1 the one behind it.
func (st *step) read(c rune) set {
	switch st.op {
	case opAny:
		if c != '/' {
			return 0b10
		}
	case opStar:
		if c != '/' {
			return 0b01
		}
	case opClass:
		if st.cls.has(c) {
			return 0b10
		}
	case opInside:
		if c == '/' {
			return 0b11
		}
		if c != '\n' || st.nl {
			return 0b01
		}
	case opRest:
		if c != '\n' || st.nl {
			return 0b01
		}
	}
	return 0
}

// matchName reports whether the last component of a path, read from s, ends in
// a match. The common endings, a literal and "*" with a literal behind it, are
// decided without running the steps.
func (p *pattern) matchName(s set, name string) bool {
	s &^= p.inert
	if s == 0 {
		return false
	}
	if p.lone != "" {
		last := len(p.steps) - 1
		if s == 1<<last {
			return name == p.lone
		}
		if last > 0 && s == 0b11<<(last-1) && p.steps[last-1].op == opStar {
			return strings.HasSuffix(name, p.lone)
		}
	}
	return p.advance(s, name)&p.accept() != 0
}

// opaque is a pattern that patternmatcher decides.
type opaque struct {
	text   string
	prefix string // a path that matches starts with it
	pm     *patternmatcher.PatternMatcher
	// fresh says "no directory above matched"; its zero value would make
	// patternmatcher look at them itself.
	fresh patternmatcher.MatchInfo
	err   error // the pattern passed the syntax check and fails when used
}

func newOpaque(text string) (*opaque, error) {
	o := &opaque{text: text, prefix: literalPrefix(text)}
	// As an exception to "everything", text keeps its meaning whatever it
	// starts with, "!" and spaces included; the slash, which is cleaned away,
	// does the same for spaces at the end.
	var err error
	if o.pm, err = patternmatcher.New([]string{"**", "!" + text + "/"}); err != nil {
		return nil, err
	}
	// An exception is not evaluated where nothing matched before it, so two of
	// them yield the MatchInfo wanted.
	never, err := patternmatcher.New([]string{"!x", "!x"})
	if err != nil {
		return nil, err
	}
	if _, o.fresh, err = never.MatchesUsingParentResults("x", patternmatcher.MatchInfo{}); err != nil {
		return nil, err
	}
	// The first use compiles; from then on the matcher is only read, and
	// may be used by several goroutines.
	_, o.err = o.match("x")
	return o, nil
}

// literalPrefix returns text that every path which the pattern matches starts
// with.
func literalPrefix(text string) string {
	if strings.ContainsRune(text, '|') { // an alternative to all before it
		return ""
	}
	i := strings.IndexFunc(text, func(r rune) bool {
		return r < ' ' || r >= utf8.RuneSelf || strings.ContainsRune(special+leaks, r)
	})
	if i < 0 {
		return text
	}
	if i > 0 && text[i] == '{' { // the character before it may be repeated no times
		i--
	}
	return text[:i]
}

func (o *opaque) match(path string) (bool, error) {
	if o.err != nil {
		return false, o.err
	}
	outside, _, err := o.pm.MatchesUsingParentResults(path, o.fresh)
	if err != nil {
		return false, errdef.New(errdef.ErrInvalid, "match pattern %q: %w", o.text, err)
	}
	return !outside, nil
}

// below reports whether a path that starts with dir, which ends in a slash,
// can match, as far as the pattern's first characters tell.
func (o *opaque) below(dir string) bool {
	return strings.HasPrefix(o.prefix, dir) || strings.HasPrefix(dir, o.prefix)
}
