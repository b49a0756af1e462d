package buildcontext

import (
	"strings"
)

// Filter selects the part of a directory that takes part in a build, with the
// meaning BuildKit gives to a local source. The zero Filter selects everything.
//
// A path takes part when Include (with what Follow adds) is empty or matches
// it, and Exclude does not; both match with the rules of an ignore file. A
// directory that does not take part itself is there all the same when something
// in it does.
type Filter struct {
	// Exclude leaves out what matches: the patterns of a .dockerignore, in
	// order, "!" for exceptions.
	Exclude []string
	// Include keeps only what matches one of the patterns; empty keeps all.
	Include []string
	// Follow holds paths, possibly with wildcards in their components, that are
	// added to Include together with everything that symbolic links on the way
	// lead to. Links are followed as if the context were the root directory,
	// also through what Exclude leaves out.
	Follow []string
}

// selector is a compiled Filter; a nil matcher keeps everything.
type selector struct {
	include, exclude *matcher
}

// newSelector compiles f for the directory open at root.
func newSelector(root int, f Filter) (*selector, error) {
	include := f.Include
	if f.Follow != nil {
		targets, all, err := followLinks(root, f.Follow)
		if err != nil {
			return nil, err
		}
		if !all {
			include = withoutNested(append(append([]string{}, include...), targets...))
		}
	}
	s := &selector{}
	var err error
	if len(include) > 0 {
		if s.include, err = newMatcher(include); err != nil {
			return nil, err
		}
	}
	if len(f.Exclude) > 0 {
		if s.exclude, err = newMatcher(f.Exclude); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// withoutNested drops paths that lie below the one before them.
func withoutNested(paths []string) []string {
	var out []string
	last := ""
	for _, p := range paths {
		if p == "." { // everything is asked for
			return nil
		}
		if !strings.HasPrefix(p, last+"/") {
			out = append(out, p)
			last = p
		}
	}
	return out
}

// place is what the selector makes of a directory.
type place struct {
	include, exclude folder
}

func (s *selector) root() place {
	var p place
	if s.include != nil {
		p.include = s.include.root()
	}
	if s.exclude != nil {
		p.exclude = s.exclude.root()
	}
	return p
}

// choice is what becomes of a path.
type choice struct {
	fate fate
	rule int // index into Filter.Exclude of the pattern that decided, or -1
}

type fate uint8

const (
	taken   fate = iota
	ignored      // by Exclude, asked for or not
	unasked      // not in Include
)

// name decides on a path that is no directory.
func (s *selector) name(p *place, name string) (choice, error) {
	inc, exc := verdict{matched: true}, verdict{by: -1}
	var err error
	if s.include != nil {
		if inc, err = s.include.name(&p.include, name); err != nil {
			return choice{}, err
		}
	}
	if s.exclude != nil {
		if exc, err = s.exclude.name(&p.exclude, name); err != nil {
			return choice{}, err
		}
	}
	return s.choice(inc, exc), nil
}

// enter decides on the directory name in p; open says whether anything in it
// may take part, and then in is what judging its content needs.
func (s *selector) enter(p *place, name string) (c choice, in place, open bool, err error) {
	inc, exc := verdict{matched: true}, verdict{by: -1}
	open = true
	if s.include != nil {
		if inc, in.include, err = s.include.enter(&p.include, name); err != nil {
			return choice{}, place{}, false, err
		}
		open = inc.matched || s.include.mayTurn(inc, &in.include)
	}
	if s.exclude != nil {
		if exc, in.exclude, err = s.exclude.enter(&p.exclude, name); err != nil {
			return choice{}, place{}, false, err
		}
		open = open && (!exc.matched || s.exclude.mayTurn(exc, &in.exclude))
	}
	return s.choice(inc, exc), in, open, nil
}

func (s *selector) choice(inc, exc verdict) choice {
	c := choice{rule: -1}
	if exc.by >= 0 {
		c.rule = s.exclude.source[exc.by]
	}
	switch {
	case exc.matched:
		c.fate = ignored
	case !inc.matched:
		c.fate = unasked
	}
	return c
}
