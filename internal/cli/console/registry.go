package console

import (
	"fmt"
	"io"
	"os"
	"strings"

	"dhow/internal/creds"
	"dhow/internal/errdef"
	"dhow/internal/hosts"
	"dhow/internal/oci"
	"dhow/internal/registry"

	"github.com/spf13/cobra"
	"golang.org/x/term"
)

// RegistryOptions is how every command talks to registries.
func (c *Console) RegistryOptions() registry.Options {
	h := hosts.Open(hosts.Options{Unverified: c.Unverified})
	return registry.Options{
		UserAgent: "dhow/" + c.Version.Version, Credentials: c.Logins(c.Profile).For,
		Transport: h.Transport(registry.DefaultTransport()), Places: h.Places, PlainHTTP: h.Insecure,
		Offline: c.Offline,
		Warn:    func(err error) { fmt.Fprintln(c.Err, "dhow: warning: "+OneLine(err)) },
	}
}

// Registry is a client for commands that need no store.
func (c *Console) Registry() *registry.Client { return registry.New(c.RegistryOptions()) }

// RegistryFlags are the flags of commands that talk to the registries of the
// names that are their arguments. They take effect when the engine is opened.
func (c *Console) RegistryFlags(cmd *cobra.Command) {
	var verify bool
	c.ProfileFlag(cmd)
	cmd.Flags().BoolVar(&verify, "tls-verify", true, "Check certificates of the registries that are named")
	run := cmd.RunE
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if !verify {
			for _, name := range args {
				ref, err := oci.ParseRef(strings.TrimPrefix(name, "docker://"))
				if err != nil && strings.Contains(name, ":") {
					continue // a file, or another machine
				}
				if err != nil {
					return err
				}
				c.Unverified = append(c.Unverified, ref.Domain)
			}
		}
		return run(cmd, args)
	}
}

// ProfileFlag adds --as to a command that talks to registries.
func (c *Console) ProfileFlag(cmd *cobra.Command) {
	cmd.Flags().StringVar(&c.Profile, "as", "", "Use the logins of a profile (dhow login --as)")
	run := cmd.RunE
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if cmd.Flags().Changed("as") && !creds.ValidProfile(c.Profile) {
			return errdef.New(errdef.ErrInvalid, "--as %q is not a profile's name", c.Profile)
		}
		return run(cmd, args)
	}
}

// Logins are the user's, under a profile or under none.
func (c *Console) Logins(profile string) *creds.Logins {
	return creds.Open(creds.Options{Profile: profile, Passphrase: AskPassphrase})
}

// AskPassphrase asks for the passphrase of the encrypted store at the process's
// terminal, wherever its standard input comes from.
func AskPassphrase(again bool) (string, error) {
	tty, err := os.OpenFile("/dev/tty", os.O_RDWR, 0)
	if err != nil {
		return "", errdef.WithHint(errdef.New(errdef.ErrDenied, "there is no terminal to ask for the passphrase"),
			"put it into a file and name that in DHOW_PASSPHRASE_FILE")
	}
	defer tty.Close()
	phrase, err := ReadSecret(tty, tty, "Passphrase of the credential store: ")
	if err != nil || !again {
		return phrase, err
	}
	if phrase == "" {
		return "", errdef.New(errdef.ErrInvalid, "the passphrase is empty")
	}
	second, err := ReadSecret(tty, tty, "The same once more: ")
	if err == nil && second != phrase {
		err = errdef.New(errdef.ErrInvalid, "the passphrases differ")
	}
	return phrase, err
}

// ReadSecret asks at a terminal without showing what is typed.
func ReadSecret(in *os.File, out io.Writer, prompt string) (string, error) {
	fmt.Fprint(out, prompt)
	secret, err := term.ReadPassword(int(in.Fd()))
	fmt.Fprintln(out)
	if err != nil {
		return "", fmt.Errorf("read the password: %w", err)
	}
	return string(secret), nil
}
