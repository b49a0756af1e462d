package bkapi

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"path/filepath"

	"dhow/internal/errdef"
	"dhow/internal/sys"

	fstypes "github.com/tonistiigi/fsutil/types"
	"google.golang.org/grpc/mem"
)

// A listing is what a client last told of a directory, word for word, while we
// hold a copy of just that, and what the files hold. A client that tells the same
// again has changed nothing, which is found out without a look at the copy:
//
//	magic, newline, boot id of the machine, newline
//	(length as uvarint, STAT packet)...   the last one without a stat, which ends the list
//	SHA-256 of each file that we have, in this order; hard links have none of their own
//	how many these are, 8 bytes little-endian
//
// It is removed before the copy is changed and written when the copy is whole. In
// another life of the machine the copy may be less than it says: after a power
// cut files are read again before they are believed.
const (
	listingName  = "listing"
	listingMagic = "dhow listing 2"
)

// Bounds of what a client may tell of one directory.
const (
	maxEntries  = 4 << 20   // files, directories, links
	maxTold     = 512 << 20 // bytes of their names and attributes
	maxToldEach = 1 << 20   // bytes of one
)

// rawPacket is a message as it came.
type rawPacket []byte

// packetCodec encodes packets as their own code does, which is several times as fast as
// by reflection, and hands out raw ones.
type packetCodec struct{}

func (packetCodec) Name() string { return "proto" }

func (packetCodec) Marshal(v any) (mem.BufferSlice, error) {
	p, ok := v.(*fstypes.Packet)
	if !ok {
		return nil, fmt.Errorf("encode %T, want a packet", v)
	}
	raw, err := p.MarshalVT()
	return mem.BufferSlice{mem.SliceBuffer(raw)}, err
}

func (packetCodec) Unmarshal(data mem.BufferSlice, v any) error {
	raw, ok := v.(*rawPacket)
	if !ok {
		return fmt.Errorf("decode %T, want a raw packet", v)
	}
	n := data.Len()
	*raw = append((*raw)[:0], make([]byte, n)...)
	data.CopyTo(*raw)
	return nil
}

func decodePacket(p *fstypes.Packet, raw []byte) error {
	if err := p.UnmarshalVT(raw); err != nil {
		return errdef.New(errdef.ErrInvalid, "decode what the client sent: %w", err)
	}
	return nil
}

// readPacket reads one packet of a listing into buf.
func readPacket(r *bufio.Reader, buf []byte) ([]byte, error) {
	n, err := binary.ReadUvarint(r)
	if err != nil {
		return buf, err
	}
	if n > maxToldEach {
		return buf, errdef.New(errdef.ErrIntegrity, "read a listing: a packet of %d bytes", n)
	}
	buf = append(buf[:0], make([]byte, n)...)
	_, err = io.ReadFull(r, buf)
	return buf, err
}

func uvarintLen(n int) int64 { return int64(len(binary.AppendUvarint(nil, uint64(n)))) }

// listing is the old listing of a slot, which is read entry by entry.
type listing struct {
	file  *os.File // nil: there is none that holds
	doubt bool     // the machine was started since

	in   *bufio.Reader
	sums []byte
	own  func(*fstypes.Stat) bool // of which files the copy has the bytes

	at    int64 // where the entry begins that is next
	raw   []byte
	entry fstypes.Packet // the one that is next, when there is one
	ahead bool           // raw and entry are read
	end   bool           // the list has ended
}

// openListing opens the listing of a slot, which may be missing. The caller closes it.
func openListing(dir string, own func(*fstypes.Stat) bool) *listing {
	l := &listing{own: own, end: true}
	f, err := os.Open(filepath.Join(dir, listingName))
	if err != nil {
		return l
	}
	if err := l.begin(f); err != nil {
		f.Close()
		return &listing{own: own, end: true} // a damaged one is worth nothing
	}
	return l
}

func (l *listing) begin(f *os.File) error {
	st, err := f.Stat()
	if err != nil {
		return err
	}
	var foot [8]byte
	if _, err := f.ReadAt(foot[:], st.Size()-8); err != nil {
		return err
	}
	n := binary.LittleEndian.Uint64(foot[:])
	if n > maxEntries || int64(n)*32+8 > st.Size() {
		return errdef.New(errdef.ErrIntegrity, "read a listing: %d files do not fit into it", n)
	}
	l.sums = make([]byte, n*32)
	stats := st.Size() - 8 - int64(len(l.sums))
	if _, err := f.ReadAt(l.sums, stats); err != nil {
		return err
	}
	l.in = bufio.NewReaderSize(io.NewSectionReader(f, 0, stats), 64<<10)
	magic, err := l.in.ReadString('\n')
	if err != nil || magic != listingMagic+"\n" {
		return errdef.New(errdef.ErrIntegrity, "read a listing: got %q, want %q", magic, listingMagic)
	}
	boot, err := l.in.ReadString('\n')
	if err != nil {
		return err
	}
	l.file, l.end, l.at = f, false, int64(len(magic)+len(boot))
	l.doubt = boot != sys.BootID()+"\n"
	return nil
}

func (l *listing) close() {
	if l.file != nil {
		l.file.Close()
	}
}

// next returns what was told of the next file; nil at the end.
func (l *listing) next() (*fstypes.Stat, error) {
	if l.end || l.ahead {
		return l.entry.Stat, nil
	}
	var err error
	if l.raw, err = readPacket(l.in, l.raw); err != nil {
		return nil, fmt.Errorf("read the listing of a build context: %w", err)
	}
	l.entry.ResetVT()
	if err := decodePacket(&l.entry, l.raw); err != nil {
		return nil, err
	}
	l.ahead, l.end = true, l.entry.Stat == nil
	return l.entry.Stat, nil
}

// take goes past the next file and returns the digest of its bytes, if we have it.
func (l *listing) take() (sum [32]byte, err error) {
	own := l.own(l.entry.Stat)
	l.at += uvarintLen(len(l.raw)) + int64(len(l.raw))
	l.ahead = false
	l.entry.Stat = nil
	if !own {
		return sum, nil
	}
	if len(l.sums) < len(sum) {
		return sum, errdef.New(errdef.ErrIntegrity, "read the listing of a build context: it has too few digests")
	}
	l.sums = l.sums[copy(sum[:], l.sums):]
	return sum, nil
}

// listingWriter writes the listing that takes the place of an old one.
type listingWriter struct {
	path string
	file *os.File
	*bufio.Writer
}

// replaceListing removes the listing, as the copy changes, and begins another one
// with what is equal: all that stands before the next entry of the old one.
func replaceListing(dir string, old *listing) (*listingWriter, error) {
	path := filepath.Join(dir, listingName)
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	f, err := os.OpenFile(path+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, err
	}
	w := &listingWriter{path: path, file: f, Writer: bufio.NewWriterSize(f, 64<<10)}
	if _, err = fmt.Fprintf(w, "%s\n%s\n", listingMagic, sys.BootID()); err == nil && old.file != nil {
		err = w.copyEqual(old)
	}
	if err != nil {
		w.discard()
		return nil, err
	}
	return w, nil
}

func (w *listingWriter) copyEqual(old *listing) error {
	in := bufio.NewReader(io.NewSectionReader(old.file, 0, old.at))
	for range 2 { // the head, which is written anew
		if _, err := in.ReadBytes('\n'); err != nil {
			return err
		}
	}
	_, err := in.WriteTo(w)
	return err
}

// add adds a packet.
func (w *listingWriter) add(raw []byte) error {
	if _, err := w.Write(binary.AppendUvarint(nil, uint64(len(raw)))); err != nil {
		return err
	}
	_, err := w.Write(raw)
	return err
}

// keep says that the copy is what was told.
func (w *listingWriter) keep(sums iter.Seq[[32]byte]) error {
	n := uint64(0)
	for sum := range sums {
		n++
		if _, err := w.Write(sum[:]); err != nil {
			return err
		}
	}
	_, err := w.Write(binary.LittleEndian.AppendUint64(nil, n))
	if ferr := w.Flush(); err == nil {
		err = ferr
	}
	if cerr := w.file.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(w.file.Name(), w.path)
	}
	return err
}

// discard gives up a listing that is not kept.
func (w *listingWriter) discard() {
	w.file.Close()
	os.Remove(w.file.Name())
}
