package container

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"dhow/internal/errdef"
	"dhow/internal/sandbox"

	"github.com/google/go-cmp/cmp"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/moby/moby/api/types/blkiodev"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/api/types/network"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// record is an empty record that change may fill in.
func record(change func(c *container.Config, h *container.HostConfig)) *Record {
	r := &Record{Name: "test", Config: &container.Config{Cmd: []string{"true"}}, Host: &container.HostConfig{}}
	if change != nil {
		change(r.Config, r.Host)
	}
	return r
}

func TestMerge(t *testing.T) {
	img := &dockerspec.DockerOCIImageConfig{ImageConfig: ocispecs.ImageConfig{
		User: "app", WorkingDir: "/srv/", StopSignal: "SIGQUIT", Env: []string{"A=image", "B=image"},
		Entrypoint: []string{"/entry"}, Cmd: []string{"serve"}, Labels: map[string]string{"a": "image", "b": "image"},
		Volumes: map[string]struct{}{"/data": {}}, ExposedPorts: map[string]struct{}{"80/tcp": {}},
	}}
	img.Shell = []string{"/bin/bash", "-c"}
	for _, c := range []struct {
		name       string
		entrypoint []string
		cmd        []string
		want       []string
	}{
		{"the image's", nil, nil, []string{"/entry", "serve"}},
		{"arguments", nil, []string{"x"}, []string{"/entry", "x"}},
		{"an entrypoint drops the image's arguments", []string{"/other"}, nil, []string{"/other"}},
		{"both", []string{"/other"}, []string{"x"}, []string{"/other", "x"}},
		{"no entrypoint", []string{""}, []string{"x"}, []string{"x"}},
	} {
		r := record(func(cfg *container.Config, _ *container.HostConfig) {
			cfg.Entrypoint, cfg.Cmd = c.entrypoint, c.cmd
			cfg.Env, cfg.Labels = []string{"A=user", "C"}, map[string]string{"a": "user"}
		})
		if err := r.Merge(img); err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		if d := cmp.Diff(c.want, r.Command()); d != "" {
			t.Errorf("%s (-want +got):\n%s", c.name, d)
		}
		if d := cmp.Diff([]string{"A=user", "C", "B=image"}, r.Config.Env); d != "" {
			t.Errorf("environment (-want +got):\n%s", d)
		}
		if d := cmp.Diff(map[string]string{"a": "user", "b": "image"}, r.Config.Labels); d != "" {
			t.Errorf("labels (-want +got):\n%s", d)
		}
		if r.Config.User != "app" || r.Config.WorkingDir != "/srv" || r.StopSignal() != "SIGQUIT" || r.Config.Shell[0] != "/bin/bash" {
			t.Errorf("got %+v", r.Config)
		}
		if _, ok := r.Config.ExposedPorts[network.MustParsePort("80/tcp")]; !ok {
			t.Errorf("ports: got %v", r.Config.ExposedPorts)
		}
	}
	r := record(func(c *container.Config, _ *container.HostConfig) { c.Cmd, c.Entrypoint = nil, []string{""} })
	if err := r.Merge(img); !errors.Is(err, errdef.ErrInvalid) || !strings.Contains(err.Error(), "no command specified") {
		t.Errorf("without a command: got %v", err)
	}
}

func TestMergeDefaults(t *testing.T) {
	swappiness, pids := int64(-1), int64(0)
	r := record(func(_ *container.Config, h *container.HostConfig) {
		h.Memory, h.MemorySwappiness, h.PidsLimit = 100<<20, &swappiness, &pids
	})
	if err := r.Merge(&dockerspec.DockerOCIImageConfig{}); err != nil {
		t.Fatal(err)
	}
	h := r.Host
	if h.MemorySwap != 200<<20 || h.ShmSize != 64<<20 || h.IpcMode != "private" || h.CgroupnsMode != "private" || h.NetworkMode != "bridge" ||
		h.RestartPolicy.Name != "no" || h.MemorySwappiness != nil || h.PidsLimit != nil || !slices.Contains(h.MaskedPaths, "/proc/kcore") {
		t.Errorf("got %+v", h)
	}
}

func TestRecordSpec(t *testing.T) {
	umask, pids, yes := uint32(0o27), int64(9), true
	r := record(func(c *container.Config, h *container.HostConfig) {
		c.Env, c.Tty, c.Domainname = []string{"A=1", "TERM=dumb"}, true, "example"
		h.Umask, h.OomScoreAdj, h.ReadonlyRootfs = &umask, 5, true
		h.Annotations, h.Sysctls = map[string]string{"k": "v"}, map[string]string{"net.ipv4.ip_forward": "1"}
		h.NanoCPUs, h.PidsLimit, h.OomKillDisable, h.Memory = 1.5e9, &pids, &yes, 64<<20
		h.BlkioWeight = 500
		h.BlkioDeviceReadBps = []*blkiodev.ThrottleDevice{{Path: "/dev/sda", Rate: 1000}}
		h.DeviceCgroupRules = []string{"c 1:* rw"}
		h.Ulimits = []*container.Ulimit{{Name: "nofile", Soft: 10, Hard: 20}}
		h.Tmpfs = map[string]string{"/t": "size=1m"}
		h.ConsoleSize = [2]uint{24, 80}
		h.SecurityOpt = []string{"no-new-privileges", "seccomp=unconfined"}
	})
	r.Mounts = []Mount{{MountPoint: container.MountPoint{Type: mount.TypeBind, Source: "/s", Destination: "/etc/hosts"}, Options: []string{"rbind"}}}
	s, err := r.Spec(Facts{
		User: sandbox.User{UID: 7}, Hostname: "box", Env: []string{"LINK=1"},
		Files:        []specs.Mount{{Destination: "/etc/hosts", Type: "bind", Source: "/own"}},
		Namespaces:   map[specs.LinuxNamespaceType]string{specs.NetworkNamespace: "/proc/self/fd/9"},
		BlockDevices: map[string]DeviceNumber{"/dev/sda": {8, 0}},
	})
	if err != nil {
		t.Fatal(err)
	}
	wantEnv := []string{"PATH=" + defaultPath, "HOSTNAME=box", "TERM=dumb", "LINK=1", "A=1", "HOME=/"}
	if d := cmp.Diff(wantEnv, s.Process.Env); d != "" {
		t.Errorf("environment (-want +got):\n%s", d)
	}
	res := s.Linux.Resources
	if *res.CPU.Quota != 150000 || *res.Pids.Limit != 9 || !*res.Memory.DisableOOMKiller || *res.BlockIO.Weight != 500 || res.BlockIO.ThrottleReadBpsDevice[0].Major != 8 {
		t.Errorf("resources: got %+v", res)
	}
	if last := res.Devices[len(res.Devices)-1]; last.Minor != nil || *last.Major != 1 || last.Access != "rw" {
		t.Errorf("device rule: got %+v", last)
	}
	if *s.Process.User.Umask != umask || *s.Process.OOMScoreAdj != 5 || !s.Root.Readonly || s.Linux.Seccomp != nil || !s.Process.NoNewPrivileges ||
		s.Annotations["k"] != "v" || s.Linux.Sysctl["net.ipv4.ip_forward"] != "1" || s.Process.Rlimits[0].Type != "RLIMIT_NOFILE" ||
		s.Process.ConsoleSize.Width != 80 || s.Domainname != "example" {
		t.Errorf("got %+v", s.Process)
	}
	var hosts []string
	for _, m := range s.Mounts {
		if m.Destination == "/etc/hosts" {
			hosts = append(hosts, m.Source)
		}
	}
	if !slices.Equal(hosts, []string{"/own", "/s"}) {
		t.Errorf("the user's /etc/hosts must come last: got %v", hosts)
	}
	if _, err := r.Spec(Facts{}); !errors.Is(err, errdef.ErrNotFound) {
		t.Errorf("an unknown block device: got %v", err)
	}
}

func TestRecordNamespaces(t *testing.T) {
	for _, c := range []struct {
		change func(h *container.HostConfig)
		want   string
	}{
		{func(*container.HostConfig) {}, "mount uts pid ipc cgroup network=/net"},
		{func(h *container.HostConfig) { h.PidMode, h.IpcMode, h.UTSMode = "host", "host", "host" }, "mount cgroup network=/net"},
		{func(h *container.HostConfig) { h.NetworkMode, h.CgroupnsMode = "host", "host" }, "mount uts pid ipc"},
		{func(h *container.HostConfig) { h.IpcMode = "container:x" }, "mount uts pid ipc=/ipc cgroup network=/net"},
	} {
		r := record(func(_ *container.Config, h *container.HostConfig) { c.change(h) })
		f := Facts{Hostname: "box", Namespaces: map[specs.LinuxNamespaceType]string{specs.NetworkNamespace: "/net"}}
		if r.Host.IpcMode.IsContainer() {
			f.Namespaces[specs.IPCNamespace], f.Shm = "/ipc", "/shm"
		}
		s, err := r.Spec(f)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, ns := range s.Linux.Namespaces {
			text := string(ns.Type)
			if ns.Path != "" {
				text += "=" + ns.Path
			}
			got = append(got, text)
		}
		if strings.Join(got, " ") != c.want {
			t.Errorf("got %v, want %s", got, c.want)
		}
		if host := r.Host.UTSMode.IsHost(); host != (s.Hostname == "") {
			t.Errorf("hostname: got %q", s.Hostname)
		}
		var shm []string
		for _, m := range s.Mounts {
			if m.Destination == "/dev/shm" {
				shm = append(shm, m.Source)
			}
		}
		want := map[string]string{"": "shm", "host": "/dev/shm", "container:x": "/shm"}[string(r.Host.IpcMode)]
		if !slices.Equal(shm, []string{want}) {
			t.Errorf("/dev/shm: got %v, want %s", shm, want)
		}
	}
	r := record(func(_ *container.Config, h *container.HostConfig) { h.IpcMode = "none" })
	s, err := r.Spec(Facts{})
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range s.Mounts {
		if m.Destination == "/dev/shm" {
			t.Error("--ipc none has a /dev/shm")
		}
	}
}

func TestDecideMounts(t *testing.T) {
	other := []Mount{
		{MountPoint: container.MountPoint{Type: mount.TypeVolume, Name: "v", Destination: "/shared", RW: true}, Options: []string{"rbind"}},
		{MountPoint: container.MountPoint{Type: mount.TypeVolume, Name: "w", Destination: "/over", RW: true}},
	}
	r := record(func(c *container.Config, h *container.HostConfig) {
		h.VolumesFrom = []string{"other:ro"}
		h.Binds = []string{"/host:/bind:ro,rslave,z", "name:/named:nocopy", "/x:/over"}
		h.Mounts = []mount.Mount{
			{Type: mount.TypeBind, Source: "/m", Target: "/m", BindOptions: &mount.BindOptions{NonRecursive: true}},
			{Type: mount.TypeVolume, Source: "sub", Target: "/sub", VolumeOptions: &mount.VolumeOptions{Subpath: "a/b", Labels: map[string]string{"l": "1"},
				DriverConfig: &mount.Driver{Options: map[string]string{"type": "tmpfs"}}}},
			{Type: mount.TypeTmpfs, Target: "/tmp", TmpfsOptions: &mount.TmpfsOptions{SizeBytes: 1 << 20, Mode: 0o1770}},
			{Type: mount.TypeImage, Source: "busybox", Target: "/image"},
		}
		h.Tmpfs = map[string]string{"/cache": ""}
		c.Volumes = map[string]struct{}{"/data/": {}, "/named": {}, "/cache": {}}
	})
	if err := r.DecideMounts(func(string) ([]Mount, error) { return other, nil }); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, m := range r.Mounts {
		text := string(m.Type) + " " + m.Name + m.Source + " " + m.Destination + " " + strings.Join(m.Options, ",")
		for flag, on := range map[string]bool{" ro": !m.RW, " anonymous": m.Anonymous, " nocopy": m.NoCopy, " create": m.Create, " " + m.Subpath: m.Subpath != ""} {
			if on {
				text += flag
			}
		}
		got = append(got, strings.Join(slices.Sorted(slices.Values(strings.Fields(text))), " "))
	}
	want := []string{
		"/shared nocopy rbind,ro ro v volume", "/over /x bind create rbind,rprivate", "/bind /host bind create rbind,rslave,ro ro",
		"/named name nocopy rbind,rprivate volume", "/m /m bind bind,rprivate", "/sub a/b rbind,rprivate sub volume",
		"/tmp mode=1770,size=1048576 noexec,nosuid,nodev,", "/image busybox image rbind,rprivate,ro ro", "/data anonymous rbind,rprivate volume",
	}
	want[6] = "/tmp noexec,nosuid,nodev,mode=1770,size=1048576 tmpfs"
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	if m := r.Mounts[5]; m.Volume.DriverOptions["type"] != "tmpfs" || m.Volume.Labels["l"] != "1" {
		t.Errorf("volume options: got %+v", m.Volume)
	}
}

func TestBadMounts(t *testing.T) {
	for _, bad := range []string{"a:b", "/h:/", ":/c", "/h:/c:xx", "/h:/c:ro,rw", "/h:/c:nocopy", "n:/c:rslave", "a:/b:ro:d", "-n:/c"} {
		r := record(func(_ *container.Config, h *container.HostConfig) { h.Binds = []string{bad} })
		if err := r.DecideMounts(nil); !errors.Is(err, errdef.ErrInvalid) {
			t.Errorf("-v %s: got %v, want it refused", bad, err)
		}
	}
	for name, change := range map[string]func(h *container.HostConfig){
		"Duplicate mount point: /a": func(h *container.HostConfig) { h.Binds = []string{"x:/a", "y:/a/"} },
		"Duplicate mount point: /t": func(h *container.HostConfig) {
			h.Binds, h.Tmpfs = []string{"x:/t"}, map[string]string{"/t": ""}
		},
		"must be absolute": func(h *container.HostConfig) {
			h.Mounts = []mount.Mount{{Type: mount.TypeBind, Source: "x", Target: "/a"}}
		},
		"Source must not be empty": func(h *container.HostConfig) { h.Mounts = []mount.Mount{{Type: mount.TypeBind, Target: "/a"}} },
		"when using anonymous": func(h *container.HostConfig) {
			h.Mounts = []mount.Mount{{Type: mount.TypeVolume, Target: "/a", VolumeOptions: &mount.VolumeOptions{Subpath: "x"}}}
		},
		"invalid mode: bad":  func(h *container.HostConfig) { h.VolumesFrom = []string{"x:bad"} },
		"mount type unknown": func(h *container.HostConfig) { h.Mounts = []mount.Mount{{Type: "npipe", Source: "x", Target: "/a"}} },
		"invalid option: uid=5": func(h *container.HostConfig) {
			h.Mounts = []mount.Mount{{Type: mount.TypeTmpfs, Target: "/a", TmpfsOptions: &mount.TmpfsOptions{Options: [][]string{{"uid", "5"}}}}}
		},
		"must be a relative path": func(h *container.HostConfig) {
			h.Mounts = []mount.Mount{{Type: mount.TypeVolume, Source: "v", Target: "/a", VolumeOptions: &mount.VolumeOptions{Subpath: "../x"}}}
		},
		"Source must not be specifi": func(h *container.HostConfig) {
			h.Mounts = []mount.Mount{{Type: mount.TypeTmpfs, Source: "v", Target: "/a"}}
		},
	} {
		r := record(func(_ *container.Config, h *container.HostConfig) { change(h) })
		if err := r.DecideMounts(nil); !errors.Is(err, errdef.ErrInvalid) || !strings.Contains(err.Error(), name) {
			t.Errorf("got %v, want %q in it", err, name)
		}
	}
}

func TestValidate(t *testing.T) {
	over := int64(101)
	for want, change := range map[string]func(r *Record){
		"":                             func(*Record) {},
		"invalid container name (-x)":  func(r *Record) { r.Name = "-x" },
		"invalid container name (x)":   func(r *Record) { r.Name = "x" },
		"working directory 'rel' is":   func(r *Record) { r.Config.WorkingDir = "rel" },
		"invalid signal: NOPE":         func(r *Record) { r.Config.StopSignal = "NOPE" },
		"is too long (maximum 64":      func(r *Record) { r.Config.Hostname = strings.Repeat("x", 65) },
		"invalid environment variable": func(r *Record) { r.Config.Env = []string{"=x"} },
		"invalid IPC mode":             func(r *Record) { r.Host.IpcMode = "nope" },
		"[-1000, 1000]":                func(r *Record) { r.Host.OomScoreAdj = 1001 },
		"allowed is 6MB":               func(r *Record) { r.Host.Memory = 1 << 20 },
		"larger than memory limit":     func(r *Record) { r.Host.Memory, r.Host.MemorySwap = 64<<20, 32<<20 },
		"always set the Memory limit":  func(r *Record) { r.Host.MemorySwap = 32 << 20 },
		"only 2 CPUs available":        func(r *Record) { r.Host.NanoCPUs = 3e9 },
		"Nano CPUs and CPU Quota":      func(r *Record) { r.Host.NanoCPUs, r.Host.CPUQuota = 1e9, 5000 },
		"range is 0-100":               func(r *Record) { r.Host.MemorySwappiness = &over },
		"is from 10 to 1000":           func(r *Record) { r.Host.BlkioWeight = 5 },
		"with restart policy":          func(r *Record) { r.Host.AutoRemove, r.Host.RestartPolicy.Name = true, "always" },
		"unknown policy 'nope'":        func(r *Record) { r.Host.RestartPolicy.Name = "nope" },
		"hostname and the UTS mode":    func(r *Record) { r.Config.Hostname, r.Host.UTSMode = "x", "host" },
		"hostname and the network":     func(r *Record) { r.Config.Hostname, r.Host.NetworkMode = "x", "container:y" },
		"invalid CapAdd":               func(r *Record) { r.Host.CapAdd = []string{"NOPE"} },
		"unknown --security-opt":       func(r *Record) { r.Host.SecurityOpt = []string{"nope=1"} },
		"device cgroup rule":           func(r *Record) { r.Host.DeviceCgroupRules = []string{"c 1:2 xyz"} },
		"soft limit must be less":      func(r *Record) { r.Host.Ulimits = []*container.Ulimit{{Name: "nofile", Soft: 5, Hard: 4}} },
		"cannot be negative":           func(r *Record) { r.Restart.Delay = -1 },
	} {
		r := record(nil)
		change(r)
		err := r.Validate(2)
		if want == "" {
			if err != nil {
				t.Errorf("a plain record: %v", err)
			}
			continue
		}
		if !errors.Is(err, errdef.ErrInvalid) || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q in it", err, want)
		}
	}
}
