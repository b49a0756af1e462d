package containers

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"dhow/internal/cli/console"
	"dhow/internal/errdef"
	"dhow/internal/supervise"

	detach "github.com/moby/term"
	"golang.org/x/term"
)

// print writes a line to standard output.
func (a *app) print(args ...any) { fmt.Fprintln(a.Out, args...) }

// warn writes a sentence for the user.
func (a *app) warn(s string) { fmt.Fprintln(a.Err, "dhow: "+s) }

// follower connects a program in a container with the caller's terminal and
// signals, until the program ends or the user lets go of it.
type follower struct {
	app        *app
	session    *supervise.Session
	stdin      bool
	tty        bool
	proxy      bool // signals go to the program
	further    bool // it is not the container's first program
	detachKeys []byte

	detached chan struct{} // closed when the user lets go, or nobody reads the output
	once     sync.Once     // guards the closing
	unread   atomic.Bool   // nobody reads the output
}

// reader is where output goes. When it goes away the program is let go of, as
// with docker: it runs on.
type reader struct {
	io.Writer
	f *follower
}

func (r reader) Write(p []byte) (int, error) {
	n, err := r.Writer.Write(p)
	if err != nil {
		r.f.unread.Store(true)
		r.f.letGo()
	}
	return n, err
}

// defaultDetachKeys are docker's.
const defaultDetachKeys = "ctrl-p,ctrl-q"

// parseDetachKeys reads --detach-keys; "" is what docker's config.json says, else
// docker's own.
func (a *app) parseDetachKeys(keys string) ([]byte, error) {
	if keys == "" {
		keys = a.dockerConfig().DetachKeys
	}
	if keys == "" {
		keys = defaultDetachKeys
	}
	b, err := detach.ToBytes(keys)
	if err != nil {
		return nil, errdef.WithHint(errdef.New(errdef.ErrInvalid, "--detach-keys %q: %w", keys, err), "write keys such as ctrl-p,ctrl-q or a,b")
	}
	return b, nil
}

// size is the caller's terminal's; nil when there is none.
func (a *app) size() *supervise.Size {
	f, ok := a.Out.(*os.File)
	if !ok || !console.Terminal(a.Out) {
		return nil
	}
	w, h, err := term.GetSize(int(f.Fd()))
	if err != nil {
		return nil
	}
	return &supervise.Size{Rows: uint16(h), Cols: uint16(w)}
}

// follow serves the program until its end, and returns how it ended. detached
// says that the user let go of it.
func (f *follower) follow(ctx context.Context) (e supervise.Exit, detached bool, err error) {
	f.detached = make(chan struct{})
	stop := f.forwardSignals()
	defer stop()
	if f.tty && f.stdin {
		if in, ok := f.app.In.(*os.File); ok && console.Terminal(in) {
			state, err := term.MakeRaw(int(in.Fd()))
			if err != nil {
				return e, false, fmt.Errorf("take over the terminal: %w", err)
			}
			defer func() { _ = term.Restore(int(in.Fd()), state) }() // it went away
		}
	}
	if f.stdin {
		go f.copyInput() // ends with the program; reading a terminal cannot be interrupted
	}
	errs := f.app.Err
	if f.tty {
		errs = f.app.Out
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		e, err = f.session.Follow(ctx, reader{f.app.Out, f}, reader{errs, f})
	}()
	select {
	case <-done:
		select {
		case <-f.detached:
			return e, true, nil
		default:
		}
		return e, false, err
	case <-f.detached:
		f.session.Close()
		<-done
		return e, true, nil
	}
}

// copyInput passes the caller's input on, up to the keys that let go.
func (f *follower) copyInput() {
	to := f.session.Stdin()
	var from io.Reader = f.app.In
	if f.tty {
		from = detach.NewEscapeProxy(f.app.In, f.detachKeys)
	}
	_, err := io.Copy(to, from)
	if errors.Is(err, detach.EscapeError{}) {
		f.letGo()
		return
	}
	_ = to.Close() // the program ended before its input
}

// forwardSignals passes signals on, as docker's --sig-proxy does, until stop. A
// program that is the first of its namespace ignores what it has no handler for:
// the third request to end is one that it cannot ignore, so that Ctrl-C leads
// out.
//
// The runtime needs 0.05 ms to begin or to end listening to a signal, of which
// there are 64: all but the common ones are listened to once the program has
// run for a while, and none is let go of, as the command ends then.
func (f *follower) forwardSignals() (stop func()) {
	const while = 50 * time.Millisecond
	signals, done := make(chan os.Signal, 32), make(chan struct{})
	// SIGPIPE would end the command at the first write that nobody reads.
	signal.Notify(signals, syscall.SIGPIPE, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGWINCH)
	go func() {
		asked := 0
		others := time.After(while)
		for {
			select {
			case <-others:
				signal.Notify(signals)
			case s := <-signals:
				f.forward(s, &asked)
			case <-done:
				return
			}
		}
	}()
	return func() { close(done) }
}

// forward passes one signal on; asked counts those that ask for the end.
func (f *follower) forward(s os.Signal, asked *int) {
	const patience = 3
	if s == syscall.SIGINT || s == syscall.SIGTERM {
		if !f.proxy {
			f.letGo()
			return
		}
		if *asked++; *asked == patience {
			f.app.warn(fmt.Sprintf("got %d SIGTERM/SIGINTs, killing the container", *asked))
			s = syscall.SIGKILL
		}
	}
	f.pass(s)
}

// letGo leaves the program running.
func (f *follower) letGo() { f.once.Do(func() { close(f.detached) }) }

func (f *follower) pass(s os.Signal) {
	switch s {
	case syscall.SIGWINCH:
		if size := f.app.size(); size != nil && f.tty {
			_ = f.session.Resize(*size) // the program has ended
		}
	case syscall.SIGCHLD, syscall.SIGURG, syscall.SIGPIPE, syscall.SIGTTIN, syscall.SIGTTOU: // this program's own
	default:
		if n, ok := s.(syscall.Signal); ok && f.proxy {
			_ = f.session.Signal(strconv.Itoa(int(n))) // the program has ended
		}
	}
}

// result is what a command returns for how a program ended.
func (a *app) result(e supervise.Exit) error {
	if e.OOMKilled {
		a.warn("the container was killed: it used more than its --memory")
	}
	if e.Error != "" {
		a.warn(e.Error)
	}
	if e.Code != 0 {
		return console.ExitError{Code: e.Code}
	}
	return nil
}
