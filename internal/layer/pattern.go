package layer

import (
	"bytes"
	"encoding/base64"
)

// Lengths of needles, in bytes. Short values are in everything: "true" in every
// binary. They are looked for only as all that a file, a link or an attribute
// holds, and the shortest not at all.
const (
	minWhole  = 4
	minNeedle = 6
)

// maxAnchor is what is searched for first: bytes.Index has a vector loop for up
// to 63 bytes.
const maxAnchor = 32

// pattern is one form of a needle.
type pattern struct {
	needle int    // index
	form   string // "", or the encoding's name
	value  []byte
	// A part of value is searched for, and the rest compared where it is found.
	anchors []anchor
	// wrapped says that line breaks may stand anywhere in the value, as base64(1)
	// puts them after 76 characters.
	wrapped bool
}

// anchor is a part of a pattern's value, from off on.
type anchor struct {
	off   int
	bytes []byte
}

// secret is what a needle's value means: files of secrets often end in a newline
// that commands strip.
func secret(value []byte) []byte { return bytes.TrimRight(value, "\r\n") }

// patterns returns the forms of all needles that are long enough, and the
// indices of those that are looked for as a whole only.
func patterns(needles []Needle) (ps []pattern, whole []int) {
	for i, n := range needles {
		value := secret(n.Value)
		if len(value) < minNeedle {
			if len(value) >= minWhole {
				whole = append(whole, i)
			}
			continue
		}
		ps = append(ps, pattern{needle: i, value: value, anchors: []anchor{middle(value)}})
		ps = append(ps, base64Patterns(i, value)...)
	}
	return ps, whole
}

// middle is an anchor from the middle of a value: its beginning is the likeliest
// to be in files that do not have it, think of "-----BEGIN PRIVATE KEY-----".
func middle(value []byte) anchor {
	n := min(len(value), maxAnchor)
	off := (len(value) - n) / 2
	return anchor{off, value[off : off+n]}
}

// base64Patterns are the characters that a value becomes, whatever stands before
// and after it: three alignments, without those characters at the ends that also
// depend on the neighbours; two alphabets where they differ.
func base64Patterns(needle int, value []byte) []pattern {
	var out []pattern
	for shift := range 3 {
		padded := append(make([]byte, shift), value...)
		std := core(base64.StdEncoding, padded, shift)
		out = append(out, encoded(needle, "base64", std))
		if url := core(base64.URLEncoding, padded, shift); !bytes.Equal(std, url) {
			out = append(out, encoded(needle, "base64url", url))
		}
	}
	return out
}

// core encodes padded, whose first shift bytes are unknown, and keeps the
// characters that come from known bits alone.
func core(e *base64.Encoding, padded []byte, shift int) []byte {
	text := e.WithPadding(base64.NoPadding).AppendEncode(nil, padded)
	first := (shift*8 + 5) / 6
	last := len(padded) * 8 / 6
	return text[first:last]
}

func encoded(needle int, form string, value []byte) pattern {
	p := pattern{needle: needle, form: form, value: value, wrapped: true, anchors: []anchor{middle(value)}}
	if n := len(value); n >= 2*minNeedle {
		// A line break can be in one of two neighbouring parts, not in both: lines
		// have at least 60 characters.
		half := min(n/2, maxAnchor-4)
		p.anchors = []anchor{{n/2 - half, value[n/2-half : n/2]}, {n / 2, value[n/2 : n/2+half]}}
	}
	return p
}

// span is how many bytes a match can take.
func (p *pattern) span() int {
	if !p.wrapped {
		return len(p.value)
	}
	return len(p.value) + 2*(len(p.value)/60+1) // "\r\n" a line
}

// in finds out whether data holds the pattern.
func (p *pattern) in(data []byte) bool {
	for _, a := range p.anchors {
		for at := 0; ; {
			i := bytes.Index(data[at:], a.bytes)
			if i < 0 {
				break
			}
			at += i
			if p.around(data, at, a) {
				return true
			}
			at++
		}
	}
	return false
}

// around compares the rest of the value before and after an anchor found at i.
func (p *pattern) around(data []byte, i int, a anchor) bool {
	end := i + len(a.bytes)
	for _, want := range p.value[a.off+len(a.bytes):] {
		end = p.skip(data, end, 1)
		if end >= len(data) || data[end] != want {
			return false
		}
		end++
	}
	start := i - 1
	for k := a.off - 1; k >= 0; k-- {
		start = p.skip(data, start, -1)
		if start < 0 || data[start] != p.value[k] {
			return false
		}
		start--
	}
	return true
}

// skip moves i over line breaks, where they do not count.
func (p *pattern) skip(data []byte, i, step int) int {
	for p.wrapped && i >= 0 && i < len(data) && (data[i] == '\n' || data[i] == '\r') {
		i += step
	}
	return i
}
