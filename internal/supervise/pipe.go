package supervise

import (
	"errors"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// outputChunk is read at once; as large as the pipe.
const outputChunk = 64 << 10

// pipe is a stream that a program writes and we read: a FIFO in the container's
// directory, a plain pipe, or a terminal.
//
// It is not waited for in the runtime's own way (os.File), where each write of a
// program wakes us, also while we have enough to do or have chosen to wait: it is
// in an epoll instance, once for each time that we want to hear of it, and the
// runtime waits for that one.
type pipe struct {
	ours    *os.File // reading end, non-blocking
	fd      int      // of ours
	bell    *os.File // epoll instance: readable once when there is something to read
	bellFD  int
	console bool
	// patient says whether what comes may be read a little later; nil says that it
	// may not.
	patient func() bool
	done    chan struct{} // closed when all was read and passed on
}

// newPipe takes over a reading end. It is closed by pump, and on an error.
func newPipe(ours *os.File) (p *pipe, err error) {
	p = &pipe{ours: ours, done: make(chan struct{})}
	undo := true
	defer func() {
		if undo {
			p.close()
		}
	}()
	conn, err := ours.SyscallConn()
	if err == nil {
		err = conn.Control(func(fd uintptr) { p.fd = int(fd) })
	}
	if err == nil {
		err = os.NewSyscallError("fcntl", unix.SetNonblock(p.fd, true))
	}
	if err != nil {
		return nil, err
	}
	if p.bellFD, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return nil, os.NewSyscallError("epoll_create1", err)
	}
	err = unix.SetNonblock(p.bellFD, true) // as the runtime wants it
	p.bell = os.NewFile(uintptr(p.bellFD), "epoll")
	if err == nil {
		err = unix.EpollCtl(p.bellFD, unix.EPOLL_CTL_ADD, p.fd, &unix.EpollEvent{Events: unix.EPOLLONESHOT})
	}
	if err != nil {
		return nil, os.NewSyscallError("epoll_ctl", err)
	}
	undo = false
	return p, nil
}

func (p *pipe) close() {
	p.ours.Close()
	if p.bell != nil {
		p.bell.Close()
	}
}

// makeFIFO makes or reopens a FIFO and returns the container's end, which the
// caller closes. The container holds it open for reading, too, so that writing
// to it does not fail while nobody reads; so there is no end of file.
func makeFIFO(path string) (p *pipe, theirs *os.File, err error) {
	if err := unix.Mkfifo(path, 0o600); err != nil && !errors.Is(err, os.ErrExist) {
		return nil, nil, &os.PathError{Op: "mkfifo", Path: path, Err: err}
	}
	theirs, err = openPipe(path, unix.O_RDWR)
	if err != nil {
		return nil, nil, err
	}
	ours, err := openPipe(path, unix.O_RDONLY) // the runtime leaves it alone when it is blocking
	if err == nil {
		p, err = newPipe(ours)
	}
	if err != nil {
		theirs.Close()
		return nil, nil, err
	}
	return p, theirs, nil
}

func openPipe(path string, flags int) (*os.File, error) {
	fd, err := unix.Open(path, flags|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil
}

// pump reads until drain, giving each chunk to to, and then calls end.
func (p *pipe) pump(to func([]byte), end func()) {
	defer close(p.done)
	defer end()
	defer p.close()
	buf := make([]byte, outputChunk)
	capacity, last := outputChunk, time.Now()
	for {
		n, err := p.read(buf)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			p.rest(buf, to)
		}
		if err != nil || n == 0 {
			return
		}
		to(buf[:n])
		if p.patient == nil || !p.patient() {
			continue
		}
		now := time.Now()
		wait, full := gather(n, now.Sub(last), capacity)
		last = now
		if wait {
			time.Sleep(gatherTime)
		} else if full && capacity == outputChunk {
			capacity = p.grow()
		}
	}
}

// rest takes what is in the pipe now.
func (p *pipe) rest(buf []byte, to func([]byte)) {
	for {
		n, err := p.take(buf)
		if err != nil || n == 0 {
			return
		}
		to(buf[:n])
	}
}

// read takes what is in the pipe, and waits for something when it is empty; after
// drain it returns os.ErrDeadlineExceeded instead, though something may have come
// since it looked.
func (p *pipe) read(buf []byte) (n int, err error) {
	if n, err = p.take(buf); !errors.Is(err, unix.EAGAIN) {
		return n, err
	}
	conn, err := p.bell.SyscallConn()
	if err != nil {
		return 0, err
	}
	var problem error
	rang := false
	err = conn.Read(func(uintptr) bool {
		if rang {
			if problem = p.hush(); problem == nil {
				n, problem = p.take(buf)
			}
			if !errors.Is(problem, unix.EAGAIN) {
				return true
			}
		}
		rang = true
		problem = p.arm()
		return problem != nil
	})
	return n, errors.Join(err, problem)
}

// take reads what is there now.
func (p *pipe) take(buf []byte) (n int, err error) {
	for {
		if n, err = unix.Read(p.fd, buf); !errors.Is(err, unix.EINTR) {
			return max(n, 0), err
		}
	}
}

// arm makes the bell ring once, when something comes or is there.
func (p *pipe) arm() error {
	e := unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLONESHOT}
	return os.NewSyscallError("epoll_ctl", unix.EpollCtl(p.bellFD, unix.EPOLL_CTL_MOD, p.fd, &e))
}

// hush takes what the bell rang for: until then it goes on ringing, and does not
// ring anew.
func (p *pipe) hush() error {
	var e [1]unix.EpollEvent
	for {
		if _, err := unix.EpollWait(p.bellFD, e[:], 0); !errors.Is(err, unix.EINTR) {
			return os.NewSyscallError("epoll_wait", err)
		}
	}
}

// gatherTime is how long a pipe is left alone in which something comes all the
// time. Most programs write a few lines at once, and to be woken for each of them
// is several times the work of storing them. Who is attached may be waiting for an
// answer. The runtime sleeps no less than this.
const gatherTime = time.Millisecond

// gather decides, after n bytes were read that had come within d, whether to let
// more come before the next read, and whether a pipe of that capacity would be
// full by then. What comes after a pause is passed on at once.
func gather(n int, d time.Duration, capacity int) (wait, full bool) {
	if n >= outputChunk || d > 3*gatherTime {
		return false, false // more is there, or little comes
	}
	full = int64(n)*int64(2*gatherTime) > int64(capacity)*int64(d)
	return !full, full
}

// loudPipe is the size of the pipe of a container that writes much. The sizes of
// all pipes of a user are bounded (pipe-user-pages-soft, 64 MiB), so that only
// those who need it get it.
const loudPipe = 512 << 10

// grow makes the pipe larger, if the kernel lets us, and returns its size.
func (p *pipe) grow() int {
	n, err := unix.FcntlInt(uintptr(p.fd), unix.F_SETPIPE_SZ, loudPipe)
	if err != nil {
		return outputChunk - 1 // not asked for again
	}
	return n
}

// consoleLag is how long a terminal is read on after its program has ended: the
// kernel hands over the last output a little later, and then an error, unless
// a process in the background holds it.
const consoleLag = 200 * time.Millisecond

// drain ends pump once it has taken all that is there: the program has ended.
// What processes say that it left in the background is not waited for.
func (p *pipe) drain() {
	if p.console {
		select {
		case <-p.done:
		case <-time.After(consoleLag):
		}
	}
	_ = p.bell.SetReadDeadline(time.Unix(1, 0)) // closed: pump has ended already
}
