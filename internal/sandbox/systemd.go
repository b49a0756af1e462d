package sandbox

import (
	"fmt"
	"os"
	"path"
	"runtime"
	"slices"
	"strings"

	"dhow/internal/errdef"

	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/cgroups/systemd"
)

// Where systemd runs the machine, the cgroups below its slices are its own to
// make: a name such as "a-b.slice/c-12" stands for a scope of systemd's there,
// which it is asked for and which is delegated to us. It is of version 2, and
// entered and left like any other.

// Unit is a scope of systemd's.
type Unit struct {
	Slice  string // "a-b.slice"
	Prefix string // of the scope's name, ours
	Name   string // "c-12"; the scope is PREFIX-NAME.scope
	// Path is where it is below the root of the hierarchy.
	Path string
}

// unitPrefix begins the names of our scopes.
const unitPrefix = "dhow"

// UnitOf is the scope that a cgroup's name stands for; ok is false for a name
// that means the directory. Unit.Path as a name gives the same.
func UnitOf(name string) (u Unit, ok bool) {
	parts := strings.FieldsFunc(name, func(r rune) bool { return r == '/' })
	n := 0
	for n < len(parts) && strings.HasSuffix(parts[n], ".slice") {
		n++
	}
	rest := parts[n:]
	if len(rest) > 1 && rest[0] == unitPrefix {
		rest = rest[1:]
	}
	if n == 0 || len(rest) != 1 {
		return Unit{}, false
	}
	u = Unit{Slice: parts[n-1], Prefix: unitPrefix, Name: strings.TrimSuffix(strings.TrimPrefix(rest[0], unitPrefix+"-"), ".scope")}
	slice, err := systemd.ExpandSlice(u.Slice)
	u.Path = path.Join(slice, u.Prefix+"-"+u.Name+".scope")
	return u, err == nil
}

// Check refuses a scope that systemd could not be asked for.
func (u Unit) Check(inUserNS bool) error {
	const path = "give a path such as /name for --cgroup-parent"
	refuse := func(why, hint string) error {
		return errdef.WithHint(errdef.New(errdef.ErrUnsupported, "make a scope in %s: %s", u.Slice, why), "%s", hint)
	}
	switch {
	case inUserNS:
		return refuse("the machine's systemd takes orders from root alone",
			"run dhow under \"systemd-run --user --scope -p Delegate=yes\", without --cgroup-parent")
	case !systemd.IsRunningSystemd():
		return refuse("systemd does not run on this machine", path)
	case !cgroup2():
		return refuse("that needs cgroup version 2 alone", path)
	}
	return nil
}

// manager speaks with systemd about the scope.
func (u Unit) manager(res *cgroups.Resources) (cgroups.Manager, error) {
	config := &cgroups.Cgroup{Parent: u.Slice, ScopePrefix: u.Prefix, Name: u.Name, Systemd: true, Resources: res}
	return systemd.NewUnifiedManager(config, path.Join(cgroupRoot, u.Path))
}

// holdPlace starts a process that does nothing: systemd makes no scope without
// one.
func holdPlace() (*os.Process, error) {
	b := &builder{}
	defer b.close()
	program, err := b.machineProgram("dhow-place", placeCode())
	if err != nil {
		return nil, err
	}
	return os.StartProcess("/proc/self/fd/3", []string{"dhow-place"}, &os.ProcAttr{Dir: "/", Files: []*os.File{nil, nil, nil, program}})
}

// placeCode waits for ever: pause(2), or ppoll(2) of nothing.
func placeCode() []byte {
	if runtime.GOARCH == "arm64" {
		return slices.Concat(
			[]byte{0x00, 0x00, 0x80, 0xd2}, []byte{0x01, 0x00, 0x80, 0xd2}, []byte{0x02, 0x00, 0x80, 0xd2}, // mov x0…x4, 0
			[]byte{0x03, 0x00, 0x80, 0xd2}, []byte{0x04, 0x00, 0x80, 0xd2},
			[]byte{0x28, 0x09, 0x80, 0xd2}, []byte{0x01, 0x00, 0x00, 0xd4}, // mov x8, 73; svc 0
			[]byte{0xf9, 0xff, 0xff, 0x17}) // b back
	}
	return []byte{0xb8, 34, 0, 0, 0, 0x0f, 0x05, 0xeb, 0xf7} // mov eax, 34; syscall; jmp back
}

// place makes the cgroup of a unit.
func (c *cgroup) place() error {
	holder, err := holdPlace()
	if err != nil {
		return fmt.Errorf("hold the place of a process: %w", err)
	}
	c.holder = holder
	return c.manager.Apply(holder.Pid)
}

// leavePlace ends what has held the place of the process, which is there now.
func (c *cgroup) leavePlace() {
	if c == nil || c.holder == nil {
		return
	}
	_ = c.holder.Kill()    // it has ended
	_, _ = c.holder.Wait() // as above
	c.holder = nil
}
