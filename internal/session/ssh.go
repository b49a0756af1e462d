package session

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"dhow/internal/errdef"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"
)

// maxKeyFile bounds a file with a private key, in bytes; real ones have less
// than 20 KiB.
const maxKeyFile = 100 << 10

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
	keys   agent.ExtendedAgent // nil when there is a socket
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
		a.keys = agent.NewKeyring().(agent.ExtendedAgent)
	}
	if err := a.keys.Add(agent.AddedKey{PrivateKey: key, Comment: filepath.Base(path)}); err != nil {
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
