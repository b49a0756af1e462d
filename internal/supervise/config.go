package supervise

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"dhow/internal/cdi"
	"dhow/internal/container"
	"dhow/internal/errdef"
	"dhow/internal/network/nameserver"
	"dhow/internal/sandbox"
	"dhow/internal/store"
	"dhow/internal/sys"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// config decides how the container's first process runs, and makes the files
// that go with it.
func (s *supervisor) config(ctx context.Context, r *run, rec *container.Record) (sandbox.Config, error) {
	cfg := sandbox.Config{Root: s.root, TTY: rec.Config.Tty, Survive: true, CgroupName: CgroupName(rec)}
	if rec.Host.Init != nil {
		cfg.InitProcess = *rec.Host.Init
	}
	facts, err := s.facts(ctx, r, rec)
	if err != nil {
		return cfg, err
	}
	r.facts = facts
	if cfg.Spec, err = rec.Spec(facts); err != nil {
		return cfg, err
	}
	if err := addDescribed(cfg.Spec, rec); err != nil {
		return cfg, err
	}
	return cfg, makeBindSources(rec)
}

// addDescribed adds the devices that CDI describes. Hooks are an OCI runtime's.
func addDescribed(spec *specs.Spec, rec *container.Record) error {
	if len(rec.Host.DeviceRequests) == 0 {
		return nil
	}
	devices, err := cdi.Open(nil)
	if err != nil {
		return err
	}
	names, err := devices.Resolve(rec.Host.DeviceRequests)
	if err != nil {
		return err
	}
	if err := devices.Inject(spec, names); err != nil {
		return err
	}
	if hook := cdi.FirstHook(spec.Hooks); hook != "" && rec.Runtime.Path == "" {
		err := errdef.New(errdef.ErrUnsupported, "device %s: its CDI description wants the program %s to be run, which dhow's own sandbox does not do", names[0], hook)
		return errdef.WithHint(err, "choose an OCI runtime, which does: --runtime runc")
	}
	return nil
}

// CgroupName is the control group of a container, below the hierarchy's root.
// It follows from the record, so that whoever finds a container whose
// supervisor was killed can clear it away.
func CgroupName(rec *container.Record) string {
	parent := rec.Host.CgroupParent
	if parent == "" {
		parent = "dhow"
	}
	return filepath.Join(parent, "c-"+rec.ID)
}

// Reclaim ends what a start of the container has left that was killed before
// anybody knew of it. It is for one who holds the container's lock.
func Reclaim(ctx context.Context, st *store.Store, rec *container.Record) error {
	if err := sandbox.ReclaimCgroup(CgroupName(rec)); err != nil {
		return err
	}
	return Networks(st).Reclaim(ctx, rec.ID)
}

// facts finds out what the record leaves open.
func (s *supervisor) facts(ctx context.Context, r *run, rec *container.Record) (container.Facts, error) {
	f := container.Facts{Namespaces: map[specs.LinuxNamespaceType]string{}}
	var err error
	var lack string
	if f.AppArmor, lack = sandbox.LoadDefaultProfile(); lack != "" {
		r.warnings = append(r.warnings, lack)
	}
	if f.User, err = sandbox.LookupUser(s.root, rec.Config.User); err != nil {
		return f, err
	}
	if err := s.addGroups(&f.User, rec); err != nil {
		return f, err
	}
	if f.Hostname, err = s.hostname(ctx, rec); err != nil {
		return f, err
	}
	if err := s.joinOthers(ctx, &f, rec); err != nil {
		return f, err
	}
	if r.net != nil {
		f.Namespaces[specs.NetworkNamespace] = namespacePath(r.net.Namespace())
	}
	if f.Files, err = s.files(ctx, r, rec, f.Hostname); err != nil {
		return f, err
	}
	if f.Env, err = s.linkEnv(ctx, rec); err != nil {
		return f, err
	}
	if err := findDevices(&f, rec); err != nil {
		return f, err
	}
	return f, nil
}

// addGroups looks up --group-add.
func (s *supervisor) addGroups(u *sandbox.User, rec *container.Record) error {
	for _, name := range rec.Host.GroupAdd {
		gid, err := sandbox.LookupGroup(s.root, name)
		if err != nil {
			return err
		}
		u.Groups = append(u.Groups, gid)
	}
	return nil
}

// hostname is the name that the container sees.
func hostname(rec *container.Record) (string, error) {
	if rec.Config.Hostname != "" {
		return rec.Config.Hostname, nil
	}
	if rec.Host.UTSMode.IsHost() || rec.Host.NetworkMode.IsHost() {
		return os.Hostname()
	}
	return rec.ShortID(), nil
}

// hostname is likewise, for a container in another one's network: it goes by that
// one's name, as the /etc/hosts that they share has it.
func (s *supervisor) hostname(ctx context.Context, rec *container.Record) (string, error) {
	if ref := rec.Host.NetworkMode.ConnectedContainer(); ref != "" && rec.Config.Hostname == "" {
		row, err := s.store.Container(ctx, ref)
		if err != nil {
			return "", fmt.Errorf("join the net namespace of container %s: %w", ref, err)
		}
		if rec, _, err = Parse(row); err != nil {
			return "", err
		}
	}
	return hostname(rec)
}

// joinOthers finds the namespaces of other containers that this one shares.
func (s *supervisor) joinOthers(ctx context.Context, f *container.Facts, rec *container.Record) error {
	h := rec.Host
	for _, join := range []struct {
		t    specs.LinuxNamespaceType
		ref  string
		kind string
	}{
		{specs.NetworkNamespace, h.NetworkMode.ConnectedContainer(), "net"},
		{specs.PIDNamespace, h.PidMode.Container(), "pid"},
		{specs.IPCNamespace, h.IpcMode.Container(), "ipc"},
	} {
		if join.ref == "" {
			continue
		}
		other, st, err := s.runningState(ctx, join.ref)
		if err == nil && join.t == specs.IPCNamespace && (other.Host.IpcMode.IsPrivate() || other.Host.IpcMode.IsNone()) {
			err = errdef.WithHint(errdef.New(errdef.ErrConflict, "non-shareable IPC"), "run that one with --ipc shareable")
		}
		if err != nil {
			return fmt.Errorf("join the %s namespace of container %s: %w", join.kind, join.ref, err)
		}
		f.Namespaces[join.t] = fmt.Sprintf("/proc/%d/ns/%s", st.Pid, join.kind)
		if join.t == specs.IPCNamespace {
			f.Shm = "/dev/shm" // of that container: see openShm
		}
	}
	return nil
}

// runningState is that of another container, which has to run.
func (s *supervisor) runningState(ctx context.Context, ref string) (*container.Record, container.State, error) {
	row, err := s.store.Container(ctx, ref)
	if err != nil {
		return nil, container.State{}, err
	}
	rec, st, err := Parse(row)
	if err == nil && !Alive(st) {
		err = notRunning(ref)
	}
	return rec, st, err
}

func notRunning(ref string) error {
	return errdef.WithHint(errdef.New(errdef.ErrConflict, "it is not running"), "start it first: dhow start %s", ref)
}

// files writes /etc/hosts, /etc/hostname and /etc/resolv.conf in the
// container's directory and returns their mounts.
func (s *supervisor) files(ctx context.Context, r *run, rec *container.Record, hostname string) ([]specs.Mount, error) {
	if ref := rec.Host.NetworkMode.ConnectedContainer(); ref != "" {
		other, err := s.store.Container(ctx, ref)
		if err != nil {
			return nil, err
		}
		return fileMounts(Dir(s.store, other.ID)), nil // one network, one set of names
	}
	hosts, resolv, err := s.nameFiles(ctx, r, rec, hostname)
	if err != nil {
		return nil, err
	}
	for _, f := range []struct {
		name string
		data []byte
	}{{"hosts", hosts}, {"hostname", container.Hostname(hostname)}, {"resolv.conf", resolv}} {
		path := filepath.Join(s.dir, f.name)
		if err := os.WriteFile(path, f.data, 0o644); err != nil {
			return nil, s.store.FileError(err)
		}
		if err := os.Chmod(path, 0o644); err != nil { // whatever the umask
			return nil, err
		}
	}
	return fileMounts(s.dir), nil
}

// fileMounts puts the files of a container's directory where they belong.
func fileMounts(dir string) []specs.Mount {
	var mounts []specs.Mount
	for _, name := range []string{"hosts", "hostname", "resolv.conf"} {
		mounts = append(mounts, specs.Mount{Destination: "/etc/" + name, Type: "bind", Source: filepath.Join(dir, name), Options: []string{"rbind", "rprivate"}})
	}
	return mounts
}

// nameFiles are the contents of /etc/hosts and /etc/resolv.conf.
func (s *supervisor) nameFiles(ctx context.Context, r *run, rec *container.Record, hostname string) (hosts, resolv []byte, err error) {
	h := rec.Host
	if r.net != nil {
		self, extra, err := r.net.Hosts(ctx)
		if err != nil {
			return nil, nil, err
		}
		resolv, err = r.net.ResolvConf()
		return container.Hosts(hostname, rec.Config.Domainname, self, extra), resolv, err
	}
	host, err := os.ReadFile("/etc/resolv.conf")
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, nil, fmt.Errorf("read the host's name servers: %w", err)
	}
	mode := container.NetworkNone
	hosts = container.Hosts(hostname, rec.Config.Domainname, nil, h.ExtraHosts)
	if h.NetworkMode.IsHost() {
		mode = container.NetworkHost
		// The host's own names are part of its network, as with docker.
		if own, err := os.ReadFile("/etc/hosts"); err == nil {
			hosts = container.HostHosts(own, h.ExtraHosts)
		}
	}
	return hosts, container.ResolvConf(host, mode, nameserver.Conf{Servers: h.DNS, Search: h.DNSSearch, Options: h.DNSOptions}), nil
}

// findDevices looks up on the machine what the record names.
func findDevices(f *container.Facts, rec *container.Record) error {
	h := rec.Host
	for _, d := range h.Devices {
		found, err := hostDevice(d.PathOnHost, d.PathInContainer, d.CgroupPermissions)
		if err != nil {
			return err
		}
		f.Devices = append(f.Devices, found...)
	}
	if h.Privileged {
		var err error
		if f.HostDevices, err = hostDevices(); err != nil {
			return err
		}
	}
	for _, path := range container.BlockDevicePaths(&h.Resources) {
		d, ok, err := device(path)
		if err != nil || !ok {
			continue // Spec names it
		}
		if f.BlockDevices == nil {
			f.BlockDevices = map[string]container.DeviceNumber{}
		}
		f.BlockDevices[path] = container.DeviceNumber{Major: d.Major, Minor: d.Minor}
	}
	return nil
}

// makeBindSources checks the host's side of bind mounts, and makes what -v makes.
func makeBindSources(rec *container.Record) error {
	for _, m := range rec.Mounts {
		if m.Type != "bind" {
			continue
		}
		switch _, err := os.Stat(m.Source); {
		case err == nil:
		case !errors.Is(err, os.ErrNotExist):
			return fmt.Errorf("mount %s: %w", m.Source, err)
		case m.Create:
			if err := os.MkdirAll(m.Source, 0o755); err != nil {
				return err
			}
		default:
			err := errdef.New(errdef.ErrNotFound, "mount %s: no such file or directory on this machine", m.Source)
			return errdef.WithHint(err, "create it first, or use -v %s:%s, which does", m.Source, m.Destination)
		}
	}
	return nil
}

// Alive tells whether the process of a state still runs: its number may have
// been given to another one, or the machine started anew.
func Alive(st container.State) bool {
	return st.Pid != 0 && st.Boot == sys.BootID() && sys.Runs(st.Pid, st.PidStart)
}
