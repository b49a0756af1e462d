package network

import (
	"errors"
	"fmt"
	"os"
	"unsafe"

	"dhow/internal/network/usernet"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// frames are the other end of a container's device: each read and write is one
// Ethernet frame. The device goes when it is closed.
type frames interface {
	Read([]byte) (int, error)
	Write([]byte) (int, error)
	Close() error
}

// openDevice makes a device in the namespace: of /dev/net/tun, or where that
// cannot be had, as in many pods, a pair of links with a socket at the far end.
func (a *Attachment) openDevice(name string) (frames, error) {
	var err error
	if !a.ns.noTun {
		var f *os.File
		if f, err = openTap(a.file, name); err == nil {
			return f, nil
		}
	}
	p, err1 := openPair(a.file, name)
	if err1 != nil {
		return nil, errors.Join(err, err1)
	}
	return p, nil
}

// openTap makes a device whose other end is the file.
func openTap(ns *os.File, name string) (*os.File, error) {
	req, err := unix.NewIfreq(name)
	if err != nil {
		return nil, fmt.Errorf("make device %s: %w", name, err)
	}
	req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
	fd := -1
	// The device is made where the thread was that opened the file.
	err = within(ns, func() error {
		if fd, err = unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0); err != nil {
			return &os.PathError{Op: "open", Path: "/dev/net/tun", Err: err}
		}
		return unix.IoctlIfreq(fd, unix.TUNSETIFF, req)
	})
	if err != nil {
		if fd >= 0 {
			unix.Close(fd)
		}
		return nil, fmt.Errorf("make device %s: %w", name, err)
	}
	return os.NewFile(uintptr(fd), name), nil // only now may it be polled
}

// pair is a packet socket on one end of a pair of links, in a namespace that is
// there for it alone.
type pair struct {
	*os.File
	far *os.File // that namespace
}

// openPair makes a pair of links and opens a socket at the far one.
func openPair(ns *os.File, name string) (*pair, error) {
	p := &pair{}
	far, err := newNamespace(func() error { return setSysctl("ipv6/conf/default/disable_ipv6", "1") })
	if err != nil {
		return nil, fmt.Errorf("make device %s: %w", name, err)
	}
	p.far = far
	var fd int
	err = within(far, func() error {
		l := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "far", MTU: usernet.MTU}, PeerName: name, PeerNamespace: netlink.NsFd(ns.Fd()), PeerMTU: usernet.MTU}
		if err := netlink.LinkAdd(l); err != nil {
			return err
		}
		made, err := netlink.LinkByName("far")
		if err != nil {
			return err
		}
		if err := netlink.LinkSetUp(made); err != nil {
			return err
		}
		if fd, err = packetSocket(made.Attrs().Index); err != nil {
			return err
		}
		p.File = os.NewFile(uintptr(fd), name)
		return nil
	})
	if err == nil {
		err = within(ns, func() error { return wholePackets(name) })
	}
	if err != nil {
		p.Close()
		return nil, fmt.Errorf("make device %s: %w", name, err)
	}
	return p, nil
}

// packetSocket sees and sends every frame of one link.
func packetSocket(link int) (int, error) {
	all := uint16(unix.ETH_P_ALL)
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return -1, err
	}
	// Not what it sends itself (linux/if_packet.h: PACKET_IGNORE_OUTGOING).
	err = errors.Join(unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1),
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 64*usernet.MaxFrame),
		unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all<<8 | all>>8, Ifindex: link}))
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// wholePackets makes a device send packets as they go over a wire: the kernel
// would leave checksums, and cutting, to a device that it takes for hardware.
func wholePackets(name string) error {
	const setTxCsum = 0x17 // ETHTOOL_STXCSUM (linux/ethtool.h), which takes segmentation along
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	value := struct{ cmd, data uint32 }{cmd: setTxCsum}
	var req struct {
		name [unix.IFNAMSIZ]byte
		data unsafe.Pointer
		_    [16]byte
	}
	copy(req.name[:], name)
	req.data = unsafe.Pointer(&value)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&req))); errno != 0 {
		return os.NewSyscallError("ioctl", errno)
	}
	return nil
}

// Close takes the links away, with the namespace that only they are in.
func (p *pair) Close() error {
	var err error
	if p.File != nil {
		err = p.File.Close()
	}
	return errors.Join(err, p.far.Close())
}
