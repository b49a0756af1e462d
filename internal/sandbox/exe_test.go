package sandbox

import (
	"bufio"
	"bytes"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"dhow/internal/sandbox/stage"
	"dhow/internal/sys"
)

// initCommand runs the init's program.
func initCommand(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	return codeCommand(t, stage.InitCode(), append([]string{"-"}, args...)...)
}

// codeCommand runs a program of machine code outside of any sandbox, on an emulator
// if EMULATOR names one:
//
//	EMULATOR=qemu-aarch64-static GOARCH=arm64 go test -exec qemu-aarch64-static -run Program
func codeCommand(t *testing.T, code []byte, args ...string) *exec.Cmd {
	t.Helper()
	path := t.TempDir() + "/code"
	write(t, path, string(sys.CodeProgram(code)), 0o755)
	args = append([]string{path}, args...)
	if e := os.Getenv("EMULATOR"); e != "" {
		args = append([]string{e}, args...)
	}
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Env, cmd.Stderr = []string{"A=b"}, os.Stderr
	return cmd
}

func TestInitProgram(t *testing.T) {
	for script, want := range map[string]int{"exit 0": 0, "exit 42": 42, "kill -9 $$": 137, "test $A = b && test $1 = x || exit 1; exit 3": 3} {
		cmd := initCommand(t, "/bin/sh", "sh", "-c", script, "sh", "x")
		if err := cmd.Run(); cmd.ProcessState == nil || cmd.ProcessState.ExitCode() != want {
			t.Errorf("%s: got %v, want exit code %d", script, err, want)
		}
	}
}

// The init waits for all signals and passes each on, and for all children and
// ends with one.
func TestInitProgramSignals(t *testing.T) {
	cmd := initCommand(t, "/bin/sh", "sh", "-c",
		`trap 'echo usr1' USR1; trap 'echo usr2' USR2; trap 'exit 9' TERM; (sleep 0.02 &); echo ready; while :; do sleep 0.01; done`)
	r, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	out := bufio.NewReader(r)
	for _, step := range []struct {
		sig  syscall.Signal
		line string
	}{{0, "ready\n"}, {syscall.SIGUSR1, "usr1\n"}, {syscall.SIGUSR2, "usr2\n"}} {
		if step.sig != 0 {
			cmd.Process.Signal(step.sig)
		}
		if line, err := out.ReadString('\n'); line != step.line {
			t.Fatalf("got %q, %v, want %q", line, err, step.line)
		}
	}
	cmd.Process.Signal(syscall.SIGTERM)
	rest, _ := io.ReadAll(out)
	if cmd.Wait(); cmd.ProcessState.ExitCode() != 9 {
		t.Errorf("got %v, %q, want exit code 9", cmd.ProcessState, rest)
	}
}

// What cannot be executed is told on the stage's socket.
func TestInitProgramError(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	cmd := initCommand(t, "/no/such", "such")
	cmd.ExtraFiles = []*os.File{w} // stage.SyncFD
	err = cmd.Run()
	w.Close()
	msg, _ := io.ReadAll(r)
	want := append([]byte{stage.MsgError, byte(syscall.ENOENT), 0, stage.FailExec}, "/no/such"...)
	if !bytes.Equal(msg, want) || cmd.ProcessState.ExitCode() != 125 {
		t.Errorf("got %q, %v, want %q and exit code 125", msg, err, want)
	}
	if code := stage.InitCode(); len(code) < 100 || len(code) > 2000 || strings.Contains(string(code), "dhow/internal") {
		t.Errorf("the code has %d bytes", len(code))
	}
}

// What enters a user namespace tells why it cannot.
func TestEnterProgramError(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	cmd := codeCommand(t, stage.EnterCode(), "/bin/true", "true")
	cmd.ExtraFiles = []*os.File{w, w, r} // stage.SyncFD, PlanFD, and no namespace at EnterFD
	err = cmd.Run()
	w.Close()
	msg, _ := io.ReadAll(r)
	want := []byte{stage.MsgError, byte(syscall.EINVAL), 0, stage.FailEnter}
	if !bytes.Equal(msg, want) || cmd.ProcessState.ExitCode() != 125 {
		t.Errorf("got %q, %v, want %q and exit code 125", msg, err, want)
	}
}
