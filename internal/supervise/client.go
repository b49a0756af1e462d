package supervise

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"syscall"

	"dhow/internal/errdef"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
)

// Client reaches the supervisor of one container. Its methods return
// ErrUnavailable when there is none: the container does not run, or its
// supervisor was killed.
type Client struct{ dir string }

// For is the client for the container whose directory is dir.
func For(dir string) Client { return Client{dir} }

// dial connects to the control socket. The path of a socket may have 107 bytes
// and a state directory more, so that it goes through a descriptor.
func (c Client) dial() (*conn, error) {
	dir, err := os.Open(c.dir)
	if err != nil {
		return nil, noSupervisor(err)
	}
	defer dir.Close()
	nc, err := net.Dial("unix", controlPath(dir))
	if err != nil {
		return nil, noSupervisor(err)
	}
	return &conn{Conn: nc}, nil
}

func controlPath(dir *os.File) string {
	return "/proc/self/fd/" + strconv.Itoa(int(dir.Fd())) + "/" + controlFile
}

func noSupervisor(err error) error {
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) {
		return errdef.New(errdef.ErrUnavailable, "no supervisor: %w", err)
	}
	return fmt.Errorf("reach the supervisor: %w", err)
}

// call makes a request that has one answer. The context ends the waiting, not
// what was asked for.
func (c Client) call(ctx context.Context, op string, args, result any) error {
	nc, err := c.dial()
	if err != nil {
		return err
	}
	defer nc.Close()
	defer context.AfterFunc(ctx, func() { nc.Close() })()
	if err := nc.request(op, args); err != nil {
		return gone(ctx, err)
	}
	for {
		kind, payload, err := nc.receive()
		switch {
		case err != nil:
			return gone(ctx, err)
		case kind == frameError:
			return fromWire(payload)
		case kind == frameResult && result == nil:
			return nil
		case kind == frameResult:
			return json.Unmarshal(payload, result)
		}
	}
}

// request sends the first frame.
func (c *conn) request(op string, args any) error {
	r := request{Op: op}
	if args != nil {
		var err error
		if r.Args, err = json.Marshal(args); err != nil {
			return err
		}
	}
	return c.sendJSON(frameRequest, r)
}

// gone explains a connection that ended before its answer.
func gone(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return errdef.New(errdef.ErrUnavailable, "the supervisor is gone: %w", err)
}

// Signal sends a signal to the container's first process; "" is SIGKILL.
func (c Client) Signal(ctx context.Context, signal string) error {
	return c.call(ctx, opSignal, signalArgs{signal}, nil)
}

// Stop ends the container and returns when it has ended.
func (c Client) Stop(ctx context.Context, o StopOptions) error { return c.call(ctx, opStop, o, nil) }

// Restart ends the container and starts it again; it returns when it runs.
func (c Client) Restart(ctx context.Context, o StopOptions) error {
	return c.call(ctx, opRestart, o, nil)
}

// Wait returns how the container ended, once the condition holds.
func (c Client) Wait(ctx context.Context, condition container.WaitCondition) (Exit, error) {
	var e Exit
	err := c.call(ctx, opWait, waitArgs{condition}, &e)
	return e, err
}

// Pause stops all processes of the container where they are.
func (c Client) Pause(ctx context.Context) error { return c.call(ctx, opPause, nil, nil) }

// Resume lets a paused container go on.
func (c Client) Resume(ctx context.Context) error { return c.call(ctx, opResume, nil, nil) }

// Resize sets the size of the container's terminal.
func (c Client) Resize(ctx context.Context, s Size) error { return c.call(ctx, opResize, s, nil) }

// Remove ends the container and removes all that is left of it.
func (c Client) Remove(ctx context.Context, o RemoveOptions) error {
	return c.call(ctx, opRemove, o, nil)
}

// Reload tells that ChangeRecord has changed the record.
func (c Client) Reload(ctx context.Context) error { return c.call(ctx, opReload, nil, nil) }

// Update is Reload, and applies the record's limits to what runs.
func (c Client) Update(ctx context.Context) error { return c.call(ctx, opUpdate, nil, nil) }

// Connect connects the container to one more network, also for its next runs.
func (c Client) Connect(ctx context.Context, name string, settings *network.EndpointSettings) error {
	return c.call(ctx, opConnect, connectArgs{name, settings}, nil)
}

// Disconnect disconnects the container from a network, also for its next runs.
func (c Client) Disconnect(ctx context.Context, name string) error {
	return c.call(ctx, opLeave, leaveArgs{name}, nil)
}

// Session is a program in a container that the client follows: the first
// process or one of Exec.
type Session struct {
	conn *conn
	// Warnings are sentences for the user. Set once Started has returned.
	Warnings []string
	id       string
}

// startedInfo is the payload of a started frame.
type startedInfo struct {
	ID       string // of the container, or of the exec
	Warnings []string
}

// Attach connects to the container's first process.
func (c Client) Attach(o AttachOptions) (*Session, error) { return c.session(opAttach, o) }

// Exec starts a further program in the container.
func (c Client) Exec(o ExecOptions) (*Session, error) { return c.session(opExec, o) }

func (c Client) session(op string, args any) (*Session, error) {
	nc, err := c.dial()
	if err != nil {
		return nil, err
	}
	if err := nc.request(op, args); err != nil {
		nc.Close()
		return nil, gone(context.Background(), err)
	}
	return &Session{conn: nc}, nil
}

// Started waits until the program runs. A failure to start it is returned.
func (s *Session) Started(ctx context.Context) error {
	defer context.AfterFunc(ctx, func() { s.conn.Close() })()
	kind, payload, err := s.conn.receive()
	switch {
	case err != nil:
		return gone(ctx, err)
	case kind == frameError:
		return fromWire(payload)
	case kind != frameStarted:
		return errdef.New(errdef.ErrInvalid, "control socket: got a frame %q, want the start", kind)
	}
	var info startedInfo
	if err := json.Unmarshal(payload, &info); err != nil {
		return fmt.Errorf("control socket: %w", err)
	}
	s.id, s.Warnings = info.ID, info.Warnings
	return nil
}

// ID is the container's id, or the exec's, once Started has returned.
func (s *Session) ID() string { return s.id }

// Follow copies the program's output until its end and returns how it ended.
// Output that cannot be written is thrown away.
func (s *Session) Follow(ctx context.Context, stdout, stderr io.Writer) (Exit, error) {
	defer context.AfterFunc(ctx, func() { s.conn.Close() })()
	for {
		kind, payload, err := s.conn.receive()
		if err != nil {
			return Exit{}, gone(ctx, err)
		}
		switch kind {
		case frameStdout:
			_, _ = stdout.Write(payload) // the program goes on without a reader
		case frameStderr:
			_, _ = stderr.Write(payload)
		case frameError:
			return Exit{}, fromWire(payload)
		case frameResult:
			var e Exit
			if err := json.Unmarshal(payload, &e); err != nil {
				return e, fmt.Errorf("control socket: %w", err)
			}
			return e, nil
		}
	}
}

// Stdin is the program's input; closing it is the end of it.
func (s *Session) Stdin() io.WriteCloser { return stdinWriter{stream{s.conn, frameStdin}} }

type stdinWriter struct{ stream }

func (w stdinWriter) Close() error { return w.conn.send(frameStdinEnd, nil) }

// Resize tells the size of the client's terminal.
func (s *Session) Resize(size Size) error { return s.conn.sendJSON(frameResize, size) }

// Signal sends the program a signal, by name or number.
func (s *Session) Signal(signal string) error {
	return s.conn.sendJSON(frameSignal, signalArgs{signal})
}

// Close lets go of the program, which goes on.
func (s *Session) Close() error { return s.conn.Close() }
