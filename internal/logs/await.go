package logs

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"dhow/internal/errdef"
)

// wantedFile is closed by a supervisor that wants a log which somebody else ships
// (Ship), who lets go of it then.
const wantedFile = "wanted"

// Ship returns when every destination of the log has all lines that there were
// when it was called. It ships them, if nobody writes the log; whoever writes it
// ships, and Ship waits, and goes on alone when that one ends. A supervisor that
// wants to write meanwhile gets the log. An ErrUnavailable error says which
// destination has not got how many lines, and why, when ctx ends or a destination
// refuses.
func Ship(ctx context.Context, dir string, c Config) error {
	end, err := endOf(dir)
	if err != nil {
		return fmt.Errorf("ship log %s: %w", dir, err)
	}
	if list, err := behind(dir, end); err != nil || len(list) == 0 {
		return err
	}
	watch, err := watchShipping(dir)
	if err != nil {
		return err
	}
	defer watch.close()
	for {
		again, err := shipOnce(ctx, dir, c, end, watch)
		if err != nil {
			return err
		}
		if !again {
			// What was sent last may not have been read.
			list, err := behind(dir, end)
			if err != nil || len(list) == 0 {
				return err
			}
			return hopeless(list, true, time.Time{})
		}
		// Who wanted it tries to take it every few milliseconds.
		for deadline := time.Now().Add(openPatience); watch.wanted && !written(dir) && time.Now().Before(deadline); {
			time.Sleep(5 * time.Millisecond)
		}
		watch.wanted = false
	}
}

// shipOnce ships until somebody else takes over, or waits for somebody else until
// that one ends; then again is true.
func shipOnce(ctx context.Context, dir string, c Config, end place, watch *watcher) (again bool, err error) {
	mine := !written(dir)
	var since time.Time // when we began to try
	if mine {
		c.meek, since = true, time.Now()
		s, err := Open(dir, c)
		if errors.Is(err, errdef.ErrConflict) {
			return true, nil
		}
		if err != nil {
			return false, err
		}
		defer func() { err = errors.Join(err, s.Close()) }()
		s.letGo()
	}
	for {
		list, err := behind(dir, end)
		if err != nil || len(list) == 0 {
			return false, err
		}
		if err := hopeless(list, ctx.Err() != nil, since); err != nil {
			return false, err
		}
		if mine && watch.wanted || !mine && !written(dir) {
			return true, nil
		}
		// Its deadline sees an end that no event told of.
		if err := watch.wait(ctx, time.Now().Add(time.Second)); err != nil && ctx.Err() == nil {
			return false, err
		}
	}
}

// behind returns the destinations that do not have the log up to its end, which
// counts lines, and bytes of one without its newline.
func behind(dir string, end place) ([]Destination, error) {
	names, err := destinations(dir)
	if err != nil {
		return nil, err
	}
	var list []Destination
	for _, name := range names {
		d, err := destination(dir, name, end, time.Now())
		if err != nil {
			return nil, err
		}
		if d.Waiting != (count{}) {
			list = append(list, d)
		}
	}
	return list, nil
}

// Backlog is what destinations of a log do not have, all of them together, and when the
// first of them is to be tried again.
type Backlog struct {
	count
	Next time.Time
}

// Unshipped looks at a log's backlog.
func Unshipped(dir string) (Backlog, error) {
	var b Backlog
	end, err := endOf(dir)
	if err != nil {
		return b, err
	}
	list, err := behind(dir, end)
	for i, d := range list {
		b.Lines, b.Bytes = b.Lines+d.Waiting.Lines, b.Bytes+d.Waiting.Bytes
		if i == 0 || d.Next.Before(b.Next) {
			b.Next = d.Next
		}
	}
	return b, err
}

// Stuck says whether the last try of some destination failed, so that the next one
// may be a while away.
func Stuck(dir string) bool {
	list, err := behind(dir, place{totals: totals{math.MaxUint64, math.MaxUint64}})
	return err == nil && slices.ContainsFunc(list, func(d Destination) bool { return d.State != stateOK })
}

// hopeless decides whether to wait on for the destinations in the list: not when
// there is no time left, nor when each of them has refused what we sent since we
// began; the zero time is never.
func hopeless(list []Destination, late bool, since time.Time) error {
	var texts []string
	parked := 0
	for _, d := range list {
		text := fmt.Sprintf("%s has not got %d lines (%d bytes)", d.Driver, d.Waiting.Lines, d.Waiting.Bytes)
		if d.Error != "" {
			text += ": " + d.Error
		}
		texts = append(texts, text)
		if d.State == stateParked && !since.IsZero() && !d.ErrorAt.Before(since) {
			parked++
		}
	}
	if !late && parked < len(list) {
		return nil
	}
	err := errdef.New(errdef.ErrUnavailable, "log driver %s", strings.Join(texts, "; "))
	if parked == len(list) {
		return errdef.WithHint(err, "change its options with dhow update --log-driver … --log-opt …")
	}
	return errdef.WithHint(err, "the lines are kept; dhow logs ship --timeout waits longer, dhow logs stat shows how it stands")
}

// letGo ends waiting for more lines, so that everything there is gets shipped.
func (s *Store) letGo() {
	s.end()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, sh := range s.ships {
		if !sh.draining() {
			close(sh.drain)
		}
	}
}

// watchShipping watches how delivery of a log proceeds, the end of its writer, and
// whether somebody wants it.
func watchShipping(dir string) (*watcher, error) {
	// There are files to watch; what is in them does not matter.
	for _, name := range []string{wantedFile, lockFile} {
		f, err := os.OpenFile(filepath.Join(dir, name), os.O_RDONLY|os.O_CREATE, 0o600)
		if err != nil {
			return nil, err
		}
		f.Close()
	}
	w, err := newWatcher()
	if err != nil {
		return nil, err
	}
	if _, err = w.add(filepath.Join(dir, shipDir), unix.IN_MODIFY|unix.IN_CREATE); err == nil {
		err = w.addLock(dir)
	}
	if err == nil {
		w.want, err = w.add(filepath.Join(dir, wantedFile), unix.IN_CLOSE_WRITE)
	}
	if err != nil {
		return nil, errors.Join(err, w.close())
	}
	return w, nil
}

// askFor asks whoever ships a log to let go of it.
func askFor(dir string) {
	if f, err := os.OpenFile(filepath.Join(dir, wantedFile), os.O_WRONLY, 0); err == nil {
		f.Close()
	}
}
