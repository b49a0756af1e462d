package supervise

import (
	"encoding/json"
	"errors"
	"io"
	"net"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"dhow/internal/container"
	"dhow/internal/errdef"
	"dhow/internal/store"

	dockertypes "github.com/moby/moby/api/types/container"
)

// Whatever a client sends, the supervisor answers it or lets it go, and lives.
func FuzzAnswer(f *testing.F) {
	f.Add(frame(frameRequest, `{"Op":"stop","Args":{"Signal":"SIGTERM"}}`))
	f.Add(frame(frameRequest, `{"Op":"exec","Args":{"Args":["true"],"TTY":true,"Size":{"Rows":1,"Cols":2}}}`))
	f.Add(frame(frameRequest, `{"Op":"attach","Args":{"Stdout":true}}`))
	f.Add(frame(frameRequest, `{"Op":"wait","Args":{"Condition":"next-exit"}}`))
	f.Add(frame(frameRequest, `{"Op":"signal","Args":[]}`))
	f.Add(frame(frameRequest, `{"Op":"fly"}`))
	f.Add(frame(frameStdin, "no request"))
	f.Add([]byte{frameRequest, 0xff, 0xff, 0xff, 0xff})
	st, err := store.Open(f.Context(), filepath.Join(f.TempDir(), "root"))
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { st.Close() })
	f.Fuzz(func(t *testing.T, raw []byte) {
		s := ended(st)
		ours, theirs := net.Pipe()
		defer ours.Close()
		go func() {
			_, _ = theirs.Write(raw) // the supervisor may have let go
			theirs.Close()
		}()
		go func() { _, _ = io.Copy(io.Discard, theirs) }() // until it is closed
		s.answer(t.Context(), &conn{Conn: ours})
	})
}

// ended is a supervisor whose container has ended and has no row any more.
func ended(st *store.Store) *supervisor {
	s := &supervisor{
		store: st, id: "0123456789ab", rec: &container.Record{Config: &dockertypes.Config{}, Host: &dockertypes.HostConfig{}},
		state:   container.State{Status: dockertypes.StateExited, ExitCode: 3},
		changed: make(chan struct{}), yield: make(chan struct{}), yielded: make(chan struct{}), over: true,
	}
	close(s.yielded)
	return s
}

func TestRequestsToOneThatEnded(t *testing.T) {
	st, err := store.Open(t.Context(), filepath.Join(t.TempDir(), "root"))
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	for _, tt := range []struct {
		op, args, want string
		kind           error
	}{
		{op: opWait, args: `{}`, want: `{"Code":3}`},
		{op: opStop, args: `{}`, want: `null`},
		{op: opPids, kind: errdef.ErrConflict},
		{op: opStats, kind: errdef.ErrConflict},
		{op: opRoot, kind: errdef.ErrConflict},
		{op: opExec, args: `{"Args":["true"]}`, kind: errdef.ErrConflict},
		{op: opAttach, args: `{}`, kind: errdef.ErrConflict},
		{op: opPause, kind: errdef.ErrConflict},
		{op: opResize, args: `{"Rows":1,"Cols":1}`, kind: errdef.ErrConflict},
		{op: opSignal, args: `{}`, kind: errdef.ErrConflict},
		{op: opReload, kind: errdef.ErrNotFound},
		{op: opClear, kind: errdef.ErrUnavailable},
		{op: opWait, args: `{"Condition":"never"}`, kind: errdef.ErrInvalid},
		{op: opSignal, args: `[]`, kind: errdef.ErrInvalid},
		{op: "fly", kind: errdef.ErrUnsupported},
	} {
		t.Run(tt.op, func(t *testing.T) {
			for _, run := range []*run{nil, {lost: "seen by nobody"}} {
				s := ended(st)
				s.run = run
				if run != nil && (tt.op == opWait || tt.op == opStop) {
					continue // waits for the run to be recorded as over
				}
				got, err := s.answerTo(t, request{Op: tt.op, Args: json.RawMessage(tt.args)})
				if tt.kind != nil && !errors.Is(err, tt.kind) || tt.kind == nil && (err != nil || got != tt.want) {
					t.Errorf("got %q, %v, want %q, %v", got, err, tt.want, tt.kind)
				}
			}
		})
	}
}

// answerTo is the supervisor's last frame.
func (s *supervisor) answerTo(t *testing.T, r request) (string, error) {
	t.Helper()
	ours, theirs := net.Pipe()
	go func() {
		defer ours.Close()
		s.answer(t.Context(), &conn{Conn: ours})
	}()
	defer theirs.Close()
	c := &conn{Conn: theirs}
	if err := c.sendJSON(frameRequest, r); err != nil {
		return "", err
	}
	kind, payload, err := c.receive()
	switch {
	case err != nil:
		return "", err
	case kind == frameError:
		return "", fromWire(payload)
	case kind != frameResult:
		t.Errorf("got a frame %q, want a result", kind)
	}
	return string(payload), nil
}

func TestStopHow(t *testing.T) {
	seconds := func(n int) *int { return &n }
	span := func(d time.Duration) *time.Duration { return &d }
	for _, tt := range []struct {
		name    string
		config  dockertypes.Config
		asked   StopOptions
		sig     syscall.Signal
		timeout time.Duration
		fails   bool
	}{
		{name: "docker's", sig: syscall.SIGTERM, timeout: 10 * time.Second},
		{name: "the container's", config: dockertypes.Config{StopSignal: "SIGQUIT", StopTimeout: seconds(3)}, sig: syscall.SIGQUIT, timeout: 3 * time.Second},
		{name: "asked for", config: dockertypes.Config{StopSignal: "SIGQUIT", StopTimeout: seconds(3)}, asked: StopOptions{Signal: "INT", Timeout: span(0)}, sig: syscall.SIGINT},
		{name: "number", config: dockertypes.Config{StopSignal: "9"}, sig: syscall.SIGKILL, timeout: 10 * time.Second},
		{name: "for ever", asked: StopOptions{Timeout: span(-1)}, sig: syscall.SIGTERM, timeout: -1},
		{name: "unknown", asked: StopOptions{Signal: "SIGNONSENSE"}, fails: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			sig, timeout, err := stopHow(&container.Record{Config: &tt.config}, tt.asked)
			if (err != nil) != tt.fails || sig != tt.sig || timeout != tt.timeout {
				t.Errorf("got %v %v, %v, want %v %v", sig, timeout, err, tt.sig, tt.timeout)
			}
		})
	}
}
