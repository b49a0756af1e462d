package logs

import (
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math"
	"os"
)

// slots is a file with a small value that is written often and has to outlive
// whoever writes it. It has two slots that are written in turn, each with a
// sequence number, a length and a checksum before its JSON. Whatever tears one
// leaves the other.
type slots struct {
	f   *os.File
	seq uint64 // of the younger one; 0 when there is none
}

const (
	slotSize = 2048
	slotHead = 16
)

// openSlots opens the file, or makes it, and reads into v what it has.
func openSlots(path string, v any) (*slots, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	s := &slots{f: f}
	if s.seq, err = readSlots(f, v); err != nil {
		f.Close()
		return nil, err
	}
	return s, nil
}

// readSlots reads the younger of the slots that are whole; the sequence 0 says
// that there is none.
func readSlots(file *os.File, v any) (seq uint64, err error) {
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
		length := int(le.Uint32(slot[8:]))
		// Zeros have the checksum of nothing.
		if length == 0 || length > n-slotHead || crc32.Checksum(slot[slotHead:slotHead+length], castagnoli) != le.Uint32(slot[12:]) {
			continue
		}
		// A number that none can follow was never written.
		if s := le.Uint64(slot[:]); s > seq && s != math.MaxUint64 {
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

// errTooLong says that a value does not fit into a slot.
var errTooLong = errors.New("too long to be kept")

// write keeps the value.
func (s *slots) write(v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if len(data) > slotSize-slotHead {
		return errTooLong
	}
	s.seq++
	slot := make([]byte, 0, slotSize)
	slot = le.AppendUint64(slot, s.seq)
	slot = le.AppendUint32(slot, uint32(len(data)))
	slot = le.AppendUint32(slot, crc32.Checksum(data, castagnoli))
	slot = append(slot, data...)
	_, err = s.f.WriteAt(slot, int64(s.seq%2)*slotSize)
	return err
}
