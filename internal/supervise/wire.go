package supervise

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"

	"dhow/internal/errdef"
)

// The protocol of the control socket. A connection is one request: a frame
// with it, then frames both ways until the server's last one, a result or an
// error. A frame is its kind, the length of its payload in four bytes, big
// endian, and the payload.
//
//	client                          server
//	  |-- 'Q' request (JSON) ------->|
//	  |<------ 'B' started (JSON) ---|  the process runs: attach, exec, start
//	  |-- 'I' input ---------------->|
//	  |-- 'C' end of input --------->|
//	  |-- 'W' terminal size (JSON) ->|
//	  |-- 'S' signal (JSON) -------->|
//	  |<---------- 'O', 'E' output --|
//	  |<---------- 'R' result (JSON) |  or 'X' error (JSON)
const (
	frameRequest  = 'Q'
	frameStarted  = 'B'
	frameStdin    = 'I'
	frameStdinEnd = 'C'
	frameResize   = 'W'
	frameSignal   = 'S'
	frameStdout   = 'O'
	frameStderr   = 'E'
	frameResult   = 'R'
	frameError    = 'X'
)

const (
	frameHeader = 5
	maxFrame    = 4 << 20 // bytes of payload; a longer one is not this protocol
)

// conn sends and receives frames. Sending is safe for concurrent use.
type conn struct {
	net.Conn
	mu  sync.Mutex // guards writing
	buf []byte     // of the frame read last
}

// send writes one frame, and one system call where the kernel takes it.
func (c *conn) send(kind byte, payload []byte) error {
	var head [frameHeader]byte
	head[0] = kind
	binary.BigEndian.PutUint32(head[1:], uint32(len(payload)))
	c.mu.Lock()
	defer c.mu.Unlock()
	bufs := net.Buffers{head[:], payload}
	_, err := bufs.WriteTo(c.Conn)
	return err
}

// sendJSON writes a frame with v.
func (c *conn) sendJSON(kind byte, v any) error {
	payload, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return c.send(kind, payload)
}

// receive reads the next frame. The payload is good until the next call. The
// error is io.EOF between two frames.
func (c *conn) receive() (kind byte, payload []byte, err error) {
	var head [frameHeader]byte
	if _, err := io.ReadFull(c.Conn, head[:]); err != nil {
		return 0, nil, err
	}
	n := binary.BigEndian.Uint32(head[1:])
	if n > maxFrame {
		return 0, nil, errdef.New(errdef.ErrInvalid, "control socket: got a frame of %d bytes, want at most %d", n, maxFrame)
	}
	if uint32(cap(c.buf)) < n {
		c.buf = make([]byte, n)
	}
	payload = c.buf[:n]
	if _, err := io.ReadFull(c.Conn, payload); err != nil {
		return 0, nil, err
	}
	return head[0], payload, nil
}

// stream is a frame kind as an io.Writer.
type stream struct {
	conn *conn
	kind byte
}

// streamChunk keeps frames small enough to be taken in at once.
const streamChunk = 256 << 10

func (s stream) Write(p []byte) (int, error) {
	for done := 0; done < len(p); {
		n := min(len(p)-done, streamChunk)
		if err := s.conn.send(s.kind, p[done:done+n]); err != nil {
			return done, err
		}
		done += n
	}
	return len(p), nil
}

// wireError is an error on its way through the socket.
type wireError struct {
	Kind   string `json:",omitempty"` // of errdef
	Text   string
	Hint   string `json:",omitempty"`
	Status int    `json:",omitempty"` // what docker's command line would exit with; 0: as usual
}

// kinds are errdef's, by their texts.
func kinds() []error {
	return []error{
		errdef.ErrNotFound, errdef.ErrConflict, errdef.ErrInvalid, errdef.ErrDenied,
		errdef.ErrUnavailable, errdef.ErrUnsupported, errdef.ErrIntegrity, errdef.ErrNoSpace,
	}
}

func toWire(err error) wireError {
	w := wireError{Text: err.Error(), Hint: errdef.Hint(err)}
	for _, k := range kinds() {
		if errors.Is(err, k) {
			w.Kind = k.Error()
			break
		}
	}
	var status interface{ ExitStatus() int }
	if errors.As(err, &status) {
		w.Status = status.ExitStatus()
	}
	return w
}

// fromWire is the error again, for errors.Is and for the user.
func fromWire(payload []byte) error {
	var w wireError
	if err := json.Unmarshal(payload, &w); err != nil {
		return fmt.Errorf("control socket: read an error: %w", err)
	}
	err := errors.New(w.Text)
	for _, k := range kinds() {
		if w.Kind == k.Error() {
			err = errdef.As(k, err)
		}
	}
	if w.Hint != "" {
		err = errdef.WithHint(err, "%s", w.Hint)
	}
	if w.Status != 0 {
		err = &StatusError{Status: w.Status, Err: err}
	}
	return err
}

// StatusError is a failure for which docker's command line has an exit status
// of its own: 125 for dhow's, 126 and 127 for a program that cannot be run or is
// not there.
type StatusError struct {
	Status int
	Err    error
}

func (e *StatusError) Error() string { return e.Err.Error() }
func (e *StatusError) Unwrap() error { return e.Err }

// ExitStatus is what the command line exits with.
func (e *StatusError) ExitStatus() int { return e.Status }
