package logs

import (
	"errors"
	"fmt"
	"path/filepath"
	"syscall"
	"time"

	"dhow/internal/sys"
)

// losses is what a container wrote and its log never had, since it was created:
// the file losses, which outlives the writer.
type losses struct {
	Lost    count     // writing failed
	Limited count     // options rate and rate-policy
	Untold  count     // of Lost, not yet mentioned in the log
	Error   string    // of the last write that failed; "" once one succeeds
	ErrorAt time.Time // when that was
}

const lossesFile = "losses"

// openLosses reads what was lost before. The file has its room from the beginning:
// there may be none when there is something to count.
func (s *Store) openLosses() (err error) {
	if s.lossFile, err = sys.OpenSlots(filepath.Join(s.dir, lossesFile), &s.losses); err != nil {
		return err
	}
	s.lossesKept = s.losses
	if s.lossFile.Fresh() {
		return s.lossFile.Reserve()
	}
	return nil
}

// keepLosses writes them when they changed. What cannot be written is tried again
// with the next line. The caller holds mu.
func (s *Store) keepLosses() {
	if s.losses == s.lossesKept || s.lossFile == nil {
		return
	}
	if s.lossFile.Write(s.losses) == nil {
		s.lossesKept = s.losses
	}
}

// failed notes why the store could not do something. The caller holds mu.
func (s *Store) failed(err error) {
	s.losses.Error, s.losses.ErrorAt = reason(err), s.now().UTC()
}

// lose counts lines that could not be written. The caller holds mu.
func (s *Store) lose(lines, bytes uint64, err error) {
	s.failed(err)
	for _, c := range []*count{&s.losses.Lost, &s.losses.Untold} {
		c.Lines, c.Bytes = c.Lines+lines, c.Bytes+bytes
	}
}

// reason is the text of an error of the file system, without paths.
func reason(err error) string {
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return errno.Error()
	}
	text := err.Error()
	return text[:min(len(text), longestError)]
}

func (l losses) marker() []byte {
	return fmt.Appendf(nil, "dhow: %d lines (%d bytes) lost here: %s", l.Untold.Lines, l.Untold.Bytes, l.Error)
}
