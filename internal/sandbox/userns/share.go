package userns

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"
	"unsafe"

	"dhow/internal/errdef"
	"dhow/internal/sandbox/stage"
	"dhow/internal/sys"

	"golang.org/x/sys/unix"
)

// An ordinary user's commands and containers on one state directory share one
// user namespace, so that they can join and watch one another. There is no
// process that keeps it: it is alive as long as any of them is, and the next
// command makes another one when none is.
//
//	command                                    DIR/userns.lock, exclusive
//	  the member that DIR/userns names lives ───────▶ enter its namespace
//	  else DIR/userns can be locked exclusively:
//	       no command and no supervisor is there
//	         a container that lost its supervisor? ──▶ enter its namespace
//	         else ───────────────────────────────────▶ make one
//	  else some member runs: find it in /proc ───────▶ enter its namespace
//	  hold DIR/userns shared, as long as the command runs
//
// A supervisor holds DIR/userns shared, too (Share), and writes its own
// number there, as it lives longer than the command that started it. What is
// written is a hint: whatever it says, a namespace is entered only if it is
// known by its number, is the user's and was made where the command runs.
const (
	shareFile = "userns"
	shareLock = "userns.lock"
)

// sharePatience bounds the wait for another command that enters, and the search
// for a member whose lock is seen but who is not: on a machine that shares DIR.
const sharePatience = 5 * time.Second

// member is what DIR/userns says.
type member struct {
	boot  string
	ns    uint64 // see namespaceID
	pid   int
	start uint64
	// kept says that a supervisor was there: containers may outlive it.
	kept bool
}

// share is an opened DIR/userns.
type share struct{ f *os.File }

func openShare(dir string) (share, error) {
	f, err := os.OpenFile(filepath.Join(dir, shareFile), os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	return share{f}, err
}

func (s share) read() (m member, ok bool) {
	var text [256]byte
	n, _ := s.f.ReadAt(text[:], 0)
	n, err := fmt.Sscan(string(text[:n]), &m.boot, &m.ns, &m.pid, &m.start, &m.kept)
	return m, n == 5 && err == nil && m.boot == sys.BootID()
}

// write is one write of constant length: a reader sees the old text or the new.
func (s share) write(m member) error {
	text := fmt.Sprintf("%s %d %d %d %t", m.boot, m.ns, m.pid, m.start, m.kept)
	_, err := s.f.WriteAt(fmt.Appendf(nil, "%-127s\n", text), 0)
	return err
}

// lock is flock(2); how may have unix.LOCK_NB.
func (s share) lock(how int) error {
	for {
		if err := unix.Flock(int(s.f.Fd()), how); err != unix.EINTR {
			return err
		}
	}
}

// living opens the namespace that somebody of ours is in; nil when nobody is.
// The caller holds shareLock.
func (s share) living() (*os.File, error) {
	m, ok := s.read()
	for deadline := time.Now().Add(sharePatience); ; time.Sleep(time.Millisecond) {
		if ok {
			if ns := m.open(m.pid); ns != nil {
				return ns, nil
			}
		}
		alone := s.lock(unix.LOCK_EX|unix.LOCK_NB) == nil
		if !ok && alone || alone && !m.kept {
			return nil, nil // nobody that we know of ever outlives the one who held the lock
		}
		if pid, ns := m.find(); ns != nil {
			stat, _ := sys.ReadStat(pid)
			m.pid, m.start = pid, stat.Start
			return ns, s.write(m)
		}
		if alone || time.Now().After(deadline) {
			return nil, nil
		}
		m, ok = s.read() // a supervisor may just have written itself down
	}
}

// open opens the namespace if that process lives in it; nil if not.
func (m member) open(pid int) *os.File {
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil
	}
	defer unix.Close(pidfd)
	if stat, ok := sys.ReadStat(pid); !ok || stat.State == "Z" || pid == m.pid && stat.Start != m.start {
		return nil
	}
	ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/user", pid))
	if err != nil {
		return nil
	}
	// It has not been waited for, so its number was not given to another one.
	alive := unix.PidfdSendSignal(pidfd, 0, nil, 0)
	if alive == nil && namespaceID(ns) == m.ns && oursAndHere(ns) {
		return ns
	}
	ns.Close()
	return nil
}

// find looks for a process in the namespace; one that leads its session, as
// supervisors and containers do, lives longer than others.
func (m member) find() (pid int, ns *os.File) {
	_ = sys.EachProcess(func(candidate int) { // without /proc there is no namespace either
		if ns != nil && isLeader(pid) {
			return
		}
		if ns != nil && !isLeader(candidate) {
			return
		}
		found := m.open(candidate)
		if found == nil {
			return
		}
		if ns != nil {
			ns.Close()
		}
		pid, ns = candidate, found
	})
	return pid, ns
}

func isLeader(pid int) bool {
	sid, err := unix.Getsid(pid)
	return err == nil && sid == pid
}

// Requests of ioctl_nsfs(2).
const (
	nsGetParent   = 0xb702
	nsGetOwnerUID = 0xb704
	nsGetID       = 0x8008b70d // Linux 6.18
)

// namespaceID names a namespace as long as the machine runs; before Linux 6.18 as
// long as the namespace lives.
func namespaceID(ns *os.File) uint64 {
	var id uint64
	if _, _, e := unix.Syscall(unix.SYS_IOCTL, ns.Fd(), nsGetID, uintptr(unsafe.Pointer(&id))); e == 0 {
		return id
	}
	var st unix.Stat_t
	_ = unix.Fstat(int(ns.Fd()), &st) // 0 names none
	return st.Ino
}

// oursAndHere says whether the user made the namespace, from the one that we are
// in: nobody else can lead us anywhere.
func oursAndHere(ns *os.File) bool {
	var owner uint32
	if _, _, e := unix.Syscall(unix.SYS_IOCTL, ns.Fd(), nsGetOwnerUID, uintptr(unsafe.Pointer(&owner))); e != 0 || int(owner) != os.Geteuid() {
		return false
	}
	fd, err := unix.IoctlRetInt(int(ns.Fd()), nsGetParent)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	var parent, here unix.Stat_t
	return unix.Fstat(fd, &parent) == nil && unix.Stat("/proc/self/ns/user", &here) == nil &&
		parent.Ino == here.Ino && parent.Dev == here.Dev
}

// canShare makes the directory, which has to be the user's alone.
func canShare(dir string) bool {
	if os.MkdirAll(dir, 0o700) != nil {
		return false
	}
	var st unix.Stat_t
	return unix.Stat(dir, &st) == nil && int(st.Uid) == os.Geteuid() && st.Mode&0o022 == 0
}

// startShared starts the program in the namespace of the state directory's
// processes, and makes that where there is none. The files are to be kept as
// long as the child lives.
func startShared(dir string) (*inside, error) {
	ctx, cancel := context.WithTimeout(context.Background(), sharePatience)
	defer cancel()
	lock, err := sys.LockFile(ctx, filepath.Join(dir, shareLock), true)
	if err != nil {
		return nil, err
	}
	defer lock.Unlock()
	s, err := openShare(dir)
	if err != nil {
		return nil, err
	}
	in, err := s.start()
	if err != nil {
		s.f.Close()
		return nil, err
	}
	in.kept = s.f
	return in, nil
}

func (s share) start() (*inside, error) {
	ns, err := s.living()
	if err != nil {
		return nil, err
	}
	var in *inside
	if ns != nil {
		defer ns.Close()
		in, err = startJoined(ns)
	} else {
		in, err = startOwn(true)
	}
	if err == nil && ns == nil {
		err = s.record(in.child.Pid)
	}
	if err == nil {
		err = s.lock(unix.LOCK_SH)
	}
	if err != nil && in != nil {
		in.child.Kill()
		in.sock.Close()
	}
	return in, err
}

// record writes down a process in a new namespace.
func (s share) record(pid int) error {
	ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/user", pid))
	if err != nil {
		return err
	}
	defer ns.Close()
	stat, _ := sys.ReadStat(pid)
	return s.write(member{boot: sys.BootID(), ns: namespaceID(ns), pid: pid, start: stat.Start})
}

// startJoined starts the program in a namespace that is there: a few
// instructions enter it and make a mount namespace; see stage/enter.go.
func startJoined(ns *os.File) (*inside, error) {
	exe, err := ownPath()
	if err != nil {
		return nil, err
	}
	program, err := sys.MachineProgram("dhow-enter", stage.EnterCode())
	if err != nil {
		return nil, err
	}
	defer program.Close()
	// By a number that the child does not give to another file.
	fd, err := unix.FcntlInt(program.Fd(), unix.F_DUPFD_CLOEXEC, stage.EnterFD+1)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	sock, theirs, err := socketPair()
	if err != nil {
		return nil, err
	}
	defer theirs.Close()
	env := append([]string{stage.PIDVar + "=" + stage.PIDText(0)}, markedEnv(mark{shared: true})...)
	child, err := os.StartProcess(fmt.Sprintf("/proc/self/fd/%d", fd), append([]string{stage.EnterAndWait, exe}, os.Args...), &os.ProcAttr{
		Env:   env,
		Files: []*os.File{os.Stdin, os.Stdout, os.Stderr, theirs, nil, ns},
	})
	if err == nil {
		theirs.Close()
		if err = arrived(sock); err == nil {
			return &inside{child: child, sock: sock}, nil
		}
		child.Kill()
		child.Wait()
	}
	sock.Close()
	return nil, fmt.Errorf("enter the user namespace of the other commands: %w", err)
}

// arrived waits until the child is where it belongs.
func arrived(sock *os.File) error {
	var msg [8]byte
	n, err := sock.Read(msg[:])
	switch {
	case n == 1 && msg[0] == stage.MsgReady:
		return nil
	case n == 4 && msg[0] == stage.MsgError:
		return unix.Errno(uint(msg[1]) | uint(msg[2])<<8)
	case err == nil:
		err = errors.New("it ended")
	}
	return err
}

// Share makes the calling process, a supervisor, one of those for whom the
// state directory's user namespace stays what it is, until it closes what is
// returned. It returns nil outside of such a namespace. ErrUnavailable: it was
// started by a command that is gone, and others made another namespace since.
func Share(dir string) (*os.File, error) {
	text, ok := os.LookupEnv(markVar)
	if !ok {
		return nil, nil
	}
	m, err := readMark(text)
	if err != nil || !m.shared {
		return nil, err
	}
	s, err := openShare(dir)
	if err != nil {
		return nil, fmt.Errorf("share the user namespace: %w", err)
	}
	if err = s.enlist(); err != nil {
		s.f.Close()
		return nil, fmt.Errorf("share the user namespace: %w", err)
	}
	return s.f, nil
}

func (s share) enlist() error {
	if err := s.lock(unix.LOCK_SH); err != nil {
		return err
	}
	ns, err := os.Open("/proc/self/ns/user")
	if err != nil {
		return err
	}
	defer ns.Close()
	// Nobody makes another namespace while we hold the lock.
	m, ok := s.read()
	if !ok || m.ns != namespaceID(ns) {
		return errdef.New(errdef.ErrUnavailable, "the command that started the container has ended")
	}
	stat, _ := sys.ReadStat(os.Getpid())
	m.pid, m.start, m.kept = os.Getpid(), stat.Start, true
	return s.write(m)
}
