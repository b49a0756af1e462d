package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"os"
	"time"

	"dhow/internal/errdef"

	"golang.org/x/sys/unix"
)

// FollowEvents yields what happened since then, oldest first, and goes on as
// more happens, until ctx ends; its last value is the reason then. It sleeps as
// long as nobody writes to the database.
func (s *Store) FollowEvents(ctx context.Context, since time.Time) iter.Seq2[Event, error] {
	return func(yield func(Event, error) bool) {
		w, err := s.watchDB()
		if err != nil {
			yield(Event{}, fmt.Errorf("follow events: %w", err))
			return
		}
		defer w.inotify.Close()
		defer context.AfterFunc(ctx, func() { _ = w.inotify.SetReadDeadline(past()) })() // ends wait
		var seq int64
		for {
			// What is asked for until then is told even if time is up.
			events, err := s.Events(context.WithoutCancel(ctx), seq, since)
			for _, e := range events {
				seq = e.Seq
				if !yield(e, nil) {
					return
				}
			}
			if err == nil {
				err = w.wait(ctx)
			}
			if err != nil {
				yield(Event{}, err)
				return
			}
		}
	}
}

// past ends a read at once.
func past() time.Time { return time.Unix(1, 0) }

// dbWatch tells of writes to the database.
type dbWatch struct {
	inotify *os.File
	pause   time.Duration // until the next look after a write; 0: there is none
}

// The file is written before the index that makes the transaction visible, which
// tells nobody. So after each write there are some more looks, ever later, until
// even a writer that was stopped in between is long done.
const (
	firstLook = time.Millisecond
	lastLook  = time.Second
)

func (s *Store) watchDB() (*dbWatch, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err == nil {
		// The write-ahead log comes and goes beside the database.
		if _, err = unix.InotifyAddWatch(fd, s.root, unix.IN_MODIFY|unix.IN_CREATE|unix.IN_ONLYDIR); err != nil {
			unix.Close(fd)
		}
	}
	if err != nil {
		return nil, errdef.WithHint(fmt.Errorf("watch %s: %w", s.root, err), "sysctl fs.inotify.max_user_instances bounds how many can watch at once")
	}
	return &dbWatch{inotify: os.NewFile(uintptr(fd), "inotify"), pause: firstLook}, nil
}

// wait returns when the database was written to, or it is time for another look.
func (w *dbWatch) wait(ctx context.Context) error {
	until := time.Time{}
	if w.pause != 0 {
		until = time.Now().Add(w.pause)
	}
	_ = w.inotify.SetReadDeadline(until) // it is not closed
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	var buf [4096]byte
	for {
		n, err := w.inotify.Read(buf[:])
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case errors.Is(err, os.ErrDeadlineExceeded):
			const slower = 4
			if w.pause *= slower; w.pause > lastLook {
				w.pause = 0
			}
			return nil
		case err != nil:
			return fmt.Errorf("follow events: %w", err)
		case bytes.Contains(buf[:n], []byte(dbName)):
			w.pause = firstLook
			return nil
		}
	}
}
