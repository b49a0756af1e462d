package ociruntime

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"dhow/internal/sys"

	"golang.org/x/sys/unix"
)

// console is the socket on which a runtime hands over a terminal's master.
type console struct {
	dir      *os.File
	listener *net.UnixListener
	path     string // short enough for a socket's address, wherever the directory is
}

func listenConsole(path string) (*console, error) {
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return nil, fmt.Errorf("make the terminal's socket: %w", err)
	}
	c := &console{dir: dir, path: fmt.Sprintf("/proc/%d/fd/%d/%s", os.Getpid(), dir.Fd(), filepath.Base(path))}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: c.path, Net: "unix"})
	if err != nil {
		dir.Close()
		return nil, fmt.Errorf("make the terminal's socket: %w", err)
	}
	c.listener = l
	return c, nil
}

func (c *console) close() {
	c.listener.Close()
	c.dir.Close()
}

// receive takes the terminal that the runtime has sent before it ended. The
// caller closes it.
func (c *console) receive() (*os.File, error) {
	f, err := c.accept()
	if err != nil {
		return nil, fmt.Errorf("receive the terminal: %w", err)
	}
	return f, nil
}

func (c *console) accept() (*os.File, error) {
	if err := c.listener.SetDeadline(time.Now().Add(runtimePatience)); err != nil {
		return nil, err
	}
	conn, err := c.listener.AcceptUnix()
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(runtimePatience)); err != nil {
		return nil, err
	}
	name, oob := make([]byte, 4096), make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := conn.ReadMsgUnix(name, oob)
	if err != nil {
		return nil, err
	}
	fd, err := sys.ReceivedFD(oob[:n])
	if err != nil {
		return nil, err
	}
	return sys.TerminalFile(fd)
}
