package engine

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"dhow/internal/container"
	"dhow/internal/errdef"
	"dhow/internal/image"
	"dhow/internal/oci"
	"dhow/internal/sandbox"
	"dhow/internal/snapshot"
	"dhow/internal/sys"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// RunRequest is what `dhow run` is asked for: one container in the foreground,
// whose changes are thrown away when it ends.
type RunRequest struct {
	Image    string
	Platform oci.Platform // zero: the host's
	Pull     string       // "missing" (or ""), "always", "never"
	Progress image.ProgressFunc

	Name string // taken as long as the container runs; "" makes one up
	User string // "name", "uid", "uid:gid"; "" is the image's
	// Options hold everything else that shapes the container. Image, User and
	// the host's devices are filled in here.
	Options  container.Options
	Volumes  []Volume
	AddHosts []string // "name:ip"
	// DNS, DNSSearch and DNSOptions replace what the host's resolv.conf says.
	DNS, DNSSearch, DNSOptions []string
	Init                       bool

	// ConsoleSize is the terminal's first size, so that a program that asks at
	// once gets it; nil is unknown.
	ConsoleSize *specs.Box

	Stdin          *os.File // nil: nothing to read
	Stdout, Stderr *os.File
	// Started is called with the process once it runs. With a TTY the caller
	// serves Process.Console.
	Started func(*sandbox.Process)
	// Warn takes sentences for the user.
	Warn func(string)
}

// Volume is a directory or file of the host, or a named volume, in a container.
type Volume struct {
	Source   string // absolute path, or a volume's name; "" makes a volume that goes with the container
	Target   string // absolute
	ReadOnly bool
	// NoCopy leaves a new named volume empty. Otherwise it begins with what the
	// image has at Target.
	NoCopy bool
	// Create makes a missing directory of the host, as -v does and --mount does not.
	Create bool
	// Propagation is "rprivate" (or ""), "private", "rslave", …
	Propagation string
	NoRecursive bool
}

// RunError is why a container did not start, with the status that docker's
// command line exits with.
type RunError struct {
	Status int
	Err    error
}

func (e *RunError) Error() string { return e.Err.Error() }
func (e *RunError) Unwrap() error { return e.Err }

// ExitStatus is what the command line exits with.
func (e *RunError) ExitStatus() int { return e.Status }

// notStarted is the status for everything that fails before the program does.
const notStarted = 125

// Run runs a container and returns how its process ended. Errors are a
// *RunError.
func (e *Engine) Run(ctx context.Context, r RunRequest) (sandbox.Status, error) {
	st, err := e.run(ctx, &r)
	if err == nil {
		return st, nil
	}
	var start *sandbox.StartError
	if errors.As(err, &start) {
		return st, &RunError{start.ExitCode, err}
	}
	return st, &RunError{notStarted, err}
}

func (e *Engine) run(ctx context.Context, r *RunRequest) (sandbox.Status, error) {
	if err := e.Store.Lease(ctx); err != nil {
		return sandbox.Status{}, err
	}
	img, err := e.runImage(ctx, r)
	if err != nil {
		return sandbox.Status{}, err
	}
	var config oci.Image
	if err := json.Unmarshal(img.Config, &config); err != nil {
		return sandbox.Status{}, errdef.New(errdef.ErrInvalid, "read the image's configuration: %w", err)
	}
	r.Options.Image = config.Config.ImageConfig
	if r.Name == "" {
		r.Name = newBuildID()
	} else if err := checkName("container", r.Name); err != nil {
		return sandbox.Status{}, err
	}
	unlock, err := e.holdName(r.Name)
	if err != nil {
		return sandbox.Status{}, err
	}
	defer unlock()
	active, err := e.Snapshots.Begin(ctx, img.chain)
	if err != nil {
		return sandbox.Status{}, err
	}
	defer active.Discard() // also removed by the next command, should this one be killed
	root, err := active.Mount()
	if err != nil {
		return sandbox.Status{}, err
	}
	cfg, cleanup, err := e.runConfig(ctx, r, root)
	defer cleanup()
	if err != nil {
		return sandbox.Status{}, err
	}
	proc, err := sandbox.Start(ctx, cfg)
	if err != nil {
		return sandbox.Status{}, err
	}
	for _, w := range proc.Warnings() {
		r.warn(w)
	}
	defer e.lendLease(ctx, img.chain)()
	if r.Started != nil {
		r.Started(proc)
	}
	return proc.Wait()
}

// lendLease lets other commands prune while a container runs on: its layers are
// pinned in the store instead. Containers that end sooner are not worth the
// write. The returned function ends it.
func (e *Engine) lendLease(ctx context.Context, chain snapshot.Chain) (stop func()) {
	const soon = 2 * time.Second
	done := make(chan struct{})
	t := time.AfterFunc(soon, func() {
		defer close(done)
		if e.Store.PinLayers(ctx, chain) == nil {
			_ = e.Store.Release() // keeping the lease is right, too: prune then waits
		}
	})
	return func() {
		if !t.Stop() {
			<-done
		}
	}
}

func (r *RunRequest) warn(s string) {
	if r.Warn != nil {
		r.Warn(s)
	}
}

// runnable is an image made ready to run.
type runnable struct {
	image.Resolved
	chain snapshot.Chain
}

// runImage finds the image, pulling it as --pull says.
func (e *Engine) runImage(ctx context.Context, r *RunRequest) (*runnable, error) {
	p := r.Platform
	if p.OS == "" {
		p = oci.HostPlatform()
	}
	if oci.IsID(r.Image) || r.Pull == "never" || r.Pull == "" || r.Pull == "missing" {
		img, err := e.Images.Lookup(ctx, r.Image, p)
		if err == nil {
			return &runnable{image.Resolved{ID: img.ID, Config: img.Config}, image.Chain(img)}, nil
		}
		if !errors.Is(err, errdef.ErrNotFound) || r.Pull == "never" {
			return nil, err
		}
		r.warn(fmt.Sprintf("Unable to find image '%s' locally", r.Image))
	}
	pulled, err := e.Images.Pull(ctx, r.Image, image.PullOptions{Platform: p, Progress: r.Progress})
	if err != nil {
		return nil, err
	}
	img := pulled.Image
	return &runnable{image.Resolved{ID: img.ID, Config: img.Config}, image.Chain(img)}, nil
}

// holdName makes the name this process's until it ends.
func (e *Engine) holdName(name string) (func(), error) {
	lock, ok, err := e.Store.TryLock("container " + name)
	if err != nil {
		return nil, err
	}
	if !ok {
		err := errdef.New(errdef.ErrConflict, "the container name %q is in use by a running container", name)
		return nil, errdef.WithHint(err, "choose another --name, or stop the other one")
	}
	return func() { _ = lock.Unlock() }, nil // closing a lock file loses nothing
}

// runConfig decides the spec and makes the files that it mounts. cleanup is
// never nil.
func (e *Engine) runConfig(ctx context.Context, r *RunRequest, root *os.File) (cfg sandbox.Config, cleanup func(), err error) {
	cleanup = func() {}
	o := &r.Options
	user := r.User
	if user == "" {
		user = o.Image.User
	}
	if o.User, err = sandbox.LookupUser(root, user); err != nil {
		return cfg, cleanup, err
	}
	if o.Hostname == "" {
		o.Hostname = r.Name
		if o.Network == container.NetworkHost {
			if o.Hostname, err = os.Hostname(); err != nil {
				return cfg, cleanup, err
			}
		}
	}
	dir, err := e.Store.TempDir("run-")
	if err != nil {
		return cfg, cleanup, err
	}
	cleanup = func() { _ = sys.RemoveAll(dir) } // it is the process's temporary directory
	volumes, err := e.volumeMounts(ctx, append(imageVolumes(o, r.Volumes), r.Volumes...), root, dir)
	if err != nil {
		return cfg, cleanup, err
	}
	o.Mounts = append(o.Mounts, volumes...)
	files, err := r.networkFiles(dir)
	if err != nil {
		return cfg, cleanup, err
	}
	o.Mounts = append(files, o.Mounts...)
	if o.Privileged {
		if o.HostDevices, err = hostDevices(); err != nil {
			return cfg, cleanup, err
		}
	}
	spec, err := container.Spec(*o)
	if err != nil {
		return cfg, cleanup, err
	}
	if o.TTY {
		spec.Process.ConsoleSize = r.ConsoleSize
	}
	cfg = sandbox.Config{
		Spec: spec, Root: root, Stdin: r.Stdin, Stdout: r.Stdout, Stderr: r.Stderr,
		TTY: o.TTY, InitProcess: r.Init,
	}
	if o.Resources != (container.Resources{}) || o.CgroupParent != "" {
		cfg.CgroupName = "dhow/" + e.Store.ProcID() + "-run"
	}
	return cfg, cleanup, nil
}

// networkFiles writes /etc/hosts, /etc/hostname and /etc/resolv.conf beside the
// container, and returns their mounts.
func (r *RunRequest) networkFiles(dir string) ([]specs.Mount, error) {
	o := &r.Options
	host, err := os.ReadFile("/etc/resolv.conf")
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("read the host's name servers: %w", err)
	}
	hosts := container.Hosts(o.Hostname, o.Domainname, nil, r.AddHosts)
	if o.Network == container.NetworkHost {
		// The host's own names are part of its network, as with docker.
		if own, err := os.ReadFile("/etc/hosts"); err == nil {
			hosts = hostHosts(own, r.AddHosts)
		}
	}
	var mounts []specs.Mount
	for name, data := range map[string][]byte{
		"hosts":       hosts,
		"hostname":    container.Hostname(o.Hostname),
		"resolv.conf": container.ResolvConf(host, o.Network, r.DNS, r.DNSSearch, r.DNSOptions),
	} {
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, data, 0o644); err != nil {
			return nil, err
		}
		if err := os.Chmod(file, 0o644); err != nil { // whatever the umask
			return nil, err
		}
		mounts = append(mounts, specs.Mount{Destination: "/etc/" + name, Type: "bind", Source: file, Options: []string{"rbind", "rprivate"}})
	}
	return mounts, nil
}

// hostHosts is the host's /etc/hosts with "name:ip" entries behind it.
func hostHosts(own []byte, extra []string) []byte {
	own = bytes.Clone(own)
	if len(own) > 0 && own[len(own)-1] != '\n' {
		own = append(own, '\n')
	}
	for _, e := range extra {
		name, ip, _ := strings.Cut(e, ":")
		own = fmt.Appendf(own, "%s\t%s\n", ip, name)
	}
	return own
}

// volumeMounts makes what volumes need to exist and returns their mounts.
func (e *Engine) volumeMounts(ctx context.Context, list []Volume, root *os.File, temp string) ([]specs.Mount, error) {
	var mounts []specs.Mount
	for i, v := range list {
		source := v.Source
		var err error
		switch {
		case source == "":
			source = filepath.Join(temp, fmt.Sprint("volume-", i))
			err = e.fillVolume(ctx, source, root, v)
		case !filepath.IsAbs(source):
			source, err = e.namedVolume(ctx, root, v)
		default:
			err = hostDir(v)
		}
		if err != nil {
			return nil, err
		}
		bind := "rbind"
		if v.NoRecursive {
			bind = "bind"
		}
		propagation := v.Propagation
		if propagation == "" {
			propagation = "rprivate"
		}
		m := specs.Mount{Destination: v.Target, Type: "bind", Source: source, Options: []string{bind, propagation}}
		if v.ReadOnly {
			m.Options = append(m.Options, "ro")
		}
		mounts = append(mounts, m)
	}
	return mounts, nil
}

// hostDir checks the host's side of a bind mount.
func hostDir(v Volume) error {
	if _, err := os.Stat(v.Source); err == nil {
		return nil
	} else if !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("mount %s: %w", v.Source, err)
	}
	if !v.Create {
		err := errdef.New(errdef.ErrNotFound, "mount %s: no such file or directory on this machine", v.Source)
		return errdef.WithHint(err, "create it first, or use -v %s:%s, which does", v.Source, v.Target)
	}
	return os.MkdirAll(v.Source, 0o755)
}

// namedVolume opens the volume of that name, making it the first time: it is
// filled beside its place and then moved there, so that it is never half full.
func (e *Engine) namedVolume(ctx context.Context, root *os.File, v Volume) (string, error) {
	if err := checkName("volume", v.Source); err != nil {
		return "", errdef.WithHint(err, "write an absolute path to mount a directory")
	}
	dir := filepath.Join(e.Store.Root(), "volumes", v.Source)
	lock, err := e.Store.Lock(ctx, "volume "+v.Source)
	if err != nil {
		return "", err
	}
	defer lock.Unlock()
	if _, err := os.Stat(dir); err == nil {
		return dir, nil
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o700); err != nil {
		return "", err
	}
	temp, err := e.Store.TempDir("volume-")
	if err != nil {
		return "", err
	}
	fresh := filepath.Join(temp, "data")
	if err := e.fillVolume(ctx, fresh, root, v); err != nil {
		return "", err
	}
	if err := os.Rename(fresh, dir); err != nil {
		return "", fmt.Errorf("make volume %s: %w", v.Source, err)
	}
	return dir, nil
}

// fillVolume makes a volume's directory with what the image has at its target.
func (e *Engine) fillVolume(ctx context.Context, dir string, root *os.File, v Volume) error {
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	if v.NoCopy {
		return nil
	}
	src, err := sys.OpenInRoot(root, v.Target, unix.O_RDONLY|unix.O_DIRECTORY)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return nil
	}
	if err != nil {
		return err
	}
	defer src.Close()
	if err := copyTree(ctx, src, dir); err != nil {
		return fmt.Errorf("fill the volume at %s: %w", v.Target, err)
	}
	return nil
}

// Drain copies a terminal's output until its process has ended.
func Drain(w io.Writer, console *os.File) error {
	_, err := io.Copy(w, console)
	if errors.Is(err, unix.EIO) { // how a terminal says that nobody holds the other side
		return nil
	}
	return err
}
