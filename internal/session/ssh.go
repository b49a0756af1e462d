package session

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"dhow/internal/errdef"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"
)

const (
	maxKeyFile  = 100 << 10       // bytes of one private key; real ones have less than 20 KiB
	dialTimeout = 2 * time.Second // to connect to an agent on this machine
)

// SSHSource is an agent that a build may use: the socket of one that runs, or
// private keys from files, served by an agent inside this process.
type SSHSource struct {
	ID    string   // "" is DefaultSSH
	Paths []string // one socket, or any number of key files; none: SSH_AUTH_SOCK
	// Raw passes everything on to the socket. Otherwise a build may list keys
	// and sign with them, and nothing else.
	Raw bool
}

// ParseSSH reads the value of --ssh: "ID" or "ID=SOCKET" or "ID=KEY[,KEY…]",
// with ",raw=true" after a socket. ErrInvalid.
func ParseSSH(value string) (SSHSource, error) {
	id, list, given := strings.Cut(value, "=")
	s := SSHSource{ID: id}
	if s.ID == "" {
		return SSHSource{}, errdef.WithHint(errdef.New(errdef.ErrInvalid, "ssh %q: it has no id", value), "write default, or default=PATH")
	}
	if !given {
		return s, nil
	}
	for _, p := range strings.Split(list, ",") {
		key, val, option := strings.Cut(p, "=")
		switch {
		case option && key == "raw":
			raw, err := strconv.ParseBool(val)
			if err != nil {
				return SSHSource{}, errdef.New(errdef.ErrInvalid, "ssh %q: raw is %q, want true or false", value, val)
			}
			s.Raw = raw
		case option && !strings.Contains(key, "/"):
			return SSHSource{}, withSuggestion(errdef.New(errdef.ErrInvalid, "ssh %q: unknown key %q", value, key), key, "raw")
		case p != "":
			s.Paths = append(s.Paths, p)
		}
	}
	return s, nil
}

// agentSource is a checked SSHSource: either a socket or a set of keys.
type agentSource struct {
	id     string
	socket string
	raw    bool
	keys   agent.Agent // nil when there is a socket
}

func (s SSHSource) open() (*agentSource, error) {
	a := &agentSource{id: s.ID, raw: s.Raw}
	if a.id == "" {
		a.id = DefaultSSH
	}
	paths := s.Paths
	if len(paths) == 0 {
		sock := os.Getenv("SSH_AUTH_SOCK")
		if sock == "" {
			return nil, errdef.WithHint(errdef.New(errdef.ErrInvalid, "ssh %s: SSH_AUTH_SOCK is not set", a.id),
				"start an agent with eval $(ssh-agent), or pass --ssh %s=KEYFILE", a.id)
		}
		paths = []string{sock}
	}
	for _, p := range paths {
		if err := a.add(p); err != nil {
			return nil, err
		}
	}
	switch {
	case a.socket != "" && len(paths) > 1:
		return nil, errdef.New(errdef.ErrInvalid, "ssh %s: got several paths, want one socket or only key files", a.id)
	case a.raw && a.socket == "":
		return nil, errdef.New(errdef.ErrInvalid, "ssh %s: raw needs a socket", a.id)
	}
	return a, nil
}

// add takes one path: a socket or a key file.
func (a *agentSource) add(path string) error {
	fi, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return errdef.New(errdef.ErrNotFound, "ssh %s: %w", a.id, err)
	} else if err != nil {
		return fmt.Errorf("ssh %s: %w", a.id, err)
	}
	if fi.Mode()&os.ModeSocket != 0 {
		a.socket = path
		return nil
	}
	key, err := readKey(path)
	if err != nil {
		return fmt.Errorf("ssh %s: %w", a.id, err)
	}
	if a.keys == nil {
		a.keys = agent.NewKeyring()
	}
	if err := a.keys.Add(agent.AddedKey{PrivateKey: key, Comment: path}); err != nil {
		return errdef.New(errdef.ErrInvalid, "ssh %s: key %s: %w", a.id, path, err)
	}
	return nil
}

func readKey(path string) (any, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	pem, err := io.ReadAll(io.LimitReader(f, maxKeyFile+1))
	if err != nil {
		return nil, fmt.Errorf("key %s: %w", path, err)
	}
	if len(pem) > maxKeyFile {
		return nil, errdef.New(errdef.ErrInvalid, "key %s: it has more than %d KiB", path, maxKeyFile>>10)
	}
	key, err := ssh.ParseRawPrivateKey(pem)
	var locked *ssh.PassphraseMissingError
	if errors.As(err, &locked) {
		return nil, errdef.WithHint(errdef.New(errdef.ErrInvalid, "key %s: it is protected by a passphrase", path),
			"add it to an agent with ssh-add %s, and pass the agent with --ssh default", path)
	}
	if err != nil {
		return nil, errdef.New(errdef.ErrInvalid, "key %s: it is no private key and no socket: %w", path, err)
	}
	return key, nil
}

// SSHAgent opens a fresh connection to the agent of that id ("" is DefaultSSH),
// speaking draft-miller-ssh-agent. Unless the source is raw, keys can be listed
// and used and nothing else. The caller closes it. ErrNotFound when the build
// was given no such agent, ErrUnavailable when the socket does not answer.
func (s *Session) SSHAgent(ctx context.Context, id string) (net.Conn, error) {
	a, err := s.agent(id)
	if err != nil {
		return nil, err
	}
	if a.keys != nil {
		return serve(a.keys, nil), nil
	}
	d := net.Dialer{Timeout: dialTimeout}
	conn, err := d.DialContext(ctx, "unix", a.socket)
	if err != nil {
		return nil, errdef.New(errdef.ErrUnavailable, "connect to the ssh agent %s: %w", a.id, err)
	}
	if a.raw {
		return conn, nil
	}
	return serve(agent.NewClient(conn), conn), nil
}

// serve answers on one end of a pipe from the keys behind it. It ends when the
// returned end is closed, and closes behind then.
func serve(keys agent.Agent, behind io.Closer) net.Conn {
	ours, theirs := net.Pipe()
	go func() {
		// The error is the end of the connection, however it came.
		_ = agent.ServeAgent(readOnly{keys}, ours)
		ours.Close()
		if behind != nil {
			behind.Close()
		}
	}()
	return theirs
}

var errReadOnly = errors.New("a build may list the keys and sign with them, and nothing else")

// readOnly refuses whatever would change the agent: a build step must not be
// able to remove or lock the user's keys, or plant one. Extensions are refused
// with them, because what they do is unknown.
type readOnly struct{ keys agent.Agent }

var _ agent.ExtendedAgent = readOnly{}

func (r readOnly) List() ([]*agent.Key, error)    { return r.keys.List() }
func (r readOnly) Signers() ([]ssh.Signer, error) { return r.keys.Signers() }
func (r readOnly) Add(agent.AddedKey) error       { return errReadOnly }
func (r readOnly) Remove(ssh.PublicKey) error     { return errReadOnly }
func (r readOnly) RemoveAll() error               { return errReadOnly }
func (r readOnly) Lock([]byte) error              { return errReadOnly }
func (r readOnly) Unlock([]byte) error            { return errReadOnly }
func (r readOnly) Extension(string, []byte) ([]byte, error) {
	return nil, agent.ErrExtensionUnsupported
}
func (r readOnly) Sign(k ssh.PublicKey, data []byte) (*ssh.Signature, error) {
	return r.keys.Sign(k, data)
}

// SignWithFlags keeps RSA keys on SHA-2: plain Sign means ssh-rsa with SHA-1,
// which servers refuse since OpenSSH 8.8.
func (r readOnly) SignWithFlags(k ssh.PublicKey, data []byte, flags agent.SignatureFlags) (*ssh.Signature, error) {
	if ext, ok := r.keys.(agent.ExtendedAgent); ok {
		return ext.SignWithFlags(k, data, flags)
	}
	return r.keys.Sign(k, data)
}
