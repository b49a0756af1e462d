package creds

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"

	"dhow/internal/errdef"
)

// HelperProgram is the name under which the encrypted store answers docker and
// other tools as a credential helper.
const HelperProgram = helperPrefix + ownHelper

// ServeHelper answers one action of the credential helper protocol (get, store,
// erase, list) from the encrypted store. Its error is what the protocol wants
// printed on the standard output.
func (l *Logins) ServeHelper(ctx context.Context, action string, in io.Reader, out io.Writer) error {
	raw, err := io.ReadAll(io.LimitReader(in, maxHelper))
	if err != nil {
		return fmt.Errorf("read request: %w", err)
	}
	switch action {
	case "list":
		names, err := l.vault.list(ctx)
		if err != nil {
			return err
		}
		if names == nil {
			names = map[string]string{}
		}
		return json.NewEncoder(out).Encode(names)
	case "store":
		var c credential
		if err := json.Unmarshal(raw, &c); err != nil {
			return errdef.New(errdef.ErrInvalid, "decode login: %w", err)
		}
		if c.ServerURL == "" || c.Username == "" {
			return errdef.New(errdef.ErrInvalid, "no credentials server URL or username")
		}
		return l.vault.put(ctx, helperKey(c.ServerURL), Login{User: c.Username, Secret: c.Secret}, "")
	case "get", "erase":
		key := helperKey(strings.TrimSpace(string(raw)))
		if action == "erase" {
			_, err := l.vault.erase(ctx, key)
			return err
		}
		login, ok, err := l.vault.get(ctx, key)
		if err != nil {
			return err
		}
		if !ok {
			return errdef.New(errdef.ErrNotFound, helperNotFound)
		}
		return json.NewEncoder(out).Encode(credential{ServerURL: strings.TrimSpace(string(raw)), Username: login.User, Secret: login.Secret})
	}
	return errdef.New(errdef.ErrInvalid, "unknown action %q: get, store, erase, list", action)
}

// helperKey is the store's key for a server as other tools write it.
func helperKey(server string) string {
	profile, s := parseKey(server)
	return s.key(profile)
}
