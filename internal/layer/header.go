package layer

import (
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// blockSize is the unit of a tar.
const blockSize = 512

// Types of tar entries (POSIX.1-2017, pax, "ustar Interchange Format").
const (
	typeFile   = '0'
	typeLink   = '1'
	typeSymbol = '2'
	typeChar   = '3'
	typeBlock  = '4'
	typeDir    = '5'
	typeFifo   = '6'
	typePax    = 'x'
)

// header is one entry of a canonical tar. archive/tar could write it at five
// times the cost, which shows with 15,000 small files.
type header struct {
	name, link   string
	kind         byte
	mode         uint32
	uid, gid     uint32
	size, mtime  int64 // bytes; seconds
	major, minor uint32
	xattrs       []xattr // sorted by name
}

// Widths of USTAR's fields.
const (
	nameSize    = 100
	prefixSize  = 155
	maxOctal7   = 1<<21 - 1 // seven digits: owners, devices
	maxOctal11  = 1<<33 - 1 // eleven digits: sizes, times
	paxHdrName  = "PaxHeaders.0/x"
	paxBinary   = "BINARY"
	keyCharset  = "hdrcharset"
	keyLinkPath = "linkpath"
	keyPath     = "path"
)

// append adds the entry's blocks to b: USTAR alone, or PAX records with what
// has no room in it and then USTAR.
func (h *header) append(b []byte) []byte {
	if records := h.records(); len(records) > 0 {
		pax := header{name: paxHdrName, kind: typePax, mode: 0o644, size: int64(len(records))}
		b = pax.appendBlock(b)
		b = append(b, records...)
		b = append(b, make([]byte, padding(int64(len(records))))...)
	}
	return h.appendBlock(b)
}

// padding is what fills size bytes up to whole blocks.
func padding(size int64) int64 { return -size & (blockSize - 1) }

// records are the PAX records that the entry needs, sorted by key. Most need
// none.
func (h *header) records() []byte {
	type record struct{ key, value string }
	var rs []record
	add := func(key, value string) { rs = append(rs, record{key, value}) }
	number := func(key string, n, limit int64) {
		if n < 0 || n > limit {
			add(key, strconv.FormatInt(n, 10))
		}
	}
	for _, x := range h.xattrs {
		add(paxXattr+x.name, string(x.value))
	}
	number("gid", int64(h.gid), maxOctal7)
	path, link := !fitsName(h.name), len(h.link) > nameSize || !ascii(h.link)
	if (path && !utf8.ValidString(h.name)) || (link && !utf8.ValidString(h.link)) {
		add(keyCharset, paxBinary)
	}
	if link {
		add(keyLinkPath, h.link)
	}
	number("mtime", h.mtime, maxOctal11)
	if path {
		add(keyPath, h.name)
	}
	number("size", h.size, maxOctal11)
	number("uid", int64(h.uid), maxOctal7)
	if rs == nil {
		return nil
	}
	// The charset comes before the names it is said of: 'h' < 'l' < 'p'.
	slices.SortStableFunc(rs, func(a, b record) int { return strings.Compare(a.key, b.key) })
	var b []byte
	for _, r := range rs {
		b = appendRecord(b, r.key, r.value)
	}
	return b
}

// appendRecord adds "length key=value\n", where the length counts itself.
func appendRecord(b []byte, key, value string) []byte {
	rest := len(key) + len(value) + len(" =\n")
	size := rest + len(strconv.Itoa(rest))
	if n := rest + len(strconv.Itoa(size)); n > size {
		size = n
	}
	b = strconv.AppendInt(b, int64(size), 10)
	b = append(b, ' ')
	b = append(b, key...)
	b = append(b, '=')
	b = append(b, value...)
	return append(b, '\n')
}

func ascii(s string) bool {
	for i := range len(s) {
		if s[i] == 0 || s[i] >= 0x80 {
			return false
		}
	}
	return true
}

func fitsName(name string) bool {
	if !ascii(name) {
		return false
	}
	_, rest := splitName(name)
	return len(rest) <= nameSize
}

// splitName divides a name over USTAR's prefix and name fields at a slash. When
// it does not fit, the rest is longer than the field.
func splitName(name string) (prefix, rest string) {
	if len(name) <= nameSize {
		return "", name
	}
	// The rest may not be empty, so a directory's own slash does not divide.
	i := strings.LastIndexByte(name[:min(len(name)-1, prefixSize+1)], '/')
	if i <= 0 {
		return "", name
	}
	return name[:i], name[i+1:]
}

// appendBlock adds the USTAR block. What does not fit is cut, records tell it.
func (h *header) appendBlock(b []byte) []byte {
	b = append(b, make([]byte, blockSize)...)
	f := b[len(b)-blockSize:]
	if fitsName(h.name) {
		prefix, rest := splitName(h.name)
		copy(f[0:], rest)
		copy(f[345:345+prefixSize], prefix)
	} else {
		copyASCII(f[:nameSize], h.name)
	}
	octal(f[100:108], int64(h.mode))
	octal(f[108:116], within(int64(h.uid), maxOctal7))
	octal(f[116:124], within(int64(h.gid), maxOctal7))
	octal(f[124:136], within(h.size, maxOctal11))
	octal(f[136:148], within(h.mtime, maxOctal11))
	f[156] = h.kind
	copyASCII(f[157:157+nameSize], h.link)
	copy(f[257:], "ustar\x0000")
	if h.kind == typeChar || h.kind == typeBlock {
		octal(f[329:337], int64(h.major))
		octal(f[337:345], int64(h.minor))
	}
	copy(f[148:156], "        ") // the sum counts its own field as spaces
	var sum int64
	for _, c := range f {
		sum += int64(c)
	}
	octal(f[148:155], sum)
	return b
}

// within is n, or 0 when it is outside the field and a record carries it.
func within(n, limit int64) int64 {
	if n < 0 || n > limit {
		return 0
	}
	return n
}

// copyASCII fills a field with as much of s as it holds.
func copyASCII(f []byte, s string) {
	for i := range min(len(f), len(s)) {
		if f[i] = s[i]; s[i] >= 0x80 || s[i] == 0 {
			f[i] = '_'
		}
	}
}

// octal fills a field with zero-padded digits and a NUL.
func octal(f []byte, n int64) {
	for i := len(f) - 2; i >= 0; i-- {
		f[i] = byte('0' + n&7)
		n >>= 3
	}
	f[len(f)-1] = 0
}
