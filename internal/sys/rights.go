package sys

import (
	"errors"

	"golang.org/x/sys/unix"
)

var errNoDescriptor = errors.New("no descriptor came")

// ReceivedFD is the one descriptor that came with a message on a unix socket: the
// control data of recvmsg(2).
func ReceivedFD(oob []byte) (int, error) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil || len(messages) != 1 {
		return -1, errNoDescriptor
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		return -1, errNoDescriptor
	}
	return fds[0], nil
}
