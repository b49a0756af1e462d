// Package ociruntime runs a container by an OCI runtime, a program with the
// command line of runc (crun, runsc), where the sandbox of our own is not
// wanted. It makes the bundle out of the same sandbox.Config, and hands back
// the container's first process as a sandbox.Process, so that everything but
// starting, signals and further processes is as with our own.
//
// It is not a runtime, and chooses none: whoever calls it says which.
//
// Invariant: what a runtime keeps is in the container's own directory, and the
// trees that it is given are mounted in a mount namespace that ends with its
// create command, so nothing is left mounted, whoever is killed when.
package ociruntime

import (
	"cmp"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"dhow/internal/errdef"
	"dhow/internal/sys"
)

// Own is the name of the sandbox that is dhow's own, which is no Runtime.
const Own = "dhow"

// Runtime is a program with the command line of runc.
type Runtime struct {
	Name string   // as it was asked for: "runc", a name in daemon.json, a path
	Path string   // of the program, absolute
	Args []string `json:",omitempty"` // in front of every command
}

// known are the runtimes that are found by their names alone.
func known() []string { return []string{"runc", "crun", "runsc", "youki"} }

// Find finds the runtime that name stands for: a path, a name in one of docker's
// daemon.json files, or one of the known runtimes in PATH; containerd's names
// for runc and runsc mean these. ErrInvalid for a name that stands for nothing,
// ErrUnsupported for a shim of containerd's that is no such program.
func Find(name string, getenv func(string) string) (Runtime, error) {
	if filepath.IsAbs(name) {
		if err := executable(name); err != nil {
			return Runtime{}, errdef.New(errdef.ErrInvalid, "runtime %s: %w", name, err)
		}
		return Runtime{Name: name, Path: name}, nil
	}
	configured, err := configured(getenv)
	if err != nil {
		return Runtime{}, err
	}
	if c, ok := configured[name]; ok {
		return c.runtime(name, getenv)
	}
	program := name
	switch {
	case strings.HasPrefix(name, "io.containerd.runc."), name == "io.containerd.runtime.v1.linux":
		program = "runc"
	case strings.HasPrefix(name, "io.containerd.runsc."):
		program = "runsc"
	case strings.HasPrefix(name, "io.containerd."):
		return Runtime{}, errdef.WithHint(errdef.New(errdef.ErrUnsupported, "runtime %s: it is a shim of containerd's, which dhow does not run", name),
			"name an OCI runtime, such as runc, crun, runsc, or its path")
	}
	if slices.Contains(known(), program) {
		if path, ok := lookPath(program, getenv); ok {
			return Runtime{Name: name, Path: path}, nil
		}
		return Runtime{}, errdef.WithHint(errdef.New(errdef.ErrInvalid, "unknown or invalid runtime name: %s: the program %s is not installed", name, program),
			"install it, give its path, or leave --runtime out: dhow's own sandbox needs no other program")
	}
	return Runtime{}, errdef.WithHint(errdef.New(errdef.ErrInvalid, "unknown or invalid runtime name: %s", name),
		"give the path of a program, %s, or a name among \"runtimes\" in /etc/docker/daemon.json", strings.Join(known(), ", "))
}

// List returns the runtimes that are to be had, by name: those of daemon.json
// and the known ones in PATH.
func List(getenv func(string) string) ([]Runtime, error) {
	configured, err := configured(getenv)
	if err != nil {
		return nil, err
	}
	var out []Runtime
	for name, c := range configured {
		if r, err := c.runtime(name, getenv); err == nil {
			out = append(out, r)
		}
	}
	for _, name := range known() {
		if path, ok := lookPath(name, getenv); ok && configured[name] == nil {
			out = append(out, Runtime{Name: name, Path: path})
		}
	}
	slices.SortFunc(out, func(a, b Runtime) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}

// setting is a value of "runtimes" in docker's daemon.json.
type setting struct {
	Path    string   `json:"path"`
	Args    []string `json:"runtimeArgs"`
	Type    string   `json:"runtimeType"`
	Options struct {
		BinaryName string
	} `json:"options"`
}

// runtime is the program that a setting means.
func (c *setting) runtime(name string, getenv func(string) string) (Runtime, error) {
	r := Runtime{Name: name, Path: cmp.Or(c.Path, c.Options.BinaryName), Args: c.Args}
	if r.Path == "" && strings.HasPrefix(c.Type, "io.containerd.runc.") {
		r.Path = "runc"
	}
	if r.Path == "" {
		return r, errdef.New(errdef.ErrUnsupported, "runtime %s: %q is a shim of containerd's, which dhow does not run", name, c.Type)
	}
	if !filepath.IsAbs(r.Path) {
		path, ok := lookPath(r.Path, getenv)
		if !ok {
			return r, errdef.New(errdef.ErrInvalid, "runtime %s: the program %s is not installed", name, r.Path)
		}
		r.Path = path
	}
	if err := executable(r.Path); err != nil {
		return r, errdef.New(errdef.ErrInvalid, "runtime %s: %w", name, err)
	}
	return r, nil
}

// configured reads "runtimes" of the daemon.json files, of which the user's
// comes first. What else they say is for docker's daemon: "default-runtime"
// above all does not count here.
func configured(getenv func(string) string) (map[string]*setting, error) {
	out := map[string]*setting{}
	for _, dir := range sys.DockerDirs(getenv, "/etc") {
		var doc struct {
			Runtimes map[string]*setting `json:"runtimes"`
		}
		if _, err := sys.ReadJSONSettings(filepath.Join(dir, "daemon.json"), &doc); err != nil {
			return nil, err
		}
		for name, c := range doc.Runtimes {
			if out[name] == nil && c != nil {
				out[name] = c
			}
		}
	}
	return out, nil
}

// lookPath finds a program in PATH, and where an ordinary user's PATH does not
// lead but distributions put runtimes.
func lookPath(name string, getenv func(string) string) (string, bool) {
	if strings.Contains(name, "/") {
		return "", false
	}
	for _, dir := range append(filepath.SplitList(getenv("PATH")), "/usr/local/sbin", "/usr/sbin", "/sbin") {
		if path := filepath.Join(dir, name); filepath.IsAbs(path) && executable(path) == nil {
			return path, true
		}
	}
	return "", false
}

func executable(path string) error {
	_, err := exec.LookPath(path)
	var why *exec.Error
	if errors.As(err, &why) {
		err = why.Err
	}
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}
