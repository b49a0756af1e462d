package test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// commands are the words that scripts have beside testscript's own.
func commands() map[string]func(ts *testscript.TestScript, neg bool, args []string) {
	return map[string]func(ts *testscript.TestScript, neg bool, args []string){
		"dhow":         cmdDhow,
		"images":       cmdImages,
		"case":         cmdCase,
		"check":        cmdCheck,
		"registry":     cmdRegistry,
		"distribution": cmdDistribution,
		"serve":        cmdServe,
		"gitserve":     cmdGitServe,
		"sshagent":     cmdSSHAgent,
		"sshserver":    cmdSSHServer,
		"interrupt":    cmdInterrupt,
		"fill":         cmdFill,
		"destination":  cmdDestination,
		"freeaddress":  cmdFreeAddress,
		"buildkitd":    cmdBuildkitd,
	}
}

// cmdDhow runs the program: dhow ARGS…
func cmdDhow(ts *testscript.TestScript, neg bool, args []string) {
	verdict(ts, neg, ts.Exec("dhow", args...))
}

// verdict fails the script when a command ended otherwise than it says.
func verdict(ts *testscript.TestScript, neg bool, err error) {
	switch {
	case err != nil && !neg:
		ts.Fatalf("%v", err)
	case err == nil && neg:
		ts.Fatalf("succeeded, want a failure")
	}
}

// cmdImages loads base images into the script's store: images busybox alpine
func cmdImages(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) == 0 {
		ts.Fatalf("usage: images NAME…")
	}
	for _, name := range args {
		archive := filepath.Join(shared.images, name+".tar")
		if err := ts.Exec("dhow", "load", "-q", "-i", archive); err != nil {
			ts.Fatalf("load %s: %v", archive, err)
		}
	}
}

// cmdInterrupt starts dhow and ends it with SIGKILL after a while, the whole
// process group, as a machine that loses its power would:
// interrupt MILLISECONDS ARGS…
func cmdInterrupt(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: interrupt MILLISECONDS ARGS…")
	}
	after, err := time.ParseDuration(args[0] + "ms")
	ts.Check(err)
	cmd := exec.Command(filepath.Join(shared.bin, "dhow"), args[1:]...)
	cmd.Dir = ts.MkAbs(".")
	cmd.Env = scriptEnv(ts)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	ts.Check(cmd.Start())
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	select {
	case <-ended:
		ts.Logf("ended before it was interrupted")
	case <-time.After(after):
		ts.Check(syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL))
		<-ended
	}
}

// scriptEnv is the part of the script's environment that dhow reads.
func scriptEnv(ts *testscript.TestScript) []string {
	var env []string
	for _, key := range []string{"PATH", "HOME", "TMPDIR", "XDG_RUNTIME_DIR", "DHOW_ROOT", "SSH_AUTH_SOCK", "DHOW_SSH"} {
		env = append(env, key+"="+ts.Getenv(key))
	}
	return env
}

// cmdFill makes a file of random-looking bytes, the same for the same name and
// size: fill FILE MEGABYTES
func cmdFill(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: fill FILE MEGABYTES")
	}
	var size int
	_, err := fmt.Sscan(args[1], &size)
	ts.Check(err)
	f, err := os.Create(ts.MkAbs(args[0]))
	ts.Check(err)
	block := make([]byte, 1<<20)
	state := uint64(len(args[0])) + 1
	for range size {
		for i := range block {
			state = state*6364136223846793005 + 1442695040888963407
			block[i] = byte(state >> 56)
		}
		_, err := f.Write(block)
		ts.Check(err)
	}
	ts.Check(f.Close())
}

// cmdCheck compares a tar archive or directory with a file of expectations:
// check ARCHIVE|DIR WANT
func cmdCheck(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: check ARCHIVE|DIR WANT")
	}
	got, err := readTree(ts.MkAbs(args[0]))
	ts.Check(err)
	want, err := parseWant(ts.ReadFile(args[1]))
	ts.Check(err)
	if diff := want.compare(got, nil); len(diff) > 0 {
		ts.Fatalf("%s:\n\t%s", args[0], strings.Join(diff, "\n\t"))
	}
}
