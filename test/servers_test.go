package test

import (
	"crypto/ed25519"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/cgi"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"dhow/internal/testkit"

	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/crypto/ssh"
)

// cmdRegistry starts an empty registry on a free loopback port and sets
// REGISTRY (or the named variable) to HOST:PORT: registry [VARIABLE]
func cmdRegistry(ts *testscript.TestScript, neg bool, args []string) {
	variable := "REGISTRY"
	if len(args) == 1 {
		variable = args[0]
	}
	if neg || len(args) > 1 {
		ts.Fatalf("usage: registry [VARIABLE]")
	}
	server := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	ts.Defer(server.Close)
	ts.Setenv(variable, strings.TrimPrefix(server.URL, "http://"))
}

// cmdServe serves a directory over http and sets URL: serve DIR
func cmdServe(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: serve DIR")
	}
	server := httptest.NewServer(http.FileServer(http.Dir(ts.MkAbs(args[0]))))
	ts.Defer(server.Close)
	ts.Setenv("URL", server.URL)
}

// cmdGitServe serves the repositories below a directory as git's own http
// server does, and sets GIT_URL: gitserve DIR
func cmdGitServe(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: gitserve DIR")
	}
	libexec, err := exec.Command("git", "--exec-path").Output()
	ts.Check(err)
	server := httptest.NewServer(&cgi.Handler{
		Path: filepath.Join(strings.TrimSpace(string(libexec)), "git-http-backend"),
		Env:  []string{"GIT_PROJECT_ROOT=" + ts.MkAbs(args[0]), "GIT_HTTP_EXPORT_ALL=1", "GIT_CONFIG_COUNT=1", "GIT_CONFIG_KEY_0=safe.directory", "GIT_CONFIG_VALUE_0=*"},
	})
	ts.Defer(server.Close)
	ts.Setenv("GIT_URL", server.URL)
}

// cmdSSHAgent starts a real ssh-agent with one key, writes the key to
// $WORK/.ssh-key and sets SSH_AUTH_SOCK (or the named variable):
// sshagent [VARIABLE]
func cmdSSHAgent(ts *testscript.TestScript, neg bool, args []string) {
	variable := "SSH_AUTH_SOCK"
	if len(args) == 1 {
		variable = args[0]
	}
	if neg || len(args) > 1 {
		ts.Fatalf("usage: sshagent [VARIABLE]")
	}
	dir, err := os.MkdirTemp("", "dhow-agent-")
	ts.Check(err)
	ts.Defer(func() { os.RemoveAll(dir) })
	socket := filepath.Join(dir, "s")
	agent := exec.Command("ssh-agent", "-D", "-a", socket)
	ts.Check(agent.Start())
	ts.Defer(func() {
		_ = agent.Process.Kill()
		_ = agent.Wait()
	})
	_, private, err := ed25519.GenerateKey(nil)
	ts.Check(err)
	block, err := ssh.MarshalPrivateKey(private, "test-key-"+variable)
	ts.Check(err)
	key := ts.MkAbs(".ssh-key")
	ts.Check(os.WriteFile(key, pem.EncodeToMemory(block), 0o600))
	waitForSocket(ts, socket)
	ts.Setenv("SSH_AUTH_SOCK", socket)
	if err := ts.Exec("ssh-add", "-q", key); err != nil {
		ts.Fatalf("ssh-add: %v", err)
	}
	ts.Setenv(variable, socket)
}

func waitForSocket(ts *testscript.TestScript, socket string) {
	awaitListener(ts, "unix", socket, nil)
}

// awaitListener waits until somebody listens at the address; log is what that one
// has said so far.
func awaitListener(ts *testscript.TestScript, network, address string, log fmt.Stringer) {
	for end := time.Now().Add(testkit.Patience); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if conn, err := net.Dial(network, address); err == nil {
			conn.Close()
			return
		}
	}
	ts.Fatalf("nobody listens on %s: %v", address, log)
}

// cmdBuildkitd starts dhow buildkitd on the script's store and sets
// BUILDKIT_HOST: buildkitd
func cmdBuildkitd(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 0 {
		ts.Fatalf("usage: buildkitd")
	}
	dir, err := os.MkdirTemp("", "dhow-bk-") // the path of a socket must be short
	ts.Check(err)
	ts.Defer(func() { _ = os.RemoveAll(dir) })
	sock := filepath.Join(dir, "s")
	cmd := exec.Command(filepath.Join(shared.bin, "dhow"), "buildkitd", "--addr", "unix://"+sock)
	cmd.Env = append(os.Environ(), "DHOW_ROOT="+ts.Getenv("DHOW_ROOT"), "HOME="+ts.Getenv("HOME"), "XDG_RUNTIME_DIR="+ts.Getenv("XDG_RUNTIME_DIR"))
	log := &strings.Builder{}
	cmd.Stderr = log
	ts.Check(cmd.Start())
	ts.Defer(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		if err := cmd.Wait(); err != nil {
			ts.Logf("buildkitd: %v\n%s", err, log)
		}
	})
	awaitListener(ts, "unix", sock, log)
	ts.Setenv("BUILDKIT_HOST", "unix://"+sock)
}
