package logs

import (
	"hash/crc32"
	"io"
	"os"
)

// A json-file cannot hold bytes that are no UTF-8. Lines with such bytes are also
// written, as they are, to the segment's raw file, before the entry:
//
//	 0  uint64  offset of the entry in the (uncompressed) segment
//	 8  uint32  length of the line
//	12  uint32  CRC-32C of these 12 bytes and the line
//	16  …       the line
const rawHead = 16

func appendRaw(dst []byte, at int64, line []byte) []byte {
	start := len(dst)
	dst = le.AppendUint64(dst, uint64(at))
	dst = le.AppendUint32(dst, uint32(len(line)))
	sum := crc32.Update(crc32.Checksum(dst[start:], castagnoli), castagnoli, line)
	dst = le.AppendUint32(dst, sum)
	return append(dst, line...)
}

// moveRaw adds by to the offsets in buffered raw lines.
func moveRaw(raw []byte, by int64) {
	for len(raw) > 0 {
		n := int(le.Uint32(raw[8:]))
		le.PutUint64(raw, le.Uint64(raw)+uint64(by))
		sum := crc32.Update(crc32.Checksum(raw[:12], castagnoli), castagnoli, raw[rawHead:rawHead+n])
		le.PutUint32(raw[12:], sum)
		raw = raw[rawHead+n:]
	}
}

// rawReader finds raw lines, in the order of their entries.
type rawReader struct {
	f    *os.File
	off  int64
	line []byte
}

// peek reads the head of the next raw line; false at the end.
func (r *rawReader) peek(head *[rawHead]byte) bool {
	_, err := r.f.ReadAt(head[:], r.off)
	return err == nil
}

// skipTo goes to the first raw line whose entry is at the offset or behind it, and
// returns its own offset.
func (r *rawReader) skipTo(at int64) int64 {
	var head [rawHead]byte
	for r.peek(&head) && int64(le.Uint64(head[:])) < at {
		r.off += rawHead + int64(le.Uint32(head[8:]))
	}
	return r.off
}

// find returns the line of the entry at the offset. It belongs to the reader.
func (r *rawReader) find(at int64) ([]byte, bool) {
	r.skipTo(at)
	var head [rawHead]byte
	if !r.peek(&head) || int64(le.Uint64(head[:])) != at {
		return nil, false
	}
	n := int(le.Uint32(head[8:]))
	if n > jsonPart {
		return nil, false
	}
	if cap(r.line) < n {
		r.line = make([]byte, jsonPart)
	}
	line := r.line[:n]
	if _, err := io.ReadFull(io.NewSectionReader(r.f, r.off+rawHead, int64(n)), line); err != nil {
		return nil, false
	}
	if crc32.Update(crc32.Checksum(head[:12], castagnoli), castagnoli, line) != le.Uint32(head[12:]) {
		return nil, false
	}
	return line, true
}
