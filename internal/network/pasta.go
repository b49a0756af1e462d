package network

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"dhow/internal/errdef"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// pasta is the program of that name (package passt), which connects one
// namespace to the host's network: faster than a stack of ours, and
// with the clients' addresses on published ports. It dies with this process.
type pasta struct {
	cmd    *exec.Cmd
	dir    string // has the namespace's name; pasta ends when that goes
	stderr bytes.Buffer
	done   chan struct{} // closed when it has ended
}

const pastaPatience = 5 * time.Second

// findPasta is where the program is, "" for nowhere.
func (ns *Networks) findPasta() string {
	switch ns.options.Pasta {
	case "-":
		return ""
	case "":
		path, err := exec.LookPath("pasta")
		if err != nil || unix.Access("/dev/net/tun", unix.R_OK|unix.W_OK) != nil { // it would need that
			return ""
		}
		return path
	}
	return ns.options.Pasta
}

// startPasta connects the endpoint's device, which pasta makes, and publishes
// the ports. It returns when the device is there.
func (a *Attachment) startPasta(ctx context.Context, program string, e *Endpoint, ports []*heldPort) (*pasta, error) {
	args := []string{"--config-net", "--foreground", "--quiet", "--stderr", "--netns-only",
		"--ns-ifname", e.Interface, "--no-map-gw", "--ipv4-only",
		"--address", e.IP4.Addr().String(), "--netmask", strconv.Itoa(e.IP4.Bits()), "--gateway", e.Gateway4.String(),
		"--no-dhcp", "--no-ra", "--no-ndp", "--no-dhcpv6",
		"--tcp-ns", "none", "--udp-ns", "none", // nothing of the container's loopback is the host's
	}
	if !a.ns.pastaPublishes(program) {
		ports = nil // they are served here
	}
	args = append(args, pastaPorts(ports)...)
	dir, err := a.ns.store.TempDir("pasta")
	if err != nil {
		return nil, err
	}
	name := filepath.Join(dir, "netns")
	if err := os.WriteFile(name, nil, 0o600); err != nil {
		return nil, errors.Join(fmt.Errorf("start pasta: %w", err), os.RemoveAll(dir))
	}
	args = append(args, "--netns", name)
	p := &pasta{cmd: exec.Command(program, args...), dir: dir, done: make(chan struct{})}
	p.cmd.Stderr = &p.stderr
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	started := make(chan error)
	go func() {
		// The death signal comes when the thread that forked ends. Nobody else gets
		// the thread: it has mounts of its own.
		runtime.LockOSThread()
		err := showNamespace(a.file, name)
		if err == nil {
			err = p.cmd.Start()
		}
		started <- err
		if err == nil {
			_ = p.cmd.Wait() // its text says why it ended
			close(p.done)
		}
	}()
	if err := <-started; err != nil {
		return nil, errors.Join(fmt.Errorf("start pasta: %w", err), os.RemoveAll(dir))
	}
	if err := a.waitPasta(ctx, p, e); err != nil {
		p.close()
		return nil, err
	}
	return p, nil
}

// The first pasta that is trusted with published ports, by the date in its
// version. Debian 12's (March 2023, which calls itself "unknown version") lets a
// client that waits for the server's first word, as those of MySQL and SSH do,
// wait forever.
const pastaPorting = "2024_01_01"

// pastaPublishes says whether ports are left to pasta, which keeps the clients'
// addresses, or served here, where the container sees its own.
func (ns *Networks) pastaPublishes(program string) bool {
	if ns.trustPasta {
		return true
	}
	out, err := exec.Command(program, "--version").Output()
	return err == nil && goodPasta(string(out))
}

// goodPasta reads the version: "pasta 2024_10_30.ee7d0b6", or a distribution's
// "pasta 0.0~git20240906.6b38f07-1".
func goodPasta(version string) bool {
	line, _, _ := strings.Cut(version, "\n")
	v := strings.TrimPrefix(strings.TrimPrefix(line, "pasta "), "0.0~git")
	v = strings.ReplaceAll(v, "_", "")
	if len(v) < 8 {
		return false
	}
	if _, err := time.Parse("20060102", v[:8]); err != nil {
		return false
	}
	return v[:8] >= strings.ReplaceAll(pastaPorting, "_", "")
}

// showNamespace gives the namespace a name in the file system, which is all that
// pasta takes, and which only it sees: in the mount namespace of this thread. A
// descriptor of ours in /proc would be closed to it once it has given up the
// capabilities that we have (ptrace(2), access mode checking).
func showNamespace(ns *os.File, name string) error {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return os.NewSyscallError("unshare", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return os.NewSyscallError("mount", err)
	}
	return os.NewSyscallError("mount", unix.Mount(fmt.Sprintf("/proc/self/fd/%d", ns.Fd()), name, "", unix.MS_BIND, ""))
}

// pastaPorts are the options that publish ports. The sockets that held them are
// closed: pasta binds its own.
func pastaPorts(ports []*heldPort) []string {
	args := []string{"--tcp-ports", "none", "--udp-ports", "none"}
	for i, proto := range []string{"tcp", "udp"} {
		var specs []string
		for _, h := range ports {
			if h.Proto != proto || !h.HostIP.Is4() {
				continue
			}
			spec := fmt.Sprintf("%d:%d", h.HostPort, h.Port)
			if !h.HostIP.IsUnspecified() {
				spec = h.HostIP.String() + "/" + spec
			}
			specs = append(specs, spec)
			closePorts([]*heldPort{h})
			h.socket = nil
		}
		for j, spec := range specs {
			if j == 0 {
				args[2*i+1] = spec
			} else {
				args = append(args, args[2*i], spec)
			}
		}
	}
	return args
}

// waitPasta waits for the device with its address: pasta sets that last.
func (a *Attachment) waitPasta(ctx context.Context, p *pasta, e *Endpoint) error {
	ctx, cancel := context.WithTimeout(ctx, pastaPatience)
	defer cancel()
	return a.inside(func(h *netlink.Handle) error {
		for {
			if hasAddr(h, e.Interface, e.IP4.Addr()) {
				return nil
			}
			select {
			case <-p.done:
				text := strings.TrimSpace(p.stderr.String())
				kind := errdef.ErrUnavailable
				if strings.Contains(text, "Address already in use") || strings.Contains(text, "bind port") {
					kind = errdef.ErrConflict
				}
				return errdef.New(kind, "pasta: %s", text)
			case <-ctx.Done():
				return errors.Join(errdef.New(errdef.ErrUnavailable, "pasta set up no device in %s", pastaPatience), ctx.Err())
			case <-time.After(500 * time.Microsecond):
			}
		}
	})
}

func hasAddr(h *netlink.Handle, device string, ip netip.Addr) bool {
	l, err := h.LinkByName(device)
	if err != nil {
		return false
	}
	addrs, err := h.AddrList(l, netlink.FAMILY_V4)
	if err != nil {
		return false
	}
	for _, x := range addrs {
		if got, ok := netip.AddrFromSlice(x.IP.To4()); ok && got == ip {
			return true
		}
	}
	return false
}

// close ends it and waits for that.
func (p *pasta) close() {
	if p == nil {
		return
	}
	_ = p.cmd.Process.Kill()
	<-p.done
	_ = os.RemoveAll(p.dir) // a temporary one of this process
}
