// Package cdi gives devices to containers and build steps as the Container Device
// Interface describes them (cncf-tags/container-device-interface, SPEC.md v1.1.0):
// a vendor's file in /etc/cdi or /var/run/cdi says which nodes, mounts and
// variables a name such as nvidia.com/gpu=0 stands for.
//
// It runs nothing. The hooks that a description may ask for become part of the OCI
// spec, and whoever runs that spec has to run or refuse them.
//
// A container: names come from Resolve, at each start, since descriptions change
// with drivers. A build step does the same with the names of its --device, before
// its spec goes to package sandbox; OfKind and Annotations are for those names that
// stand for several devices.
//
// Invariant: a spec gets all the devices that were asked for, or an error.
package cdi

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"dhow/internal/errdef"
	"dhow/internal/sys"

	"github.com/moby/moby/api/types/container"
	"github.com/opencontainers/runtime-spec/specs-go"
	"tags.cncf.io/container-device-interface/pkg/cdi"
	"tags.cncf.io/container-device-interface/pkg/parser"
)

// Devices are those that a machine's descriptions know. Safe for concurrent use.
type Devices struct {
	cache *cdi.Cache
	dirs  []string
}

// Open reads the descriptions in dirs, the later ones more important; those that
// cannot be read are told when a device is missing. nil is SpecDirs.
func Open(dirs []string) (*Devices, error) {
	if dirs == nil {
		var err error
		if dirs, err = SpecDirs(os.Getenv); err != nil {
			return nil, err
		}
	}
	cache, err := cdi.NewCache(cdi.WithSpecDirs(dirs...), cdi.WithAutoRefresh(false))
	if err != nil {
		return nil, fmt.Errorf("read the descriptions of devices in %s: %w", strings.Join(dirs, ", "), err)
	}
	return &Devices{cache, dirs}, nil
}

// SpecDirs are the directories of docker's daemon.json ("cdi-spec-dirs") in
// $DOCKER_CONFIG, ~/.config/docker or /etc/docker, the first that names any; else
// /etc/cdi and /var/run/cdi. ErrInvalid for a file that cannot be understood.
func SpecDirs(env func(string) string) ([]string, error) {
	for _, dir := range sys.DockerDirs(env, "/etc") {
		path := filepath.Join(dir, "daemon.json")
		data, err := sys.ReadSettings(path)
		if err != nil {
			return nil, err
		}
		var doc struct {
			Dirs []string `json:"cdi-spec-dirs"`
		}
		if len(data) > 0 {
			if err := json.Unmarshal(data, &doc); err != nil {
				return nil, errdef.New(errdef.ErrInvalid, "read %s: %w", path, err)
			}
		}
		if len(doc.Dirs) > 0 {
			return doc.Dirs, nil
		}
	}
	return slices.Clone(cdi.DefaultSpecDirs), nil
}

// IsName tells a device's name, VENDOR/CLASS=NAME, from a path.
func IsName(text string) bool { return parser.IsQualifiedName(text) }

// Request asks for devices by their names, as docker's API has it.
func Request(names []string) container.DeviceRequest {
	return container.DeviceRequest{Driver: driverCDI, DeviceIDs: names}
}

// Drivers of a request.
const (
	driverCDI    = "cdi"
	driverNVIDIA = "nvidia"
)

// The kinds of graphics processors, by name.
const (
	kindNVIDIA = "nvidia.com/gpu"
	kindAMD    = "amd.com/gpu"
)

// CheckRequest refuses what Resolve never could: ErrUnsupported, ErrInvalid.
func CheckRequest(r container.DeviceRequest) error {
	switch r.Driver {
	case driverCDI:
		for _, name := range r.DeviceIDs {
			if _, _, _, err := parser.ParseQualifiedName(name); err != nil {
				return errdef.New(errdef.ErrInvalid, "device %s: %w", name, err)
			}
		}
		return nil
	case "", driverNVIDIA:
	default:
		return errdef.WithHint(errdef.New(errdef.ErrUnsupported, "device driver %q: devices are given by their CDI descriptions, with no driver", r.Driver),
			"use --device VENDOR/CLASS=NAME")
	}
	for _, all := range r.Capabilities {
		for _, capability := range all {
			if capability != "gpu" {
				return errdef.WithHint(errdef.New(errdef.ErrUnsupported, "device capability %q: a GPU has what its CDI description says", capability),
					"leave capabilities out")
			}
		}
	}
	if len(r.Capabilities) == 0 {
		return errdef.New(errdef.ErrInvalid, "a device request without driver and capabilities")
	}
	if len(r.Options) > 0 {
		return errdef.New(errdef.ErrUnsupported, "device options %v: there is no driver that knows them", slices.Sorted(maps.Keys(r.Options)))
	}
	return nil
}

// Resolve says which devices are asked for. One for GPUs without names means those
// of NVIDIA, else of AMD: all of them, or the first so many. ErrNotFound if this
// machine describes none.
func (d *Devices) Resolve(requests []container.DeviceRequest) ([]string, error) {
	var names []string
	for _, r := range requests {
		if err := CheckRequest(r); err != nil {
			return nil, err
		}
		if r.Driver == driverCDI {
			names = append(names, r.DeviceIDs...)
			continue
		}
		kind := kindNVIDIA
		if r.Driver == "" && len(d.OfKind(kindNVIDIA)) == 0 && len(d.OfKind(kindAMD)) > 0 {
			kind = kindAMD
		}
		if len(d.OfKind(kind)) == 0 {
			return nil, errdef.WithHint(d.missing("GPUs"), "nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml describes NVIDIA's")
		}
		switch {
		case len(r.DeviceIDs) > 0:
			for _, id := range r.DeviceIDs {
				names = append(names, kind+"="+id)
			}
		case r.Count < 0:
			names = append(names, kind+"=all")
		default:
			for i := range r.Count {
				names = append(names, kind+"="+strconv.Itoa(i))
			}
		}
	}
	return names, nil
}

// Inject adds devices to a spec: nodes and the right to use them, mounts,
// variables, groups, hooks. It may reorder Mounts. ErrNotFound names a device that
// no description has.
func (d *Devices) Inject(spec *specs.Spec, names []string) error {
	for _, name := range names {
		if d.cache.GetDevice(name) == nil {
			err := d.missing("device " + name)
			if known := d.Names(); len(known) > 0 {
				err = errdef.WithHint(err, "there are %s", strings.Join(known, ", "))
			}
			return err
		}
	}
	if _, err := d.cache.InjectDevices(spec, names...); err != nil {
		return fmt.Errorf("add devices %s: %w", strings.Join(names, ", "), err)
	}
	return nil
}

// FirstHook is the path of a program that is to be run beside the container; "" if
// there is none.
func FirstHook(h *specs.Hooks) string {
	if h == nil {
		return ""
	}
	//lint:ignore SA1019 a description may have it all the same
	all := slices.Concat(h.Prestart, h.CreateRuntime, h.CreateContainer, h.StartContainer, h.Poststart, h.Poststop)
	if len(all) == 0 {
		return ""
	}
	return all[0].Path
}

// missing says that something is not described, and which descriptions could not
// be read.
func (d *Devices) missing(what string) error {
	err := errdef.New(errdef.ErrNotFound, "%s: not described in %s", what, strings.Join(d.dirs, ", "))
	broken := d.cache.GetErrors()
	for _, path := range slices.Sorted(maps.Keys(broken)) {
		err = fmt.Errorf("%w; %s: %w", err, path, errors.Join(broken[path]...))
	}
	return err
}

// Names are all devices, sorted.
func (d *Devices) Names() []string { return d.cache.ListDevices() }

// OfKind are the names of all devices of a VENDOR/CLASS.
func (d *Devices) OfKind(kind string) []string {
	return slices.DeleteFunc(d.Names(), func(name string) bool { return !strings.HasPrefix(name, kind+"=") })
}

// Annotations are what a device's description says beside what to do; those of
// the device above those of its file. nil for a device that is not described.
func (d *Devices) Annotations(name string) map[string]string {
	dev := d.cache.GetDevice(name)
	if dev == nil {
		return nil
	}
	all := maps.Clone(dev.GetSpec().Annotations)
	if all == nil {
		all = map[string]string{}
	}
	maps.Copy(all, dev.Annotations)
	return all
}
