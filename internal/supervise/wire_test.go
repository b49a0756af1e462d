package supervise

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"testing"

	"dhow/internal/errdef"
)

// sent is a connection on which somebody has sent raw, and nothing follows.
func sent(t testing.TB, raw []byte) *conn {
	t.Helper()
	ours, theirs := net.Pipe()
	t.Cleanup(func() { ours.Close() })
	go func() {
		_, _ = theirs.Write(raw) // the other end may read no further
		theirs.Close()
	}()
	return &conn{Conn: ours}
}

func frame(kind byte, payload string) []byte {
	raw := append([]byte{kind}, binary.BigEndian.AppendUint32(nil, uint32(len(payload)))...)
	return append(raw, payload...)
}

func TestFrames(t *testing.T) {
	c := sent(t, append(frame(frameStdin, "hello"), frame(frameStdinEnd, "")...))
	for _, want := range []struct {
		kind    byte
		payload string
	}{{frameStdin, "hello"}, {frameStdinEnd, ""}} {
		kind, payload, err := c.receive()
		if err != nil || kind != want.kind || string(payload) != want.payload {
			t.Errorf("got %q %q, %v, want %q %q", kind, payload, err, want.kind, want.payload)
		}
	}
	if _, _, err := c.receive(); err != io.EOF {
		t.Errorf("got %v between two frames, want the end of file", err)
	}
}

func TestFramesRefused(t *testing.T) {
	tooLong := binary.BigEndian.AppendUint32([]byte{frameStdin}, maxFrame+1)
	if _, _, err := sent(t, tooLong).receive(); !errors.Is(err, errdef.ErrInvalid) {
		t.Errorf("got %v for a frame that is too long, want invalid", err)
	}
	for _, cut := range [][]byte{frame(frameStdin, "hello")[:3], frame(frameStdin, "hello")[:7]} {
		if _, _, err := sent(t, cut).receive(); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("got %v for %q, want an unexpected end", err, cut)
		}
	}
}

func TestStreamSplits(t *testing.T) {
	ours, theirs := net.Pipe()
	defer ours.Close()
	want := bytes.Repeat([]byte("x"), streamChunk*2+3)
	wrote := make(chan error, 1)
	go func() {
		n, err := stream{&conn{Conn: theirs}, frameStdout}.Write(want)
		if err == nil && n != len(want) {
			err = io.ErrShortWrite
		}
		theirs.Close()
		wrote <- err
	}()
	var got []byte
	c := &conn{Conn: ours}
	for {
		kind, payload, err := c.receive()
		if err == io.EOF {
			break
		}
		if err != nil || kind != frameStdout || len(payload) > streamChunk {
			t.Fatalf("got %q with %d bytes, %v", kind, len(payload), err)
		}
		got = append(got, payload...)
	}
	if err := <-wrote; err != nil || !bytes.Equal(got, want) {
		t.Errorf("got %d bytes, %v, want %d", len(got), err, len(want))
	}
}

// An error is the same on the other side: its kind, text, hint and status.
func TestErrorsCross(t *testing.T) {
	plain := errors.New("plain")
	for _, tt := range []struct {
		name   string
		err    error
		kind   error
		hint   string
		status int
	}{
		{name: "plain", err: plain},
		{name: "kind", err: errdef.New(errdef.ErrNotFound, "no such thing"), kind: errdef.ErrNotFound},
		{name: "full disk", err: errdef.New(errdef.ErrNoSpace, "write"), kind: errdef.ErrNoSpace},
		{name: "hint", err: errdef.WithHint(errdef.New(errdef.ErrConflict, "taken"), "use %s", "another"), kind: errdef.ErrConflict, hint: "use another"},
		{name: "status", err: &StatusError{Status: 127, Err: plain}, status: 127},
		{name: "status and hint", err: &StatusError{Status: 126, Err: errdef.WithHint(plain, "make it executable")}, hint: "make it executable", status: 126},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ours, theirs := net.Pipe()
			defer ours.Close()
			go func() {
				defer theirs.Close()
				_ = (&conn{Conn: theirs}).sendJSON(frameError, toWire(tt.err)) // the other side says what is missing
			}()
			_, payload, err := (&conn{Conn: ours}).receive()
			if err != nil {
				t.Fatal(err)
			}
			got := fromWire(payload)
			if got.Error() != tt.err.Error() || errdef.Hint(got) != tt.hint {
				t.Errorf("got %q, hint %q, want %q, hint %q", got, errdef.Hint(got), tt.err, tt.hint)
			}
			for _, k := range kinds() {
				if errors.Is(got, k) != (k == tt.kind) {
					t.Errorf("got the kind %v: %v", k, errors.Is(got, k))
				}
			}
			var status *StatusError
			if errors.As(got, &status) != (tt.status != 0) || status != nil && status.Status != tt.status {
				t.Errorf("got the status %+v, want %d", status, tt.status)
			}
		})
	}
}

func TestFromWireOfGarbage(t *testing.T) {
	if err := fromWire([]byte("{")); err == nil {
		t.Error("got no error for half a message")
	}
}
