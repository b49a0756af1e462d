// Package usernet is the part of a network that needs no rights: an Ethernet made
// of the sockets of processes (Mesh), and a gateway that makes a container's
// connections anew with sockets of its own process (Router).
//
// It knows no namespaces, no devices and no records: frames go in and come out.
//
// Invariant: nothing of it outlives the process but the names of sockets, which
// the next one who meets them removes.
package usernet

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

// MTU is that of a mesh's devices: frames go from process to process, and larger
// ones are fewer.
const MTU = 65520

// MaxFrame is the largest frame: the packet and its Ethernet header.
const MaxFrame = MTU + 14

// A Mesh is an Ethernet that belongs to nobody: the containers of an ordinary
// user's network exchange frames through their supervisors' sockets.
//
//	container A            supervisor of A        supervisor of B            container B
//	eth0 (tap) ──frame──▶  Mesh ──datagram──▶ <root>/networks/<id>/<B>  ──▶  eth0 (tap)
//
// An ordinary user cannot make a bridge that two user namespaces share, and a
// process that held one for all would be a daemon. So each supervisor is a
// switch of its own: the sockets in the network's directory are its ports, it
// learns who has which address from what comes, and sends to all what is for
// all or for nobody known. A socket that nobody listens on is removed by the
// first who finds out.
type Mesh struct {
	dir  *os.File
	fd   int    // a blocking socket, so that a full receiver slows the sender down
	name string // of our socket

	mu    sync.Mutex
	ports map[[6]byte]string // guarded by mu: Ethernet address → socket name
}

// sendPatience bounds how long one receiver that does not read may hold up the
// others.
const sendPatience = 10 * time.Millisecond

// OpenMesh joins the network whose directory is dir, which is made, under a name
// that is used only once.
func OpenMesh(dir, name string) (*Mesh, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("join network: %w", err)
	}
	d, err := os.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("join network: %w", err)
	}
	m := &Mesh{dir: d, name: name, ports: map[[6]byte]string{}}
	if m.fd, err = unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err == nil {
		tv := unix.NsecToTimeval(sendPatience.Nanoseconds())
		err = errors.Join(
			unix.SetsockoptTimeval(m.fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &tv),
			unix.SetsockoptInt(m.fd, unix.SOL_SOCKET, unix.SO_SNDBUF, 4*MaxFrame),
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
func (m *Mesh) addr(name string) unix.Sockaddr {
	return &unix.SockaddrUnix{Name: fmt.Sprintf("/proc/self/fd/%d/%s", m.dir.Fd(), name)}
}

// Close leaves the network; a receive that waits returns.
func (m *Mesh) Close() {
	_ = unix.Unlink(filepath.Join(m.dir.Name(), m.name)) // or the first who finds it dead does
	_ = unix.Shutdown(m.fd, unix.SHUT_RDWR)
}

// Release gives the descriptors back, once nobody uses them any more.
func (m *Mesh) Release() {
	unix.Close(m.fd)
	m.dir.Close()
}

// Receive waits for a frame from another container. It fails once the mesh is
// closed.
func (m *Mesh) Receive(buf []byte) (int, error) {
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

// Send passes a frame on: to who has its destination, or to all.
func (m *Mesh) Send(frame []byte) {
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
func (m *Mesh) sendTo(name string, frame []byte) bool {
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
