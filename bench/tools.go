package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// A build is one invocation of a build command.
type build struct {
	context string
	tag     string
	noCache bool
	push    bool
}

// A tool is one program under measurement. What it cannot do is nil.
type tool struct {
	name       string
	version    string
	versionCmd command
	base       func() error // loads busybox, so that FROM and run need no registry
	fresh      func() error // goes on with a new, empty store; the old one stays (see store)
	build      func(b build) command
	cache      func(b build, ref string) command // a build that takes its cache to a registry
	run        func(image string, args ...string) command
	ping       command // asks a server for next to nothing, through buildctl; none: it is no server of that
	pull       func(ref string) command
	copy       func(ref string) command // into a directory, without unpacking
	push       func(tag string) command
	cli        func(args ...string) command // any command; nil: no containers in the background
	runFlags   []string                     // what every run and create needs on this machine
	port       string                       // of the machine, that no other tool publishes
	keepers    func() []int                 // processes that are there for running containers, not theirs
	daemons    func() []int                 // processes whose memory counts; nil: none
	stop       func()
}

// A store is the directory of a tool's state, and its successors. None is
// removed before the end: for minutes after a large removal ext4 looks for
// inodes that were not in use lately (recently_deleted), which made the next
// measurement three times as long.
type store struct {
	base string
	n    int
}

func (s *store) dir() string { return fmt.Sprintf("%s-%d", s.base, s.n) }

// next moves on to an empty directory.
func (s *store) next() error {
	s.n++
	return os.MkdirAll(s.dir(), 0o755)
}

// findTools returns dhow and every peer that is installed and starts.
func findTools(o options, fix *fixtures) []*tool {
	tools := []*tool{newDhow(o.dhow, fix)}
	// The same client on dhow's server and on BuildKit's.
	served := func(fix *fixtures) (*tool, error) {
		return buildctlTool(fix, "dhow buildkitd", versionOf(o.dhow, "version"), o.dhow, "buildkitd")
	}
	for _, peer := range []func(*fixtures) (*tool, error){served, newDocker, newBuildKit, newPodman, newBuildah, newSkopeo} {
		t, err := peer(fix)
		if err != nil {
			fmt.Fprintln(os.Stderr, "left out:", err)
			continue
		}
		tools = append(tools, t)
	}
	for i, t := range tools {
		t.port = strconv.Itoa(18099 + i)
	}
	return tools
}

func newDhow(program string, fix *fixtures) *tool {
	root := &store{base: filepath.Join(fix.work, "dhow")}
	cmd := func(args ...string) command {
		return command{args: append([]string{program}, args...), env: []string{"DHOW_ROOT=" + root.dir()}}
	}
	copies := 0
	return &tool{
		name: "dhow", version: versionOf(program, "version"), versionCmd: cmd("version"),
		base: func() error {
			_, err := cmd("load", "-q", "-i", filepath.Join(fix.archives, "busybox.tar")).run()
			return err
		},
		fresh: root.next,
		build: func(b build) command {
			args := []string{"build", "--progress=quiet", "-t", b.tag}
			args = append(args, when(b.noCache, "--no-cache")...)
			return cmd(append(append(args, when(b.push, "--push")...), b.context)...)
		},
		cache: func(b build, ref string) command {
			return cmd("build", "--progress=quiet", "-t", b.tag, "--cache-to", "type=dhow,ignore-error=false,ref="+ref+",cache-mounts=bench", b.context)
		},
		run: func(image string, args ...string) command {
			return cmd(append([]string{"run", "--rm", "--network", "none", image}, args...)...)
		},
		pull: func(ref string) command { return cmd("pull", "-q", ref) },
		copy: func(ref string) command {
			copies++
			return cmd("image", "copy", ref, fmt.Sprintf("oci:%s/copy-%d", root.dir(), copies))
		},
		push:    func(tag string) command { return cmd("push", "-q", tag) },
		cli:     cmd,
		keepers: func() []int { return processes("dhow supervise", fix.work) },
		stop: func() {
			// What an interrupted row has left.
			_, _ = command{args: []string{"sh", "-c", program + " rm -f $(" + program + " ps -aq)"}, env: []string{"DHOW_ROOT=" + root.dir()}}.run()
		},
	}
}

// newDocker starts a dockerd of our own, with a store and a socket of its own. A dockerd of today wants a containerd beside it and builds
// through buildx.
func newDocker(fix *fixtures) (*tool, error) {
	if err := installed("dockerd", "docker", "containerd", "runc"); err != nil {
		return nil, err
	}
	dir := filepath.Join(fix.work, "docker")
	if err := os.MkdirAll(filepath.Join(dir, "config", "cli-plugins"), 0o755); err != nil {
		return nil, err
	}
	if buildx, err := exec.LookPath("buildx"); err == nil {
		_ = os.Symlink(buildx, filepath.Join(dir, "config", "cli-plugins", "docker-buildx"))
	}
	socket := "unix://" + filepath.Join(dir, "sock")
	env := []string{"DOCKER_HOST=" + socket, "DOCKER_BUILDKIT=1", "DOCKER_CONFIG=" + filepath.Join(dir, "config")}
	cmd := func(args ...string) command { return command{args: append([]string{"docker"}, args...), env: env} }
	server := &server{dir: dir, store: store{base: filepath.Join(dir, "root")}, probe: cmd("version"), line: func(root string) []string {
		return []string{"dockerd", "--data-root", root, "--exec-root", filepath.Join(dir, "exec"), "--pidfile", filepath.Join(dir, "pid"),
			"-H", socket, "--insecure-registry", fix.registry}
	}}
	if err := server.start(); err != nil {
		return nil, err
	}
	return &tool{
		name: "docker", version: versionOf("dockerd", "--version") + "; client " + versionOf("docker", "--version"), versionCmd: command{args: []string{"docker", "--version"}},
		base:  ignoreOutput(cmd("load", "-q", "-i", filepath.Join(fix.archives, "busybox.tar"))),
		fresh: server.fresh,
		build: func(b build) command {
			line := `docker build -q --network host ` + strings.Join(when(b.noCache, "--no-cache"), "") + ` -t "$0" "$1"`
			if b.push {
				line += ` && docker push -q "$0"`
			}
			return command{args: []string{"sh", "-c", line, b.tag, b.context}, env: env}
		},
		run: func(image string, args ...string) command {
			// Hard limits above ours cannot be set without CAP_SYS_RESOURCE.
			return cmd(append([]string{"run", "--rm", "--network", "none", "--ulimit", "nofile=1024:1024", image}, args...)...)
		},
		pull:     func(ref string) command { return cmd("pull", "-q", ref) },
		push:     func(tag string) command { return cmd("push", "-q", tag) },
		cli:      cmd,
		runFlags: []string{"--ulimit", "nofile=1024:1024"},
		keepers:  func() []int { return append(server.pids(), processes("containerd-shim", fix.work)...) },
		daemons:  server.pids,
		stop:     server.stop,
	}, nil
}

// newBuildKit starts a buildkitd of our own.
func newBuildKit(fix *fixtures) (*tool, error) {
	if err := installed("buildkitd", "runc"); err != nil {
		return nil, err
	}
	return buildctlTool(fix, "buildkit", versionOf("buildkitd", "--version"), "buildkitd")
}

// buildctlTool starts a program that takes buildkitd's command line and drives it
// through buildctl. A build's result stays in its cache, which is the least it can
// do.
func buildctlTool(fix *fixtures, name, version string, program ...string) (*tool, error) {
	if err := installed("buildctl"); err != nil {
		return nil, err
	}
	dir := filepath.Join(fix.work, strings.ReplaceAll(name, " ", "-"))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	config := fmt.Sprintf("[registry.\"docker.io\"]\n  mirrors = [%q]\n[registry.%q]\n  http = true\n", fix.registry, fix.registry)
	toml := filepath.Join(dir, "buildkitd.toml")
	if err := os.WriteFile(toml, []byte(config), 0o644); err != nil {
		return nil, err
	}
	socket := "unix://" + filepath.Join(dir, "sock")
	cmd := func(args ...string) command {
		return command{args: append([]string{"buildctl", "--addr", socket}, args...)}
	}
	server := &server{dir: dir, store: store{base: filepath.Join(dir, "root")}, probe: cmd("debug", "workers"), line: func(root string) []string {
		return append(program[:len(program):len(program)], "--root", root, "--addr", socket, "--config", toml, "--containerd-worker=false", "--oci-worker-gc=false")
	}}
	if err := server.start(); err != nil {
		return nil, err
	}
	return &tool{
		name: name, version: version, versionCmd: command{args: []string{"buildctl", "--version"}},
		base:  func() error { return nil },
		fresh: server.fresh,
		ping:  cmd("debug", "workers"),
		build: func(b build) command {
			args := []string{"build", "--progress=plain", "--frontend", "dockerfile.v0", "--local", "context=" + b.context, "--local", "dockerfile=" + b.context}
			args = append(args, when(b.noCache, "--no-cache")...)
			return cmd(append(args, when(b.push, "--output", "type=image,name="+b.tag+",push=true,registry.insecure=true")...)...)
		},
		cache: func(b build, ref string) command {
			return cmd("build", "--progress=plain", "--frontend", "dockerfile.v0", "--local", "context="+b.context, "--local", "dockerfile="+b.context,
				"--export-cache", "type=registry,mode=max,ref="+ref+":cache")
		},
		daemons: server.pids,
		stop:    server.stop,
	}, nil
}

func newPodman(fix *fixtures) (*tool, error) {
	if err := installed("podman", "runc"); err != nil {
		return nil, err
	}
	t, podman := containersTool(fix, []string{"podman", "--cgroup-manager", "cgroupfs", "--runtime", "runc"}, nil)
	t.base = func() error {
		_, err := podman("load", "-q", "-i", filepath.Join(fix.archives, "busybox.tar")).run()
		return err
	}
	t.cli, t.runFlags = podman, []string{"--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024"}
	t.keepers = func() []int { return processes("conmon", fix.work) }
	t.run = func(image string, args ...string) command {
		return podman(append([]string{"run", "--rm", "--network", "none", "--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024", image}, args...)...)
	}
	return t, nil
}

func newBuildah(fix *fixtures) (*tool, error) {
	if err := installed("buildah", "runc"); err != nil {
		return nil, err
	}
	t, buildah := containersTool(fix, []string{"buildah"}, []string{"--runtime", "runc"})
	t.base = func() error {
		_, err := buildah("pull", "-q", "docker-archive:"+filepath.Join(fix.archives, "busybox.tar")).run()
		return err
	}
	return t, nil
}

// newSkopeo copies images into a directory, unpacked by nobody; it builds nothing.
func newSkopeo(fix *fixtures) (*tool, error) {
	if err := installed("skopeo"); err != nil {
		return nil, err
	}
	root := &store{base: filepath.Join(fix.work, "skopeo")}
	copies := 0
	into := func(ref string) command {
		copies++
		return command{args: []string{"skopeo", "copy", "-q", "--src-tls-verify=false", "docker://" + ref, fmt.Sprintf("dir:%s/%d", root.dir(), copies)}}
	}
	return &tool{
		name: "skopeo", version: versionOf("skopeo", "--version"), versionCmd: command{args: []string{"skopeo", "--version"}},
		base: func() error { return nil }, fresh: root.next,
		pull: into, copy: into,
		stop: func() {},
	}, nil
}

// containersTool is what podman and buildah have in common. It also returns
// how to make a command of the tool, with its present store.
func containersTool(fix *fixtures, program, buildFlags []string) (*tool, func(args ...string) command) {
	name := program[0]
	root := &store{base: filepath.Join(fix.work, name)}
	cmd := func(args ...string) command {
		line := append(append([]string{}, program...), "--root", filepath.Join(root.dir(), "root"), "--runroot", filepath.Join(root.dir(), "run"), "--storage-driver", "overlay")
		return command{args: append(line, args...)}
	}
	return &tool{
		name: name, version: versionOf(name, "--version"), versionCmd: command{args: []string{name, "--version"}},
		fresh: root.next,
		build: func(b build) command {
			args := append([]string{"build", "-q", "--layers", "--network", "host", "--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024", "-t", b.tag}, buildFlags...)
			line := cmd(append(append(args, when(b.noCache, "--no-cache")...), b.context)...)
			if b.push {
				push := cmd("push", "-q", "--tls-verify=false", b.tag)
				line.args = []string{"sh", "-c", quote(line.args) + " && " + quote(push.args)}
			}
			return line
		},
		pull: func(ref string) command { return cmd("pull", "-q", "--tls-verify=false", ref) },
		push: func(tag string) command { return cmd("push", "-q", "--tls-verify=false", tag) },
		stop: root.unmount,
	}, cmd
}

// unmount takes back the mount of a store on itself that podman and buildah
// leave behind.
func (s *store) unmount() {
	for ; s.n >= 0; s.n-- {
		_ = syscall.Unmount(filepath.Join(s.dir(), "root", "overlay"), syscall.MNT_DETACH)
	}
}

// A server is a daemon that we start, give new stores, and end.
type server struct {
	dir   string
	store store
	probe command
	line  func(root string) []string
	cmd   *exec.Cmd
}

// start starts the daemon and waits until probe succeeds.
func (s *server) start() error {
	if err := s.store.next(); err != nil {
		return err
	}
	logFile, err := os.Create(filepath.Join(s.dir, "log"))
	if err != nil {
		return err
	}
	defer logFile.Close()
	line := s.line(s.store.dir())
	s.cmd = exec.Command(line[0], line[1:]...)
	s.cmd.Stdout, s.cmd.Stderr = logFile, logFile
	if err := s.cmd.Start(); err != nil {
		return err
	}
	for range 300 {
		if _, err := s.probe.run(); err == nil {
			return nil
		}
		time.Sleep(100 * time.Millisecond)
	}
	s.stop()
	tail, _ := os.ReadFile(logFile.Name())
	return fmt.Errorf("%s does not answer:\n%s", line[0], tail[max(0, len(tail)-600):])
}

// fresh starts the daemon again, with a new store.
func (s *server) fresh() error {
	s.stop()
	return s.start()
}

// pids are the daemon and its children (dockerd's containerd).
func (s *server) pids() []int {
	pids := []int{s.cmd.Process.Pid}
	children, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pids[0], pids[0]))
	for field := range bytes.FieldsSeq(children) {
		if pid, err := strconv.Atoi(string(field)); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}

func (s *server) stop() {
	_ = s.cmd.Process.Signal(os.Interrupt)
	_ = s.cmd.Wait()
}

// installed returns an error that names the first program that is not in PATH.
func installed(programs ...string) error {
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			return errors.New(p + " is not installed")
		}
	}
	return nil
}

func versionOf(args ...string) string {
	out, err := exec.Command(args[0], args[1:]...).Output()
	if err != nil {
		return "unknown"
	}
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	if len(lines) > 1 && strings.HasSuffix(lines[0], ":") {
		return strings.Join(strings.Fields(lines[1]), " ")
	}
	return lines[0]
}

func ignoreOutput(c command) func() error {
	return func() error {
		_, err := c.run()
		return err
	}
}

func when(yes bool, args ...string) []string {
	if yes {
		return args
	}
	return nil
}

// quote joins arguments for sh.
func quote(args []string) string {
	var words []string
	for _, a := range args {
		words = append(words, "'"+strings.ReplaceAll(a, "'", `'\''`)+"'")
	}
	return strings.Join(words, " ")
}
