package network

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// A mesh is an Ethernet that belongs to nobody: the containers of an ordinary
// user's network exchange frames through their supervisors' sockets.
//
//	container A            supervisor of A        supervisor of B            container B
//	eth0 (tap) ──frame──▶  mesh ──datagram──▶ <root>/networks/<id>/<B>  ──▶  eth0 (tap)
//
// An ordinary user cannot make a bridge that two user namespaces share, and a
// process that held one for all would be a daemon. So each supervisor is a
// switch of its own: the sockets in the network's directory are its ports, it
// learns who has which address from what comes, and sends to all what is for
// all or for nobody known. A socket that nobody listens on is removed by the
// first who finds out.
type mesh struct {
	dir  *os.File
	fd   int    // a blocking socket, so that a full receiver slows the sender down
	name string // of our socket

	mu    sync.Mutex
	ports map[[6]byte]string // guarded by mu: Ethernet address → socket name
}

// sendPatience bounds how long one receiver that does not read may hold up the
// others.
const sendPatience = 10 * time.Millisecond

// openMesh joins the network whose directory is dir, which is made.
func openMesh(dir, name string) (*mesh, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("join network: %w", err)
	}
	d, err := os.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("join network: %w", err)
	}
	m := &mesh{dir: d, name: name, ports: map[[6]byte]string{}}
	if m.fd, err = unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err == nil {
		tv := unix.NsecToTimeval(sendPatience.Nanoseconds())
		err = errors.Join(
			unix.SetsockoptTimeval(m.fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &tv),
			unix.SetsockoptInt(m.fd, unix.SOL_SOCKET, unix.SO_SNDBUF, 4*maxFrame),
			unix.Bind(m.fd, m.addr(name)))
		if err != nil {
			unix.Close(m.fd)
		}
	}
	if err != nil {
		d.Close()
		return nil, fmt.Errorf("join network: %w", err)
	}
	return m, nil
}

// addr is the socket's address by our descriptor of the directory: an address
// has room for 107 bytes of a path (unix(7)).
func (m *mesh) addr(name string) unix.Sockaddr {
	return &unix.SockaddrUnix{Name: fmt.Sprintf("/proc/self/fd/%d/%s", m.dir.Fd(), name)}
}

// close leaves the network; a receive that waits returns.
func (m *mesh) close() {
	_ = unix.Unlink(filepath.Join(m.dir.Name(), m.name)) // or the first who finds it dead does
	_ = unix.Shutdown(m.fd, unix.SHUT_RDWR)
}

// release gives the descriptors back, once nobody uses them any more.
func (m *mesh) release() {
	unix.Close(m.fd)
	m.dir.Close()
}

// receive waits for a frame from another container. It fails once the mesh is
// closed.
func (m *mesh) receive(buf []byte) (int, error) {
	for {
		n, from, err := unix.Recvfrom(m.fd, buf, 0)
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return 0, err
		case n == 0:
			return 0, os.ErrClosed
		case n < 14:
			continue
		}
		if sa, ok := from.(*unix.SockaddrUnix); ok {
			m.mu.Lock()
			m.ports[[6]byte(buf[6:12])] = filepath.Base(sa.Name)
			m.mu.Unlock()
		}
		return n, nil
	}
}

// send passes a frame on: to who has its destination, or to all.
func (m *mesh) send(frame []byte) {
	to := [6]byte(frame[:6])
	m.mu.Lock()
	name, known := m.ports[to]
	m.mu.Unlock()
	if known && to[0]&1 == 0 && m.sendTo(name, frame) {
		return
	}
	names, err := os.ReadDir(m.dir.Name())
	if err != nil {
		return // a frame may be lost
	}
	for _, e := range names {
		if e.Name() != m.name && !strings.HasPrefix(e.Name(), ".") {
			m.sendTo(e.Name(), frame)
		}
	}
}

// sendTo says whether the port is there. A frame that does not fit is lost, as
// on any Ethernet.
func (m *mesh) sendTo(name string, frame []byte) bool {
	err := unix.Sendto(m.fd, frame, unix.MSG_NOSIGNAL, m.addr(name))
	if err != unix.ECONNREFUSED && err != unix.ENOENT {
		return true
	}
	_ = unix.Unlink(filepath.Join(m.dir.Name(), name)) // names are never used twice
	m.mu.Lock()
	defer m.mu.Unlock()
	for mac, n := range m.ports {
		if n == name {
			delete(m.ports, mac)
		}
	}
	return false
}
