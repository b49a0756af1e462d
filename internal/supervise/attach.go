package supervise

import (
	"context"
	"encoding/json"
	"syscall"

	"github.com/moby/sys/signal"
)

// first is the one who started the supervisor: it is told whether the container
// runs, and, if it wants to, sees it from its first byte.
type first struct {
	s      *supervisor
	conn   *conn
	attach *AttachOptions
	client *client
	told   bool
}

// meet prepares for the container's start.
func (s *supervisor) meet(c *conn, args startArgs) *first {
	f := &first{s: s, conn: c, attach: args.Attach}
	if a := args.Attach; a != nil {
		f.client = &client{conn: c, stdout: a.Stdout, stderr: a.Stderr, primary: make(chan struct{})}
		s.out.add(f.client)
	}
	return f
}

// started tells the outcome of the first start, once.
func (f *first) started(r *run, err error) {
	if f.told {
		return
	}
	f.told = true
	if f.client != nil {
		defer close(f.client.primary)
	}
	if err != nil {
		_ = f.conn.sendJSON(frameError, toWire(startError(err))) // the state has it, too
		f.conn.Close()
		return
	}
	_ = f.conn.sendJSON(frameStarted, startedInfo{ID: f.s.id, Warnings: r.warnings}) // it went away
	f.s.answering(func() {
		defer f.conn.Close()
		if f.attach != nil {
			f.s.follow(f.conn, f.client, r, f.attach.Stdin)
		}
	})
}

// attach connects a client with the process that runs.
func (s *supervisor) attach(_ context.Context, c *conn, o AttachOptions) (any, error) {
	r, err := s.current()
	if err != nil {
		return nil, err
	}
	if o.Size != nil && r.console != nil {
		if err := r.proc.Resize(o.Size.Rows, o.Size.Cols); err != nil {
			return nil, err
		}
	}
	cl := &client{conn: c, stdout: o.Stdout, stderr: o.Stderr}
	if err := c.sendJSON(frameStarted, startedInfo{ID: s.id}); err != nil {
		return nil, err
	}
	s.out.add(cl)
	return s.followTo(c, cl, r, o.Stdin), nil
}

// follow serves an attached client until the run has ended, and tells how.
func (s *supervisor) follow(c *conn, cl *client, r *run, stdin bool) {
	_ = c.sendJSON(frameResult, s.followTo(c, cl, r, stdin)) // it went away
}

func (s *supervisor) followTo(c *conn, cl *client, r *run, stdin bool) Exit {
	defer s.out.remove(cl)
	left := make(chan struct{})
	go func() {
		defer close(left)
		var in *input
		if stdin {
			in = r.stdin
		}
		c.takeInput(in, r.proc, func(name string) { s.proxySignal(r, name) })
	}()
	select {
	case <-left:
		return Exit{}
	case <-r.exited:
	}
	for _, p := range r.pipes {
		select {
		case <-p.done:
		case <-left:
			return Exit{}
		}
	}
	// The record says it before the client hears it, and networks can be removed.
	_ = s.until(context.Background(), func() bool { return s.run != r })
	<-r.released
	if s.record().Host.AutoRemove {
		_ = s.until(context.Background(), func() bool { return s.removed }) // else the end says why not
	}
	return Exit{Code: r.status.ExitCode, OOMKilled: r.status.OOMKilled, Error: r.lost}
}

// takeInput passes on what a client sends to a program, until the client goes
// away: input, which stops at nil, sizes of its terminal, and names of signals.
func (c *conn) takeInput(stdin *input, proc program, signaled func(name string)) {
	for {
		kind, payload, err := c.receive()
		if err != nil {
			stdin.end()
			return
		}
		switch kind {
		case frameStdin:
			stdin.write(payload)
		case frameStdinEnd:
			stdin.end()
		case frameResize:
			var size Size
			if json.Unmarshal(payload, &size) == nil {
				_ = proc.Resize(size.Rows, size.Cols) // cosmetic
			}
		case frameSignal:
			var a signalArgs
			if json.Unmarshal(payload, &a) == nil {
				signaled(a.Signal)
			}
		}
	}
}

// proxySignal passes a signal of the client's on. Like docker's --sig-proxy it
// is a kill: one that ends the container keeps the restart policy out.
func (s *supervisor) proxySignal(r *run, name string) {
	sig, err := signal.ParseSignal(name)
	if err != nil {
		complain(err)
		return
	}
	if sig == syscall.SIGKILL || sig == syscall.SIGTERM || sig == syscall.SIGINT {
		s.change(func() { s.asked.stop, s.asked.manual = true, true })
	}
	_ = r.signal(sig) // it has ended
}
