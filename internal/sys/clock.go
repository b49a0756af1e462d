package sys

import (
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// At calls f once the machine's clock shows t or later, also when it is put there: a
// time.Timer measures how long that should take when it is set. stop ends it, and
// returns when f does not run any more.
func At(t time.Time, f func()) (stop func() error, err error) {
	fd, err := unix.TimerfdCreate(unix.CLOCK_REALTIME, unix.TFD_NONBLOCK|unix.TFD_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("timerfd_create", err)
	}
	timer := os.NewFile(uintptr(fd), "timerfd")
	// Zero would mean never.
	at := unix.ItimerSpec{Value: unix.NsecToTimespec(max(t.UnixNano(), 1))}
	if err := unix.TimerfdSettime(fd, unix.TFD_TIMER_ABSTIME, &at, nil); err != nil {
		timer.Close()
		return nil, os.NewSyscallError("timerfd_settime", err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		var expirations [8]byte
		if _, err := timer.Read(expirations[:]); err == nil {
			f()
		}
	}()
	return func() error {
		err := timer.Close()
		<-done
		return err
	}, nil
}
