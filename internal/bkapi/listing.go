package bkapi

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"dhow/internal/errdef"
	"dhow/internal/sys"

	"github.com/moby/buildkit/session/filesync"
	fstypes "github.com/tonistiigi/fsutil/types"
	"google.golang.org/grpc/mem"
)

// A listing is what a client last told of a directory, word for word, while we
// hold a copy of just that. A client that tells the same again has changed
// nothing, which is found out without a look at the copy:
//
//	boot id of the machine, newline       after a power cut the copy may be less than was told
//	(length as uvarint, STAT packet)...   the last one without a stat, which ends the list
//
// It is removed before the copy is changed and written when the copy is whole.
const listingName = "listing"

// Bounds of what a client may tell of one directory.
const (
	maxEntries  = 4 << 20   // files, directories, links
	maxTold     = 512 << 20 // bytes of their names and attributes
	maxToldEach = 1 << 20   // bytes of one
)

// packets is the transfer of a directory (package fsutil has the protocol), seen
// by who receives: it hands out again what was compared with a listing, writes
// a new listing along, and sees to it that files are as long as was told.
type packets struct {
	filesync.FileSync_DiffCopyClient

	again   *bufio.Reader // packets of the old listing that were told anew; nil: no more
	left    int           // how many of them are left
	pending []byte        // the first packet that differs, which may be empty
	held    bool          // there is one

	list  *bufio.Writer
	sizes []int64          // of the entries told so far
	told  int              // bytes
	ended bool             // the list
	short map[uint32]int64 // bytes that files still lack, by their number
	buf   rawPacket
}

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

// RecvMsg hands out the next packet.
func (s *packets) RecvMsg(m any) error {
	p, ok := m.(*fstypes.Packet)
	if !ok {
		return fmt.Errorf("receive %T, want a packet", m)
	}
	if err := s.next(); err != nil {
		return err
	}
	if err := p.UnmarshalVT(s.buf); err != nil {
		return errdef.New(errdef.ErrInvalid, "decode what the client sent: %w", err)
	}
	switch p.Type {
	case fstypes.PACKET_STAT:
		return s.stat(p.Stat)
	case fstypes.PACKET_DATA:
		return s.data(p)
	}
	return nil
}

// next fills the buffer with a packet of before, or a new one.
func (s *packets) next() (err error) {
	switch {
	case s.left > 0:
		s.left--
		s.buf, err = readPacket(s.again, s.buf)
		return err
	case s.held:
		s.buf, s.pending, s.held = s.pending, nil, false
		return nil
	}
	return s.FileSync_DiffCopyClient.RecvMsg(&s.buf)
}

// stat takes note of what was told of a file; nil is the end of the list.
func (s *packets) stat(st *fstypes.Stat) error {
	if s.told += len(s.buf); s.told > maxTold || len(s.sizes) > maxEntries {
		return errdef.New(errdef.ErrInvalid, "the client's directory has more than %d files, or names of more than %d MiB", maxEntries, maxTold>>20)
	}
	if s.ended {
		return errdef.New(errdef.ErrInvalid, "the client told of more files after it had said that there were no more") // on which fsutil panics
	}
	if s.ended = st == nil; !s.ended {
		s.sizes = append(s.sizes, st.Size)
	}
	if _, err := s.list.Write(binary.AppendUvarint(nil, uint64(len(s.buf)))); err != nil {
		return err
	}
	_, err := s.list.Write(s.buf)
	return err
}

// data checks a part of a file against what was told of the file.
func (s *packets) data(p *fstypes.Packet) error {
	if int(p.ID) >= len(s.sizes) {
		return errdef.New(errdef.ErrInvalid, "the client sent a file that it had not told of")
	}
	left, begun := s.short[p.ID]
	if !begun {
		left = s.sizes[p.ID]
	}
	left -= int64(len(p.Data))
	s.short[p.ID] = left
	if left < 0 || left > 0 && len(p.Data) == 0 {
		err := errdef.New(errdef.ErrConflict, "a file of the client had another size when it was sent, want %d bytes", s.sizes[p.ID])
		return errdef.WithHint(err, "a file changed meanwhile, or the client may not read it")
	}
	if len(p.Data) == 0 {
		delete(s.short, p.ID)
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

// listing is the old listing of a slot and the new one.
type listing struct {
	path string
	old  *os.File // nil: none that holds
	next *os.File // nil: not begun
}

// openListing opens the listing of a slot, which may be missing.
func openListing(dir string) *listing {
	l := &listing{path: filepath.Join(dir, listingName)}
	f, err := os.Open(l.path)
	if err != nil {
		return l
	}
	head := []byte(sys.BootID() + "\n")
	got := make([]byte, len(head))
	if _, err := io.ReadFull(f, got); err != nil || !bytes.Equal(got, head) {
		f.Close()
		return l
	}
	l.old = f
	return l
}

func (l *listing) close() {
	for _, f := range []*os.File{l.old, l.next} {
		if f != nil {
			f.Close()
		}
	}
	if l.next != nil {
		os.Remove(l.next.Name()) // gone when it was kept
	}
}

// same reads what the client tells for as long as it is what the listing says.
// It reports whether that was all; if not, the stream hands it out again.
func (l *listing) same(s *packets) (bool, error) {
	if l.old == nil {
		return false, nil
	}
	start, err := l.old.Seek(0, io.SeekCurrent)
	if err != nil {
		return false, err
	}
	r := bufio.NewReaderSize(l.old, 64<<10)
	var known []byte
	equal := 0
	for {
		if err := s.FileSync_DiffCopyClient.RecvMsg(&s.buf); err != nil {
			return false, err
		}
		known, err = readPacket(r, known)
		if err != nil || !bytes.Equal(known, s.buf) {
			break
		}
		s.told += len(s.buf)
		equal++
		if isLast(s.buf) {
			return true, nil
		}
	}
	s.pending, s.held, s.buf, s.told = s.buf, true, nil, 0
	_, err = l.old.Seek(start, io.SeekStart)
	s.left, s.again = equal, r
	r.Reset(l.old)
	return false, err
}

// isLast reports whether a packet that a listing has is the one that ends it: all
// others have a stat, and an empty one still has its field.
func isLast(raw []byte) bool {
	var p fstypes.Packet
	return len(raw) < 16 && p.UnmarshalVT(raw) == nil && p.Type == fstypes.PACKET_STAT && p.Stat == nil
}

// begin removes the listing, as the copy changes, and begins another one.
func (l *listing) begin(s *packets) error {
	if err := os.Remove(l.path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(l.path+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	l.next = f
	s.list = bufio.NewWriterSize(f, 64<<10)
	_, err = s.list.WriteString(sys.BootID() + "\n")
	return err
}

// keep says that the copy is what was told.
func (l *listing) keep(s *packets) error {
	err := s.list.Flush()
	if cerr := l.next.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(l.next.Name(), l.path)
	}
	return err
}
