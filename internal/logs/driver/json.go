package driver

import (
	"encoding/binary"
	"math/bits"
	"unicode/utf8"
)

const hexDigits = "0123456789abcdef"

// AppendJSON appends s as the inside of a JSON string, escaped as docker's
// json-file does it. It returns false when some of s is no UTF-8: those bytes are
// written as U+FFFD.
func AppendJSON(dst, s []byte) ([]byte, bool) {
	exact := true
	for len(s) > 0 {
		n := plainJSON(s)
		dst = append(dst, s[:n]...)
		s = s[n:]
		if len(s) == 0 {
			break
		}
		c := s[0]
		if c < utf8.RuneSelf {
			dst = appendEscaped(dst, c)
			s = s[1:]
			continue
		}
		r, size := utf8.DecodeRune(s)
		switch {
		case r == utf8.RuneError && size == 1:
			dst = append(dst, `\ufffd`...)
			exact = false
		case r == '\u2028' || r == '\u2029':
			dst = append(dst, `\u202`...)
			dst = append(dst, hexDigits[r&0xf])
		default:
			dst = append(dst, s[:size]...)
		}
		s = s[size:]
	}
	return dst, exact
}

func appendEscaped(dst []byte, c byte) []byte {
	switch c {
	case '\\', '"':
		return append(dst, '\\', c)
	case '\n':
		return append(dst, '\\', 'n')
	case '\r':
		return append(dst, '\\', 'r')
	}
	return append(dst, '\\', 'u', '0', '0', hexDigits[c>>4], hexDigits[c&0xf])
}

// plainJSON returns how many bytes from the first need no escape and are ASCII.
// It looks at 32 at once, and at eight where one of these has to be looked at.
func plainJSON(s []byte) int {
	n := 0
	for ; len(s)-n >= 32; n += 32 {
		p := s[n : n+32 : n+32]
		m := special(binary.LittleEndian.Uint64(p)) | special(binary.LittleEndian.Uint64(p[8:]))
		m |= special(binary.LittleEndian.Uint64(p[16:])) | special(binary.LittleEndian.Uint64(p[24:]))
		if m&highs != 0 {
			break
		}
	}
	for ; len(s)-n >= 8; n += 8 {
		if m := special(binary.LittleEndian.Uint64(s[n:])) & highs; m != 0 {
			return n + bits.TrailingZeros64(m)/8
		}
	}
	if n > 0 && n < len(s) { // the last eight, of which the first were looked at
		if m := special(binary.LittleEndian.Uint64(s[len(s)-8:])) & highs; m != 0 {
			return len(s) - 8 + bits.TrailingZeros64(m)/8
		}
		return len(s)
	}
	for n < len(s) {
		c := s[n]
		if c < 0x20 || c >= utf8.RuneSelf || c == '"' || c == '\\' || c == '<' || c == '>' || c == '&' {
			break
		}
		n++
	}
	return n
}

const (
	ones  = 0x0101010101010101
	highs = 0x8080808080808080
)

// special sets the high bit of the lowest byte of w that is no plain one (Warren,
// Hacker's Delight, section 6-1); what it says of higher bytes may be wrong, which
// the search for the lowest does not mind. Two pairs of them differ in one bit:
// '"' and '&', '<' and '>'.
func special(w uint64) uint64 {
	const low, quotes, angles, backslash = ones * 0x20, ones * '&', ones * '>', ones * '\\'
	differs := (w | ones*('"'^'&')) ^ quotes
	points := (w | ones*('<'^'>')) ^ angles
	slashes := w ^ backslash
	return (w-low)&^w | (differs-ones)&^differs | (points-ones)&^points | (slashes-ones)&^slashes | w
}
