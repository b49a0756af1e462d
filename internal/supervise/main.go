package supervise

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"sync"
	"syscall"
	"time"

	"dhow/internal/container"
	"dhow/internal/errdef"
	"dhow/internal/logs"
	"dhow/internal/network"
	"dhow/internal/sandbox"
	"dhow/internal/sandbox/userns"
	"dhow/internal/snapshot"
	"dhow/internal/store"
	"dhow/internal/sys"

	"golang.org/x/sys/unix"
)

// supervisor is the process beside one container.
type supervisor struct {
	store *store.Store
	snaps *snapshot.Snapshots
	id    string
	dir   string
	lock  *sys.Lock
	out   output
	nets  *network.Networks
	// yield asks for the log while it is only shipped, and yielded says that it is
	// closed.
	yield   chan struct{}
	yielded chan struct{}

	root *os.File         // the mounted tree, once there is one; set before the first run is
	ids  *sys.IDNamespace // that it and other mounts show, set with it; nil is their own

	mu      sync.Mutex
	rec     *container.Record // guarded by mu; replaced, never changed
	state   container.State   // guarded by mu
	run     *run              // guarded by mu: the process; nil between two
	asked   asked             // guarded by mu
	inRow   int               // guarded by mu: restarts for its health since it was healthy last
	changed chan struct{}     // guarded by mu; closed when anything above changes, and replaced
	removed bool              // guarded by mu: nothing is left of the container
	over    bool              // guarded by mu: nothing will change any more
	log     *logs.Store       // written by live alone, under mu; nil until there is one
	answers int               // guarded by mu: requests whose answer is not out yet
}

// asked is what somebody wants of the container that the restart policy must
// not undo.
type asked struct {
	stop      bool           // end, and stay ended
	manual    bool           // stop was the user's wish, to be remembered
	restart   bool           // end, and start again at once
	remove    *RemoveOptions // remove all when it has ended
	revive    bool           // end, and start again after the policy's delay, because of its health
	unhealthy string         // why health ends this run; "" does not
}

// lockPatience is how long a new supervisor waits for one that is ending.
const lockPatience = 20 * time.Second

// Main is the supervisor's whole life, in a process that Launch started: there is
// RoleVar in its environment. It returns the exit status.
func Main() int {
	debug.SetGCPercent(whileStarting)
	debug.SetMemoryLimit(memoryLimit)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	if err := supervise(ctx); err != nil {
		complain(err)
		return 1
	}
	return 0
}

// supervise opens the store while the starter still makes the record.
func supervise(ctx context.Context) error {
	f := os.NewFile(startFD, "starter")
	nc, err := net.FileConn(f)
	f.Close()
	if err != nil {
		return err
	}
	starter := &conn{Conn: nc}
	var r role
	if err := json.Unmarshal([]byte(os.Getenv(RoleVar)), &r); err != nil {
		return fmt.Errorf("read %s: %w", RoleVar, err)
	}
	if err := os.Unsetenv(RoleVar); err != nil {
		return err
	}
	share, err := userns.Share(r.Root)
	if err != nil {
		return errors.Join(err, starter.sendJSON(frameError, toWire(err)))
	}
	defer share.Close() // the namespace outlives us if the container does
	st, err := store.Open(ctx, r.Root)
	if err != nil {
		_ = starter.sendJSON(frameError, toWire(err)) // it found out itself, and is gone
		return nil
	}
	defer st.Close()
	args, err := accept(starter)
	if err != nil {
		return nil // the starter is gone, or did without: nothing to do
	}
	if err := keepErrors(Dir(st, r.ID)); err != nil {
		return starter.sendJSON(frameError, toWire(err))
	}
	for _, proc := range st.ReclaimedProcs() {
		if err := sandbox.ReclaimCgroups(proc); err != nil {
			fmt.Fprintln(os.Stderr, "dhow supervise: clear away cgroups of a killed process:", err)
		}
	}
	s, err := open(ctx, st, r.ID)
	if err != nil {
		return errors.Join(err, starter.sendJSON(frameError, toWire(err)))
	}
	return s.live(ctx, starter, args)
}

// The garbage collector's targets (GOGC). A start allocates less than the 16 MB
// at which the first collection then comes, and one would take it a millisecond.
// Afterwards a little processor time is traded for memory: there is one such
// process a container, and it does little. The limit is for one that does much,
// such as one that has ten destinations catch up as it starts (67 MB without it), and
// well above what a few log destinations take: a process that is near it does nothing
// but collect.
const (
	whileStarting, whileResting = 400, 40
	memoryLimit                 = 24 << 20 // bytes; soft
)

// rest gives memory back: what a start needs is most of what a supervisor ever has.
// The database is let go of when there was nothing to do for so long that health
// probes at short intervals do not open it anew each time.
func (s *supervisor) rest(ctx context.Context) {
	const settling, quiet = time.Second, 3 * time.Second
	var current, settled, rested *run
	var since time.Time // current
	for {
		s.mu.Lock()
		changed := s.changed
		if s.run != current {
			current, since = s.run, time.Now()
		}
		s.mu.Unlock()
		wait := quiet
		if current != settled {
			wait = time.Until(since.Add(settling))
		}
		select {
		case <-changed:
			continue
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
		if current != settled {
			settled = current
			giveBack()
			continue
		}
		complain(s.store.Idle())
		if current != rested {
			rested = current
			complain(sys.ForgetProgram())
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}

// giveBack returns to the system what only a start has used.
func giveBack() {
	debug.SetGCPercent(whileResting)
	debug.FreeOSMemory()
}

// accept reads what the starter wants.
func accept(starter *conn) (startArgs, error) {
	var args startArgs
	kind, payload, err := starter.receive()
	if err != nil {
		return args, fmt.Errorf("the starter is gone: %w", err)
	}
	var r request
	if err := json.Unmarshal(payload, &r); err != nil || kind != frameRequest || r.Op != opStart {
		return args, errdef.New(errdef.ErrInvalid, "got %q %q, want a start", kind, r.Op)
	}
	return args, json.Unmarshal(r.Args, &args)
}

// keepErrors has what the process says on standard error from now on, a panic
// above all, written to a file in the container's directory.
func keepErrors(dir string) error {
	f, err := os.OpenFile(filepath.Join(dir, panicFile), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.Dup3(int(f.Fd()), int(os.Stderr.Fd()), 0)
}

// open takes the container's lock and reads its row.
func open(ctx context.Context, st *store.Store, id string) (*supervisor, error) {
	s := &supervisor{store: st, snaps: snapshot.New(st), nets: Networks(st), id: id, dir: Dir(st, id), changed: make(chan struct{}), yield: make(chan struct{}), yielded: make(chan struct{})}
	patience, cancel := context.WithTimeout(ctx, lockPatience)
	defer cancel()
	var err error
	if s.lock, err = sys.LockFile(patience, filepath.Join(s.dir, lockFile), true); err != nil {
		if patience.Err() != nil {
			err = errdef.New(errdef.ErrConflict, "container %.12s has a supervisor already", id)
		}
		return nil, err
	}
	row, err := st.Container(ctx, id)
	if err == nil {
		s.rec, s.state, err = Parse(row)
	}
	if err != nil {
		return nil, errors.Join(err, s.lock.Unlock())
	}
	return s, nil
}

// handleSignals ends the container with its supervisor when the machine goes
// down, without that being remembered as a stop by hand: what restarts always
// is there again after the next boot.
func (s *supervisor) handleSignals(ctx context.Context) {
	signal.Ignore(syscall.SIGHUP, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGPIPE)
	term := make(chan os.Signal, 1)
	signal.Notify(term, syscall.SIGTERM)
	go func() {
		select {
		case <-term:
			s.change(func() { s.asked.stop = true })
			_ = s.end(ctx, StopOptions{}) // it has ended, or will be killed with us
		case <-ctx.Done():
		}
	}()
}

// listen opens the control socket, once the container's last supervisor, if it
// still lives, has let go of everything.
func (s *supervisor) listen(ctx context.Context) (net.Listener, error) {
	if err := s.takeLog(ctx); err != nil {
		return nil, err
	}
	dir, err := os.Open(s.dir)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	// Whoever holds the lock owns the socket: one that is there is a dead one's.
	if err := os.Remove(filepath.Join(s.dir, controlFile)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	l, err := net.Listen("unix", controlPath(dir))
	if err != nil {
		return nil, fmt.Errorf("open the control socket: %w", err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false) // the descriptor in its path is closed by then
	return l, nil
}

// change runs f under the lock and tells all who wait for a change.
func (s *supervisor) change(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
	close(s.changed)
	s.changed = make(chan struct{})
}

// until waits until cond, which is called under the lock, holds. ErrUnavailable
// when that can be no more, as the supervisor ends.
func (s *supervisor) until(ctx context.Context, cond func() bool) error {
	over := false
	err := s.await(ctx, func() bool {
		ok := cond()
		over = !ok && s.over
		return ok || over
	})
	if over {
		return errdef.New(errdef.ErrUnavailable, "the supervisor of container %.12s ends", s.id)
	}
	return err
}

// await waits for changes until cond, which is called under the lock, holds.
func (s *supervisor) await(ctx context.Context, cond func() bool) error {
	for {
		s.mu.Lock()
		ok, changed := cond(), s.changed
		s.mu.Unlock()
		if ok {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// record is the container as it was asked for; not to be changed.
func (s *supervisor) record() *container.Record {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.rec
}

// current is the run whose process is known, or ErrConflict: there may be none
// between two runs, and for a moment one whose end was lost.
func (s *supervisor) current() (*run, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.run == nil || s.run.proc == nil {
		return nil, errdef.New(errdef.ErrConflict, "container %.12s is not running", s.id)
	}
	return s.run, nil
}

// complain says something for the supervisor's log.
func complain(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "dhow supervise:", err)
	}
}
