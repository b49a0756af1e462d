package health

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"path/filepath"
	"time"

	"dhow/internal/errdef"

	"golang.org/x/sys/unix"
)

// Read returns a timeline's entries, oldest first, none if there is no file. It
// needs no lock: a line that is being written is left out.
func Read(path string) ([]Entry, error) {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the health timeline: %w", err)
	}
	defer f.Close()
	data, err := readBounded(f)
	if err != nil {
		return nil, fmt.Errorf("read the health timeline: %w", err)
	}
	entries, _ := new(decoder).decode(data)
	return entries, nil
}

// Watch yields a timeline's entries behind Seq after, and then each one that is
// added, until ctx ends. The file may be missing yet; its directory may not. It
// sleeps as long as nothing is written. ErrNotFound once the container is
// removed.
func Watch(ctx context.Context, path string, after uint64) iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		w, err := newWatcher(path)
		if err != nil {
			yield(Entry{}, fmt.Errorf("watch the health timeline: %w", err))
			return
		}
		defer w.close()
		stop := context.AfterFunc(ctx, func() { _ = w.inotify.SetReadDeadline(time.Unix(1, 0)) }) // ends wait
		defer stop()
		w.seq = after
		for {
			entries, err := w.fresh()
			if err == nil && ctx.Err() != nil {
				err = ctx.Err()
			}
			if err != nil {
				yield(Entry{}, fmt.Errorf("watch the health timeline: %w", err))
				return
			}
			for _, e := range entries {
				if !yield(e, nil) {
					return
				}
			}
			if err := w.wait(); err != nil {
				if ctx.Err() != nil {
					err = ctx.Err()
				}
				yield(Entry{}, fmt.Errorf("watch the health timeline: %w", err))
				return
			}
		}
	}
}

// watcher reads a file as it grows, and as it is replaced by compaction.
type watcher struct {
	path    string
	inotify *os.File
	file    *os.File
	offset  int64
	decoder decoder
	seq     uint64
}

func newWatcher(path string) (*watcher, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, err
	}
	w := &watcher{path: path, inotify: os.NewFile(uintptr(fd), "inotify")}
	err = w.add(filepath.Dir(path), unix.IN_CREATE|unix.IN_MOVED_TO|unix.IN_DELETE|unix.IN_DELETE_SELF|unix.IN_ONLYDIR)
	if err != nil {
		w.close()
		return nil, err
	}
	return w, nil
}

// add watches a file, too.
func (w *watcher) add(path string, mask uint32) error {
	conn, err := w.inotify.SyscallConn()
	if err != nil {
		return err
	}
	var watchErr error
	err = conn.Control(func(fd uintptr) { _, watchErr = unix.InotifyAddWatch(int(fd), path, mask) })
	if watchErr != nil {
		watchErr = &os.PathError{Op: "watch", Path: path, Err: watchErr}
	}
	return errors.Join(err, watchErr)
}

func (w *watcher) close() {
	w.inotify.Close()
	if w.file != nil {
		w.file.Close()
	}
}

// fresh returns what is new.
func (w *watcher) fresh() ([]Entry, error) {
	if err := w.reopen(); err != nil || w.file == nil {
		return nil, err
	}
	data, err := io.ReadAll(io.NewSectionReader(w.file, w.offset, 2*maxTimeline))
	if err != nil {
		return nil, err
	}
	entries, whole := w.decoder.decode(data)
	w.offset += int64(whole)
	for len(entries) > 0 && entries[0].Seq <= w.seq {
		entries = entries[1:]
	}
	if n := len(entries); n > 0 {
		w.seq = entries[n-1].Seq
	}
	return entries, nil
}

// reopen opens the file that the path names now, unless it is open.
func (w *watcher) reopen() error {
	f, err := os.Open(w.path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if w.file != nil && sameFile(f, w.file) {
		return f.Close()
	}
	// The watch of a file that was replaced ends with the file.
	if err := w.add(w.path, unix.IN_MODIFY); err != nil && !errors.Is(err, os.ErrNotExist) {
		f.Close()
		return err
	}
	if w.file != nil {
		w.file.Close()
	}
	w.file, w.offset, w.decoder = f, 0, decoder{}
	return nil
}

func sameFile(a, b *os.File) bool {
	x, errX := a.Stat()
	y, errY := b.Stat()
	return errX == nil && errY == nil && os.SameFile(x, y)
}

// wait blocks until something happens to the file or its directory.
func (w *watcher) wait() error {
	var buf [4096]byte
	if _, err := w.inotify.Read(buf[:]); err != nil {
		return err
	}
	gone := filepath.Dir(w.path)
	if w.file != nil {
		gone = w.path // compaction replaces it, so it is there at any time
	}
	if _, err := os.Stat(gone); errors.Is(err, os.ErrNotExist) {
		return errdef.New(errdef.ErrNotFound, "the container was removed")
	}
	return nil
}
