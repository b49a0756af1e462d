package ociruntime

import (
	"cmp"
	"fmt"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"dhow/internal/errdef"
	"dhow/internal/sandbox"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// facts are what the machine adds to a spec.
type facts struct {
	root        string         // where the root file system is mounted
	sources     map[int]string // where sources of mounts are, by index
	cgroup      string         // path; "" leaves it to the runtime, which may go without
	cgroupsPath string         // what the spec says of it; "" is the path
	self        int            // our process id, for descriptors of ours
	inUserNS    bool
	noTTYGID    bool // group 5 is not mapped
	rlimit      func(resource int) (hard uint64, fixed bool)
	oomScore    int      // the least that we may set
	caps        []string // those that we may give
	appArmor    bool     // the kernel has it
}

// specVersion is that of the runtime specification which runtimes are told: older
// ones refuse one that they do not know, and nothing newer is used.
const specVersion = "1.0.2"

// adapt turns a spec that our own sandbox would have taken into one for another
// program: with paths in place of descriptors, and without what we know that
// this machine refuses, of which the warnings tell.
func adapt(in *specs.Spec, f facts) (out *specs.Spec, warnings []string, err error) {
	s := *in
	s.Version = specVersion
	l := specs.Linux{}
	if in.Linux != nil {
		l = *in.Linux
	}
	s.Linux = &l
	s.Root = &specs.Root{Path: f.root, Readonly: in.Root != nil && in.Root.Readonly}
	if l.MaskedPaths, err = sandbox.ExpandPaths(l.MaskedPaths); err != nil {
		return nil, nil, err
	}
	l.CgroupsPath = cmp.Or(f.cgroupsPath, f.cgroup)
	if f.cgroup == "" && limited(l.Resources) {
		warnings = append(warnings, sandbox.NoLimits)
		l.Resources = &specs.LinuxResources{Devices: l.Resources.Devices}
	}
	own := map[specs.LinuxNamespaceType]bool{}
	l.Namespaces = slices.Clone(l.Namespaces)
	for i, ns := range l.Namespaces {
		own[ns.Type] = true
		l.Namespaces[i].Path = otherSelf(ns.Path, f.self)
	}
	s.Mounts = slices.Clone(s.Mounts)
	for i := range s.Mounts {
		if err := adaptMount(&s.Mounts[i], f.sources[i], own, f); err != nil {
			return nil, nil, err
		}
		propagate(&l, s.Mounts[i])
	}
	process, more := adaptProcess(in.Process, f)
	s.Process = process
	return &s, append(warnings, more...), nil
}

// limited tells whether a spec limits anything but devices.
func limited(r *specs.LinuxResources) bool {
	return r != nil && (r.Memory != nil || r.CPU != nil || r.Pids != nil || r.BlockIO != nil || len(r.HugepageLimits) > 0 || len(r.Unified) > 0)
}

// otherSelf is a path below /proc/self for another process to use.
func otherSelf(name string, self int) string {
	if rest, ok := strings.CutPrefix(name, "/proc/self/"); ok {
		return fmt.Sprintf("/proc/%d/%s", self, rest)
	}
	return name
}

// adaptMount fits one mount.
func adaptMount(m *specs.Mount, source string, own map[specs.LinuxNamespaceType]bool, f facts) error {
	if source != "" {
		m.Source = source
	}
	if source != "" || m.Type == "bind" {
		m.Type = "bind"
		m.Options = slices.Clone(m.Options)
		if !slices.Contains(m.Options, "bind") && !slices.Contains(m.Options, "rbind") {
			m.Options = append(m.Options, "rbind")
		}
		if m.Source = otherSelf(m.Source, f.self); !filepath.IsAbs(m.Source) {
			return errdef.New(errdef.ErrInvalid, "mount on %s: the source %q is not absolute", m.Destination, m.Source)
		}
		return nil
	}
	if !f.inUserNS {
		return nil
	}
	switch { // as a new mount is refused in a user namespace that does not own what it shows
	case m.Type == "sysfs" && !own[specs.NetworkNamespace]:
		bindTree(m, "/sys")
	case m.Type == "proc" && !own[specs.PIDNamespace]:
		bindTree(m, "/proc")
	case m.Type == "mqueue" && !own[specs.IPCNamespace]:
		bindTree(m, "/dev/mqueue")
	case m.Type == "devpts" && f.noTTYGID:
		m.Options = slices.DeleteFunc(slices.Clone(m.Options), func(o string) bool { return strings.HasPrefix(o, "gid=") })
	}
	return nil
}

// bindTree shows a tree of the machine's in place of a new file system.
func bindTree(m *specs.Mount, source string) {
	m.Type, m.Source = "bind", source
	m.Options = append([]string{"rbind", "rprivate"}, m.Options...)
}

// propagate lets the container's root take part in what a mount shares, as docker
// does: a runtime cuts it off otherwise.
func propagate(l *specs.Linux, m specs.Mount) {
	for _, o := range m.Options {
		switch o {
		case "shared", "rshared":
			l.RootfsPropagation = "shared"
		case "slave", "rslave":
			if l.RootfsPropagation == "" {
				l.RootfsPropagation = "rslave"
			}
		}
	}
}

// shares tells whether mounts come and go through a mount.
func shares(m specs.Mount) bool {
	return slices.ContainsFunc(m.Options, func(o string) bool {
		return o == "shared" || o == "rshared" || o == "slave" || o == "rslave"
	})
}

// adaptProcess fits the process, a container's first or a further one, to what
// a runtime may do on this machine.
func adaptProcess(in *specs.Process, f facts) (*specs.Process, []string) {
	p := *in
	var warnings []string
	if p.Cwd == "" {
		p.Cwd = "/"
	}
	p.Cwd = path.Clean(p.Cwd)
	p.Rlimits = slices.Clone(p.Rlimits)
	for i := range p.Rlimits {
		r := &p.Rlimits[i]
		number, ok := sandbox.RlimitNumber(r.Type)
		if !ok {
			continue // the runtime says so
		}
		if hard, fixed := f.rlimit(number); fixed && r.Hard > hard {
			r.Hard, r.Soft = hard, min(r.Soft, hard)
			warnings = append(warnings, fmt.Sprintf("ulimit %s: kept at the hard limit of %d, because raising it needs CAP_SYS_RESOURCE",
				strings.ToLower(strings.TrimPrefix(r.Type, "RLIMIT_")), hard))
		}
	}
	if in.Capabilities != nil {
		p.Capabilities = adaptCaps(in.Capabilities, f.caps, &warnings)
	}
	if p.ApparmorProfile != "" && !f.appArmor {
		warnings = append(warnings, sandbox.NoProfile(p.ApparmorProfile))
		p.ApparmorProfile = ""
	}
	if score := p.OOMScoreAdj; score != nil && *score < f.oomScore {
		warnings = append(warnings, fmt.Sprintf("the OOM score of %d is not set: lowering it needs CAP_SYS_RESOURCE", *score))
		p.OOMScoreAdj = nil
	}
	return &p, warnings
}

// adaptCaps leaves out the capabilities that we do not have. Where all were asked
// for, those that exist here are meant.
func adaptCaps(in *specs.LinuxCapabilities, have []string, warnings *[]string) *specs.LinuxCapabilities {
	keep := func(names []string) []string {
		return slices.DeleteFunc(slices.Clone(names), func(n string) bool { return !slices.Contains(have, n) })
	}
	if len(in.Bounding) < len(sandbox.Capabilities()) {
		for _, n := range in.Bounding {
			if !slices.Contains(have, n) {
				*warnings = append(*warnings, n+" is left out: this process does not have it itself")
			}
		}
	}
	return &specs.LinuxCapabilities{Bounding: keep(in.Bounding), Effective: keep(in.Effective),
		Permitted: keep(in.Permitted), Inheritable: keep(in.Inheritable), Ambient: keep(in.Ambient)}
}

// rlimitOf is a hard limit of ours, and whether it cannot be raised.
func rlimitOf(mayRaise bool) func(int) (uint64, bool) {
	return func(resource int) (uint64, bool) {
		var have unix.Rlimit
		if err := unix.Getrlimit(resource, &have); err != nil {
			return 0, false
		}
		return have.Max, !mayRaise
	}
}
