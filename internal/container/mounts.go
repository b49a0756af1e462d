package container

import (
	"fmt"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"dhow/internal/errdef"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
)

// DecideMounts fills in Mounts from all that asks for one, in docker's order:
// --volumes-from, -v, --mount, then the image's VOLUMEs where nothing is mounted
// yet. from returns the mounts of another container. It is called once, after
// Merge. ErrInvalid for what cannot be read or stands twice.
func (r *Record) DecideMounts(from func(name string) ([]Mount, error)) error {
	d := mountDecision{at: map[string]int{}}
	for _, spec := range r.Host.VolumesFrom {
		if err := d.volumesFrom(spec, from); err != nil {
			return err
		}
	}
	inherited := len(d.mounts)
	for i, bind := range r.Host.Binds {
		if slices.Contains(r.Host.Binds[:i], bind) {
			continue // the same -v twice
		}
		m, err := ParseBind(bind)
		if err != nil {
			return err
		}
		if m.Type == mount.TypeVolume && m.Name != "" {
			m.Driver = first(r.Host.VolumeDriver, m.Driver)
		}
		if err := d.add(m, inherited); err != nil {
			return err
		}
	}
	for _, am := range r.Host.Mounts {
		m, err := parseMount(am)
		if err != nil {
			return err
		}
		if err := d.add(m, inherited); err != nil {
			return err
		}
	}
	for dest := range r.Host.Tmpfs {
		if i, twice := d.at[path.Clean(dest)]; twice && i >= inherited {
			return duplicate(path.Clean(dest))
		}
	}
	d.imageVolumes(r)
	r.Mounts = d.mounts
	return nil
}

// mountDecision collects mounts by their place.
type mountDecision struct {
	mounts []Mount
	at     map[string]int // destination → index
}

// add adds a mount; one that was inherited gives way.
func (d *mountDecision) add(m Mount, inherited int) error {
	if i, there := d.at[m.Destination]; there {
		if i >= inherited {
			return duplicate(m.Destination)
		}
		d.mounts[i] = m
		return nil
	}
	d.put(m)
	return nil
}

func (d *mountDecision) put(m Mount) {
	d.at[m.Destination] = len(d.mounts)
	d.mounts = append(d.mounts, m)
}

func duplicate(dest string) error { return invalid("Duplicate mount point: %s", dest) }

// volumesFrom takes the mounts of another container: NAME[:ro|rw].
func (d *mountDecision) volumesFrom(spec string, from func(string) ([]Mount, error)) error {
	name, mode, _ := strings.Cut(spec, ":")
	if name == "" {
		return invalid("volumes-from specification cannot be an empty string")
	}
	readOnly := false
	for o := range strings.SplitSeq(mode, ",") {
		switch o {
		case "ro":
			readOnly = true
		case "", "rw", "z", "Z":
		default:
			return invalid("invalid mode: %s", mode)
		}
	}
	mounts, err := from(name)
	if err != nil {
		return fmt.Errorf("volumes from %s: %w", name, err)
	}
	for _, m := range mounts {
		if m.Type == mount.TypeTmpfs {
			continue
		}
		if readOnly && m.RW {
			m.RW = false
			m.Options = append(slices.Clone(m.Options), "ro")
		}
		m.Anonymous, m.NoCopy = false, true // it goes with the other one, which has filled it
		if i, there := d.at[m.Destination]; there {
			d.mounts[i] = m
			continue
		}
		d.put(m)
	}
	return nil
}

// imageVolumes adds an anonymous volume for each VOLUME that nothing covers.
func (d *mountDecision) imageVolumes(r *Record) {
	var dests []string
	for v := range r.Config.Volumes {
		dests = append(dests, path.Clean("/"+v))
	}
	slices.Sort(dests)
	for _, dest := range slices.Compact(dests) {
		_, there := d.at[dest]
		_, tmpfs := r.Host.Tmpfs[dest]
		if there || tmpfs || dest == "/" {
			continue
		}
		m := newMount(mount.TypeVolume, dest)
		m.Driver = first(r.Host.VolumeDriver, m.Driver)
		m.Anonymous = true
		d.put(m)
	}
}

// newMount is a mount with docker's defaults. Source, Name and read-only are the
// caller's.
func newMount(t mount.Type, dest string) Mount {
	m := Mount{MountPoint: container.MountPoint{Type: t, Destination: path.Clean(dest), RW: true}}
	switch t {
	case mount.TypeVolume:
		m.Driver = "local"
		m.Options = []string{"rbind", "rprivate"}
	case mount.TypeBind:
		m.Propagation = mount.PropagationRPrivate
		m.Options = []string{"rbind", "rprivate"}
	case mount.TypeImage:
		m.RW = false
		m.Options = []string{"rbind", "rprivate", "ro"}
	case mount.TypeTmpfs:
		m.Options = []string{"noexec", "nosuid", "nodev"}
	}
	return m
}

// ParseBind reads the value of -v with a source: SOURCE:TARGET[:OPTION,…], or a
// target alone, which is an anonymous volume.
func ParseBind(s string) (Mount, error) {
	bad := func(why string) (Mount, error) {
		err := invalid("invalid volume specification: '%s': %s", s, why)
		return Mount{}, errdef.WithHint(err, "write -v /host/path:/path, -v name:/path, and :ro behind it to forbid writing")
	}
	parts := strings.Split(s, ":")
	if len(parts) > 3 {
		return bad("it has too many colons")
	}
	for _, p := range parts {
		if p == "" {
			return bad("it has an empty part")
		}
	}
	source, target := "", parts[0]
	if len(parts) > 1 {
		source, target = parts[0], parts[1]
	}
	if err := validDestination(target); err != nil {
		return bad(err.Error())
	}
	if source == "" {
		m := newMount(mount.TypeVolume, target)
		m.Anonymous = true
		return m, nil
	}
	t := mount.TypeVolume
	if path.IsAbs(source) {
		t = mount.TypeBind
	}
	m := newMount(t, target)
	if t == mount.TypeBind {
		m.Source, m.Create = path.Clean(source), true
	} else {
		if !namePattern.MatchString(source) {
			return bad(fmt.Sprintf("%q includes invalid characters for a local volume name, only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed", source))
		}
		m.Name = source
	}
	if len(parts) == 3 {
		if !m.mode(parts[2]) {
			return Mount{}, errdef.WithHint(invalid("invalid mode: %s", parts[2]), "use ro, rw, z, Z, nocopy, and private, rprivate, shared, rshared, slave or rslave")
		}
	}
	return m, nil
}

// mode applies the options behind -v's second colon, each kind once.
func (m *Mount) mode(mode string) bool {
	m.Mode = mode
	seen := map[string]bool{}
	for o := range strings.SplitSeq(mode, ",") {
		kind := ""
		switch o {
		case "ro", "rw":
			kind = "access"
			if o == "ro" {
				m.readOnly()
			}
		case "z", "Z":
			kind = "label" // for SELinux: accepted, and without effect here
		case "consistent", "cached", "delegated", "default":
			kind = "consistency" // for macOS
		case "nocopy", "copy":
			kind = "copy"
			if m.Type != mount.TypeVolume {
				return false
			}
			m.NoCopy = o == "nocopy"
		default:
			if !slices.Contains(mount.Propagations, mount.Propagation(o)) || m.Type != mount.TypeBind {
				return false
			}
			kind = "propagation"
			m.propagate(mount.Propagation(o))
		}
		if seen[kind] {
			return false
		}
		seen[kind] = true
	}
	return true
}

func (m *Mount) readOnly() {
	m.RW = false
	m.Options = append(m.Options, "ro")
}

func (m *Mount) propagate(p mount.Propagation) {
	m.Propagation = p
	m.Options[slices.Index(m.Options, "rprivate")] = string(p)
}

// parseMount turns a value of --mount into a mount.
func parseMount(am mount.Mount) (Mount, error) {
	bad := func(format string, args ...any) (Mount, error) {
		return Mount{}, invalid("invalid mount config for type %q: %w", am.Type, invalid(format, args...))
	}
	if am.Target == "" {
		return bad("field Target must not be empty")
	}
	if err := validDestination(am.Target); err != nil {
		return bad("%w", err)
	}
	m := newMount(am.Type, am.Target)
	if am.ReadOnly && am.Type != mount.TypeImage {
		m.readOnly()
	}
	switch am.Type {
	case mount.TypeBind:
		return m.bind(am, bad)
	case mount.TypeVolume:
		return m.volume(am, bad)
	case mount.TypeImage:
		if am.Source == "" {
			return bad("field Source must not be empty")
		}
		m.Source = am.Source
		if o := am.ImageOptions; o != nil {
			m.Subpath = o.Subpath
		}
		if m.Subpath != "" && !filepath.IsLocal(m.Subpath) {
			return bad("subpath must be a relative path within the volume")
		}
	case mount.TypeTmpfs:
		if am.Source != "" {
			return bad("field Source must not be specified")
		}
		return m.tmpfs(am.TmpfsOptions, bad)
	default:
		return bad("mount type unknown")
	}
	return m, nil
}

func (m Mount) bind(am mount.Mount, bad func(string, ...any) (Mount, error)) (Mount, error) {
	switch {
	case am.Source == "":
		return bad("field Source must not be empty")
	case !path.IsAbs(am.Source):
		return bad("invalid mount path: '%s' mount path must be absolute", am.Source)
	}
	m.Source = path.Clean(am.Source)
	if o := am.BindOptions; o != nil {
		if o.Propagation != "" {
			if !slices.Contains(mount.Propagations, o.Propagation) {
				return bad("invalid propagation mode: %s", o.Propagation)
			}
			m.propagate(o.Propagation)
		}
		if o.NonRecursive {
			m.Options[0] = "bind"
		}
		m.Create = o.CreateMountpoint
	}
	return m, nil
}

func (m Mount) volume(am mount.Mount, bad func(string, ...any) (Mount, error)) (Mount, error) {
	m.Name, m.Anonymous = am.Source, am.Source == ""
	if m.Name != "" && !namePattern.MatchString(m.Name) {
		return bad("%q includes invalid characters for a local volume name, only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed", m.Name)
	}
	o := am.VolumeOptions
	if o == nil {
		return m, nil
	}
	if o.Subpath != "" {
		if m.Anonymous {
			return bad("must not set Subpath when using anonymous volumes")
		}
		if !filepath.IsLocal(o.Subpath) {
			return bad("subpath must be a relative path within the volume")
		}
	}
	m.NoCopy, m.Subpath, m.Volume.Labels = o.NoCopy, o.Subpath, o.Labels
	if d := o.DriverConfig; d != nil {
		m.Driver = first(d.Name, m.Driver)
		m.Volume.DriverOptions = d.Options
	}
	return m, nil
}

func (m Mount) tmpfs(o *mount.TmpfsOptions, bad func(string, ...any) (Mount, error)) (Mount, error) {
	if o == nil {
		return m, nil
	}
	if o.Mode != 0 {
		m.Options = append(m.Options, fmt.Sprintf("mode=%o", o.Mode))
	}
	if o.SizeBytes != 0 {
		m.Options = append(m.Options, fmt.Sprintf("size=%d", o.SizeBytes))
	}
	for _, opt := range o.Options {
		if len(opt) != 1 || opt[0] != "exec" && opt[0] != "noexec" {
			return bad("invalid option: %s", strings.Join(opt, "="))
		}
		m.Options = append(m.Options, opt[0])
	}
	return m, nil
}

// validDestination accepts where something may be mounted.
func validDestination(p string) error {
	if path.Clean(p) == "/" {
		return invalid("invalid specification: destination can't be '/'")
	}
	if !path.IsAbs(p) {
		return invalid("invalid mount path: '%s' mount path must be absolute", p)
	}
	return nil
}
