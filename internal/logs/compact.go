package logs

import (
	"hash/crc32"
)

// The format of driver local, one entry after another, all numbers little-endian:
//
//	 0  uint32  length of the line (low 24 bits) and flags (high 8 bits)
//	 4  int64   time, nanoseconds since 1970 UTC
//	12  …       the line, without its newline
//	 …  uint32  CRC-32C of all before it
//
// 16 bytes a line beside the line itself. A torn or zeroed tail fails its CRC.
const (
	compactHead  = 12
	compactTail  = 4
	compactMax   = 1<<24 - 1 // bytes of a line
	flagStderr   = 1 << 24
	flagUnfinish = 1 << 25 // no newline: the line goes on in the next entry, or the stream ended
	flagEntry    = 1 << 31 // always set, so that zeros are no entry
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func appendCompact(dst []byte, stream Stream, nanos int64, line []byte, whole bool) []byte {
	head := uint32(len(line)) | flagEntry
	if stream == Stderr {
		head |= flagStderr
	}
	if !whole {
		head |= flagUnfinish
	}
	start := len(dst)
	dst = le.AppendUint32(dst, head)
	dst = le.AppendUint64(dst, uint64(nanos))
	dst = append(dst, line...)
	return le.AppendUint32(dst, crc32.Checksum(dst[start:], castagnoli))
}

// parseCompact reads the entry that s begins with and returns its length, 0 if
// s ends inside it, -1 if it is none.
func parseCompact(s []byte, e *entry) int {
	if len(s) < compactHead+compactTail {
		if len(s) >= 4 && le.Uint32(s)&flagEntry == 0 {
			return -1
		}
		return 0
	}
	head := le.Uint32(s)
	if head&flagEntry == 0 {
		return -1
	}
	n := compactHead + int(head&compactMax)
	if len(s) < n+compactTail {
		return 0
	}
	if crc32.Checksum(s[:n], castagnoli) != le.Uint32(s[n:]) {
		return -1
	}
	e.stream = Stdout
	if head&flagStderr != 0 {
		e.stream = Stderr
	}
	e.whole = head&flagUnfinish == 0
	e.nanos = int64(le.Uint64(s[4:]))
	e.line, e.attrs = s[compactHead:n], nil
	return n + compactTail
}
