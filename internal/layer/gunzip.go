package layer

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
)

// Flags of a gzip member (RFC 1952, 2.3.1).
const (
	gzipHeaderCRC = 1 << 1
	gzipExtra     = 1 << 2
	gzipName      = 1 << 3
	gzipComment   = 1 << 4
)

var (
	errGzipHeader = errors.New("invalid header")
	errGzipSum    = errors.New("invalid checksum")
)

// gunzip unpacks gzip members, one behind the other, up to the end of the input.
// For one goroutine.
type gunzip struct {
	f    *inflater
	crc  uint32
	size uint32 // of the member, modulo 2³²
	open bool   // in the middle of a member
	some bool   // a member has been read
}

func newGunzip(r io.Reader) *gunzip { return &gunzip{f: newInflater(r)} }

func (g *gunzip) Read(p []byte) (int, error) {
	for len(p) > 0 {
		if !g.open {
			if err := g.header(); err != nil {
				return 0, err
			}
		}
		n, err := g.f.Read(p)
		if n > 0 {
			g.crc = crc32.Update(g.crc, crc32.IEEETable, p[:n])
			g.size += uint32(n)
			return n, nil
		}
		if err != io.EOF {
			return 0, err
		}
		if err := g.trailer(); err != nil {
			return 0, err
		}
	}
	return 0, nil
}

// header reads the beginning of a member. io.EOF when none follows the last.
func (g *gunzip) header() error {
	var sum uint32
	next := func() (byte, error) {
		v, err := g.f.bitsOf(8)
		sum = crc32.Update(sum, crc32.IEEETable, []byte{byte(v)})
		return byte(v), err
	}
	var head [10]byte
	for i := range head {
		b, err := next()
		if err == io.ErrUnexpectedEOF && i == 0 && g.some {
			return io.EOF
		}
		if err != nil {
			return err
		}
		head[i] = b
	}
	flags := head[3]
	if head[0] != 0x1f || head[1] != 0x8b || head[2] != 8 {
		return errGzipHeader
	}
	if flags&gzipExtra != 0 {
		low, err := next()
		if err != nil {
			return err
		}
		high, err := next()
		if err != nil {
			return err
		}
		for range int(low) | int(high)<<8 {
			if _, err := next(); err != nil {
				return err
			}
		}
	}
	for _, flag := range []byte{gzipName, gzipComment} {
		for b := byte(1); flags&flag != 0 && b != 0; {
			var err error
			if b, err = next(); err != nil {
				return err
			}
		}
	}
	if want := uint16(sum); flags&gzipHeaderCRC != 0 {
		got, err := g.f.bitsOf(16)
		if err != nil {
			return err
		}
		if uint16(got) != want {
			return errGzipHeader
		}
	}
	g.f.begin()
	g.crc, g.size, g.open, g.some = 0, 0, true, true
	return nil
}

// trailer checks the member that has ended.
func (g *gunzip) trailer() error {
	var tail [8]byte
	for i := range tail {
		v, err := g.f.bitsOf(8)
		if err != nil {
			return err
		}
		tail[i] = byte(v)
	}
	g.open = false
	if binary.LittleEndian.Uint32(tail[:]) != g.crc || binary.LittleEndian.Uint32(tail[4:]) != g.size {
		return errGzipSum
	}
	return nil
}
