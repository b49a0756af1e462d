package layer

import (
	"encoding/binary"
	"errors"
	"io"
)

// This is a decoder of DEFLATE (RFC 1951), which a third of a pull's processor time
// went into: 1.2 (random bytes) to 1.6 times (a Go toolchain) as fast as the
// library's (BenchmarkInflate), by the means of libdeflate. 64 bits are taken from
// the input at a time, and one look-up in a table of 2048 gives a literal, or a
// length with its extra bits. The input is a buffer that is padded at its end, so
// that loads need no look at what is left; the output is a buffer with the window
// before it and room for a match behind it.
//
// One stream is decoded on one core. To do it on several, as rapidgzip does, takes
// more work in all, for guesses at where blocks begin and for matches into a
// window that is not known yet; on the two cores that this was measured on, a pull
// has none idle.

const (
	inSize     = 64 << 10
	inPad      = 16            // bytes behind the input that may be loaded
	window     = 32 << 10      // how far back matches reach
	outSize    = 256 << 10     // bytes that are made at a time
	outSlack   = maxMatch + 64 // literals and a match that begin before outSize, and an overshoot
	maxMatch   = 258
	litBits    = 11
	distBits   = 8
	shortMatch = 32
	maxBits    = 15      // of a code
	tableSize  = 1 << 13 // entries that no table exceeds: 2048 and 143 subtables of 16 are the most
	litCodes   = 288
	distCodes  = 32
)

// An entry of a table:
//
//	bits 0-7    length of the code, and of the extra bits behind it
//	bits 8-15   length of the code alone; of a link: bits that index the subtable
//	bits 16-30  literal, base of the length or the distance; of a link: where the subtable is
//
// flags in what is left say what it is.
const (
	entryLiteral = 1 << 31
	entryLink    = 1 << 7 // a longer code: look into the subtable
	entryEnd     = 1 << 6 // of the block; with no code length: no code
)

type huffman struct {
	table []uint32
	bits  uint // that index the table first
}

// errDeflate is a stream that no compressor made.
var errDeflate = errors.New("malformed stream")

var (
	lengthBase  = [...]uint16{3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 15, 17, 19, 23, 27, 31, 35, 43, 51, 59, 67, 83, 99, 115, 131, 163, 195, 227, 258}
	lengthExtra = [...]uint8{0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 5, 5, 5, 5, 0}
	distBase    = [...]uint16{1, 2, 3, 4, 5, 7, 9, 13, 17, 25, 33, 49, 65, 97, 129, 193, 257, 385, 513, 769, 1025, 1537, 2049, 3073, 4097, 6145, 8193, 12289, 16385, 24577}
	distExtra   = [...]uint8{0, 0, 0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7, 8, 8, 9, 9, 10, 10, 11, 11, 12, 12, 13, 13}
	lengthOrder = [...]uint8{16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15}
)

// litEntry and distEntry are an entry but for the length of its code, which is
// added to both lengths in it. Symbols that no block may use have none.
func litEntry(sym int) (uint32, bool) {
	switch {
	case sym < 256:
		return entryLiteral | uint32(sym)<<16, true
	case sym == 256:
		return entryEnd, true
	case sym-257 < len(lengthBase):
		return uint32(lengthBase[sym-257])<<16 | uint32(lengthExtra[sym-257]), true
	}
	return 0, false
}

func distEntry(sym int) (uint32, bool) {
	if sym < len(distBase) {
		return uint32(distBase[sym])<<16 | uint32(distExtra[sym]), true
	}
	return 0, false
}

func plainEntry(sym int) (uint32, bool) { return uint32(sym) << 16, true }

// build makes the table of a code from the lengths of its symbols' codes. As with
// the standard library, a code is complete, or has one symbol, or none.
func (h *huffman) build(lengths []uint8, bits uint, entry func(sym int) (uint32, bool)) error {
	var count [maxBits + 1]int
	longest := uint(0)
	for _, n := range lengths {
		count[n]++
		longest = max(longest, uint(n))
	}
	h.bits = bits
	if h.table == nil {
		h.table = make([]uint32, 1<<bits, tableSize)
	}
	h.table = h.table[:1<<bits]
	for i := range h.table {
		h.table[i] = entryEnd // no code
	}
	if longest == 0 {
		return nil
	}
	var next [maxBits + 1]uint32
	code := uint32(0)
	for n := uint(1); n <= longest; n++ {
		code <<= 1
		next[n] = code
		code += uint32(count[n])
	}
	if code != 1<<longest && !(code == 1 && longest == 1) {
		return errDeflate
	}
	for sym, n := range lengths {
		if n == 0 {
			continue
		}
		code := reverse(next[n], uint(n))
		next[n]++
		e, ok := entry(sym)
		if !ok {
			e = entryEnd
		} else {
			e += uint32(n) | uint32(n)<<8
		}
		h.put(code, uint(n), longest, e)
	}
	return nil
}

// put fills every place that the code, which is reversed, leads to.
func (h *huffman) put(code uint32, n, longest uint, e uint32) {
	if n <= h.bits {
		for i := code; i < 1<<h.bits; i += 1 << n {
			h.table[i] = e
		}
		return
	}
	// All codes that begin alike share a subtable, as large as the longest needs.
	sub := longest - h.bits
	first := code & (1<<h.bits - 1)
	if h.table[first]&entryLink == 0 {
		h.table[first] = entryLink | uint32(sub)<<8 | uint32(len(h.table))<<16
		for range 1 << sub {
			h.table = append(h.table, entryEnd)
		}
	}
	at := h.table[first] >> 16
	for i := code >> h.bits; i < 1<<sub; i += 1 << (n - h.bits) {
		h.table[at+i] = e
	}
}

func reverse(code uint32, n uint) uint32 {
	var out uint32
	for range n {
		out = out<<1 | code&1
		code >>= 1
	}
	return out
}

// The states of an inflater: what it reads next.
const (
	stateHeader = iota // of a block
	stateStored
	stateCodes
	stateEnd // the stream has ended; its trailer comes
)

// inflater decodes one stream after the other from one input. For one goroutine.
type inflater struct {
	r   io.Reader
	in  []byte // inSize and inPad
	pos int    // next byte that is not in acc
	end int    // of what was read
	eof bool   // r has no more

	acc  uint64 // bits taken from in, the next one lowest
	have uint   // how many; above them acc may have more of the same

	out    []byte // window, outSize, outSlack
	w      int    // where the next byte goes
	rd     int    // what was handed out ends here
	start  int    // where the stream's output begins in out, as far as it is still there
	state  int
	final  bool
	stored int // bytes left of a stored block

	lit, dist, pre huffman
	lengths        [litCodes + distCodes]uint8
}

func newInflater(r io.Reader) *inflater {
	return &inflater{r: r, in: make([]byte, inSize+inPad), out: make([]byte, window+outSize+outSlack), w: window, rd: window, start: window}
}

// begin starts a new stream: nothing before it can be referred to.
func (f *inflater) begin() {
	f.state, f.final = stateHeader, false
	f.start = f.w
}

// fill reads more input behind what is left of it. Whole bytes that were taken
// early go back before they are moved.
func (f *inflater) fill() error {
	f.pos -= int(f.have >> 3)
	f.have &= 7
	f.acc &= 1<<f.have - 1
	f.end = copy(f.in, f.in[f.pos:f.end])
	f.pos = 0
	for f.end < inPad && !f.eof {
		n, err := f.r.Read(f.in[f.end:inSize])
		f.end += n
		if err == io.EOF {
			f.eof = true
		} else if err != nil {
			return err
		}
	}
	clear(f.in[f.end : f.end+inPad])
	return nil
}

// need makes at least n bits available, up to 56. The end of the input is an error.
func (f *inflater) need(n uint) error {
	if f.have >= n {
		return nil
	}
	if f.end-f.pos < 8 && !f.eof {
		if err := f.fill(); err != nil {
			return err
		}
	}
	f.acc &= 1<<f.have - 1
	for f.have <= 56 && f.pos < f.end {
		f.acc |= uint64(f.in[f.pos]) << f.have
		f.pos++
		f.have += 8
	}
	if f.have < n {
		return io.ErrUnexpectedEOF
	}
	return nil
}

// take removes n bits, which are available.
func (f *inflater) take(n uint) uint32 {
	v := uint32(f.acc & (1<<n - 1))
	f.acc >>= n
	f.have -= n
	return v
}

func (f *inflater) bitsOf(n uint) (uint32, error) {
	if err := f.need(n); err != nil {
		return 0, err
	}
	return f.take(n), nil
}

// align gives up bits to the next byte, and returns whole ones to the input.
func (f *inflater) align() {
	f.pos -= int(f.have >> 3)
	f.acc, f.have = 0, 0
}

// Read hands out what is decoded of the stream; io.EOF at its end, before the
// trailer, which the caller reads with bitsOf.
func (f *inflater) Read(p []byte) (int, error) {
	for f.rd == f.w {
		if f.state == stateEnd {
			return 0, io.EOF
		}
		if f.w >= window+outSize {
			// The window moves to the front.
			copy(f.out, f.out[f.w-window:f.w])
			f.start = max(0, f.start-(f.w-window))
			f.w, f.rd = window, window
		}
		if err := f.step(); err != nil {
			return 0, err
		}
	}
	n := copy(p, f.out[f.rd:f.w])
	f.rd += n
	return n, nil
}

// step decodes until the output is full, the input runs short, or a block ends.
func (f *inflater) step() error {
	switch f.state {
	case stateHeader:
		return f.header()
	case stateStored:
		return f.copyStored()
	}
	return f.codes()
}

func (f *inflater) blockEnd() {
	f.state = stateHeader
	if f.final {
		f.state = stateEnd
		f.align()
	}
}

// header reads the beginning of a block (RFC 1951, 3.2.3).
func (f *inflater) header() error {
	v, err := f.bitsOf(3)
	if err != nil {
		return err
	}
	f.final = v&1 == 1
	switch v >> 1 {
	case 0:
		f.align()
		v, err := f.bitsOf(32)
		if err != nil {
			return err
		}
		if v&0xffff != ^v>>16 {
			return errDeflate
		}
		f.align() // bits that are not of this block's head go back
		f.state, f.stored = stateStored, int(v&0xffff)
		return nil
	case 1:
		f.state = stateCodes
		return f.fixed()
	case 2:
		f.state = stateCodes
		return f.dynamic()
	}
	return errDeflate
}

func (f *inflater) copyStored() error {
	for f.stored > 0 && f.w < window+outSize {
		if f.pos == f.end {
			if f.eof {
				return io.ErrUnexpectedEOF
			}
			if err := f.fill(); err != nil {
				return err
			}
			continue
		}
		n := copy(f.out[f.w:window+outSize], f.in[f.pos:min(f.end, f.pos+f.stored)])
		f.w, f.pos, f.stored = f.w+n, f.pos+n, f.stored-n
	}
	if f.stored == 0 {
		f.blockEnd()
	}
	return nil
}

// fixed makes the tables that are the same for all streams (3.2.6).
func (f *inflater) fixed() error {
	for i := range litCodes {
		switch {
		case i < 144:
			f.lengths[i] = 8
		case i < 256:
			f.lengths[i] = 9
		case i < 280:
			f.lengths[i] = 7
		default:
			f.lengths[i] = 8
		}
	}
	for i := range distCodes {
		f.lengths[litCodes+i] = 5
	}
	if err := f.lit.build(f.lengths[:litCodes], litBits, litEntry); err != nil {
		return err
	}
	return f.dist.build(f.lengths[litCodes:], distBits, distEntry)
}

// dynamic reads the tables of a block (3.2.7).
func (f *inflater) dynamic() error {
	v, err := f.bitsOf(14)
	if err != nil {
		return err
	}
	nlit, ndist, npre := int(v&31)+257, int(v>>5&31)+1, int(v>>10)+4
	if nlit > 286 || ndist > 30 {
		return errDeflate
	}
	var pre [19]uint8
	for _, i := range lengthOrder[:npre] {
		v, err := f.bitsOf(3)
		if err != nil {
			return err
		}
		pre[i] = uint8(v)
	}
	if err := f.pre.build(pre[:], 7, plainEntry); err != nil {
		return err
	}
	if err := f.readLengths(nlit + ndist); err != nil {
		return err
	}
	if f.lengths[256] == 0 {
		return errDeflate // the block could not end
	}
	if err := f.lit.build(f.lengths[:nlit], litBits, litEntry); err != nil {
		return err
	}
	return f.dist.build(f.lengths[nlit:nlit+ndist], distBits, distEntry)
}

// readLengths reads the lengths of both codes, which are one list.
func (f *inflater) readLengths(total int) error {
	for i := 0; i < total; {
		// More than a short code needs, but no stream ends here: its trailer follows.
		if err := f.need(7 + 7); err != nil {
			return err
		}
		e := f.pre.table[f.acc&(1<<7-1)]
		if e == entryEnd {
			return errDeflate
		}
		f.take(uint(e & 0xff))
		sym, times, value := e>>16, uint32(1), uint8(0)
		switch {
		case sym < 16:
			value = uint8(sym)
		case sym == 16:
			if i == 0 {
				return errDeflate
			}
			value, times = f.lengths[i-1], 3+f.take(2)
		case sym == 17:
			times = 3 + f.take(3)
		default:
			times = 11 + f.take(7)
		}
		if i+int(times) > total {
			return errDeflate
		}
		for range times {
			f.lengths[i] = value
			i++
		}
	}
	return nil
}

// codes decodes a block's symbols until it ends, the output is full or the
// input runs short.
func (f *inflater) codes() error {
	if f.end-f.pos < inPad && !f.eof {
		if err := f.fill(); err != nil {
			return err
		}
	}
	// At the end of the input the padding is decoded, too, and found out below.
	limit := f.end - 8
	if f.eof {
		limit = f.end + inPad - 8
	}
	done, err := f.decode(limit)
	// More bits were used than there were: the stream is cut.
	if f.eof && f.pos-int(f.have>>3) > f.end {
		f.w = f.rd
		return io.ErrUnexpectedEOF
	}
	if f.eof && f.pos > f.end { // bits of the padding go back
		over := uint(f.pos-f.end) * 8
		f.have -= min(f.have, over)
		f.pos = f.end
	}
	if done {
		f.blockEnd()
	}
	return err
}

// decode is the loop over symbols, while the next byte of input is not behind
// limit. Its state is in local variables, which stay in registers.
func (f *inflater) decode(limit int) (done bool, err error) {
	in, out, pos, w := f.in, f.out, f.pos, f.w
	acc, have := f.acc&(1<<f.have-1), f.have
	// Arrays that are indexed by a mask need no bounds checks.
	lit, dist := (*[tableSize]uint32)(f.lit.table[:tableSize]), (*[tableSize]uint32)(f.dist.table[:tableSize])
	for pos <= limit && w < window+outSize {
		acc |= binary.LittleEndian.Uint64(in[pos:]) << have
		pos += int(63-have) >> 3
		have |= 56
		e := lit[acc&(1<<litBits-1)]
		// Up to three literals of at most 11 bits fit into 56.
		if e&entryLiteral != 0 {
			acc, have = acc>>(e&0x3f), have-uint(e&0x3f)
			out[w] = byte(e >> 16)
			w++
			if e = lit[acc&(1<<litBits-1)]; e&entryLiteral != 0 {
				acc, have = acc>>(e&0x3f), have-uint(e&0x3f)
				out[w] = byte(e >> 16)
				w++
				if e = lit[acc&(1<<litBits-1)]; e&entryLiteral != 0 {
					acc, have = acc>>(e&0x3f), have-uint(e&0x3f)
					out[w] = byte(e >> 16)
					w++
					continue
				}
			}
			if pos > limit {
				continue // the symbol is decoded again, with more input
			}
			acc |= binary.LittleEndian.Uint64(in[pos:]) << have
			pos += int(63-have) >> 3
			have |= 56
		}
		if e&entryLink != 0 {
			e = lit[(e>>16+uint32(acc>>litBits)&(1<<(e>>8&0xf)-1))&(tableSize-1)]
			if e&entryLiteral != 0 {
				acc, have = acc>>(e&0x3f), have-uint(e&0x3f)
				out[w] = byte(e >> 16)
				w++
				continue
			}
		}
		if e&entryEnd != 0 {
			n := uint(e >> 8 & 0xff)
			acc, have = acc>>n, have-n
			if done = n > 0; !done {
				err = errDeflate
			}
			break
		}
		n, code := uint(e&0x3f), uint(e>>8&0xff)
		length := int(e>>16) + int(acc&(1<<n-1)>>(code&0x3f))
		acc, have = acc>>n, have-n
		d := dist[acc&(1<<distBits-1)]
		if d&entryLink != 0 {
			d = dist[(d>>16+uint32(acc>>distBits)&(1<<(d>>8&0xf)-1))&(tableSize-1)]
		}
		if d&entryEnd != 0 {
			err = errDeflate
			break
		}
		n, code = uint(d&0x3f), uint(d>>8&0xff)
		back := int(d>>16) + int(acc&(1<<n-1)>>(code&0x3f))
		acc, have = acc>>n, have-n
		if back > w-f.start {
			err = errDeflate
			break
		}
		if back >= 8 && length <= shortMatch {
			copyShort(out[w:][:shortMatch], out[w-back:][:shortMatch])
		} else {
			match(out, w, back, length)
		}
		w += length
	}
	f.pos, f.w, f.acc, f.have = pos, w, acc, have
	return done, err
}

// copyShort copies 32 bytes, 8 at a time. Most matches are shorter: to copy more
// than they have is cheaper than a loop whose end the processor cannot foresee.
func copyShort(to, from []byte) {
	_, _ = to[shortMatch-1], from[shortMatch-1]
	binary.LittleEndian.PutUint64(to, binary.LittleEndian.Uint64(from))
	binary.LittleEndian.PutUint64(to[8:], binary.LittleEndian.Uint64(from[8:]))
	binary.LittleEndian.PutUint64(to[16:], binary.LittleEndian.Uint64(from[16:]))
	binary.LittleEndian.PutUint64(to[24:], binary.LittleEndian.Uint64(from[24:]))
}

// match copies length bytes from back bytes ago, which may overlap what they
// make; up to seven bytes behind them are overwritten.
func match(out []byte, w, back, length int) {
	src := w - back
	if back >= 8 {
		for end := w + length; w < end; w, src = w+8, src+8 {
			binary.LittleEndian.PutUint64(out[w:], binary.LittleEndian.Uint64(out[src:]))
		}
		return
	}
	if back == 1 {
		v := uint64(out[src]) * 0x0101010101010101
		for end := w + length; w < end; w += 8 {
			binary.LittleEndian.PutUint64(out[w:], v)
		}
		return
	}
	for end := w + length; w < end; w, src = w+1, src+1 {
		out[w] = out[src]
	}
}
