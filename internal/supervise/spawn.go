package supervise

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// RoleVar names the environment variable by which the binary knows that it is
// to be a supervisor. Its value is a role, as JSON.
const RoleVar = "DHOW_SUPERVISE"

// role says which container a new supervisor is for.
type role struct{ Root, ID string }

// startFD is the supervisor's end of its starter's connection.
const startFD = 3

// Launched is a supervisor that waits to be told what to do.
type Launched struct {
	ID, Name string // of its container

	conn *conn // nil once it was told, or abandoned
	proc *os.Process
}

// StartOptions say what a new supervisor begins with.
type StartOptions struct {
	// Attach follows the container's output from its first byte; nil leaves it
	// running in the background.
	Attach *AttachOptions
	// Adopt takes over what a killed supervisor left: a process that still runs,
	// or the record of one that is gone, to which the restart policy is applied.
	Adopt bool
}

// Launch starts a supervisor process for a container of the state directory.
// Neither the container nor that directory need be there until Start: a process
// takes 10 ms to begin, in which its starter makes them. ps(1) shows the name.
func Launch(root, id, name string) (*Launched, error) {
	l, err := launch(root, id, name)
	if err != nil {
		return nil, fmt.Errorf("start a supervisor: %w", err)
	}
	return l, nil
}

func launch(root, id, name string) (*Launched, error) {
	root, err := filepath.Abs(root) // the supervisor works elsewhere
	if err != nil {
		return nil, err
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	theirs := os.NewFile(uintptr(pair[1]), "starter")
	defer theirs.Close()
	ours := os.NewFile(uintptr(pair[0]), "supervisor")
	nc, err := net.FileConn(ours) // a duplicate
	ours.Close()
	if err != nil {
		return nil, err
	}
	l := &Launched{ID: id, Name: name, conn: &conn{Conn: nc}}
	if l.proc, err = execute(role{root, id}, name, theirs); err != nil {
		nc.Close()
		return nil, err
	}
	return l, nil
}

// Start has the supervisor start the container. Session.Started says whether it
// runs. The supervisor needs nobody from then on.
func (l *Launched) Start(o StartOptions) (*Session, error) {
	go func() { _, _ = l.proc.Wait() }() // no zombie while the starter lives on; init waits after that
	c := l.conn
	l.conn = nil
	if err := c.request(opStart, startArgs(o)); err != nil {
		c.Close()
		return nil, gone(context.Background(), err)
	}
	return &Session{conn: c}, nil
}

// Abandon ends a supervisor that was not told to start anything, and waits for
// its end. Of one that was, it does nothing.
func (l *Launched) Abandon() {
	if l.conn == nil {
		return
	}
	l.conn.Close()
	l.conn = nil
	_, _ = l.proc.Wait() // how it ended is of no interest
}

// execute runs our own binary in a session of its own. Until it has a directory
// to write to, it says on the starter's standard error what goes wrong with it.
func execute(r role, name string, theirs *os.File) (*os.Process, error) {
	text, err := json.Marshal(r)
	if err != nil {
		return nil, err
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer null.Close()
	const short = 12 // digits of the id, docker's
	return os.StartProcess("/proc/self/exe", []string{"dhow", "supervise", r.ID[:short], name}, &os.ProcAttr{
		Dir:   "/",
		Env:   append(os.Environ(), RoleVar+"="+string(text)),
		Files: []*os.File{startFD - 3: null, startFD - 2: null, startFD - 1: os.Stderr, startFD: theirs},
		Sys:   &syscall.SysProcAttr{Setsid: true},
	})
}
