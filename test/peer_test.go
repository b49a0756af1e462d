package test

import (
	"errors"
	"fmt"
	"io"
	"log"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/registry"
)

// A peer is a BuildKit daemon of our own that the same cases run on, with
// docker buildx in front, so that the command lines are the same too. DHOW_PEER
// names a directory with buildkitd and buildx; runc is looked for in PATH.
type peer struct {
	program  string
	args     []string
	daemon   *exec.Cmd
	registry *httptest.Server
	dir      string
}

func startPeer(scratch, images string) (*peer, error) {
	bin, err := filepath.Abs(os.Getenv("DHOW_PEER"))
	if err != nil {
		return nil, err
	}
	p := &peer{program: filepath.Join(bin, "buildx"), dir: filepath.Join(scratch, "peer")}
	if err := os.Mkdir(p.dir, 0o700); err != nil {
		return nil, err
	}
	p.registry = httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	host := strings.TrimPrefix(p.registry.URL, "http://")
	if err := goTool("run", "./scripts/baseimages", "-o", images, "-push", host); err != nil {
		return nil, err
	}
	config := fmt.Sprintf("[registry.\"docker.io\"]\n  mirrors = [%q]\n[registry.%q]\n  http = true\n", host, host)
	toml := filepath.Join(p.dir, "buildkitd.toml")
	if err := os.WriteFile(toml, []byte(config), 0o600); err != nil {
		return nil, err
	}
	socket := "unix://" + filepath.Join(p.dir, "sock")
	logFile, err := os.Create(filepath.Join(p.dir, "log"))
	if err != nil {
		return nil, err
	}
	defer logFile.Close()
	p.daemon = exec.Command(filepath.Join(bin, "buildkitd"), "--root", filepath.Join(p.dir, "root"), "--addr", socket, "--config", toml,
		"--containerd-worker=false", "--oci-worker-gc=false", "--allow-insecure-entitlement", "network.host", "--allow-insecure-entitlement", "security.insecure")
	p.daemon.Stdout, p.daemon.Stderr = logFile, logFile
	if err := p.daemon.Start(); err != nil {
		return nil, err
	}
	for _, key := range []string{"BUILDX_CONFIG", "DOCKER_CONFIG"} {
		if err := os.Setenv(key, filepath.Join(p.dir, "config")); err != nil {
			return nil, err
		}
	}
	if out, err := exec.Command(p.program, "create", "--name", "peer", "--driver", "remote", socket).CombinedOutput(); err != nil {
		p.stop()
		return nil, fmt.Errorf("buildx create: %w\n%s", err, out)
	}
	p.args = []string{"--builder", "peer"}
	for range 100 {
		if exec.Command(p.program, "inspect", "peer", "--bootstrap").Run() == nil {
			return p, nil
		}
		time.Sleep(100 * time.Millisecond)
	}
	p.stop()
	return nil, errors.New("buildkitd does not answer")
}

// stop ends the daemon and waits for it; what it wrote is below scratch.
func (p *peer) stop() {
	_ = p.daemon.Process.Signal(os.Interrupt)
	_ = p.daemon.Wait()
	p.registry.Close()
}
