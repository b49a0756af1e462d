package logs

import (
	"bufio"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

var le = binary.LittleEndian

// A format is how entries lie in a segment.
type format uint8

const (
	formatJSON format = 1 + iota
	formatCompact
)

func (f format) String() string {
	if f == formatJSON {
		return "json"
	}
	return "local"
}

// segment is one file of the log: segments/<number>.<format>[.gz]. Its number
// never changes and is never used again; a higher one is younger.
type segment struct {
	number uint64
	format format
	gz     bool
}

const segmentsDir = "segments"

func (s segment) name() string {
	name := fmt.Sprintf("%010d.%s", s.number, s.format)
	if s.gz {
		name += ".gz"
	}
	return name
}

func (s segment) path(dir string) string      { return filepath.Join(dir, segmentsDir, s.name()) }
func (s segment) indexPath(dir string) string { return s.path(dir) + ".idx" }
func (s segment) rawPath(dir string) string {
	return filepath.Join(dir, segmentsDir, fmt.Sprintf("%010d.raw", s.number))
}

func parseSegment(name string) (segment, bool) {
	digits, ext, _ := strings.Cut(name, ".")
	n, err := strconv.ParseUint(digits, 10, 64)
	if err != nil {
		return segment{}, false
	}
	s := segment{number: n}
	ext, s.gz = strings.CutSuffix(ext, ".gz")
	switch ext {
	case "json":
		s.format = formatJSON
	case "local":
		s.format = formatCompact
	default:
		return segment{}, false
	}
	return s, s.name() == name
}

// segments lists the log's segments, oldest first. Of one that is there twice,
// because it is just being replaced, the compressed form is taken: it appeared
// whole.
func segments(dir string) ([]segment, error) {
	names, err := readNames(filepath.Join(dir, segmentsDir))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var all []segment
	for _, name := range names {
		if s, ok := parseSegment(name); ok {
			all = append(all, s)
		}
	}
	slices.SortFunc(all, func(a, b segment) int {
		if a.number == b.number && a.gz != b.gz {
			if a.gz {
				return -1
			}
			return 1
		}
		return cmp.Compare(a.number, b.number)
	})
	return slices.CompactFunc(all, func(a, b segment) bool { return a.number == b.number }), nil
}

func readNames(dir string) ([]string, error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	return d.Readdirnames(-1)
}

// block is a stretch of a segment, as its index knows it. Blocks follow each
// other without gaps.
type block struct {
	end      int64  // offset behind it, in the uncompressed segment
	gzEnd    int64  // the same in the compressed file; a block is one gzip member
	entries  uint32 // in it
	lines    uint32 // in it: entries that end a line
	bytes    int64  // of the lines in it
	min, max int64  // times in it, nanoseconds
}

// The index of a segment: a header, then one fixed record a block, appended when
// the block is complete. It only saves time: what it does not cover is scanned.
const (
	indexMagic  = "dhowidx1"
	indexHeader = 8 + 8 + 8 + 8
	indexRecord = 8 + 8 + 4 + 4 + 8 + 8 + 8 + 4 + 4
	blockSize   = 256 << 10
)

// index is an index read whole.
type index struct {
	known  bool   // it has a header
	lines  uint64 // of the log before this segment
	bytes  uint64 // of these
	blocks []block
}

// end returns the offset up to which the index knows the segment.
func (x *index) end() int64 {
	if len(x.blocks) == 0 {
		return 0
	}
	return x.blocks[len(x.blocks)-1].end
}

// total returns the lines and their bytes in the blocks.
func (x *index) total() (lines, bytes uint64) {
	for _, b := range x.blocks {
		lines += uint64(b.lines)
		bytes += uint64(b.bytes)
	}
	return lines, bytes
}

func appendIndexHeader(dst []byte, lines, bytes uint64) []byte {
	dst = append(dst, indexMagic...)
	dst = le.AppendUint64(dst, lines)
	dst = le.AppendUint64(dst, bytes)
	return le.AppendUint64(dst, 0)
}

func appendIndexRecord(dst []byte, b block) []byte {
	start := len(dst)
	dst = le.AppendUint64(dst, uint64(b.end))
	dst = le.AppendUint64(dst, uint64(b.gzEnd))
	dst = le.AppendUint32(dst, b.entries)
	dst = le.AppendUint32(dst, b.lines)
	dst = le.AppendUint64(dst, uint64(b.bytes))
	dst = le.AppendUint64(dst, uint64(b.min))
	dst = le.AppendUint64(dst, uint64(b.max))
	dst = le.AppendUint32(dst, 0)
	return le.AppendUint32(dst, crc32.Checksum(dst[start:], castagnoli))
}

// readIndex reads a segment's index. A missing one, and what is behind a damaged
// record or beyond size, counts as not there.
func readIndex(path string, size int64) *index {
	x := &index{}
	f, err := os.Open(path)
	if err != nil {
		return x
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return x
	}
	in := bufio.NewReaderSize(f, int(min(st.Size(), 64<<10)))
	var buf [indexRecord]byte
	h, r := buf[:indexHeader], buf[:]
	if _, err := io.ReadFull(in, h); err != nil || string(h[:len(indexMagic)]) != indexMagic {
		return x
	}
	x.known = true
	x.lines, x.bytes = le.Uint64(h[8:]), le.Uint64(h[16:])
	x.blocks = make([]block, 0, (st.Size()-indexHeader)/indexRecord)
	var before block
	for {
		if _, err := io.ReadFull(in, r); err != nil {
			return x
		}
		if crc32.Checksum(r[:indexRecord-4], castagnoli) != le.Uint32(r[indexRecord-4:]) {
			return x
		}
		b := block{
			end: int64(le.Uint64(r)), gzEnd: int64(le.Uint64(r[8:])),
			entries: le.Uint32(r[16:]), lines: le.Uint32(r[20:]), bytes: int64(le.Uint64(r[24:])),
			min: int64(le.Uint64(r[32:])), max: int64(le.Uint64(r[40:])),
		}
		if b.end <= before.end || b.gzEnd < before.gzEnd || b.end > size {
			return x
		}
		x.blocks = append(x.blocks, b)
		before = b
	}
}

// openBlock starts a block that is still empty.
func openBlock() block { return block{min: math.MaxInt64, max: math.MinInt64} }

// add counts one entry.
func (b *block) add(nanos int64, bytes int, whole bool) {
	b.entries++
	if whole {
		b.lines++
	}
	b.bytes += int64(bytes)
	b.min, b.max = min(b.min, nanos), max(b.max, nanos)
}
