package buildop

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"

	"dhow/internal/session"
	"dhow/internal/sys"

	"github.com/moby/buildkit/solver/pb"
	"golang.org/x/sys/unix"
)

// maxAgentConns bounds the connections that one step may hold to an agent.
const maxAgentConns = 128

// agentSocket mounts a socket behind which an agent of the session answers.
func (s *step) agentSocket(m *pb.Mount) error {
	o := m.SSHOpt
	if err := s.deps.Session.HasSSH(o.ID); err != nil {
		if o.Optional {
			return nil
		}
		return err
	}
	root, err := sys.MountMemory()
	if err != nil {
		return fmt.Errorf("mount %s: %w", m.Dest, err)
	}
	s.onRelease(root.Close)
	// The path goes through our descriptor: the file system is mounted nowhere.
	at := filepath.Join("/proc/self/fd", strconv.Itoa(int(root.Fd())), memoryName)
	agent, err := serveAgent(s.deps.Session, o.ID, at)
	if err != nil {
		return fmt.Errorf("mount %s: %w", m.Dest, err)
	}
	s.onRelease(agent.Close)
	if err := os.Chown(at, int(o.Uid), int(o.Gid)); err != nil {
		return fmt.Errorf("mount %s: %w", m.Dest, err)
	}
	if err := unix.Chmod(at, o.Mode&0o777); err != nil {
		return fmt.Errorf("mount %s: %w", m.Dest, err)
	}
	f, err := sys.CloneTree(root, memoryName, sys.CloneOptions{NoDev: true, NoSuid: true, NoExec: true})
	if err != nil {
		return fmt.Errorf("mount %s: %w", m.Dest, err)
	}
	s.onRelease(f.Close)
	s.mounts = append(s.mounts, stepMount{dest: s.target(m), tree: f, isFile: true})
	return nil
}

// agentServer passes connections to a socket on to an agent of the session,
// each to a connection of its own.
type agentServer struct {
	ctx    context.Context
	cancel context.CancelFunc
	sess   *session.Session
	id     string
	ln     *net.UnixListener
	slots  chan struct{}
	wg     sync.WaitGroup
}

// serveAgent listens at the path until Close.
func serveAgent(sess *session.Session, id, at string) (*agentServer, error) {
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: at, Net: "unix"})
	if err != nil {
		return nil, err
	}
	ln.SetUnlinkOnClose(false)
	ctx, cancel := context.WithCancel(context.Background())
	a := &agentServer{ctx: ctx, cancel: cancel, sess: sess, id: id, ln: ln, slots: make(chan struct{}, maxAgentConns)}
	a.wg.Add(1)
	go a.accept()
	return a, nil
}

func (a *agentServer) accept() {
	defer a.wg.Done()
	for {
		conn, err := a.ln.Accept()
		if err != nil {
			return // closed
		}
		select {
		case a.slots <- struct{}{}:
		case <-a.ctx.Done():
			conn.Close()
			return
		}
		a.wg.Add(1)
		go func() {
			defer a.wg.Done()
			defer func() { <-a.slots }()
			a.pass(conn)
		}()
	}
}

// pass copies both ways until one side is done. An agent that cannot be reached
// looks to the step like one that hung up.
func (a *agentServer) pass(conn net.Conn) {
	defer conn.Close()
	agent, err := a.sess.SSHAgent(a.ctx, a.id)
	if err != nil {
		return
	}
	defer agent.Close()
	stop := context.AfterFunc(a.ctx, func() { conn.Close(); agent.Close() })
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
func (a *agentServer) Close() error {
	a.cancel()
	err := a.ln.Close()
	a.wg.Wait()
	return err
}
