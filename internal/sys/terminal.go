package sys

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// SetTerminalSize sets a terminal's size in character cells.
func SetTerminalSize(terminal *os.File, rows, cols uint16) error {
	conn, err := terminal.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = conn.Control(func(fd uintptr) {
		failed = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: cols})
	})
	return errors.Join(err, failed)
}

// TerminalFile is a terminal's master, on which Close ends a pending Read. The
// descriptor is closed if that fails.
func TerminalFile(fd int) (*os.File, error) {
	unix.CloseOnExec(fd)
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), "console"), nil
}
