package logs

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"dhow/internal/logs/driver"
)

// Update changes the destinations while the log is written: those that are new
// begin with the next line, those that are gone end, and those whose options
// changed go on where they were. What the local store becomes counts from the next
// line on, too. On an error, those that could be opened are.
func (s *Store) Update(drivers []Driver) error {
	s.mu.Lock()
	if s.closed || s.w == nil {
		s.mu.Unlock()
		return nil
	}
	err := s.reshape(drivers)
	old := s.ships
	s.ships = nil
	s.mu.Unlock()
	problems := []error{err, closeAll(old), s.forget(drivers)}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return errors.Join(problems...)
	}
	s.flush()
	end := place{s.w.seg.number, s.w.size, totals{s.w.lines, s.w.bytes}}
	for _, d := range drivers {
		if isStore(d.Name) {
			continue
		}
		sh, err := newShipper(s, d, s.info, end)
		if err != nil {
			problems = append(problems, err)
			continue
		}
		s.ships = append(s.ships, sh)
		sh.start()
	}
	s.room.Broadcast()
	return errors.Join(problems...)
}

// closeAll ends delivery to all of them at once, since each may take a moment.
func closeAll(ships []*shipper) error {
	var all errgroup.Group
	for _, sh := range ships {
		all.Go(sh.close)
	}
	return all.Wait()
}

// isStore says whether the driver is the local store itself.
func isStore(name string) bool {
	return name == driverJSONFile || name == driverLocal || name == driverNone
}

// reshape changes the local store to what the drivers want of it. The caller
// holds mu.
func (s *Store) reshape(drivers []Driver) error {
	was := s.shape
	now := shapeOf(drivers)
	if now.format == 0 {
		return nil // none: the supervisor opens it anew
	}
	attrs, err := attributes(s.info, now.options)
	if err != nil {
		return err
	}
	s.shape, s.json.attrs, s.w.end = now, attrs, nil
	s.settle()
	s.limit = newLimiter(drivers)
	if now.compress && s.pack == nil {
		s.pack = startPacker(s)
	}
	old, err := readDescriptor(s.dir)
	if err != nil {
		return err
	}
	if err := writeDescriptor(s.dir, old, now.descriptor(old.Boot)); err != nil {
		return err
	}
	if now.format == was.format {
		return s.tidy()
	}
	s.flush()
	s.rotate()
	return nil
}

// forget removes what is kept of destinations that are gone.
func (s *Store) forget(drivers []Driver) error {
	names, err := readNames(filepath.Join(s.dir, shipDir))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var problems []error
	for _, name := range names {
		base, _, _ := strings.Cut(name, parkedSuffix)
		known := slices.ContainsFunc(drivers, func(d Driver) bool { return url.PathEscape(d.Name) == base })
		if !known {
			problems = append(problems, os.Remove(filepath.Join(s.dir, shipDir, name)))
		}
	}
	return errors.Join(problems...)
}

// Ships says whether some of the drivers ship lines elsewhere.
func Ships(drivers []Driver) bool {
	return slices.ContainsFunc(drivers, func(d Driver) bool { return !isStore(d.Name) })
}

// Lingering is how long to go on shipping after the container has ended: the longest
// that option linger of a driver asks for, or otherwise.
func Lingering(drivers []Driver, otherwise time.Duration) time.Duration {
	asked := time.Duration(-1)
	for _, d := range drivers {
		asked = max(asked, driver.Options(d.Options).Duration("linger", -1))
	}
	if asked < 0 {
		return otherwise
	}
	return asked
}

// Linger goes on shipping, after the container has ended, until every destination
// has every line or ctx ends; then the error says which one has not. Streams that
// are still open are closed. What is left is shipped by the next Open.
func (s *Store) Linger(ctx context.Context) error {
	s.letGo()
	s.mu.Lock()
	ships := slices.Clone(s.ships)
	s.mu.Unlock()
	var problems []error
	for _, sh := range ships {
		select {
		case <-sh.done:
		case <-ctx.Done():
			problems = append(problems, fmt.Errorf("log driver %s has not got every line: %w", sh.name, ctx.Err()))
		}
	}
	return errors.Join(problems...)
}

// awaitRoom waits, when the next segment takes the place of one that a destination
// with mode=blocking still needs, until it does not. The caller holds mu, which is
// released meanwhile.
func (s *Store) awaitRoom() {
	for !s.ending && s.needed() {
		s.room.Wait()
	}
}

// needed says whether the segment that a rotation would remove is to be kept.
func (s *Store) needed() bool {
	if !slices.ContainsFunc(s.ships, func(sh *shipper) bool { return sh.blocking }) {
		return false
	}
	all, err := segments(s.dir)
	if err != nil || len(all) < s.shape.maxFiles {
		return false
	}
	oldest := all[len(all)-s.shape.maxFiles]
	return slices.ContainsFunc(s.ships, func(sh *shipper) bool {
		return sh.blocking && sh.segment() <= oldest.number
	})
}

// moved is told when a destination has come further.
func (s *Store) moved() {
	s.room.Broadcast()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.shape.hidden && !s.closed {
		s.removeShipped()
	}
}

// removeShipped removes segments that every destination has, when they are kept
// for nothing else. The caller holds mu.
func (s *Store) removeShipped() {
	all, err := segments(s.dir)
	if err != nil || len(all) < 2 {
		return
	}
	for _, seg := range all[:len(all)-1] {
		if slices.ContainsFunc(s.ships, func(sh *shipper) bool { return sh.segment() <= seg.number }) {
			return
		}
		if err := removeSegment(s.dir, seg); err != nil {
			s.failed(err)
			return
		}
	}
}

// written returns the bytes of all lines ever stored.
func (s *Store) written() uint64 { return s.stored.Load() }
