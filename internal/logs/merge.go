package logs

import (
	"context"
	"fmt"
	"iter"
	"time"

	"dhow/internal/sys"
)

// Merged is a record of one of several logs.
type Merged struct {
	Record
	From int // index of the log
}

// Merge reads several logs at once, as Read does with one: what is there in the
// order of time, each log with the choice of its own last lines (Tail), then, with
// Follow, what comes as it comes.
func Merge(ctx context.Context, dirs []string, o ReadOptions) iter.Seq2[Merged, error] {
	return func(yield func(Merged, error) bool) {
		m := merge{sources: make([]source, len(dirs)), follow: o.Follow}
		defer m.close()
		if err := m.run(ctx, dirs, o, yield); err != nil && ctx.Err() == nil {
			yield(Merged{}, fmt.Errorf("read log: %w", err))
		}
	}
}

type merge struct {
	sources []source
	follow  bool
	watch   *watcher
}

// source is one of the logs that are merged.
type source struct {
	*reader
	head  Record // the next record, if full
	full  bool
	ended bool // nothing comes any more
}

func (m *merge) close() {
	for _, s := range m.sources {
		if s.reader != nil {
			s.close()
		}
	}
	if m.watch != nil {
		m.watch.close()
	}
}

func (m *merge) run(ctx context.Context, dirs []string, o ReadOptions, yield func(Merged, error) bool) error {
	for _, dir := range dirs {
		if err := readable(dir); err != nil {
			return err
		}
	}
	if m.follow {
		var err error
		if m.watch, err = watchLogs(dirs...); err != nil {
			return err
		}
		if !o.Until.IsZero() { // the clock may be put there, which a deadline does not see
			stop, err := sys.At(o.Until, m.watch.wake)
			if err != nil {
				return err
			}
			defer stop()
		}
	}
	for i, dir := range dirs {
		m.sources[i].reader = newReader(dir, o)
		if err := m.sources[i].start(); err != nil {
			return err
		}
	}
	for {
		// Asked before the last look, so that nothing that was written before the
		// writer went is missed.
		over := m.over()
		for {
			i, err := m.first()
			if err != nil {
				return err
			}
			if i < 0 {
				break
			}
			if !yield(Merged{m.sources[i].head, i}, nil) || ctx.Err() != nil {
				return nil
			}
			m.sources[i].full = false
		}
		if over {
			return nil
		}
		if o.Idle != nil {
			if err := o.Idle(); err != nil {
				return err
			}
		}
		if err := m.watch.wait(ctx, o.Until); err != nil {
			return err
		}
	}
}

// over finds out which logs grow no more, and says whether none does.
func (m *merge) over() bool {
	over := true
	now := time.Now().UnixNano()
	for i := range m.sources {
		s := &m.sources[i]
		if !s.ended {
			s.ended = !m.follow || !written(s.dir) || now > s.until
		}
		over = over && s.ended
	}
	return over
}

// first returns the log whose next record is the oldest, -1 if none has one now.
func (m *merge) first() (int, error) {
	oldest := -1
	for i := range m.sources {
		s := &m.sources[i]
		if !s.full {
			var err error
			if s.full, err = s.next(&s.head); err != nil {
				return 0, err
			}
			if !s.full && s.ended {
				s.full = s.rest(&s.head)
			}
		}
		if s.full && (oldest < 0 || s.head.Time.Before(m.sources[oldest].head.Time)) {
			oldest = i
		}
	}
	return oldest, nil
}
