package container

import (
	"errors"
	"io/fs"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"dhow/internal/errdef"
	"dhow/internal/network/nameserver"
	"dhow/internal/sandbox"

	"github.com/google/go-cmp/cmp"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/opencontainers/runtime-spec/specs-go"
)

func mustSpec(t *testing.T, change func(c *container.Config, h *container.HostConfig), f Facts) *specs.Spec {
	t.Helper()
	r := record(change)
	if r.Host.IpcMode == "" {
		r.Host.IpcMode = container.IPCModePrivate
	}
	s, err := r.Spec(f)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestDefaults(t *testing.T) {
	s := mustSpec(t, nil, Facts{})
	fourteen := []string{"CAP_AUDIT_WRITE", "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_MKNOD",
		"CAP_NET_BIND_SERVICE", "CAP_NET_RAW", "CAP_SETFCAP", "CAP_SETGID", "CAP_SETPCAP", "CAP_SETUID", "CAP_SYS_CHROOT"}
	c := s.Process.Capabilities
	for name, set := range map[string][]string{"bounding": c.Bounding, "effective": c.Effective, "permitted": c.Permitted} {
		if diff := cmp.Diff(fourteen, slices.Sorted(slices.Values(set))); diff != "" {
			t.Errorf("%s capabilities (-want +got):\n%s", name, diff)
		}
	}
	if c.Inheritable != nil || c.Ambient != nil {
		t.Errorf("got inheritable %v and ambient %v, want none", c.Inheritable, c.Ambient)
	}
	if s.Linux.Seccomp == nil || s.Linux.Seccomp.DefaultAction != specs.ActErrno {
		t.Error("the default seccomp profile is missing")
	}
	for _, p := range []string{"/proc/kcore", "/proc/keys", "/proc/interrupts", "/sys/firmware", "/sys/devices/virtual/powercap"} {
		if !slices.Contains(s.Linux.MaskedPaths, p) {
			t.Errorf("%s is not masked", p)
		}
	}
	if !slices.Contains(s.Linux.ReadonlyPaths, "/proc/sys") || s.Process.Cwd != "/" || s.Process.NoNewPrivileges || s.Root.Readonly {
		t.Errorf("got %+v", s.Process)
	}
	var mounts []string
	for _, m := range s.Mounts {
		mounts = append(mounts, m.Destination+" "+m.Type+" "+strings.Join(m.Options, ","))
	}
	want := []string{
		"/proc proc nosuid,noexec,nodev",
		"/dev tmpfs nosuid,strictatime,mode=755,size=65536k",
		"/dev/pts devpts nosuid,noexec,newinstance,ptmxmode=0666,mode=0620,gid=5",
		"/sys sysfs nosuid,noexec,nodev,ro",
		"/sys/fs/cgroup cgroup ro,nosuid,noexec,nodev",
		"/dev/mqueue mqueue nosuid,noexec,nodev",
		"/dev/shm tmpfs nosuid,noexec,nodev,mode=1777,size=67108864",
	}
	if diff := cmp.Diff(want, mounts); diff != "" {
		t.Errorf("mounts (-want +got):\n%s", diff)
	}
	rules := s.Linux.Resources.Devices
	if rules[0].Allow || rules[0].Access != "rwm" || rules[0].Type != "" {
		t.Errorf("the first device rule is %+v, want everything denied", rules[0])
	}
}

func TestEnvironment(t *testing.T) {
	r := record(func(c *container.Config, _ *container.HostConfig) {
		c.Env, c.Tty = []string{"B=user", "C=user=x", "A"}, true
	})
	if err := r.Merge(&dockerspec.DockerOCIImageConfig{ImageConfig: ocispecs.ImageConfig{Env: []string{"A=image", "B=image", "PATH=/image"}}}); err != nil {
		t.Fatal(err)
	}
	s, err := r.Spec(Facts{Hostname: "host", User: sandbox.User{Home: "/home/u"}})
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"PATH=/image", "HOSTNAME=host", "TERM=xterm", "B=user", "C=user=x", "HOME=/home/u"}
	if diff := cmp.Diff(want, s.Process.Env); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	s = mustSpec(t, func(c *container.Config, _ *container.HostConfig) { c.Env = []string{"HOME=/mine"} }, Facts{})
	if diff := cmp.Diff([]string{"PATH=" + defaultPath, "HOME=/mine"}, s.Process.Env); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestCapabilities(t *testing.T) {
	tests := []struct {
		add, drop  []string
		privileged bool
		has, lacks []string
		n          int
	}{
		{add: []string{"net_admin", "CAP_SYS_PTRACE"}, has: []string{"CAP_NET_ADMIN", "CAP_SYS_PTRACE", "CAP_CHOWN"}, n: 16},
		{add: []string{"CHOWN"}, n: 14},
		{drop: []string{"Mknod", "CAP_NET_RAW"}, lacks: []string{"CAP_MKNOD", "CAP_NET_RAW"}, n: 12},
		{drop: []string{"all"}, n: 0},
		{drop: []string{"ALL"}, add: []string{"SETUID"}, has: []string{"CAP_SETUID"}, n: 1},
		{add: []string{"ALL"}, drop: []string{"SYS_ADMIN"}, lacks: []string{"CAP_SYS_ADMIN"}, n: 40},
		{privileged: true, drop: []string{"ALL"}, has: []string{"CAP_SYS_ADMIN"}, n: 41},
	}
	for _, tt := range tests {
		s := mustSpec(t, func(_ *container.Config, h *container.HostConfig) {
			h.CapAdd, h.CapDrop, h.Privileged = tt.add, tt.drop, tt.privileged
		}, Facts{})
		got := s.Process.Capabilities.Bounding
		if len(got) != tt.n {
			t.Errorf("+%v -%v: got %d capabilities, want %d: %v", tt.add, tt.drop, len(got), tt.n, got)
		}
		for _, c := range tt.has {
			if !slices.Contains(got, c) {
				t.Errorf("+%v -%v: lacks %s", tt.add, tt.drop, c)
			}
		}
		for _, c := range tt.lacks {
			if slices.Contains(got, c) {
				t.Errorf("+%v -%v: has %s", tt.add, tt.drop, c)
			}
		}
	}
	if _, err := record(func(_ *container.Config, h *container.HostConfig) { h.CapAdd = []string{"NONSENSE"} }).Spec(Facts{}); !errors.Is(err, errdef.ErrInvalid) {
		t.Errorf("got %v, want invalid", err)
	}
	s := mustSpec(t, func(_ *container.Config, h *container.HostConfig) { h.CapAdd = []string{"NET_ADMIN"} }, Facts{User: sandbox.User{UID: 5}})
	if c := s.Process.Capabilities; len(c.Bounding) != 15 || c.Effective != nil || c.Permitted != nil || c.Inheritable != nil {
		t.Errorf("another user than root: got %+v, want only bounding ones", c)
	}
}

func TestPrivileged(t *testing.T) {
	s := mustSpec(t, func(_ *container.Config, h *container.HostConfig) { h.Privileged = true },
		Facts{HostDevices: []Device{{Path: "/dev/kvm", Type: "c", Major: 10, Minor: 232}}})
	if s.Linux.MaskedPaths != nil || s.Linux.ReadonlyPaths != nil || s.Linux.Seccomp != nil {
		t.Error("masks or a filter are left")
	}
	if len(s.Linux.Devices) != 1 || !s.Linux.Resources.Devices[0].Allow {
		t.Errorf("got devices %+v and rules %+v", s.Linux.Devices, s.Linux.Resources.Devices)
	}
	for _, m := range s.Mounts {
		if strings.HasPrefix(m.Destination, "/sys") && slices.Contains(m.Options, "ro") {
			t.Errorf("%s is read-only", m.Destination)
		}
	}
	s = mustSpec(t, func(_ *container.Config, h *container.HostConfig) {
		h.Privileged, h.SecurityOpt = true, []string{`seccomp={"defaultAction":"SCMP_ACT_LOG"}`}
	}, Facts{})
	if s.Linux.Seccomp == nil || s.Linux.Seccomp.DefaultAction != specs.ActLog {
		t.Errorf("got profile %+v, want the one asked for", s.Linux.Seccomp)
	}
}

func TestMounts(t *testing.T) {
	mounted := func(list ...specs.Mount) *specs.Spec {
		r := record(func(_ *container.Config, h *container.HostConfig) {
			h.Tmpfs = map[string]string{"/run": "rw,exec,size=64m", "/a": ""}
		})
		for _, m := range list {
			r.Mounts = append(r.Mounts, Mount{MountPoint: container.MountPoint{Type: mount.TypeBind, Source: m.Source, Destination: m.Destination}})
		}
		s, err := r.Spec(Facts{})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	s := mounted(specs.Mount{Destination: "/x/y/z", Source: "/1"}, specs.Mount{Destination: "/x/", Source: "/2"}, specs.Mount{Destination: "/dev/shm", Source: "/3"})
	var got []string
	for _, m := range s.Mounts[6:] {
		got = append(got, m.Destination+" "+strings.Join(m.Options, ","))
	}
	want := []string{"/a noexec,nosuid,nodev", "/run noexec,nosuid,nodev,rw,exec,size=64m", "/x/ ", "/dev/shm ", "/x/y/z "}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	s = mounted(specs.Mount{Destination: "/dev", Source: "/dev"})
	for _, m := range s.Mounts {
		if strings.HasPrefix(m.Destination, "/dev/") {
			t.Errorf("%s lies in the user's own /dev", m.Destination)
		}
	}
}

func TestStepNetwork(t *testing.T) {
	for network, want := range map[Network]bool{NetworkNone: true, NetworkHost: false, "": true} {
		s, err := StepSpec(Step{Args: []string{"x"}, Network: network})
		if err != nil {
			t.Fatal(err)
		}
		got := slices.ContainsFunc(s.Linux.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == specs.NetworkNamespace })
		if got != want {
			t.Errorf("%q: got a network namespace %t, want %t", network, got, want)
		}
	}
}

func TestResources(t *testing.T) {
	step := func(r Resources) (*specs.Spec, error) { return StepSpec(Step{Args: []string{"x"}, Resources: r}) }
	s, err := step(Resources{Memory: 64 << 20, CPUs: 1.5, Pids: 7, CpusetCPUs: "0"})
	if err != nil {
		t.Fatal(err)
	}
	r := s.Linux.Resources
	if *r.Memory.Limit != 64<<20 || *r.Memory.Swap != 128<<20 || *r.CPU.Quota != 150000 || *r.CPU.Period != 100000 ||
		r.CPU.Cpus != "0" || *r.Pids.Limit != 7 {
		t.Errorf("got %+v", r)
	}
	if s, err = step(Resources{Pids: -1}); err != nil {
		t.Fatal(err)
	}
	if r := s.Linux.Resources; r.Memory != nil || r.CPU != nil || r.Pids != nil {
		t.Errorf("got %+v, want no limits", r)
	}
	for _, bad := range []Resources{{Memory: 1 << 20}, {MemorySwap: 5}, {Memory: 64 << 20, MemorySwap: 32 << 20}, {CPUs: -1}, {CPUs: 1, CPUQuota: 5}} {
		if _, err := step(bad); !errors.Is(err, errdef.ErrInvalid) {
			t.Errorf("%+v: got %v, want invalid", bad, err)
		}
	}
}

func TestStepSpec(t *testing.T) {
	s, err := StepSpec(Step{Args: []string{"make"}, Env: []string{"A=b"}, User: sandbox.User{Home: "/root"}, Network: NetworkHost})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"A=b", "PATH=" + defaultPath, "HOME=/root"}, s.Process.Env); diff != "" {
		t.Errorf("environment (-want +got):\n%s", diff)
	}
	if s.Hostname != "buildkitsandbox" || s.Linux.Seccomp == nil || len(s.Process.Capabilities.Bounding) != 14 || s.Process.Terminal {
		t.Errorf("got %+v", s)
	}
	s, err = StepSpec(Step{Args: []string{"make"}, User: sandbox.User{UID: 7}, Insecure: true})
	if err != nil {
		t.Fatal(err)
	}
	if len(s.Process.Capabilities.Ambient) != 41 || s.Linux.Seccomp != nil || s.Linux.MaskedPaths != nil || !s.Linux.Resources.Devices[0].Allow {
		t.Errorf("insecure: got %+v", s.Process.Capabilities)
	}
}

func TestParseSecurityOpts(t *testing.T) {
	read := func(name string) ([]byte, error) {
		if name == "p.json" {
			return []byte("{}"), nil
		}
		return nil, fs.ErrNotExist
	}
	tests := []struct {
		opts []string
		want Security
		err  error
	}{
		{opts: nil},
		{opts: []string{"no-new-privileges", "apparmor=unconfined", "label=disable"}, want: Security{NoNewPrivileges: true, AppArmor: "unconfined"}},
		{opts: []string{"no-new-privileges=true", "no-new-privileges:false"}},
		{opts: []string{"seccomp=unconfined", "systempaths=unconfined"}, want: Security{SeccompUnconfined: true, UnmaskPaths: true}},
		{opts: []string{"seccomp=p.json"}, want: Security{SeccompProfile: []byte("{}")}},
		{opts: []string{"seccomp=none.json"}, err: errdef.ErrInvalid},
		{opts: []string{"apparmor=mine"}, want: Security{AppArmor: "mine"}},
		{opts: []string{"apparmor:mine"}, want: Security{AppArmor: "mine"}},
		{opts: []string{"apparmor="}, err: errdef.ErrInvalid},
		{opts: []string{"no-new-privilege"}, err: errdef.ErrInvalid},
		{opts: []string{""}, err: errdef.ErrInvalid},
	}
	for _, tt := range tests {
		got, err := ParseSecurityOpts(tt.opts, read)
		if !errors.Is(err, tt.err) {
			t.Errorf("%q: got error %v, want %v", tt.opts, err, tt.err)
		}
		if diff := cmp.Diff(tt.want, got); err == nil && diff != "" {
			t.Errorf("%q (-want +got):\n%s", tt.opts, diff)
		}
	}
}

func TestHosts(t *testing.T) {
	const common = "::1\tlocalhost ip6-localhost ip6-loopback\nfe00::\tip6-localnet\nff00::\tip6-mcastprefix\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n"
	if got, want := string(Hosts("h", "", nil, nil)), "127.0.0.1\tlocalhost h\n"+common; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	got := string(Hosts("h", "example.org", []string{"172.17.0.2"}, []string{"db:10.0.0.1", "six:fe80::1"}))
	want := "127.0.0.1\tlocalhost\n" + common + "10.0.0.1\tdb\nfe80::1\tsix\n172.17.0.2\th.example.org h\n"
	if got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestResolvConf(t *testing.T) {
	const host = "# managed\nnameserver 127.0.0.53\nnameserver 10.0.0.2 # lan\nnameserver ::1\nnameserver nonsense\nsearch old\ndomain lan.example\noptions edns0 trust-ad\noptions ndots:2\nsortlist 10.0.0.0\n; end\n"
	tests := []struct {
		name    string
		host    string
		network Network
		own     nameserver.Conf
		want    string
	}{
		{"host", host, NetworkHost, nameserver.Conf{},
			"nameserver 127.0.0.53\nnameserver 10.0.0.2\nnameserver ::1\nsearch lan.example\noptions edns0 trust-ad ndots:2\nsortlist 10.0.0.0\n"},
		{"none", host, NetworkNone, nameserver.Conf{},
			"nameserver 10.0.0.2\nsearch lan.example\noptions edns0 trust-ad ndots:2\nsortlist 10.0.0.0\n"},
		{"only loopback", "nameserver 127.0.0.1\n", NetworkNone, nameserver.Conf{},
			"nameserver 8.8.8.8\nnameserver 8.8.4.4\nnameserver 2001:4860:4860::8888\nnameserver 2001:4860:4860::8844\n"},
		{"replaced", host, NetworkNone, nameserver.Conf{Servers: []netip.Addr{netip.MustParseAddr("127.0.0.1")}, Search: []string{"."}, Options: []string{"timeout:1"}},
			"nameserver 127.0.0.1\noptions timeout:1\nsortlist 10.0.0.0\n"},
	}
	for _, tt := range tests {
		got := string(ResolvConf([]byte(tt.host), tt.network, tt.own))
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.name, diff)
		}
	}
}

func FuzzResolvConf(f *testing.F) {
	f.Add([]byte("nameserver 127.0.0.1\noptions a\n;\n#\nsearch"))
	f.Fuzz(func(t *testing.T, host []byte) {
		got := ResolvConf(host, NetworkNone, nameserver.Conf{})
		if again := ResolvConf(got, NetworkNone, nameserver.Conf{}); string(again) != string(got) {
			t.Errorf("not stable: %q, then %q", got, again)
		}
	})
}
