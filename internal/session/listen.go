package session

import (
	"context"
	"io"
	"net"
	"sync"
)

// maxAgentConns bounds the connections that one socket takes to an agent.
const maxAgentConns = 128

// AgentSocket is a socket behind which an agent of the session answers, each
// connection on one of its own.
type AgentSocket struct {
	cancel context.CancelFunc
	sess   Session
	id     string
	ln     *net.UnixListener
	slots  chan struct{}
	wg     sync.WaitGroup
}

// ListenSSH serves the session's agent of that id ("" is DefaultSSH) at a new socket at the
// path, which the caller removes. The caller closes it. ErrNotFound when the
// build was given no such agent.
func ListenSSH(ctx context.Context, s Session, id, path string) (*AgentSocket, error) {
	if err := s.HasSSH(ctx, id); err != nil {
		return nil, err
	}
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, err
	}
	ln.SetUnlinkOnClose(false)
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	a := &AgentSocket{cancel: cancel, sess: s, id: id, ln: ln, slots: make(chan struct{}, maxAgentConns)}
	a.wg.Add(1)
	go a.accept(ctx)
	return a, nil
}

func (a *AgentSocket) accept(ctx context.Context) {
	defer a.wg.Done()
	for {
		conn, err := a.ln.Accept()
		if err != nil {
			return // closed
		}
		select {
		case a.slots <- struct{}{}:
		case <-ctx.Done():
			conn.Close()
			return
		}
		a.wg.Add(1)
		go func() {
			defer a.wg.Done()
			defer func() { <-a.slots }()
			a.pass(ctx, conn)
		}()
	}
}

// pass copies both ways until one side is done. An agent that cannot be reached
// looks to the step like one that hung up.
func (a *AgentSocket) pass(ctx context.Context, conn net.Conn) {
	defer conn.Close()
	agent, err := a.sess.SSHAgent(ctx, a.id)
	if err != nil {
		return
	}
	defer agent.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close(); agent.Close() })
	defer stop()
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = io.Copy(agent, conn) // its end is the connection's end
		agent.Close()
	}()
	_, _ = io.Copy(conn, agent)
	conn.Close()
	<-done
}

// Close ends all connections and waits until nobody is served any more.
func (a *AgentSocket) Close() error {
	a.cancel()
	err := a.ln.Close()
	a.wg.Wait()
	return err
}
