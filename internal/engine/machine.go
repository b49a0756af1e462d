package engine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"dhow/internal/errdef"
	"dhow/internal/oci"
	"dhow/internal/sys"
	"dhow/internal/transfer"

	"github.com/opencontainers/go-digest"
)

// GiveRequest says which image goes to which machine.
type GiveRequest struct {
	To       string       // ssh://[USER@]HOST[:PORT]/NAME[:TAG]
	Platform oci.Platform // zero: the host's, or the only one there is
	SSH      string       // the ssh program; "" is "ssh"
	Remote   string       // the command that is dhow on the other machine; "" is "dhow"
	Stderr   io.Writer    // takes what ssh and the other side say
	// Layer, when not nil, is told of each layer: bytes read so far of its size, done;
	// size 0 for one that the other side had.
	Layer func(diffID digest.Digest, sent, size int64, done bool)
}

// Given is what became of an image.
type Given struct {
	Ref  oci.Ref
	ID   digest.Digest
	Sent int64 // bytes of layers on the wire
}

// machine is where an image goes.
type machine struct {
	host, user, port string
	ref              oci.Ref
}

func parseMachine(s string) (machine, error) {
	u, err := url.Parse(s)
	if err != nil || u.Scheme != "ssh" || u.Hostname() == "" {
		return machine{}, errdef.WithHint(errdef.New(errdef.ErrInvalid, "%q names no machine", s), "write ssh://[USER@]HOST[:PORT]/NAME[:TAG]")
	}
	m := machine{host: u.Hostname(), user: u.User.Username(), port: u.Port()}
	if _, has := u.User.Password(); has {
		return m, errdef.WithHint(errdef.New(errdef.ErrInvalid, "push to %s: a password does not belong into an address", m.host), "ssh asks for it, or uses a key")
	}
	// As arguments these would be options of ssh.
	if strings.HasPrefix(m.host, "-") || strings.HasPrefix(m.user, "-") {
		return m, errdef.New(errdef.ErrInvalid, "push to %q: no host or user begins so", u.Host)
	}
	m.ref, err = oci.ParseTagged(strings.TrimPrefix(u.Path, "/"))
	return m, err
}

// sshArgs is the command line of ssh. In a user namespace, where everybody is
// root, ssh would look into root's home: it is told whose it is.
func sshArgs(m machine, remote string) []string {
	args := []string{"-T"}
	if m.port != "" {
		args = append(args, "-p", m.port)
	}
	if home := os.Getenv("HOME"); sys.InUserNS() && home != "" {
		dir := filepath.Join(home, ".ssh")
		if config := filepath.Join(dir, "config"); fileExists(config) {
			args = append(args, "-F", config)
		}
		args = append(args, "-o", "UserKnownHostsFile="+filepath.Join(dir, "known_hosts"))
		for _, key := range []string{"id_ed25519", "id_ecdsa", "id_rsa"} {
			if fileExists(filepath.Join(dir, key)) {
				args = append(args, "-o", "IdentityFile="+filepath.Join(dir, key))
			}
		}
		if name := os.Getenv("USER"); m.user == "" && name != "" {
			m.user = name
		}
	}
	if m.user != "" {
		args = append(args, "-l", m.user)
	}
	return append(args, "--", m.host, remote+" image receive")
}

func fileExists(name string) bool {
	_, err := os.Stat(name)
	return err == nil
}

// Give sends an image to the store of another machine, through ssh and the same
// program there: the layers that it lacks, and nothing else. ErrNotFound,
// ErrUnavailable.
func (e *Engine) Give(ctx context.Context, r GiveRequest) (Given, error) {
	m, err := parseMachine(r.To)
	if err != nil {
		return Given{}, err
	}
	if r.SSH == "" {
		r.SSH = "ssh"
	}
	if r.Remote == "" {
		r.Remote = "dhow"
	}
	if _, err := e.Images.Lookup(ctx, m.ref.String(), r.Platform); err != nil {
		return Given{}, errdef.WithHint(fmt.Errorf("push %s: %w", r.To, err), "dhow tag IMAGE %s names one so", m.ref.Familiar())
	}
	given := Given{Ref: m.ref}
	cmd := exec.CommandContext(ctx, r.SSH, sshArgs(m, r.Remote)...)
	cmd.Stderr, cmd.WaitDelay = r.Stderr, 5*time.Second
	w, err := cmd.StdinPipe()
	if err != nil {
		return given, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return given, err
	}
	if err := cmd.Start(); err != nil {
		return given, errdef.WithHint(fmt.Errorf("push %s: %w", r.To, err), "ssh has to be installed")
	}
	given.ID, given.Sent, err = transfer.Give(ctx, e.Images, m.ref, r.Platform, out, w, r.Layer)
	_ = w.Close() // what matters was answered, or has failed
	_, _ = io.Copy(io.Discard, out)
	ended := cmd.Wait()
	if err == nil && ended == nil {
		return given, nil
	}
	var exit *exec.ExitError
	if errors.As(ended, &exit) && exit.ExitCode() == 127 {
		err = errdef.WithHint(err, "is dhow installed on %s? --remote-command says how it is called there", m.host)
	}
	if err == nil {
		err = ended
	}
	return given, fmt.Errorf("push %s: %w", r.To, err)
}

// Receive takes an image that Give sends.
func (e *Engine) Receive(ctx context.Context, r io.Reader, w io.Writer) error {
	return transfer.Take(ctx, e.Images, r, w)
}
