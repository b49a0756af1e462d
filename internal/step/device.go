package step

import (
	"os"
	"path"

	"dhow/internal/cdi"
	"dhow/internal/errdef"

	"github.com/moby/buildkit/solver/pb"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// devices are those that a step was granted.
type devices struct {
	known *cdi.Devices
	names []string
}

// devices decides which devices the step gets.
func (d *Deps) devices(op *pb.ExecOp) (devices, error) {
	var wanted []cdi.Wanted
	for _, dev := range op.CdiDevices {
		wanted = append(wanted, cdi.Wanted{Name: dev.GetName(), Optional: dev.GetOptional()})
	}
	known, names, err := d.Devices.Grant(wanted, d.Allow)
	return devices{known, names}, err
}

// mounts are where the devices have files of the machine; they need a place in
// the step's root, which no layer must show.
func (d devices) mounts() ([]stepMount, error) {
	if len(d.names) == 0 {
		return nil, nil
	}
	edits := &specs.Spec{Process: &specs.Process{}, Linux: &specs.Linux{}}
	if err := d.inject(edits); err != nil {
		return nil, err
	}
	var mounts []stepMount
	for _, m := range edits.Mounts {
		st, err := os.Stat(m.Source)
		if err != nil {
			return nil, errdef.New(errdef.ErrNotFound, "device %s: its description wants a mount: %w", d.names[0], err)
		}
		mounts = append(mounts, stepMount{dest: path.Clean(m.Destination), isFile: !st.IsDir()})
	}
	return mounts, nil
}

// inject adds the devices to a spec.
func (d devices) inject(spec *specs.Spec) error {
	if len(d.names) == 0 {
		return nil
	}
	if err := d.known.Inject(spec, d.names); err != nil {
		return err
	}
	if hook := cdi.FirstHook(spec.Hooks); hook != "" {
		return errdef.New(errdef.ErrUnsupported, "device %s: its description wants the program %s to be run, which build steps do not do", d.names[0], hook)
	}
	return nil
}
