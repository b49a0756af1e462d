package creds

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"sync"
	"time"

	"dhow/internal/errdef"

	"golang.org/x/sys/unix"
)

// The protocol of docker's credential helpers: the program
// docker-credential-NAME gets an action as its argument, a server or a login on
// its standard input, and answers on its standard output. When it fails, its
// output says why.
const (
	helperPrefix   = "docker-credential-"
	helperNotFound = "credentials not found in native keychain"
	maxHelper      = 1 << 20 // bytes of an answer
)

// ownHelper is the name under which this program is a helper.
const ownHelper = "dhow"

// credential is a login as helpers write it.
type credential struct {
	ServerURL string
	Username  string
	Secret    string
}

// answer is what a helper said of a key.
type answer struct {
	login Login
	ok    bool
	err   error
}

// ask gets a login from a helper, once for each key.
func (l *Logins) ask(ctx context.Context, helper, key string) (Login, bool, error) {
	id := helper + " " + key
	l.mu.Lock()
	f := l.answers[id]
	if f == nil {
		f = sync.OnceValue(func() (a answer) {
			a.login, a.ok, a.err = l.askNow(ctx, helper, key)
			return a
		})
		l.answers[id] = f
	}
	l.mu.Unlock()
	a := f()
	return a.login, a.ok, a.err
}

func (l *Logins) askNow(ctx context.Context, helper, key string) (Login, bool, error) {
	if helper == ownHelper {
		return l.vault.get(ctx, key)
	}
	out, err := l.runHelper(ctx, helper, "get", []byte(key))
	if errors.Is(err, errdef.ErrNotFound) {
		return Login{}, false, nil
	}
	if err != nil {
		return Login{}, false, err
	}
	var c credential
	if err := json.Unmarshal(out, &c); err != nil {
		return Login{}, false, errdef.New(errdef.ErrUnavailable, "%s%s: its answer is not a login", helperPrefix, helper)
	}
	return Login{User: c.Username, Secret: c.Secret}, c.Username != "", nil
}

// runHelper runs one action of a helper. ErrNotFound when the helper has no such
// login, ErrUnavailable when it is missing, fails or takes too long. What it
// printed is part of the error of a failure only, so that no secret is.
func (l *Logins) runHelper(ctx context.Context, helper, action string, in []byte) ([]byte, error) {
	program := helperPrefix + helper
	if strings.ContainsAny(helper, "/\\") {
		return nil, errdef.New(errdef.ErrInvalid, "credential helper %q: it is the part of a program's name after %s", helper, helperPrefix)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, l.o.HelperTimeout, errdef.New(errdef.ErrUnavailable, "%s %s: no answer within %s", program, action, l.o.HelperTimeout))
	defer cancel()
	cmd := exec.CommandContext(ctx, program, action)
	var out, complaint capped
	cmd.Stdout, cmd.Stderr = &out, &complaint
	cmd.WaitDelay = time.Second // a child of it may keep the pipes
	stdin, err := cmd.StdinPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		return nil, errdef.WithHint(errdef.New(errdef.ErrUnavailable, "start credential helper: %w", err),
			"install %s, or take it out of docker's config.json", program)
	}
	// Secrets do not end in core files. This comes before anything is told it; that
	// it can fail with a helper that is gone already does not matter.
	_ = unix.Prlimit(cmd.Process.Pid, unix.RLIMIT_CORE, &unix.Rlimit{}, nil)
	_, werr := stdin.Write(in)
	stdin.Close()
	err = cmd.Wait()
	text := strings.TrimSpace(out.String())
	switch {
	case ctx.Err() != nil:
		return nil, context.Cause(ctx)
	case err != nil && strings.Contains(text, helperNotFound):
		return nil, errdef.New(errdef.ErrNotFound, "%s has no such login", program)
	case err != nil:
		if text == "" {
			text = strings.TrimSpace(complaint.String())
		}
		return nil, errdef.New(errdef.ErrUnavailable, "%s %s: %w: %s", program, action, err, text)
	case werr != nil && action == "store":
		return nil, errdef.New(errdef.ErrUnavailable, "%s %s: %w", program, action, werr)
	}
	return out.Bytes(), nil
}

// capped keeps the beginning of what is written.
type capped struct{ bytes.Buffer }

func (c *capped) Write(p []byte) (int, error) {
	c.Buffer.Write(p[:min(len(p), maxHelper-c.Len())])
	return len(p), nil
}

// helperStore gives a login to a helper.
func (l *Logins) helperStore(ctx context.Context, helper, key string, login Login) error {
	if helper == ownHelper {
		return l.vault.put(ctx, key, login, "")
	}
	in, err := json.Marshal(credential{ServerURL: key, Username: login.User, Secret: login.Secret})
	if err != nil {
		return fmt.Errorf("store login: %w", err)
	}
	_, err = l.runHelper(ctx, helper, "store", in)
	return err
}

// helperErase takes a login from a helper; false when it had none.
func (l *Logins) helperErase(ctx context.Context, helper, key string) (bool, error) {
	if helper == ownHelper {
		return l.vault.erase(ctx, key)
	}
	// Most helpers do not tell whether there was anything to erase.
	if _, err := l.runHelper(ctx, helper, "get", []byte(key)); errors.Is(err, errdef.ErrNotFound) {
		return false, nil
	}
	_, err := l.runHelper(ctx, helper, "erase", []byte(key))
	return err == nil, err
}

// helperList are the keys and users that a helper has.
func (l *Logins) helperList(ctx context.Context, helper string) (map[string]string, error) {
	if helper == ownHelper {
		return l.vault.list(ctx)
	}
	out, err := l.runHelper(ctx, helper, "list", nil)
	if err != nil {
		return nil, err
	}
	var m map[string]string
	if err := json.Unmarshal(out, &m); err != nil {
		return nil, errdef.New(errdef.ErrUnavailable, "%s%s list: its answer is not a list of logins", helperPrefix, helper)
	}
	return m, nil
}
