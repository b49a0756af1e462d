package logs

import (
	"errors"
	"fmt"
	"os"
)

// Clear removes all lines that are stored, while the log is written or not. What
// counts lines goes on: readers that follow go on with the next line, and what a
// destination did not have yet is counted as dropped. os.ErrClosed when the store
// is closed.
func (s *Store) Clear() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return os.ErrClosed
	}
	if s.w == nil {
		return nil // nothing is kept
	}
	s.flush()
	last := s.w.seg.number
	if s.rotate(); s.w.seg.number == last {
		return fmt.Errorf("clear log: %s", s.losses.Error)
	}
	// What is begun belongs to the next line, and names its place in the log.
	for _, stream := range []*stream{&s.out, &s.err} {
		stream.keepBegun()
	}
	if err := s.removeBefore(s.w.seg.number); err != nil {
		return fmt.Errorf("clear log: %w", err)
	}
	return nil
}

// removeBefore removes the segments before that of the number. The caller holds
// mu.
func (s *Store) removeBefore(number uint64) error {
	all, err := segments(s.dir)
	if err != nil {
		return err
	}
	var problems []error
	for _, seg := range all {
		if seg.number < number {
			problems = append(problems, removeSegment(s.dir, seg))
		}
	}
	s.room.Broadcast()
	return errors.Join(append(problems, s.tidy())...)
}

// Clear is Store.Clear for a log that nobody writes; ErrConflict when somebody
// does.
func Clear(dir string, c Config) error {
	c.idle = true
	s, err := Open(dir, c)
	if err != nil {
		return err
	}
	return errors.Join(s.Clear(), s.Close())
}
