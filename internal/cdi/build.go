package cdi

import (
	"maps"
	"slices"
	"strconv"
	"strings"

	"dhow/internal/errdef"

	"github.com/moby/buildkit/util/entitlements"
)

// Settings say what builds may know of a machine's devices. The zero value is
// docker's: descriptions in SpecDirs.
type Settings struct {
	Disabled bool
	Dirs     []string // of descriptions; nil: SpecDirs
	// AutoAllowed are devices and kinds of them that each build may have which asks.
	AutoAllowed []string
}

// Annotations by which a description speaks of builds, BuildKit's.
const (
	annotationClass     = "org.mobyproject.buildkit.device.class"
	annotationAutoAllow = "org.mobyproject.buildkit.device.autoallow"
)

// Wanted is what a step says about a device: VENDOR/CLASS=NAME, VENDOR/CLASS for
// the first of a kind, VENDOR/CLASS=* for all, or a class that descriptions name.
type Wanted struct {
	Name     string
	Optional bool
}

// CheckEntitlement refuses an entitlement for devices that cannot be read:
// "device", "device=NAME" or "device=NAME,alias=WANTED". ErrInvalid.
func CheckEntitlement(text string) error {
	_, err := granted([]string{text})
	return err
}

// IsEntitlement tells entitlements for devices from others.
func IsEntitlement(text string) bool { return text == "device" || strings.HasPrefix(text, "device=") }

// granted joins the entitlements for devices in a list of any.
func granted(allow []string) (*entitlements.DevicesConfig, error) {
	all := &entitlements.DevicesConfig{Devices: map[string]string{}}
	for _, text := range allow {
		if !IsEntitlement(text) {
			continue
		}
		_, rest, _ := strings.Cut(text, "=")
		c, err := entitlements.ParseDevicesConfig(rest)
		if err == nil {
			err = all.Merge(c)
		}
		if err != nil {
			return nil, errdef.New(errdef.ErrInvalid, "entitlement %s: %w", text, err)
		}
	}
	return all, nil
}

// Grant says which devices a step gets that wants some, in a build with these
// entitlements. Optional ones that are not described are left out. ErrNotFound
// for one that is not, ErrDenied for one that was not allowed.
func (s Settings) Grant(wanted []Wanted, allow []string) (*Devices, []string, error) {
	if len(wanted) == 0 {
		return nil, nil, nil
	}
	if s.Disabled {
		for _, w := range wanted {
			if !w.Optional {
				return nil, nil, errdef.New(errdef.ErrDenied, "device %s: devices are disabled", w.Name)
			}
		}
		return nil, nil, nil
	}
	may, err := granted(allow)
	if err != nil {
		return nil, nil, err
	}
	d, err := Open(s.Dirs)
	if err != nil {
		return nil, nil, err
	}
	names, err := d.grant(wanted, may, s.AutoAllowed)
	return d, names, err
}

func (d *Devices) grant(wanted []Wanted, may *entitlements.DevicesConfig, auto []string) ([]string, error) {
	var names, forbidden []string
	allowed := map[string]bool{}
	for name, real := range may.Devices {
		for _, n := range append(d.find(name), d.find(real)...) {
			allowed[n] = true
		}
	}
	for _, w := range wanted {
		name := w.Name
		if real := may.Devices[name]; real != "" {
			name = real // the build says what its frontend's word stands for
		}
		found := d.find(name)
		if len(found) == 0 && !w.Optional {
			err := d.missing("required device \"" + name + "\" is not registered")
			if known := d.Names(); len(known) > 0 {
				err = errdef.WithHint(err, "there are %s", strings.Join(known, ", "))
			}
			return nil, err
		}
		for _, n := range found {
			if slices.Contains(names, n) || slices.Contains(forbidden, n) {
				continue
			}
			if may.All || allowed[n] || d.AutoAllowed(n, auto) {
				names = append(names, n)
			} else {
				forbidden = append(forbidden, n)
			}
		}
	}
	switch len(forbidden) {
	case 0:
		return names, nil
	case 1:
		return nil, errdef.WithHint(errdef.New(errdef.ErrDenied, "device %s is requested by the build but not allowed", forbidden[0]),
			"build with --allow device=%s", forbidden[0])
	}
	return nil, errdef.WithHint(errdef.New(errdef.ErrDenied, "devices %s are requested by the build but not allowed", strings.Join(forbidden, ", ")),
		"build with --allow device")
}

// find returns the devices that a step's words stand for, sorted.
func (d *Devices) find(name string) []string {
	kind, one, _ := strings.Cut(name, "=")
	var found []string
	switch of := d.OfKind(kind); {
	case name == "":
	case one == "*":
		found = of
	case one == "" && len(of) > 0:
		found = of[:1]
	case slices.Contains(of, name):
		found = []string{name}
	}
	if len(found) > 0 || name == "" {
		return found
	}
	return slices.DeleteFunc(slices.Clone(d.Names()), func(n string) bool { return d.Annotations(n)[annotationClass] != name })
}

// AutoAllowed tells whether any build may have a device, because its description
// says so or one of the names is the device or its kind.
func (d *Devices) AutoAllowed(name string, names []string) bool {
	kind, _, _ := strings.Cut(name, "=")
	if slices.Contains(names, name) || slices.Contains(names, kind) {
		return true
	}
	ok, err := strconv.ParseBool(d.Annotations(name)[annotationAutoAllow])
	return err == nil && ok
}

// Known are all devices with their annotations; none when they are disabled.
func (s Settings) Known() (d *Devices, annotations map[string]map[string]string, err error) {
	if s.Disabled {
		return nil, nil, nil
	}
	if d, err = Open(s.Dirs); err != nil {
		return nil, nil, err
	}
	annotations = map[string]map[string]string{}
	for _, n := range d.Names() {
		annotations[n] = maps.Clone(d.Annotations(n))
	}
	return d, annotations, nil
}
