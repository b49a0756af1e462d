package step

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"

	"dhow/internal/container"
	"dhow/internal/errdef"
	"dhow/internal/sandbox"
	"dhow/internal/sys"

	"github.com/moby/buildkit/solver/pb"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// hostname is what steps see where the Dockerfile says nothing, as with docker.
const hostname = "buildkitsandbox"

// start runs the command in the prepared mounts until it has ended, and
// returns an *ExitError unless its exit code is one that the step allows.
func (s *step) start(ctx context.Context) error {
	user, err := sandbox.LookupUser(s.root, s.op.Meta.User)
	if err != nil {
		return err
	}
	if err := s.emulation(); err != nil {
		return err
	}
	if err := s.connect(ctx); err != nil {
		return err
	}
	if err := s.networkFiles(ctx); err != nil {
		return err
	}
	if err := s.makeCwd(user); err != nil {
		return err
	}
	ofDevices, err := s.devices.mounts()
	if err != nil {
		return err
	}
	if err := s.stubs.place(s.root, slices.Concat(s.mounts, ofDevices)); err != nil {
		return err
	}
	env, err := s.environment(ctx, user.Home)
	if err != nil {
		return err
	}
	spec, err := container.StepSpec(s.containerStep(user, env))
	if err != nil {
		return err
	}
	s.namespaces(spec)
	spec.Linux.Resources = s.limits.apply(spec.Linux.Resources)
	if err := s.devices.inject(spec); err != nil {
		return err
	}
	umask := uint32(0o022) // whatever the user's is: it would be seen in the image
	spec.Process.User.Umask = &umask
	files, err := s.mountFiles(spec.Mounts)
	if err != nil {
		return err
	}
	st, err := s.execute(ctx, sandbox.Config{Spec: spec, Root: s.root, Mounts: files, CgroupName: s.cgroup()})
	if err != nil {
		return err
	}
	return s.judge(st)
}

// containerStep says in the runtime's words what runs.
func (s *step) containerStep(user sandbox.User, env []string) container.Step {
	m := s.op.Meta
	c := container.Step{
		Args: m.Args, Env: env, Cwd: m.Cwd, User: user, Hostname: s.hostname(),
		Network: container.NetworkHost, CgroupParent: m.CgroupParent,
		Insecure: s.op.Security == pb.SecurityMode_INSECURE,
	}
	c.AppArmor, _ = sandbox.LoadDefaultProfile() // a container tells of what is missing
	if s.op.Network == pb.NetMode_NONE {
		c.Network = container.NetworkNone
	}
	for _, mnt := range s.op.Mounts {
		c.ReadOnly = c.ReadOnly || mnt.Dest == pb.RootMount && mnt.Readonly
	}
	for _, u := range m.Ulimit {
		c.Ulimits = append(c.Ulimits, specs.POSIXRlimit{Type: "RLIMIT_" + strings.ToUpper(u.Name), Soft: uint64(u.Soft), Hard: uint64(u.Hard)})
	}
	for _, mnt := range s.mounts {
		c.Mounts = append(c.Mounts, mnt.spec())
	}
	return c
}

func (s *step) hostname() string {
	if h := s.op.Meta.Hostname; h != "" {
		return h
	}
	return hostname
}

// spec is the mount in the runtime's words. A tree's source is a name for
// errors alone: the open file says what is mounted.
func (m stepMount) spec() specs.Mount {
	out := specs.Mount{Destination: m.dest, Options: []string{"nosuid", "nodev"}}
	if m.tree == nil {
		out.Type, out.Source = "tmpfs", "tmpfs"
		out.Options = []string{"nosuid"}
		if m.size > 0 {
			out.Options = append(out.Options, "size="+strconv.FormatInt(m.size, 10))
		}
	} else {
		out.Type, out.Source, out.Options = "bind", m.tree.Name(), []string{"rbind"}
	}
	if m.readonly {
		out.Options = append(out.Options, "ro")
	}
	return out
}

// mountFiles finds the place of each open tree among the spec's mounts.
func (s *step) mountFiles(mounts []specs.Mount) (map[int]*os.File, error) {
	files := make(map[int]*os.File, len(s.mounts))
	for _, m := range s.mounts {
		if m.tree == nil {
			continue
		}
		at := -1
		for i := range mounts {
			if mounts[i].Destination == m.dest && mounts[i].Type == "bind" {
				at = i
			}
		}
		if at < 0 {
			return nil, fmt.Errorf("mount %s: lost on the way to the sandbox", m.dest)
		}
		files[at] = m.tree
	}
	return files, nil
}

// makeCwd makes the working directory where it is missing. It stays in the
// layer, as with docker. Below a mount it is the sandbox's to find.
func (s *step) makeCwd(user sandbox.User) error {
	cwd := path.Join("/", s.op.Meta.Cwd)
	for _, m := range s.mounts {
		if cwd == m.dest || strings.HasPrefix(cwd, m.dest+"/") {
			return nil
		}
	}
	if dir, err := sys.OpenInRoot(s.root, cwd, unix.O_PATH|unix.O_DIRECTORY); err == nil {
		return dir.Close()
	}
	at, err := resolveIn(s.root, cwd)
	if err != nil {
		return fmt.Errorf("working directory %s: %w", cwd, err)
	}
	missing := []string{}
	for p := at; p != "/"; p = path.Dir(p) {
		if _, ok, err := lstatIn(s.root, p); err == nil && ok {
			break
		}
		missing = append(missing, p)
	}
	for _, p := range slices.Backward(missing) {
		if err := makeStub(s.root, p, false); err != nil {
			return &os.PathError{Op: "make the working directory", Path: p, Err: err}
		}
		if err := s.chown(p, user); err != nil {
			return err
		}
	}
	return nil
}

func (s *step) chown(p string, user sandbox.User) error {
	dir, err := openDirIn(s.root, p)
	if err != nil {
		return err
	}
	defer dir.Close()
	return mapped(dir.Chown(int(user.UID), int(user.GID)), user.UID, user.GID)
}

// execute runs the sandbox to its end, or kills it with the context.
func (s *step) execute(ctx context.Context, cfg sandbox.Config) (sandbox.Status, error) {
	var wg sync.WaitGroup
	stdout, err := pipeTo(s.job.Stdout(), &wg)
	if err != nil {
		return sandbox.Status{}, err
	}
	stderr, err := pipeTo(s.job.Stderr(), &wg)
	if err != nil {
		stdout.Close()
		wg.Wait()
		return sandbox.Status{}, err
	}
	cfg.Stdout, cfg.Stderr = stdout, stderr
	p, err := sandbox.Start(ctx, cfg)
	stdout.Close()
	stderr.Close()
	if err != nil {
		wg.Wait()
		return sandbox.Status{}, s.notStarted(ctx, err)
	}
	for _, w := range p.Warnings() {
		s.job.Warn("%s", w)
	}
	stop := context.AfterFunc(ctx, func() {
		// The process is the first of its pid namespace: all others go with it.
		_ = p.Signal(unix.SIGKILL) // it may have ended by itself
	})
	st, err := p.Wait()
	stop()
	wg.Wait()
	if ctx.Err() != nil {
		return st, context.Cause(ctx)
	}
	return st, err
}

// notStarted gives a command that could not be started the form of one that
// ended with the shell's code for it.
func (s *step) notStarted(ctx context.Context, err error) error {
	var start *sandbox.StartError
	if ctx.Err() != nil || !errors.As(err, &start) || start.ExitCode == 125 {
		return err
	}
	err = &ExitError{Args: s.op.Meta.Args, Code: start.ExitCode, Err: err}
	if start.ExitCode == 126 && !native(s.platform) {
		err = noEmulator(s.platform, err)
	}
	return err
}

// pipeTo returns the writing end of a pipe whose bytes go to w.
func pipeTo(w io.Writer, wg *sync.WaitGroup) (*os.File, error) {
	r, in, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("make a pipe for the step's output: %w", err)
	}
	wg.Go(func() {
		defer r.Close()
		if _, err := io.Copy(w, r); err != nil {
			// Whoever takes the output is gone or out of space; the step goes on.
			_, _ = io.Copy(io.Discard, r)
		}
	})
	return in, nil
}

// judge compares how the command ended with what the step allows.
func (s *step) judge(st sandbox.Status) error {
	allowed := s.op.Meta.ValidExitCodes
	if len(allowed) == 0 {
		allowed = []int32{0}
	}
	if slices.Contains(allowed, int32(st.ExitCode)) {
		return nil
	}
	e := &ExitError{Args: s.op.Meta.Args, Code: st.ExitCode}
	if !st.OOMKilled {
		return e
	}
	e.Memory = s.limits.memory
	return errdef.WithHint(errdef.As(errdef.ErrNoSpace, e), "give the step more with --memory")
}
