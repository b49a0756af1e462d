package lifecycle

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"dhow/internal/errdef"
	"dhow/internal/sys"
)

// Unit is the systemd unit that starts containers with the machine.
type Unit struct {
	Program string // absolute path of dhow
	Root    string // absolute path of the state directory
	// Default says that Root is what dhow uses without being told.
	Default bool
	User    bool   // it is a unit of the user's own systemd
	Dir     string // where units are: /etc/systemd/system, ~/.config/systemd/user
}

// Name is the unit's file name: one for each state directory.
func (u Unit) Name() string {
	if u.Default {
		return "dhow.service"
	}
	sum := sha256.Sum256([]byte(u.Root))
	return "dhow-" + hex.EncodeToString(sum[:4]) + ".service"
}

// target is what pulls the unit in.
func (u Unit) target() string {
	if u.User {
		return "default.target"
	}
	return "multi-user.target"
}

// Text is the unit. ErrInvalid for paths that a unit cannot name.
//
// KillMode=mixed without a main process leaves the containers to ExecStop, which
// ends each as it wants to be ended. Delegate lets an ordinary user's containers
// have limits. OOMPolicy keeps the unit when one container's limit kills.
func (u Unit) Text() (string, error) {
	for _, p := range []string{u.Program, u.Root} {
		if !filepath.IsAbs(p) || strings.ContainsFunc(p, func(r rune) bool { return r < ' ' || r == 0x7f }) {
			return "", errdef.New(errdef.ErrInvalid, "write a systemd unit: the path %q", p)
		}
	}
	network := "Wants=network-online.target\nAfter=network-online.target local-fs.target nss-lookup.target\n"
	if u.User {
		network = "" // a user's systemd has no such targets, and starts after them
	}
	word := func(s string) string { return strings.ReplaceAll(quotePath(s), "$", "$$") } // of a command line
	command := word(u.Program) + " --root " + word(u.Root) + " system"
	return `# Written by "dhow system enable"; "dhow system disable" removes it.
[Unit]
Description=Containers of dhow in ` + strings.ReplaceAll(u.Root, "%", "%%") + `
` + network + `RequiresMountsFor=` + quotePath(u.Root) + `

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=` + command + ` start
ExecStop=` + command + ` stop
KillMode=mixed
Delegate=yes
OOMPolicy=continue
TasksMax=infinity
TimeoutStartSec=infinity
TimeoutStopSec=5min

[Install]
WantedBy=` + u.target() + `
`, nil
}

// quotePath writes a path in a unit file (systemd.syntax(7), systemd.unit(5)).
func quotePath(s string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, "%", "%%").Replace(s) + `"`
}

// link is what makes systemd start the unit.
func (u Unit) link() string { return filepath.Join(u.Dir, u.target()+".wants", u.Name()) }

// Install writes the unit and enables it, as systemctl enable does; a systemd
// that runs has to be told to look. It returns the unit's path.
func (u Unit) Install() (string, error) {
	text, err := u.Text()
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(filepath.Dir(u.link()), 0o755); err != nil {
		return "", unitError(err)
	}
	path := filepath.Join(u.Dir, u.Name())
	if err := sys.WriteFileAtomic(path, []byte(text), 0o644); err != nil {
		return "", unitError(err)
	}
	err = os.Symlink(path, u.link())
	if err != nil && !errors.Is(err, os.ErrExist) {
		return "", unitError(err)
	}
	return path, nil
}

// Remove disables the unit and removes it. ErrNotFound when there is none.
func (u Unit) Remove() error {
	if err := os.Remove(u.link()); err != nil && !errors.Is(err, os.ErrNotExist) {
		return unitError(err)
	}
	err := os.Remove(filepath.Join(u.Dir, u.Name()))
	if errors.Is(err, os.ErrNotExist) {
		return errdef.New(errdef.ErrNotFound, "there is no unit %s in %s", u.Name(), u.Dir)
	}
	return unitError(err)
}

func unitError(err error) error {
	if err == nil {
		return nil
	}
	if errors.Is(err, os.ErrPermission) {
		err = errdef.WithHint(errdef.As(errdef.ErrDenied, err), "root enables the machine's unit, a user their own")
	}
	return fmt.Errorf("enable the unit: %w", err)
}
