package creds

import (
	"bytes"
	"context"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"

	"dhow/internal/errdef"

	"filippo.io/age"
	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"
	"golang.org/x/sys/unix"
)

// What the encrypted store can be locked with, in the order in which they are
// tried.
const (
	KeyKeyring    = "keyring"    // the kernel's keyring of the user; gone when the machine restarts
	KeySystemd    = "systemd"    // systemd-creds: the machine's TPM or host key
	KeySSHAgent   = "ssh-agent"  // a signature by a key of ssh-agent
	KeyPassphrase = "passphrase" // asked for, or read from the file $DHOW_PASSPHRASE_FILE
)

// KeyKinds are the names of the keys, in the order in which they are tried.
func KeyKinds() []string { return []string{KeyKeyring, KeySystemd, KeySSHAgent, KeyPassphrase} }

// lock is how the identity of a store is found again.
type lock struct {
	Kind   string `json:"kind"`
	Serial int    `json:"serial,omitempty"` // keyring: the key's number
	Salt   []byte `json:"salt,omitempty"`   // ssh-agent: what is signed
	Signer string `json:"signer,omitempty"` // ssh-agent: fingerprint of the key
	User   bool   `json:"user,omitempty"`   // systemd: for this user, not for the system
	Sealed []byte `json:"sealed,omitempty"` // the identity, encrypted
}

// purpose is part of all that is derived or signed for the store.
const purpose = "dhow credential store v1"

// newLock locks the identity with the first kind that works, or the given one.
func (v *vault) newLock(ctx context.Context, kind, identity string) (lock, error) {
	kinds := KeyKinds()
	if kind != "" {
		if !slices.Contains(kinds, kind) {
			return lock{}, errdef.WithHint(errdef.New(errdef.ErrInvalid, "key %q is not known", kind), "keys: %s", strings.Join(kinds, ", "))
		}
		kinds = []string{kind}
	}
	var tried []string
	for _, k := range kinds {
		l, err := v.lockWith(ctx, k, identity)
		if err == nil && k != KeyPassphrase {
			// What cannot be opened now will not open later. A passphrase was typed twice.
			_, err = v.open(ctx, l)
		}
		if err == nil {
			return l, nil
		}
		if ctx.Err() != nil {
			return lock{}, context.Cause(ctx)
		}
		tried = append(tried, k+": "+err.Error())
	}
	return lock{}, errdef.WithHint(errdef.New(errdef.ErrUnsupported, "nothing to encrypt logins with (%s)", strings.Join(tried, "; ")),
		"start ssh-agent, put a passphrase into a file and name it in DHOW_PASSPHRASE_FILE, or keep the login readable with --plain-text")
}

func (v *vault) lockWith(ctx context.Context, kind, identity string) (lock, error) {
	switch kind {
	case KeyKeyring:
		return keyringLock(identity)
	case KeySystemd:
		return systemdLock(ctx, identity)
	case KeySSHAgent:
		return v.agentLock(identity)
	}
	phrase, err := v.askPassphrase(true)
	if err != nil {
		return lock{}, err
	}
	sealed, err := sealWith(phrase, workTyped, identity)
	return lock{Kind: KeyPassphrase, Sealed: sealed}, err
}

// open finds the identity. ErrNotFound when its key is gone.
func (v *vault) open(ctx context.Context, l lock) (string, error) {
	switch l.Kind {
	case KeyKeyring:
		return keyringOpen(l)
	case KeySystemd:
		return systemdRun(ctx, "decrypt", l.User, l.Sealed)
	case KeySSHAgent:
		return v.agentOpen(l)
	case KeyPassphrase:
		phrase, err := v.askPassphrase(false)
		if err != nil {
			return "", err
		}
		return openWith(phrase, l.Sealed)
	}
	return "", errdef.New(errdef.ErrUnsupported, "it is locked with %q, which is not known", l.Kind)
}

// The logarithms of scrypt's cost: for passphrases that people think of, at
// 64 MiB and a fifth of a second, since every pull pays for it; and for those
// that are derived and cannot be guessed.
const (
	workTyped   = 16
	workDerived = 8
)

// sealWith encrypts text under a passphrase, at a cost of scrypt.
func sealWith(phrase string, work int, text string) ([]byte, error) {
	to, err := age.NewScryptRecipient(phrase)
	if err != nil {
		return nil, err
	}
	to.SetWorkFactor(work)
	return encrypt([]byte(text), to)
}

func openWith(phrase string, sealed []byte) (string, error) {
	id, err := age.NewScryptIdentity(phrase)
	if err != nil {
		return "", err
	}
	r, err := age.Decrypt(bytes.NewReader(sealed), id)
	if err != nil {
		return "", errdef.New(errdef.ErrDenied, "the passphrase or key is wrong: %w", err)
	}
	text, err := io.ReadAll(io.LimitReader(r, 4096))
	return string(text), err
}

func (v *vault) askPassphrase(again bool) (string, error) {
	if path := v.env("DHOW_PASSPHRASE_FILE"); path != "" {
		data, err := os.ReadFile(path)
		if err != nil {
			return "", fmt.Errorf("read the passphrase: %w", err)
		}
		phrase, _, _ := strings.Cut(string(data), "\n")
		if phrase == "" {
			return "", errdef.New(errdef.ErrInvalid, "the first line of %s is empty", path)
		}
		return phrase, nil
	}
	if v.passphrase == nil {
		return "", errdef.WithHint(errdef.New(errdef.ErrDenied, "there is no terminal to ask for the passphrase"),
			"put it into a file and name that in DHOW_PASSPHRASE_FILE")
	}
	return v.passphrase(again)
}

// keyringLock puts the identity into the user's keyring. The user may read it by
// number, too, so that it is also found from inside a user namespace, which has
// a user keyring of its own.
func keyringLock(identity string) (lock, error) {
	name := make([]byte, 8)
	if _, err := rand.Read(name); err != nil {
		return lock{}, err
	}
	serial, err := unix.AddKey("user", "dhow:"+hex.EncodeToString(name), []byte(identity), unix.KEY_SPEC_USER_KEYRING)
	if err != nil {
		return lock{}, fmt.Errorf("add_key: %w", err)
	}
	const possessor, viewReadSearch = 0x3f000000, 0x000b0000 // keyctl_setperm(3)
	if err := unix.KeyctlSetperm(serial, possessor|viewReadSearch); err != nil {
		return lock{}, fmt.Errorf("keyctl setperm: %w", err)
	}
	return lock{Kind: KeyKeyring, Serial: serial}, nil
}

func keyringOpen(l lock) (string, error) {
	buf := make([]byte, 4096)
	n, err := unix.KeyctlBuffer(unix.KEYCTL_READ, l.Serial, buf, 0)
	if err != nil || n > len(buf) {
		return "", errdef.WithHint(errdef.New(errdef.ErrNotFound, "its key is not in the kernel's keyring any more: %w", err),
			"the machine was restarted: log in again; --key systemd, ssh-agent or passphrase outlast that")
	}
	return string(buf[:n]), nil
}

func systemdLock(ctx context.Context, identity string) (lock, error) {
	user := os.Geteuid() != 0
	sealed, err := systemdRun(ctx, "encrypt", user, []byte(identity))
	return lock{Kind: KeySystemd, User: user, Sealed: []byte(sealed)}, err
}

// systemdRun encrypts or decrypts with systemd-creds(1).
func systemdRun(ctx context.Context, action string, user bool, in []byte) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	args := []string{action, "--name=dhow-credentials"}
	if user {
		args = append(args, "--user")
	}
	cmd := exec.CommandContext(ctx, "systemd-creds", append(args, "-", "-")...)
	cmd.Stdin = bytes.NewReader(in)
	cmd.WaitDelay = time.Second
	var out, complaint capped
	cmd.Stdout, cmd.Stderr = &out, &complaint
	if err := cmd.Run(); err != nil {
		first, _, _ := strings.Cut(strings.TrimSpace(complaint.String()), "\n")
		return "", errdef.New(errdef.ErrUnavailable, "systemd-creds %s: %w: %s", action, err, first)
	}
	return out.String(), nil
}

// withAgent runs f on the ssh-agent and one of its keys: the one with that
// fingerprint, or the first whose signatures are always the same.
func (v *vault) withAgent(fingerprint string, f func(agent.ExtendedAgent, ssh.PublicKey) error) error {
	socket := v.env("SSH_AUTH_SOCK")
	if socket == "" {
		return errdef.New(errdef.ErrUnavailable, "SSH_AUTH_SOCK is not set")
	}
	conn, err := net.Dial("unix", socket)
	if err != nil {
		return errdef.As(errdef.ErrUnavailable, err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		return err
	}
	a := agent.NewClient(conn)
	keys, err := a.List()
	if err != nil {
		return errdef.As(errdef.ErrUnavailable, err)
	}
	for _, k := range keys {
		usable := k.Type() == ssh.KeyAlgoED25519 || k.Type() == ssh.KeyAlgoRSA
		if usable && (fingerprint == "" || fingerprint == ssh.FingerprintSHA256(k)) {
			return f(a, k)
		}
	}
	if fingerprint != "" {
		return errdef.WithHint(errdef.New(errdef.ErrUnavailable, "ssh-agent does not have the key %s", fingerprint), "ssh-add it")
	}
	return errdef.New(errdef.ErrUnavailable, "ssh-agent has no Ed25519 or RSA key")
}

// signed derives a passphrase from the agent's signature.
func signed(a agent.ExtendedAgent, k ssh.PublicKey, salt []byte) (string, error) {
	var flags agent.SignatureFlags
	if k.Type() == ssh.KeyAlgoRSA {
		flags = agent.SignatureFlagRsaSha512
	}
	sig, err := a.SignWithFlags(k, append([]byte(purpose+"\x00"), salt...), flags)
	if err != nil {
		return "", errdef.New(errdef.ErrUnavailable, "ssh-agent: %w", err)
	}
	key, err := hkdf.Key(sha256.New, sig.Blob, salt, purpose, 32)
	return hex.EncodeToString(key), err
}

func (v *vault) agentLock(identity string) (l lock, err error) {
	l = lock{Kind: KeySSHAgent, Salt: make([]byte, 32)}
	if _, err := rand.Read(l.Salt); err != nil {
		return l, err
	}
	err = v.withAgent("", func(a agent.ExtendedAgent, k ssh.PublicKey) error {
		phrase, err := signed(a, k, l.Salt)
		if err != nil {
			return err
		}
		l.Signer = ssh.FingerprintSHA256(k)
		l.Sealed, err = sealWith(phrase, workDerived, identity)
		return err
	})
	return l, err
}

func (v *vault) agentOpen(l lock) (text string, err error) {
	err = v.withAgent(l.Signer, func(a agent.ExtendedAgent, k ssh.PublicKey) error {
		phrase, err := signed(a, k, l.Salt)
		if err == nil {
			text, err = openWith(phrase, l.Sealed)
		}
		return err
	})
	return text, err
}
