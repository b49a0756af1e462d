package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"

	"dhow/internal/cli/console"
	"dhow/internal/creds"
	"dhow/internal/errdef"
	"dhow/internal/oci"
	"dhow/internal/registry"

	"github.com/spf13/cobra"
	"golang.org/x/term"
)

// loginFlags are the flags of dhow login.
type loginFlags struct {
	user, password, profile, key string
	passwordStdin, plain, verify bool
}

func (a *app) loginCommand() *cobra.Command {
	var f loginFlags
	cmd := &cobra.Command{
		Use: "login [OPTIONS] [SERVER]", Short: "Authenticate to a registry", Args: console.RangeArgs(0, 1),
		Long: "Authenticate to a registry, or to a part of one (ghcr.io/org).\nThe default is Docker Hub.",
		RunE: func(cmd *cobra.Command, args []string) error {
			server, err := serverArg(args)
			if err != nil {
				return err
			}
			if f.profile != "" && !creds.ValidProfile(f.profile) {
				return errdef.New(errdef.ErrInvalid, "--as %q: a profile's name has no spaces, '@', '/' or ':'", f.profile)
			}
			if f.plain && f.key != "" {
				return errdef.New(errdef.ErrInvalid, "--plain-text and --key exclude each other")
			}
			return a.login(cmd.Context(), server, f)
		},
	}
	fl := cmd.Flags()
	fl.StringVarP(&f.user, "username", "u", "", "Username")
	fl.StringVarP(&f.password, "password", "p", "", "Password or access token")
	fl.BoolVar(&f.passwordStdin, "password-stdin", false, "Take the password from stdin")
	fl.StringVar(&f.profile, "as", "", "Keep the login under a profile's name, for use with pull --as and push --as")
	fl.BoolVar(&f.plain, "plain-text", false, "Keep the password readable in docker's config.json")
	fl.StringVar(&f.key, "key", "", "What to encrypt a new store with: "+strings.Join(creds.KeyKinds(), ", ")+" (default the first that works)")
	fl.BoolVar(&f.verify, "tls-verify", true, "Check the certificate of the registry")
	cmd.AddCommand(a.loginLsCommand())
	return cmd
}

func serverArg(args []string) (creds.Server, error) {
	if len(args) == 0 {
		return creds.ParseServer("")
	}
	return creds.ParseServer(args[0])
}

func (a *app) login(ctx context.Context, server creds.Server, f loginFlags) error {
	logins := a.Logins(f.profile)
	login, stored, err := a.askLogin(ctx, logins, server, f)
	if err != nil {
		return err
	}
	if !f.verify {
		a.Unverified = []string{server.Domain}
	}
	o := a.RegistryOptions()
	o.Credentials = nil
	in, err := registry.New(o).Login(ctx, server.Domain, login.User, login.Secret)
	if err != nil {
		return err
	}
	if in.Open {
		fmt.Fprintf(a.Err, "WARNING! %s asks nobody for a password; this one was not checked.\n", server.Domain)
	}
	if !stored {
		if in.IdentityToken != "" {
			login = creds.Login{User: creds.TokenUser, Secret: in.IdentityToken, Name: login.User}
		}
		kept, err := logins.Keep(ctx, server, login, creds.KeepOptions{PlainText: f.plain, Key: f.key})
		if err != nil {
			return err
		}
		a.tellKept(kept)
	}
	fmt.Fprintln(a.Out, "Login Succeeded")
	return nil
}

// tellKept says where a login went, as far as it matters.
func (a *app) tellKept(k creds.Kept) {
	switch {
	case k.Plain:
		fmt.Fprintf(a.Err, "\nWARNING! Your password is kept unencrypted in %s.\nLeave out --plain-text to have it encrypted.\n\n", k.Where)
	case k.Key != "":
		fmt.Fprintf(a.Err, "The login is kept in %s, encrypted (key: %s).\n", k.Where, k.Key)
	}
	if k.Lost {
		fmt.Fprintln(a.Err, "WARNING! The key to the logins kept there before is gone, and so are they: log in to the other registries anew.")
	}
	if !k.Others && k.Key != "" {
		fmt.Fprintln(a.Err, "Other tools find it once this program is in the path as docker-credential-dhow.")
	}
}

// askLogin finds out who logs in: flags, what is kept already, or the terminal.
// stored says that it is kept already.
func (a *app) askLogin(ctx context.Context, logins *creds.Logins, server creds.Server, f loginFlags) (l creds.Login, stored bool, err error) {
	if f.password != "" {
		fmt.Fprintln(a.Err, "WARNING! A password on the command line can be seen by all users of the machine. Use --password-stdin.")
	}
	switch {
	case f.password != "" && f.passwordStdin:
		return l, false, errdef.New(errdef.ErrInvalid, "--password and --password-stdin exclude each other")
	case f.passwordStdin && f.user == "":
		return l, false, errdef.WithHint(errdef.New(errdef.ErrInvalid, "--password-stdin needs a user name"), "add -u USER")
	case f.passwordStdin:
		raw, err := io.ReadAll(io.LimitReader(a.In, 1<<20))
		if err != nil {
			return l, false, fmt.Errorf("read the password: %w", err)
		}
		f.password = strings.TrimRight(string(raw), "\r\n")
		if f.password == "" {
			return l, false, errdef.New(errdef.ErrInvalid, "--password-stdin: standard input is empty")
		}
	case f.user == "" && f.password == "":
		// As docker does: who is logged in already is not asked again.
		found, err := logins.Find(ctx, server)
		if err != nil && !errors.Is(err, errdef.ErrNotFound) {
			return l, false, err
		}
		if len(found) > 0 && found[0].Server == server {
			fmt.Fprintf(a.Err, "Authenticating with existing credentials... [Username: %s]\n", found[0].Login.Who())
			return found[0].Login, true, nil
		}
	}
	if f.user == "" || f.password == "" {
		if err := a.promptLogin(&f); err != nil {
			return l, false, err
		}
	}
	return creds.Login{User: f.user, Secret: f.password}, false, nil
}

// promptLogin asks for what is missing at the terminal.
func (a *app) promptLogin(f *loginFlags) error {
	in, ok := a.In.(*os.File)
	if !ok || !term.IsTerminal(int(in.Fd())) {
		return errdef.WithHint(errdef.New(errdef.ErrInvalid, "log in: there is no terminal to ask for the password"), "use -u USER --password-stdin")
	}
	if f.user == "" {
		fmt.Fprint(a.Err, "Username: ")
		line, err := bufio.NewReader(in).ReadString('\n')
		if f.user = strings.TrimSpace(line); f.user == "" {
			return errdef.New(errdef.ErrInvalid, "log in: no user name was given: %w", errors.Join(err))
		}
	}
	if f.password == "" {
		secret, err := console.ReadSecret(in, a.Err, "Password: ")
		if err != nil {
			return err
		}
		if f.password = secret; secret == "" {
			return errdef.New(errdef.ErrInvalid, "log in: no password was given")
		}
	}
	return nil
}

func (a *app) loginLsCommand() *cobra.Command {
	var profile string
	cmd := &cobra.Command{
		Use: "ls [NAME]", Short: "List logins, or those that serve an image's name, the one that is used first", Aliases: []string{"list"},
		Args: console.RangeArgs(0, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			logins := a.Logins(profile)
			if len(args) == 1 {
				return a.explainLogin(cmd.Context(), logins, args[0])
			}
			list, err := logins.List(cmd.Context())
			w := tabwriter.NewWriter(a.Out, 0, 0, 3, ' ', 0)
			fmt.Fprintln(w, "SERVER\tUSER\tPROFILE\tKEPT IN")
			for _, l := range list {
				if profile == "" || profile == l.Profile {
					fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", l.Server, l.Login.User, l.Profile, l.Source)
				}
			}
			return errors.Join(w.Flush(), err)
		},
	}
	cmd.Flags().StringVar(&profile, "as", "", "Only those of a profile")
	return cmd
}

// explainLogin shows which login is used for a name, and which it hides.
func (a *app) explainLogin(ctx context.Context, logins *creds.Logins, name string) error {
	ref, err := oci.ParseRef(name)
	server := creds.Server{Domain: ref.Domain, Path: ref.Path}
	if host, _, path := strings.Cut(name, "/"); err != nil || !path && strings.ContainsAny(host, ".:") {
		server, err = creds.ParseServer(name) // a registry rather than an image
	}
	if err != nil {
		return err
	}
	found, err := logins.Find(ctx, server)
	if len(found) == 0 {
		if err == nil {
			fmt.Fprintf(a.Out, "%s is used without a login\n", server)
		}
		return err
	}
	w := tabwriter.NewWriter(a.Out, 0, 0, 3, ' ', 0)
	fmt.Fprintln(w, "USED\tFOR\tUSER\tKEPT IN\tWHY")
	for i, l := range found {
		used, why := "no", "an earlier source has one for the same scope"
		switch {
		case i == 0:
			used, why = "yes", "the longest scope with a login, from the first source that has one"
		case l.Server != found[0].Server:
			why = "a longer scope has one"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", used, l.Server, l.Login.Who(), l.Source, why)
	}
	return errors.Join(w.Flush(), err)
}

func (a *app) logoutCommand() *cobra.Command {
	var profile string
	cmd := &cobra.Command{
		Use: "logout [SERVER]", Short: "Log out from a registry", Args: console.RangeArgs(0, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			server, err := serverArg(args)
			if err != nil {
				return err
			}
			from, err := a.Logins(profile).Forget(cmd.Context(), server)
			for _, place := range from {
				fmt.Fprintf(a.Out, "Removing login credentials for %s (%s)\n", server, place)
			}
			if err == nil && len(from) == 0 {
				fmt.Fprintf(a.Out, "Not logged in to %s\n", server)
			}
			return err
		},
	}
	cmd.Flags().StringVar(&profile, "as", "", "The login of a profile")
	return cmd
}
