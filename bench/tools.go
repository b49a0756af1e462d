package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
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
	fresh      func() error // empties the store as far as the tool can
	build      func(b build) command
	run        func(image string, args ...string) command
	pull       func(ref string) command
	daemons    []int // processes whose memory counts
	stop       func()
}

// findTools returns dhow and every peer that is installed and starts.
func findTools(o options, fix *fixtures) []*tool {
	tools := []*tool{newDhow(o.dhow, fix)}
	for _, peer := range []func(*fixtures) (*tool, error){newDocker, newBuildKit, newPodman, newBuildah} {
		t, err := peer(fix)
		if err != nil {
			fmt.Fprintln(os.Stderr, "left out:", err)
			continue
		}
		tools = append(tools, t)
	}
	return tools
}

func newDhow(program string, fix *fixtures) *tool {
	root := filepath.Join(fix.work, "dhow")
	env := []string{"DHOW_ROOT=" + root}
	cmd := func(args ...string) command { return command{args: append([]string{program}, args...), env: env} }
	return &tool{
		name: "dhow", version: versionOf(program, "version"), versionCmd: cmd("version"),
		base:  ignoreOutput(cmd("load", "-q", "-i", filepath.Join(fix.archives, "busybox.tar"))),
		fresh: func() error { return os.RemoveAll(root) },
		build: func(b build) command {
			args := []string{"build", "--progress=quiet", "-t", b.tag}
			args = append(args, when(b.noCache, "--no-cache")...)
			return cmd(append(append(args, when(b.push, "--push")...), b.context)...)
		},
		run: func(image string, args ...string) command {
			return cmd(append([]string{"run", "--rm", "--network", "none", image}, args...)...)
		},
		pull: func(ref string) command { return cmd("pull", "-q", ref) },
		stop: func() { _ = os.RemoveAll(root) },
	}
}

// newDocker starts a dockerd of our own, with a store and a socket of its own
// and no bridge. A dockerd of today wants a containerd beside it and builds
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
	daemon, err := startDaemon(dir, cmd("version"), "dockerd", "--data-root", filepath.Join(dir, "root"), "--exec-root", filepath.Join(dir, "exec"),
		"--pidfile", filepath.Join(dir, "pid"), "-H", socket, "--bridge", "none", "--iptables=false", "--ip6tables=false", "--insecure-registry", fix.registry)
	if err != nil {
		return nil, err
	}
	return &tool{
		name: "docker", version: versionOf("dockerd", "--version") + "; client " + versionOf("docker", "--version"), versionCmd: command{args: []string{"docker", "--version"}},
		base: ignoreOutput(cmd("load", "-q", "-i", filepath.Join(fix.archives, "busybox.tar"))),
		fresh: func() error {
			_, err := command{args: []string{"sh", "-c", `docker rmi -f $(docker images -aq) ; docker builder prune -af; docker system prune -af; true`}, env: env}.run()
			return err
		},
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
		pull:    func(ref string) command { return cmd("pull", "-q", ref) },
		daemons: daemon.pids(),
		stop:    daemon.stop,
	}, nil
}

// newBuildKit starts a buildkitd of our own and drives it through buildctl.
// A build's result stays in its cache, which is the least it can do.
func newBuildKit(fix *fixtures) (*tool, error) {
	if err := installed("buildkitd", "buildctl", "runc"); err != nil {
		return nil, err
	}
	dir := filepath.Join(fix.work, "buildkit")
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
	daemon, err := startDaemon(dir, cmd("debug", "workers"), "buildkitd", "--root", filepath.Join(dir, "root"), "--addr", socket, "--config", toml,
		"--containerd-worker=false", "--oci-worker-gc=false")
	if err != nil {
		return nil, err
	}
	prune := cmd("prune", "--all")
	return &tool{
		name: "buildkit", version: versionOf("buildkitd", "--version"), versionCmd: command{args: []string{"buildctl", "--version"}},
		base:  func() error { return nil },
		fresh: ignoreOutput(prune),
		build: func(b build) command {
			args := []string{"build", "--progress=plain", "--frontend", "dockerfile.v0", "--local", "context=" + b.context, "--local", "dockerfile=" + b.context}
			args = append(args, when(b.noCache, "--no-cache")...)
			return cmd(append(args, when(b.push, "--output", "type=image,name="+b.tag+",push=true,registry.insecure=true")...)...)
		},
		daemons: daemon.pids(),
		stop:    daemon.stop,
	}, nil
}

func newPodman(fix *fixtures) (*tool, error) {
	if err := installed("podman", "runc"); err != nil {
		return nil, err
	}
	t := containersTool("podman", fix, []string{"--cgroup-manager", "cgroupfs", "--runtime", "runc"}, nil)
	podman := func(args ...string) command {
		return command{args: append(append([]string{"podman", "--cgroup-manager", "cgroupfs", "--runtime", "runc"}, storage(fix)...), args...)}
	}
	t.base = ignoreOutput(podman("load", "-q", "-i", filepath.Join(fix.archives, "busybox.tar")))
	t.run = func(image string, args ...string) command {
		return podman(append([]string{"run", "--rm", "--network", "none", "--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024", image}, args...)...)
	}
	t.pull = func(ref string) command { return podman("pull", "-q", "--tls-verify=false", ref) }
	return t, nil
}

func newBuildah(fix *fixtures) (*tool, error) {
	if err := installed("buildah", "runc"); err != nil {
		return nil, err
	}
	t := containersTool("buildah", fix, nil, []string{"--runtime", "runc"})
	buildah := func(args ...string) command {
		return command{args: append(append([]string{"buildah"}, storage(fix)...), args...)}
	}
	t.base = ignoreOutput(buildah("pull", "-q", "docker-archive:"+filepath.Join(fix.archives, "busybox.tar")))
	t.pull = func(ref string) command { return buildah("pull", "-q", "--tls-verify=false", ref) }
	return t, nil
}

// storage are the flags that give podman and buildah a store of our own.
func storage(fix *fixtures) []string {
	dir := filepath.Join(fix.work, "containers")
	return []string{"--root", filepath.Join(dir, "root"), "--runroot", filepath.Join(dir, "run"), "--storage-driver", "overlay"}
}

// containersTool is what podman and buildah have in common.
func containersTool(program string, fix *fixtures, global, buildFlags []string) *tool {
	prefix := append(append([]string{program}, global...), storage(fix)...)
	cmd := func(args ...string) command { return command{args: append(append([]string{}, prefix...), args...)} }
	remove := cmd("rmi", "-a", "-f")
	return &tool{
		name: program, version: versionOf(program, "--version"), versionCmd: command{args: []string{program, "--version"}},
		fresh: ignoreOutput(remove),
		build: func(b build) command {
			args := append([]string{"build", "-q", "--layers", "--network", "host", "--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024", "-t", b.tag}, buildFlags...)
			line := cmd(append(append(args, when(b.noCache, "--no-cache")...), b.context)...)
			if b.push {
				push := cmd("push", "-q", "--tls-verify=false", b.tag)
				line.args = []string{"sh", "-c", quote(line.args) + " && " + quote(push.args)}
			}
			return line
		},
		stop: func() { _, _ = remove.run() },
	}
}

// A daemon is a server that we started and end.
type daemon struct {
	cmd *exec.Cmd
	log *os.File
}

// startDaemon starts a server and waits until probe succeeds.
func startDaemon(dir string, probe command, args ...string) (*daemon, error) {
	logFile, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		return nil, err
	}
	d := &daemon{cmd: exec.Command(args[0], args[1:]...), log: logFile}
	d.cmd.Stdout, d.cmd.Stderr = logFile, logFile
	if err := d.cmd.Start(); err != nil {
		return nil, err
	}
	for range 150 {
		if _, err := probe.run(); err == nil {
			return d, nil
		}
		time.Sleep(200 * time.Millisecond)
	}
	d.stop()
	tail, _ := os.ReadFile(logFile.Name())
	return nil, fmt.Errorf("%s does not answer:\n%s", args[0], tail[max(0, len(tail)-600):])
}

// pids are the daemon and its children (dockerd's containerd).
func (d *daemon) pids() []int {
	pids := []int{d.cmd.Process.Pid}
	children, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", d.cmd.Process.Pid, d.cmd.Process.Pid))
	for field := range bytes.FieldsSeq(children) {
		var pid int
		if _, err := fmt.Sscan(string(field), &pid); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}

func (d *daemon) stop() {
	_ = d.cmd.Process.Signal(os.Interrupt)
	_ = d.cmd.Wait()
	_ = d.log.Close()
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
