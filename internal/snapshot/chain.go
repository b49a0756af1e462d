package snapshot

import (
	"fmt"
	"strings"

	"dhow/internal/errdef"
)

// Chain names a tree by its layers' ids, bottom first. The empty chain is
// scratch, an empty tree. Two trees merge by putting one chain after the other.
type Chain []string

// scratch is the text form of the empty chain.
const scratch = "scratch"

// String is the chain's stable text form, which ParseChain reads.
func (c Chain) String() string {
	if len(c) == 0 {
		return scratch
	}
	return strings.Join(c, ":")
}

// brief is the chain in messages: of a long one only both ends.
func (c Chain) brief() string {
	if len(c) <= 4 {
		return c.String()
	}
	return fmt.Sprintf("%s:…:%s (%d layers)", c[0], c[len(c)-1], len(c))
}

// ParseChain reads the text form. ErrInvalid.
func ParseChain(s string) (Chain, error) {
	if s == scratch {
		return Chain{}, nil
	}
	c := Chain(strings.Split(s, ":"))
	for _, id := range c {
		if !validID(id) {
			return nil, errdef.New(errdef.ErrInvalid, "chain %q: layer id %q is malformed", s, id)
		}
	}
	return c, nil
}

// Append is a new chain with the layer on top, or c itself for the id "", which
// a computed difference has when there is none.
func (c Chain) Append(id string) Chain {
	if id == "" {
		return c
	}
	return append(c[:len(c):len(c)], id)
}

// topmost is the chain with every layer once, where it comes last.
func (c Chain) topmost() Chain {
	last := make(map[string]int, len(c))
	for i, id := range c {
		last[id] = i
	}
	if len(last) == len(c) {
		return c
	}
	once := make(Chain, 0, len(last))
	for i, id := range c {
		if last[id] == i {
			once = append(once, id)
		}
	}
	return once
}

// validID keeps ids apart from paths: they are made by newID and read back from
// records.
func validID(id string) bool {
	if id == "" {
		return false
	}
	for i := range len(id) {
		if c := id[i]; (c < 'a' || c > 'z') && (c < '0' || c > '9') {
			return false
		}
	}
	return true
}
