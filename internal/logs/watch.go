package logs

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"dhow/internal/errdef"
)

// watcher sleeps until something happens to one of several logs.
type watcher struct {
	f     *os.File
	fd    int              // of f, which Fd would make blocking
	locks map[int32]string // log by the watch of its lock file

	want   int32 // watch of a wantedFile, if there is one (watchShipping)
	wanted bool  // that was closed
}

// watchLogs watches the logs in the directories; those that do not exist are
// left out.
func watchLogs(dirs ...string) (*watcher, error) {
	w, err := newWatcher()
	if err != nil {
		return nil, err
	}
	for _, dir := range dirs {
		// A write, a new segment; and the end of the writer, who holds the lock.
		_, err := w.add(filepath.Join(dir, segmentsDir), unix.IN_MODIFY|unix.IN_CREATE|unix.IN_MOVED_TO)
		if err != nil {
			return nil, errors.Join(err, w.close())
		}
		if err := w.addLock(dir); err != nil {
			return nil, errors.Join(err, w.close())
		}
	}
	return w, nil
}

func newWatcher() (*watcher, error) {
	fd, err := unix.InotifyInit1(unix.IN_NONBLOCK | unix.IN_CLOEXEC)
	if err != nil {
		err = fmt.Errorf("watch logs: %w", os.NewSyscallError("inotify_init1", err))
		return nil, errdef.WithHint(err, "sysctl fs.inotify.max_user_instances bounds how many logs can be followed at once")
	}
	return &watcher{fd: fd, f: os.NewFile(uintptr(fd), "inotify"), locks: map[int32]string{}}, nil
}

// addLock watches for the end of a log's writer.
func (w *watcher) addLock(dir string) error {
	lock, err := w.add(filepath.Join(dir, lockFile), unix.IN_CLOSE_WRITE)
	if err == nil {
		w.locks[lock] = dir
	}
	return err
}

// add watches a path; one that does not exist gives -1.
func (w *watcher) add(path string, mask uint32) (int32, error) {
	wd, err := unix.InotifyAddWatch(w.fd, path, mask)
	if errors.Is(err, unix.ENOENT) {
		return -1, nil
	}
	return int32(wd), os.NewSyscallError("inotify_add_watch", err)
}

func (w *watcher) close() error { return w.f.Close() }

// wake ends wait.
func (w *watcher) wake() { w.f.SetReadDeadline(time.Unix(1, 0)) }

// wait returns after something happened, or at the deadline if that is not zero.
func (w *watcher) wait(ctx context.Context, deadline time.Time) error {
	if err := w.f.SetReadDeadline(deadline); err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, w.wake)
	defer stop()
	var events [4096]byte
	n, err := w.f.Read(events[:])
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, os.ErrDeadlineExceeded):
		return nil
	case err != nil:
		return fmt.Errorf("watch logs: %w", err)
	}
	w.awaitUnlock(ctx, events[:n])
	return nil
}

// awaitUnlock gives writers that closed their lock files the time to be seen as
// gone: the kernel tells of a close before it lets go of the lock.
func (w *watcher) awaitUnlock(ctx context.Context, events []byte) {
	for len(events) >= unix.SizeofInotifyEvent {
		watch := int32(le.Uint32(events))
		w.wanted = w.wanted || watch == w.want
		dir, isLock := w.locks[watch]
		for pause := 100 * time.Microsecond; isLock && pause < 50*time.Millisecond && ctx.Err() == nil && written(dir); pause *= 2 {
			time.Sleep(pause)
		}
		events = events[min(len(events), unix.SizeofInotifyEvent+int(le.Uint32(events[12:]))):]
	}
}

// written says whether somebody has the log open for writing. The lock is opened
// for reading, so that looking does not wake those who watch it.
func written(dir string) bool {
	f, err := os.Open(filepath.Join(dir, lockFile))
	if err != nil {
		return !errors.Is(err, fs.ErrNotExist)
	}
	defer f.Close()
	err = unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB)
	return errors.Is(err, unix.EWOULDBLOCK)
}
