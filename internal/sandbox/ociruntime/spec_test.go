package ociruntime

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"dhow/internal/errdef"
	"dhow/internal/sandbox"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/runtime-spec/specs-go"
)

func plainFacts() facts {
	return facts{
		root: "/b/rootfs", cgroup: "/dhow/c", self: 42, oomScore: -1000, caps: sandbox.Capabilities(),
		rlimit: func(int) (uint64, bool) { return 1024, false },
	}
}

func TestAdapt(t *testing.T) {
	limit := int64(1 << 20)
	for _, tt := range []struct {
		name     string
		facts    func(*facts)
		in       specs.Spec
		want     func(*testing.T, *specs.Spec)
		warnings int
	}{
		{name: "descriptors become paths for others",
			facts: func(f *facts) { f.sources = map[int]string{1: "/b/mounts/1"} },
			in: specs.Spec{
				Mounts: []specs.Mount{
					{Destination: "/a", Type: "bind", Source: "/proc/self/fd/7", Options: []string{"rbind"}},
					{Destination: "/b", Source: "v", Options: []string{"ro"}},
				},
				Linux: &specs.Linux{Namespaces: []specs.LinuxNamespace{{Type: specs.NetworkNamespace, Path: "/proc/self/fd/5"}, {Type: specs.PIDNamespace}}},
			},
			want: func(t *testing.T, s *specs.Spec) {
				want(t, s.Mounts, []specs.Mount{
					{Destination: "/a", Type: "bind", Source: "/proc/42/fd/7", Options: []string{"rbind"}},
					{Destination: "/b", Type: "bind", Source: "/b/mounts/1", Options: []string{"ro", "rbind"}},
				})
				want(t, s.Linux.Namespaces, []specs.LinuxNamespace{{Type: specs.NetworkNamespace, Path: "/proc/42/fd/5"}, {Type: specs.PIDNamespace}})
				want(t, s.Root, &specs.Root{Path: "/b/rootfs"})
				want(t, s.Linux.CgroupsPath, "/dhow/c")
				want(t, s.Version, "1.0.2")
			}},
		{name: "limits above ours are lowered, where they cannot be raised",
			facts: func(f *facts) { f.rlimit = func(int) (uint64, bool) { return 1024, true } },
			in: specs.Spec{Process: &specs.Process{Rlimits: []specs.POSIXRlimit{
				{Type: "RLIMIT_NOFILE", Soft: 5000, Hard: 6000}, {Type: "RLIMIT_CORE", Soft: 1, Hard: 2}}}},
			want: func(t *testing.T, s *specs.Spec) {
				want(t, s.Process.Rlimits, []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 1024, Hard: 1024}, {Type: "RLIMIT_CORE", Soft: 1, Hard: 2}})
			}, warnings: 1},
		{name: "an OOM score that we may not set",
			facts: func(f *facts) { f.oomScore = 0 },
			in:    specs.Spec{Process: &specs.Process{OOMScoreAdj: ptr(-5)}},
			want:  func(t *testing.T, s *specs.Spec) { want(t, s.Process.OOMScoreAdj, nil) }, warnings: 1},
		{name: "capabilities that we do not have",
			facts: func(f *facts) { f.caps = []string{"CAP_CHOWN"} },
			in: specs.Spec{Process: &specs.Process{Capabilities: &specs.LinuxCapabilities{
				Bounding: []string{"CAP_CHOWN", "CAP_KILL"}, Effective: []string{"CAP_KILL"}}}},
			want: func(t *testing.T, s *specs.Spec) {
				want(t, s.Process.Capabilities.Bounding, []string{"CAP_CHOWN"})
				want(t, len(s.Process.Capabilities.Effective), 0)
			}, warnings: 1},
		{name: "all capabilities are those that there are",
			facts: func(f *facts) { f.caps = []string{"CAP_CHOWN"} },
			in:    specs.Spec{Process: &specs.Process{Capabilities: &specs.LinuxCapabilities{Bounding: sandbox.Capabilities()}}},
			want: func(t *testing.T, s *specs.Spec) {
				want(t, s.Process.Capabilities.Bounding, []string{"CAP_CHOWN"})
			}},
		{name: "no cgroup, no limits",
			facts: func(f *facts) { f.cgroup = "" },
			in:    specs.Spec{Linux: &specs.Linux{Resources: &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &limit}}}},
			want:  func(t *testing.T, s *specs.Spec) { want(t, s.Linux.Resources.Memory, nil) }, warnings: 1},
		{name: "a user namespace that owns no network",
			facts: func(f *facts) { f.inUserNS, f.noTTYGID = true, true },
			in: specs.Spec{
				Mounts: []specs.Mount{
					{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"ro"}},
					{Destination: "/proc", Type: "proc", Source: "proc"},
					{Destination: "/dev/pts", Type: "devpts", Options: []string{"gid=5", "mode=0620"}},
				},
				Linux: &specs.Linux{Namespaces: []specs.LinuxNamespace{{Type: specs.PIDNamespace}}},
			},
			want: func(t *testing.T, s *specs.Spec) {
				want(t, s.Mounts, []specs.Mount{
					{Destination: "/sys", Type: "bind", Source: "/sys", Options: []string{"rbind", "rprivate", "ro"}},
					{Destination: "/proc", Type: "proc", Source: "proc"},
					{Destination: "/dev/pts", Type: "devpts", Options: []string{"mode=0620"}},
				})
			}},
		{name: "a shared mount opens the root",
			in:   specs.Spec{Mounts: []specs.Mount{{Destination: "/a", Type: "bind", Source: "/a", Options: []string{"rbind", "rslave"}}, {Destination: "/b", Type: "bind", Source: "/b", Options: []string{"rbind", "rshared"}}}},
			want: func(t *testing.T, s *specs.Spec) { want(t, s.Linux.RootfsPropagation, "shared") }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := plainFacts()
			if tt.facts != nil {
				tt.facts(&f)
			}
			if tt.in.Process == nil {
				tt.in.Process = &specs.Process{}
			}
			got, warnings, err := adapt(&tt.in, f)
			if err != nil {
				t.Fatal(err)
			}
			tt.want(t, got)
			if len(warnings) != tt.warnings {
				t.Errorf("got warnings %q, want %d", warnings, tt.warnings)
			}
		})
	}
}

func ptr[T any](v T) *T { return &v }

func want[T any](t *testing.T, got, want T) {
	t.Helper()
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
}

func TestFind(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"runc", "mine"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "plain"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	config := `{"default-runtime": "kata", "runtimes": {
		"fast": {"path": "mine", "runtimeArgs": ["--debug"]},
		"named": {"runtimeType": "io.containerd.runc.v2", "options": {"BinaryName": "` + dir + `/mine"}},
		"kata": {"runtimeType": "io.containerd.kata.v2"},
		"gone": {"path": "/nonexistent"}}}`
	if err := os.WriteFile(filepath.Join(dir, "daemon.json"), []byte(config), 0o644); err != nil {
		t.Fatal(err)
	}
	env := func(name string) string {
		return map[string]string{"PATH": dir, "DOCKER_CONFIG": dir}[name]
	}
	for _, tt := range []struct {
		name string
		want Runtime
		err  error
	}{
		{name: "runc", want: Runtime{Name: "runc", Path: dir + "/runc"}},
		{name: "io.containerd.runc.v2", want: Runtime{Name: "io.containerd.runc.v2", Path: dir + "/runc"}},
		{name: dir + "/mine", want: Runtime{Name: dir + "/mine", Path: dir + "/mine"}},
		{name: "fast", want: Runtime{Name: "fast", Path: dir + "/mine", Args: []string{"--debug"}}},
		{name: "named", want: Runtime{Name: "named", Path: dir + "/mine"}},
		{name: "kata", err: errdef.ErrUnsupported},
		{name: "io.containerd.kata.v2", err: errdef.ErrUnsupported},
		{name: "gone", err: errdef.ErrInvalid},
		{name: "youki", err: errdef.ErrInvalid},
		{name: "mine", err: errdef.ErrInvalid}, // not every program is a runtime
		{name: dir + "/plain", err: errdef.ErrInvalid},
		{name: "./runc", err: errdef.ErrInvalid},
		{name: "", err: errdef.ErrInvalid},
	} {
		got, err := Find(tt.name, env)
		if tt.err != nil {
			if !errors.Is(err, tt.err) {
				t.Errorf("%q: got %v, want %v", tt.name, err, tt.err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%q: %v", tt.name, err)
		}
		want(t, got, tt.want)
	}
	list, err := List(env)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, r := range list {
		names = append(names, r.Name)
	}
	for _, name := range []string{"fast", "named", "runc"} {
		if !contains(names, name) {
			t.Errorf("list: got %v, want %s among them", names, name)
		}
	}
	if contains(names, "kata") || contains(names, "gone") {
		t.Errorf("list: got %v, without what cannot be used", names)
	}
}

func contains(list []string, s string) bool {
	for _, v := range list {
		if v == s {
			return true
		}
	}
	return false
}

func TestStartError(t *testing.T) {
	for text, want := range map[string]int{
		`runc create failed: unable to start container process: exec: "x": executable file not found in $PATH`: 127,
		`exec: "/x": stat /x: no such file or directory`:                                                       127,
		`executable file ` + "`x`" + ` not found in $PATH: No such file or directory`:                          127, // crun
		`starting sandbox: error finding executable "x" in PATH [/bin]: no such file or directory`:             127, // runsc
		`unable to start container process: exec: "/etc/passwd": permission denied`:                            126,
		`creating process: failed to load /etc/passwd: permission denied`:                                      126,
		`error mounting "/a" to rootfs at "/b": not a directory`:                                               125,
		`unable to apply cgroup configuration: permission denied`:                                              125,
	} {
		wantStatus(t, startError("x create", text), want)
	}
}
