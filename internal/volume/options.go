package volume

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"

	"dhow/internal/errdef"
	"dhow/internal/sys"

	"golang.org/x/sys/unix"
)

// localMount is what a volume with options mounts in the place of its
// directory; nil for none.
type localMount struct {
	fstype  string // "none" for a directory of the host
	device  string
	options []string
}

// parseOptions reads the options of docker's local driver: type, device and o.
// nil when there are none.
func parseOptions(options map[string]string) (*localMount, error) {
	if len(options) == 0 {
		return nil, nil
	}
	for key := range options {
		switch key {
		case "type", "device", "o":
		case "size":
			err := errdef.New(errdef.ErrUnsupported, "volume option size: there are no quotas")
			return nil, errdef.WithHint(err, "for memory use -o type=tmpfs -o device=tmpfs -o o=size=…")
		default:
			return nil, errdef.New(errdef.ErrInvalid, "invalid option: %q", key)
		}
	}
	for _, key := range []string{"type", "device"} {
		if options[key] == "" {
			return nil, errdef.New(errdef.ErrInvalid, "missing required option: %q", key)
		}
	}
	m := &localMount{fstype: options["type"], device: options["device"]}
	if o := options["o"]; o != "" {
		m.options = strings.Split(o, ",")
	}
	if !m.bind() {
		return m, nil
	}
	if !strings.HasPrefix(m.device, "/") {
		return nil, errdef.New(errdef.ErrInvalid, "volume option device: got %q, want an absolute path of a directory", m.device)
	}
	_, err := m.cloneOptions()
	return m, err
}

// bind says whether the mount is a directory of the host.
func (m *localMount) bind() bool {
	return slices.Contains(m.options, "bind") || slices.Contains(m.options, "rbind")
}

// memory says whether the contents go with the last container that uses them.
func (m *localMount) memory() bool { return m.fstype == "tmpfs" || m.fstype == "ramfs" }

// open mounts it, detached.
func (m *localMount) open(ctx context.Context) (*os.File, error) {
	if m.bind() {
		return m.openBind()
	}
	device, options := m.device, slices.Clone(m.options)
	switch m.fstype {
	case "nfs", "nfs3", "nfs4", "cifs", "smb3":
		var err error
		if options, err = m.withAddress(ctx, options); err != nil {
			return nil, err
		}
	}
	f, err := sys.MountFS(m.fstype, device, options)
	if errors.Is(err, unix.EPERM) && sys.InUserNS() {
		err = errdef.WithHint(errdef.As(errdef.ErrDenied, err), "an ordinary user can mount tmpfs and directories, no other file systems")
	}
	return f, err
}

// cloneOptions are the options of a directory of the host.
func (m *localMount) cloneOptions() (sys.CloneOptions, error) {
	o := sys.CloneOptions{Recursive: slices.Contains(m.options, "rbind"), NoDev: true}
	for _, opt := range m.options {
		switch opt {
		case "bind", "rbind", "rw", "nodev", "defaults", "":
		case "ro":
			o.ReadOnly = true
		case "nosuid":
			o.NoSuid = true
		case "noexec":
			o.NoExec = true
		default:
			return o, errdef.New(errdef.ErrUnsupported, "volume option o: %q of a bind mount", opt)
		}
	}
	return o, nil
}

// openBind clones the directory of the host.
func (m *localMount) openBind() (*os.File, error) {
	o, err := m.cloneOptions()
	if err != nil {
		return nil, err
	}
	f, err := sys.CloneTree(nil, m.device, o)
	if errors.Is(err, os.ErrNotExist) {
		return nil, errdef.WithHint(errdef.As(errdef.ErrNotFound, err), "make the directory %s", m.device)
	}
	return f, err
}

// withAddress gives the kernel the server's address: it knows no names. An addr
// option with a name is looked up, and without one the name in the device is.
func (m *localMount) withAddress(ctx context.Context, options []string) ([]string, error) {
	host, at := "", -1
	for i, o := range options {
		if v, ok := strings.CutPrefix(o, "addr="); ok {
			host, at = v, i
		}
	}
	if at < 0 {
		host = deviceHost(m.fstype, m.device)
	}
	if host == "" {
		return nil, errdef.WithHint(errdef.New(errdef.ErrInvalid, "mount %s: no server is named", m.device), "add -o o=addr=HOST")
	}
	addr := host
	if net.ParseIP(host) == nil {
		list, err := net.DefaultResolver.LookupHost(ctx, host)
		if err != nil {
			return nil, errdef.As(errdef.ErrUnavailable, fmt.Errorf("mount %s: %w", m.device, err))
		}
		addr = list[0]
	}
	if at < 0 {
		return append(options, "addr="+addr), nil
	}
	options[at] = "addr=" + addr
	return options, nil
}

// deviceHost is the server in "host:/path" or "//host/share".
func deviceHost(fstype, device string) string {
	if strings.HasPrefix(fstype, "nfs") {
		if i := strings.Index(device, ":/"); i >= 0 {
			return strings.Trim(device[:i], "[]")
		}
		return ""
	}
	host, _, _ := strings.Cut(strings.TrimPrefix(strings.ReplaceAll(device, `\`, "/"), "//"), "/")
	return host
}
