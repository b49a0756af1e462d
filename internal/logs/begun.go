package logs

import (
	"errors"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"

	"dhow/internal/logs/driver"
)

// The beginning of a line whose newline has not come was taken from the container
// and cannot be read again. So that it outlives its supervisor, it is kept in the
// file <stream>.begun until it is written with the rest of the line:
//
//	 0  uint64  number of the segment, and
//	 8  int64   offset in it, where the log ended at that time
//	16  int64   time of the line's first part, or 0
//	24  uint32  length of the bytes that follow
//	28  uint32  CRC-32C of these
//	32  uint32  CRC-32C of all before
//	36  …       the bytes
//
// It is made when it is first needed, and never removed. It counts if no entry of
// the stream is behind the place in the log that it names, because the next entry of
// the stream begins with it.
const begunHead = 36

// begunFile keeps one stream's beginning.
type begunFile struct {
	path string
	f    *os.File // nil as long as there is none
	kept int      // bytes of the line that are in the file
	sum  uint32   // of these
	head []byte
}

func openBegun(dir string, s Stream) (*begunFile, error) {
	b := &begunFile{path: filepath.Join(dir, s.String()+".begun")}
	err := b.open(os.O_RDWR)
	if errors.Is(err, fs.ErrNotExist) {
		return b, nil
	}
	return b, err
}

func (b *begunFile) open(flags int) (err error) {
	f, err := os.OpenFile(b.path, flags, 0o600)
	if err == nil {
		b.f = f
	}
	return err
}

func (b *begunFile) close() error {
	if b.f == nil {
		return nil
	}
	return b.f.Close()
}

// keep writes what the line has become. Bytes come before the head that counts
// them.
func (b *begunFile) keep(w *writer, since int64, line []byte) error {
	if b.f == nil {
		if err := b.open(os.O_RDWR | os.O_CREATE); err != nil {
			return err
		}
	}
	if b.kept > len(line) {
		b.kept = 0
	}
	if b.kept == 0 {
		b.sum = 0
	}
	fresh := line[b.kept:]
	b.sum = crc32.Update(b.sum, castagnoli, fresh)
	h := le.AppendUint64(b.head[:0], w.seg.number)
	h = le.AppendUint64(h, uint64(w.size))
	h = le.AppendUint64(h, uint64(since))
	h = le.AppendUint32(h, uint32(len(line)))
	h = le.AppendUint32(h, b.sum)
	h = le.AppendUint32(h, crc32.Checksum(h, castagnoli))
	b.head = h
	at := int64(begunHead + b.kept)
	if b.kept == 0 {
		b.head = append(h, fresh...)
		fresh = nil
	}
	b.kept = len(line)
	if len(fresh) > 0 {
		if _, err := b.f.WriteAt(fresh, at); err != nil {
			return err
		}
	}
	_, err := b.f.WriteAt(b.head, 0)
	return err
}

// load returns what is kept and still counts.
func (b *begunFile) load(dir string, s Stream) (line []byte, since int64, err error) {
	if b.f == nil {
		return nil, 0, nil
	}
	head := make([]byte, begunHead)
	if _, err := b.f.ReadAt(head, 0); err != nil || crc32.Checksum(head[:32], castagnoli) != le.Uint32(head[32:]) {
		return nil, 0, nil // empty, or torn
	}
	n := le.Uint32(head[24:])
	if n == 0 || n > driver.LongestMaxLine {
		return nil, 0, nil
	}
	line = make([]byte, n)
	if _, err := b.f.ReadAt(line, begunHead); err != nil || crc32.Checksum(line, castagnoli) != le.Uint32(head[28:]) {
		return nil, 0, nil
	}
	stale, err := writtenSince(dir, s, le.Uint64(head), int64(le.Uint64(head[8:])))
	if err != nil || stale {
		return nil, 0, err
	}
	return line, int64(le.Uint64(head[16:])), nil
}

// writtenSince says whether the log has an entry of the stream behind a place, or
// the place is gone.
func writtenSince(dir string, s Stream, number uint64, off int64) (bool, error) {
	all, err := segments(dir)
	if err != nil {
		return false, err
	}
	for len(all) > 0 && all[0].number < number {
		all = all[1:]
	}
	if len(all) == 0 || all[0].number != number {
		return true, nil
	}
	for _, seg := range all {
		found, err := hasEntry(dir, seg, s, off)
		if found || err != nil {
			return found, err
		}
		off = 0
	}
	return false, nil
}

// hasEntry says whether the segment has an entry of the stream from the offset on.
func hasEntry(dir string, seg segment, s Stream, off int64) (bool, error) {
	sf, err := openSegment(dir, seg.number, seg.format)
	if errors.Is(err, fs.ErrNotExist) {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	defer sf.close()
	i := 0
	for i < len(sf.idx.blocks) && sf.idx.blocks[i].end <= off {
		i++
	}
	if err := sf.seek(i); err != nil {
		return false, err
	}
	var e entry
	for {
		at := sf.off
		ok, err := sf.next(&e)
		if err != nil || !ok {
			return false, err
		}
		if e.stream == s && at >= off {
			return true, nil
		}
	}
}
