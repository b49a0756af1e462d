package step

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"dhow/internal/session"
	"dhow/internal/sys"

	"github.com/moby/buildkit/solver/pb"
	"golang.org/x/sys/unix"
)

// agentSocket mounts a socket behind which an agent of the session answers.
func (s *step) agentSocket(ctx context.Context, m *pb.Mount) error {
	o := m.SSHOpt
	if err := s.deps.Session.HasSSH(ctx, o.ID); err != nil {
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
	agent, err := session.ListenSSH(ctx, s.deps.Session, o.ID, at)
	if err != nil {
		return fmt.Errorf("mount %s: %w", m.Dest, err)
	}
	s.onRelease(agent.Close)
	if err := mapped(os.Chown(at, int(o.Uid), int(o.Gid)), o.Uid, o.Gid); err != nil {
		return fmt.Errorf("mount %s: %w", m.Dest, err)
	}
	if err := unix.Chmod(at, o.Mode&0o777); err != nil {
		return fmt.Errorf("mount %s: %w", m.Dest, err)
	}
	sock, err := sys.OpenInRoot(root, memoryName, unix.O_PATH)
	if err != nil {
		return fmt.Errorf("mount %s: %w", m.Dest, err)
	}
	defer sock.Close()
	f, err := sys.ClonePart(root, sock, sys.CloneOptions{NoDev: true, NoSuid: true, NoExec: true})
	if err != nil {
		return fmt.Errorf("mount %s: %w", m.Dest, err)
	}
	s.onRelease(f.Close)
	s.mounts = append(s.mounts, stepMount{dest: s.target(m), tree: f, isFile: true})
	return nil
}
