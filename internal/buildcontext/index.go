package buildcontext

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
	"maps"
	"math/bits"
	"os"
	"path/filepath"
	"slices"
	"time"

	"dhow/internal/errdef"

	"golang.org/x/sys/unix"
)

// The index file remembers digests and extended attributes of files by their
// stat data, so that what has not changed is not read. It is a cache of one
// context directory: losing it costs one scan of reading, so it is replaced by
// rename but not forced to disk, and one that is torn, foreign or of another
// version is the same as none.
//
//	offset  size
//	     0     8  magic, the version in its last byte
//	     8     8  number of records
//	    16     8  length of the extras in bytes
//	    24  96×n  records, ascending by path hash
//	         any  extras: extended attributes
//	          32  SHA-256 of everything before
//
// A record, all numbers little endian:
//
//	 0     8  hash of the path
//	 8     8  st_dev
//	16     8  st_ino
//	24     8  st_size
//	32     8  st_mtim in ns
//	40     8  st_ctim in ns
//	48     4  st_mode
//	52     4  day (since 1970) of the last scan that met the file
//	56     4  offset of its attributes in the extras
//	60     4  and their length, 0 for none
//	64    32  SHA-256 of the content, zero for a directory
//
// A record holds for a path when the hash and all stat fields agree. The hash
// alone may collide; a collision that also shares device and inode is a hard
// link, with the same content.
//
// The racy-clean rule: a file changed within one tick of its file system's
// clock after it was read keeps its times. So no record is ever written for a
// file whose times are not older than the start of the scan by racyMargin.
const (
	indexMagic  = "dhowctx\x01"
	headerSize  = 24
	recordSize  = 96
	indexMargin = headerSize + sha256.Size

	// racyMargin covers the coarsest clock in use, FAT's.
	racyMargin = 2 * time.Second

	// recordDays is how long a record outlives the last scan that met its file.
	// Builds of one context with different Dockerfiles meet different files.
	recordDays = 14

	// maxIndex limits the size of an index that is read, in bytes.
	maxIndex = 2 << 30
)

// stamp is the stat data by which a file is known again.
type stamp struct {
	dev, ino     uint64
	size         int64
	mtime, ctime int64
	mode         uint32
}

func stampOf(st *unix.Stat_t) stamp {
	return stamp{
		dev: st.Dev, ino: st.Ino, size: st.Size, mode: st.Mode,
		mtime: st.Mtim.Nano(), ctime: st.Ctim.Nano(),
	}
}

// known is what an index remembers of a file.
type known struct {
	digest [sha256.Size]byte
	xattrs map[string][]byte
}

// index is a decoded index file; the zero value is an empty one. It is
// immutable and safe for concurrent use.
type index struct {
	records []byte
	extras  []byte
	// bucket holds the first record of each range of hashes; ranges are the
	// values of the hash's leading bits.
	bucket []uint32
	shift  uint
}

// readIndex reads the file at path; any doubt about it yields an empty index.
func readIndex(path string) *index {
	f, err := os.Open(path)
	if err != nil {
		return &index{}
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil || st.Size() < indexMargin || st.Size() > maxIndex {
		return &index{}
	}
	data := make([]byte, st.Size())
	if _, err := io.ReadFull(f, data); err != nil {
		return &index{}
	}
	x, err := decodeIndex(data)
	if err != nil {
		return &index{}
	}
	return x
}

// decodeIndex checks an index file and makes it searchable. It keeps data.
func decodeIndex(data []byte) (*index, error) {
	if len(data) < indexMargin || string(data[:8]) != indexMagic {
		return nil, errdef.New(errdef.ErrIntegrity, "decode context index: not an index of this version")
	}
	body, sum := data[:len(data)-sha256.Size], data[len(data)-sha256.Size:]
	if got := sha256.Sum256(body); !bytes.Equal(got[:], sum) {
		return nil, errdef.New(errdef.ErrIntegrity, "decode context index: got checksum %x, want %x", got, sum)
	}
	n, extras := binary.LittleEndian.Uint64(body[8:]), binary.LittleEndian.Uint64(body[16:])
	body = body[headerSize:]
	if n > uint64(len(body))/recordSize || uint64(len(body))-n*recordSize != extras {
		return nil, errdef.New(errdef.ErrIntegrity, "decode context index: %d records do not fill it", n)
	}
	x := &index{records: body[:n*recordSize], extras: body[n*recordSize:]}
	return x, x.fillBuckets(int(n))
}

// fillBuckets prepares the search; the hashes have to ascend.
func (x *index) fillBuckets(n int) error {
	width := bits.Len(uint(n))
	x.shift = 64 - uint(width)
	x.bucket = make([]uint32, 1<<width+1)
	next, last := 0, uint64(0)
	for i := range n {
		h := x.hash(i)
		if h < last {
			return errdef.New(errdef.ErrIntegrity, "decode context index: records out of order")
		}
		last = h
		for ; next <= int(h>>x.shift); next++ {
			x.bucket[next] = uint32(i)
		}
	}
	for ; next < len(x.bucket); next++ {
		x.bucket[next] = uint32(n)
	}
	return nil
}

func (x *index) len() int { return len(x.records) / recordSize }

func (x *index) record(i int) []byte { return x.records[i*recordSize : (i+1)*recordSize] }

func (x *index) hash(i int) uint64 { return binary.LittleEndian.Uint64(x.records[i*recordSize:]) }

// find returns the number of the record that holds for a path, -1 for none.
func (x *index) find(hash uint64, s stamp) int {
	if x.len() == 0 {
		return -1
	}
	b := hash >> x.shift
	for i := x.bucket[b]; i < x.bucket[b+1]; i++ {
		if r := x.record(int(i)); binary.LittleEndian.Uint64(r) == hash && recordStamp(r) == s {
			return int(i)
		}
	}
	return -1
}

// at returns what record i remembers; ok is false when its attributes make no
// sense.
func (x *index) at(i int) (k known, ok bool) {
	r := x.record(i)
	k.digest = [sha256.Size]byte(r[64:96])
	off, n := binary.LittleEndian.Uint32(r[56:]), binary.LittleEndian.Uint32(r[60:])
	if n == 0 {
		return k, true
	}
	if uint64(off)+uint64(n) > uint64(len(x.extras)) {
		return known{}, false
	}
	k.xattrs, ok = decodeXattrs(x.extras[off : off+n])
	return k, ok
}

func recordStamp(r []byte) stamp {
	le := binary.LittleEndian
	return stamp{
		dev: le.Uint64(r[8:]), ino: le.Uint64(r[16:]),
		size: int64(le.Uint64(r[24:])), mtime: int64(le.Uint64(r[32:])), ctime: int64(le.Uint64(r[40:])),
		mode: le.Uint32(r[48:]),
	}
}

func recordDay(r []byte) uint32 { return binary.LittleEndian.Uint32(r[52:]) }

// indexWriter collects the records of a new index.
type indexWriter struct {
	racy    int64 // times not before this are racy, in ns
	day     uint32
	records []byte
	extras  []byte
}

// newIndexWriter prepares an index of a scan that began at start.
func newIndexWriter(start time.Time) *indexWriter {
	return &indexWriter{racy: start.Add(-racyMargin).UnixNano(), day: uint32(start.Unix() / 86400)}
}

// isRacy reports whether a file with these times may have changed since it was
// read without its times telling.
func (w *indexWriter) isRacy(s stamp) bool { return max(s.mtime, s.ctime) >= w.racy }

// add appends a record; racy ones are left out.
func (w *indexWriter) add(hash uint64, s stamp, k known) {
	if w.isRacy(s) {
		return
	}
	off := len(w.extras)
	w.extras = appendXattrs(w.extras, k.xattrs)
	w.append(hash, s, w.day, off, k.digest[:])
}

// keep copies record i of an older index.
func (w *indexWriter) keep(x *index, i int) {
	r := x.record(i)
	off, from, n := len(w.extras), binary.LittleEndian.Uint32(r[56:]), binary.LittleEndian.Uint32(r[60:])
	if uint64(from)+uint64(n) > uint64(len(x.extras)) {
		return
	}
	w.extras = append(w.extras, x.extras[from:from+n]...)
	w.append(binary.LittleEndian.Uint64(r), recordStamp(r), recordDay(r), off, r[64:96])
}

// append adds a record whose attributes are what the extras hold from off on.
func (w *indexWriter) append(hash uint64, s stamp, day uint32, off int, digest []byte) {
	le := binary.LittleEndian
	b := w.records
	b = le.AppendUint64(b, hash)
	b = le.AppendUint64(b, s.dev)
	b = le.AppendUint64(b, s.ino)
	b = le.AppendUint64(b, uint64(s.size))
	b = le.AppendUint64(b, uint64(s.mtime))
	b = le.AppendUint64(b, uint64(s.ctime))
	b = le.AppendUint32(b, s.mode)
	b = le.AppendUint32(b, day)
	b = le.AppendUint32(b, uint32(off))
	b = le.AppendUint32(b, uint32(len(w.extras)-off))
	w.records = append(b, digest...)
}

// encode returns the index file.
func (w *indexWriter) encode() []byte {
	n := len(w.records) / recordSize
	order := make([]int, n)
	for i := range order {
		order[i] = i * recordSize
	}
	slices.SortFunc(order, func(a, b int) int {
		return cmp.Compare(binary.LittleEndian.Uint64(w.records[a:]), binary.LittleEndian.Uint64(w.records[b:]))
	})
	out := make([]byte, 0, indexMargin+len(w.records)+len(w.extras))
	out = append(out, indexMagic...)
	out = binary.LittleEndian.AppendUint64(out, uint64(n))
	out = binary.LittleEndian.AppendUint64(out, uint64(len(w.extras)))
	for _, at := range order {
		out = append(out, w.records[at:at+recordSize]...)
	}
	out = append(out, w.extras...)
	sum := sha256.Sum256(out)
	return append(out, sum[:]...)
}

// writeIndex replaces the file at path by way of a temporary file in tempDir.
func writeIndex(path, tempDir string, data []byte) error {
	if tempDir == "" {
		tempDir = filepath.Dir(path)
	}
	f, err := os.CreateTemp(tempDir, filepath.Base(path)+".*")
	if err != nil {
		return fmt.Errorf("write context index: %w", err)
	}
	_, err = f.Write(data)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		os.Remove(f.Name())
		return fmt.Errorf("write context index: %w", err)
	}
	return nil
}

// appendXattrs encodes attributes: name and value each with its length before
// it, sorted by name.
func appendXattrs(b []byte, xattrs map[string][]byte) []byte {
	for _, name := range slices.Sorted(maps.Keys(xattrs)) {
		b = binary.AppendUvarint(b, uint64(len(name)))
		b = append(b, name...)
		b = binary.AppendUvarint(b, uint64(len(xattrs[name])))
		b = append(b, xattrs[name]...)
	}
	return b
}

func decodeXattrs(b []byte) (xattrs map[string][]byte, ok bool) {
	next := func() ([]byte, bool) {
		n, used := binary.Uvarint(b)
		if used <= 0 || n > uint64(len(b)-used) {
			return nil, false
		}
		text := b[used : used+int(n)]
		b = b[used+int(n):]
		return text, true
	}
	xattrs = map[string][]byte{}
	for len(b) > 0 {
		name, ok1 := next()
		value, ok2 := next()
		if !ok1 || !ok2 {
			return nil, false
		}
		xattrs[string(name)] = bytes.Clone(value)
	}
	return xattrs, true
}

// The path hash is FNV-1a, which can go on from a directory's to its
// content's, with a final mix that spreads it over all 64 bits.
const (
	fnvStart = 14695981039346656037
	fnvPrime = 1099511628211
)

func hashOn(h uint64, text string) uint64 {
	for i := range len(text) {
		h = (h ^ uint64(text[i])) * fnvPrime
	}
	return h
}

func hashDone(h uint64) uint64 {
	h ^= h >> 33
	h *= 0xff51afd7ed558ccd
	h ^= h >> 33
	h *= 0xc4ceb9fe1a85ec53
	return h ^ h>>33
}
