// Package test runs dhow as a user does: the built program, its command line,
// what it leaves on the disk. The behaviour is written down as scripts in
// testdata, one an area; this package gives them a store of their own, base
// images, and the servers that a build may talk to.
//
// What the scripts can say is explained in testdata/README.md. With DHOW_PEER
// set, each build case also runs on BuildKit, and the two results are compared
// file by file (see peer_test.go).
package test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"dhow/internal/testkit"

	"github.com/rogpeppe/go-internal/testscript"
)

// bench is what all scripts of one run share. Set once by TestMain.
type bench struct {
	bin    string // directory of the dhow program
	images string // directory of the base image archives
	peer   *peer  // nil unless results are compared
}

var shared bench

func TestMain(m *testing.M) {
	os.Exit(run(m))
}

func run(m *testing.M) int {
	scratch, err := os.MkdirTemp("", "dhow-test-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer removeTree(scratch)
	if err := prepare(scratch); err != nil {
		fmt.Fprintln(os.Stderr, "prepare:", err)
		return 1
	}
	// What was made above took the machine's network; containers' bridges do not.
	os.Setenv("DHOW_BIN", shared.bin)
	os.Setenv("DHOW_BASEIMAGES", shared.images)
	if status, ok := testkit.RunInOwnNetwork(); ok {
		return status
	}
	if os.Getenv("DHOW_PEER") != "" {
		p, err := startPeer(scratch, shared.images)
		if err != nil {
			fmt.Fprintln(os.Stderr, "start the peer:", err)
			return 1
		}
		defer p.stop()
		shared.peer = p
	}
	return m.Run()
}

// prepare finds or makes the program and the archives. DHOW_BIN (a directory)
// and DHOW_BASEIMAGES name them where there is no Go toolchain to make them,
// as in the run as an ordinary user.
func prepare(scratch string) error {
	shared.bin = os.Getenv("DHOW_BIN")
	if shared.bin == "" {
		shared.bin = filepath.Join(scratch, "bin")
		for name, pkg := range map[string]string{"dhow": "./cmd/dhow", "healthserver": "./scripts/healthserver"} {
			if err := goTool("build", "-o", filepath.Join(shared.bin, name), pkg); err != nil {
				return err
			}
		}
	}
	shared.images = os.Getenv("DHOW_BASEIMAGES")
	if shared.images == "" {
		dir, err := filepath.Abs("../dist/baseimages")
		if err != nil {
			return err
		}
		shared.images = dir
		return goTool("run", "./scripts/baseimages", "-o", dir)
	}
	return nil
}

func goTool(args ...string) error {
	cmd := exec.Command("go", args...)
	cmd.Dir = ".."
	cmd.Env = append(cmd.Environ(), "CGO_ENABLED=0")
	cmd.Stderr = os.Stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("go %s: %w", strings.Join(args, " "), err)
	}
	return nil
}

func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata",
		Setup:               setup,
		Cmds:                commands(),
		Condition:           condition,
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		ContinueOnError:     true,
	})
}

// setup gives the script a store, a home and a run-time directory of its own.
func setup(env *testscript.Env) error {
	state, err := os.MkdirTemp("", "dhow-root-")
	if err != nil {
		return err
	}
	env.Defer(func() { removeTree(state) })
	for _, dir := range []string{"home", "run"} {
		if err := os.Mkdir(filepath.Join(state, dir), 0o700); err != nil {
			return err
		}
	}
	env.Defer(func() { removeContainers(env) })
	examples, err := filepath.Abs("../examples")
	if err != nil {
		return err
	}
	env.Setenv("DHOW_ROOT", filepath.Join(state, "root"))
	env.Setenv("HOME", filepath.Join(state, "home"))
	env.Setenv("XDG_RUNTIME_DIR", filepath.Join(state, "run"))
	env.Setenv("EXAMPLES", examples)
	env.Setenv("DHOW", filepath.Join(shared.bin, "dhow"))
	env.Setenv("IMAGES", shared.images)
	env.Setenv("BIN", shared.bin)
	if shared.peer != nil {
		env.Setenv("BUILDX_CONFIG", os.Getenv("BUILDX_CONFIG"))
		env.Setenv("BUILDX_NO_DEFAULT_ATTESTATIONS", "1")
	}
	env.Setenv("PATH", shared.bin+":"+os.Getenv("PATH")+":/usr/sbin:/sbin")
	env.Setenv("DOCKER_HOST", os.Getenv("DOCKER_HOST"))
	env.Setenv("GIT_CONFIG_NOSYSTEM", "1")
	env.Setenv("GIT_AUTHOR_NAME", "t")
	env.Setenv("GIT_AUTHOR_EMAIL", "t@example.com")
	env.Setenv("GIT_COMMITTER_NAME", "t")
	env.Setenv("GIT_COMMITTER_EMAIL", "t@example.com")
	return nil
}

// removeContainers ends what a script has left running.
func removeContainers(env *testscript.Env) {
	dhow := func(args ...string) *exec.Cmd {
		cmd := exec.Command(filepath.Join(shared.bin, "dhow"), args...)
		cmd.Env = env.Vars
		return cmd
	}
	if _, err := os.Stat(env.Getenv("DHOW_ROOT")); err != nil {
		return // the script had no store
	}
	out, err := dhow("ps", "-aq").Output()
	if ids := strings.Fields(string(out)); err == nil && len(ids) > 0 {
		err = dhow(append([]string{"rm", "-f", "-v"}, ids...)...).Run()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "remove what a script has left:", err)
	}
}

// condition answers [root], [userns] (an ordinary user with subordinate ids),
// [dockerd], [peer], [systemd] (which runs this machine), [apparmor] and [services].
func condition(name string) (bool, error) {
	switch name {
	case "root":
		return os.Getuid() == 0, nil
	case "userns":
		return os.Getuid() != 0, nil
	case "dockerd":
		return exec.Command("docker", "info").Run() == nil, nil
	case "systemd":
		_, err := os.Stat("/run/systemd/system")
		return err == nil, nil
	case "apparmor":
		data, err := os.ReadFile("/sys/module/apparmor/parameters/enabled")
		return err == nil && string(data) == "Y\n", nil
	case "peer":
		return shared.peer != nil, nil
	case "services": // an image with PostgreSQL, Redis and nginx was made
		_, err := os.Stat(filepath.Join(shared.images, "services.tar"))
		return err == nil, nil
	}
	return false, fmt.Errorf("unknown condition %q", name)
}

// removeTree removes what an ordinary user's build may have left under
// subordinate ids too, which takes a user namespace that has them.
func removeTree(dir string) {
	if os.RemoveAll(dir) == nil {
		return
	}
	_ = exec.Command("unshare", "--user", "--map-root-user", "--map-auto", "rm", "-rf", dir).Run()
	_ = exec.Command("chmod", "-R", "u+rwX", dir).Run()
	_ = os.RemoveAll(dir)
}
