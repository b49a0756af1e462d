package sys

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math"
	"os"
)

// Slots is a file with a small value that is written often and has to outlive
// whoever writes it. It has two slots that are written in turn, each with a
// sequence number, a length and a checksum before its JSON. Whatever tears one
// leaves the other. It is used by one goroutine at a time.
type Slots struct {
	file *os.File
	seq  uint64 // of the younger one; 0 when there is none
}

const (
	// slotSize bounds a value, as JSON, together with slotHead.
	slotSize = 2048
	slotHead = 16
)

// OpenSlots opens the file, or makes it, and reads into v what it has.
func OpenSlots(path string, v any) (*Slots, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	s := &Slots{file: f}
	if s.seq, err = readSlots(f, v); err != nil {
		f.Close()
		return nil, err
	}
	return s, nil
}

// Fresh says that nothing was ever written.
func (s *Slots) Fresh() bool { return s.seq == 0 }

// Reserve takes the room on the disk that the file will ever need. It is for a
// fresh file.
func (s *Slots) Reserve() error {
	_, err := s.file.WriteAt(make([]byte, 2*slotSize), 0)
	return err
}

// Close closes the file.
func (s *Slots) Close() error { return s.file.Close() }

// ReadSlots reads into v what a file has, for those who do not write it. It leaves
// v as it is when there is no file, or nothing in it.
func ReadSlots(path string, v any) error {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = readSlots(f, v)
	return err
}

// readSlots reads the younger of the slots that are whole; the sequence 0 says
// that there is none.
func readSlots(file *os.File, v any) (seq uint64, err error) {
	castagnoli := crc32.MakeTable(crc32.Castagnoli)
	var slot [slotSize]byte
	var data []byte
	for i := range int64(2) {
		n, err := file.ReadAt(slot[:], i*slotSize)
		if err != nil && !errors.Is(err, io.EOF) {
			return 0, err
		}
		if n < slotHead {
			continue
		}
		length := int(binary.LittleEndian.Uint32(slot[8:]))
		// Zeros have the checksum of nothing.
		if length == 0 || length > n-slotHead || crc32.Checksum(slot[slotHead:slotHead+length], castagnoli) != binary.LittleEndian.Uint32(slot[12:]) {
			continue
		}
		// A number that none can follow was never written.
		if s := binary.LittleEndian.Uint64(slot[:]); s > seq && s != math.MaxUint64 {
			seq, data = s, append(data[:0], slot[slotHead:slotHead+length]...)
		}
	}
	if seq == 0 {
		return 0, nil
	}
	if err := json.Unmarshal(data, v); err != nil {
		return 0, fmt.Errorf("%s: %w", file.Name(), err)
	}
	return seq, nil
}

// ErrTooLong says that a value does not fit into Slots.
var ErrTooLong = errors.New("too long to be kept")

// Write keeps the value: ErrTooLong for one that does not fit.
func (s *Slots) Write(v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if len(data) > slotSize-slotHead {
		return ErrTooLong
	}
	s.seq++
	slot, le := make([]byte, 0, slotSize), binary.LittleEndian
	slot = le.AppendUint64(slot, s.seq)
	slot = le.AppendUint32(slot, uint32(len(data)))
	slot = le.AppendUint32(slot, crc32.Checksum(data, crc32.MakeTable(crc32.Castagnoli)))
	slot = append(slot, data...)
	_, err = s.file.WriteAt(slot, int64(s.seq%2)*slotSize)
	return err
}
