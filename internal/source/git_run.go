package source

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"

	"dhow/internal/errdef"
	"dhow/internal/session"
	"dhow/internal/sys"

	"golang.org/x/sys/unix"
)

// gitRun is an environment to run git in. It reads no configuration but ours,
// asks nobody anything, runs no hook and no program that a repository names,
// and speaks only protocols that leave this machine alone.
type gitRun struct {
	dir   string // for sockets and known hosts; of the process, removed by close
	env   []string
	agent *session.AgentSocket
	local bool // the one fetch from the bare repository next to it

	offline bool // git may speak to nobody
}

// maxGitOutput bounds what is kept of one command's output, in bytes: the refs
// of the largest repositories are some 100 MiB.
const maxGitOutput = 256 << 20

// newRun makes the environment for the remote of the source.
func (g *gitSource) newRun(ctx context.Context) (_ *gitRun, err error) {
	if _, err := exec.LookPath("git"); err != nil {
		return nil, errdef.WithHint(errdef.New(errdef.ErrUnsupported, "git repository %s: the git program is not installed", redact(g.remote)),
			"install it, as with: apt install git")
	}
	r := &gitRun{offline: g.deps.Offline}
	if r.dir, err = g.deps.Store.TempDir("git"); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			r.close()
		}
	}()
	r.env = []string{
		"PATH=" + os.Getenv("PATH"), "LC_ALL=C", "HOME=" + os.DevNull,
		"GIT_CONFIG_NOSYSTEM=1", "GIT_CONFIG_GLOBAL=" + os.DevNull,
		"GIT_TERMINAL_PROMPT=0", "GIT_ASKPASS=", "SSH_ASKPASS=", "SSH_ASKPASS_REQUIRE=never",
		"GIT_OPTIONAL_LOCKS=0", "GIT_LFS_SKIP_SMUDGE=1",
	}
	for _, name := range []string{"HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "no_proxy", "all_proxy"} {
		if val, ok := os.LookupEnv(name); ok {
			r.env = append(r.env, name+"="+val)
		}
	}
	if err := g.auth(ctx, r); err != nil {
		return nil, err
	}
	return r, g.ssh(ctx, r)
}

// auth adds the header that a secret of the build gives for the remote. It goes
// through the environment: arguments can be read by everybody.
func (g *gitSource) auth(ctx context.Context, r *gitRun) error {
	if u := g.access.user; u != nil {
		password, _ := u.Password()
		r.authorize(hostScope(g.remote), "basic "+base64.StdEncoding.EncodeToString([]byte(u.Username()+":"+password)))
		return nil
	}
	type candidate struct {
		id    string
		token bool
	}
	var list []candidate
	a := g.access
	for _, suffix := range []string{"." + g.host(), ""} {
		if a.headerSecret != "" {
			list = append(list, candidate{a.headerSecret + suffix, false})
		}
		if a.tokenSecret != "" {
			list = append(list, candidate{a.tokenSecret + suffix, true})
		}
	}
	for _, c := range list {
		val, err := g.deps.Session.Secret(ctx, c.id)
		if errors.Is(err, errdef.ErrNotFound) {
			continue
		}
		if err != nil {
			return err
		}
		header := strings.TrimSpace(string(val))
		if c.token {
			header = "basic " + base64.StdEncoding.EncodeToString([]byte("x-access-token:"+header))
		}
		r.authorize(tokenScope(g.remote), header)
		return nil
	}
	return nil
}

func (r *gitRun) authorize(scope, header string) {
	r.env = append(r.env, "GIT_CONFIG_COUNT=1", "GIT_CONFIG_KEY_0=http."+scope+".extraheader", "GIT_CONFIG_VALUE_0=Authorization: "+header)
}

// ssh sets how ssh is run: without the user's configuration, never asking, with
// the build's agent, and with the hosts that the build or the user knows.
func (g *gitSource) ssh(ctx context.Context, r *gitRun) error {
	hosts := filepath.Join(r.dir, "known_hosts")
	if err := os.WriteFile(hosts, []byte(g.access.knownHosts), 0o600); err != nil {
		return fmt.Errorf("write the known hosts: %w", err)
	}
	files, strict := hosts, "yes"
	if g.access.knownHosts == "" {
		// Nobody said which key the host has: one that contradicts what the user
		// has seen before is refused, a new one is taken.
		strict = "accept-new"
		if home, err := os.UserHomeDir(); err == nil && !strings.ContainsAny(home, " \"'\\$`") {
			files += " " + filepath.Join(home, ".ssh", "known_hosts")
		}
	}
	r.env = append(r.env, fmt.Sprintf("GIT_SSH_COMMAND=ssh -F %s -o BatchMode=yes -o StrictHostKeyChecking=%s -o 'UserKnownHostsFile=%s'", os.DevNull, strict, files))
	id := g.access.ssh
	if id == "" || g.deps.Session.HasSSH(ctx, id) != nil {
		return nil // a repository that needs no key may be reached without
	}
	sock := filepath.Join(r.dir, "agent")
	agent, err := session.ListenSSH(ctx, g.deps.Session, id, sock)
	if err != nil {
		return fmt.Errorf("serve the ssh agent %s: %w", id, err)
	}
	r.agent = agent
	r.env = append(r.env, "SSH_AUTH_SOCK="+sock)
	return nil
}

func (r *gitRun) close() {
	if r.agent != nil {
		_ = r.agent.Close() // its socket goes with the directory
	}
	_ = sys.RemoveAll(r.dir) // what is left ends with the process
}

// git runs one command and returns its output.
func (r *gitRun) git(ctx context.Context, args ...string) (string, error) {
	protocols := "http:https:ssh:git"
	if r.local {
		protocols = "file"
	} else if r.offline {
		protocols = "none" // no protocol has that name
	}
	safe := []string{
		"-c", "core.hooksPath=" + os.DevNull, "-c", "core.fsmonitor=false", "-c", "credential.helper=",
		"-c", "init.defaultBranch=master", "-c", "advice.detachedHead=false", "-c", "gc.auto=0",
		"-c", "maintenance.auto=false", "-c", "safe.directory=*", "-c", "protocol.ext.allow=never",
	}
	cmd := exec.Command("git", append(safe, args...)...)
	cmd.Env = append(slices.Clone(r.env), "GIT_ALLOW_PROTOCOL="+protocols)
	cmd.Dir = r.dir
	var out, errs limitedBuffer
	out.limit, errs.limit = maxGitOutput, 64<<10
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := runWithUmask(ctx, cmd)
	if cause := context.Cause(ctx); cause != nil {
		return "", cause
	}
	if err != nil {
		return "", gitError(err, errs.String())
	}
	if out.full {
		return "", errdef.New(errdef.ErrInvalid, "git %s: more than %d MiB of output", args[0], maxGitOutput>>20)
	}
	return out.String(), nil
}

// gitError says what git said, with the kind of failure where it is known.
func gitError(err error, stderr string) error {
	text := strings.TrimSpace(stderr)
	out := fmt.Errorf("%w: git stderr:\n%s", err, text)
	has := func(words ...string) bool {
		return slices.ContainsFunc(words, func(w string) bool { return strings.Contains(text, w) })
	}
	switch {
	case has("could not read Username", "Authentication failed", "Permission denied (publickey", "HTTP 403", "403 Forbidden", "returned error: 403"):
		return errdef.WithHint(errdef.As(errdef.ErrDenied, out), "pass a token with --secret id=GIT_AUTH_TOKEN, or an agent with --ssh default")
	case has("Host key verification failed"):
		return errdef.As(errdef.ErrDenied, out)
	case has("transport '", "not allowed"):
		return errdef.As(errdef.ErrDenied, out)
	case has("not found", "does not appear to be a git repository", "couldn't find remote ref"):
		return errdef.As(errdef.ErrNotFound, out)
	case has("Could not resolve host", "Connection refused", "Connection timed out", "unable to access", "early EOF", "hung up unexpectedly"):
		return errdef.As(errdef.ErrUnavailable, out)
	case has("No space left"):
		return errdef.As(errdef.ErrNoSpace, out)
	}
	return out
}

// limitedBuffer keeps the first bytes of a stream.
type limitedBuffer struct {
	bytes.Buffer
	limit int
	full  bool
}

func (b *limitedBuffer) Write(p []byte) (int, error) {
	if room := b.limit - b.Len(); room < len(p) {
		b.full = true
		b.Buffer.Write(p[:max(room, 0)])
		return len(p), nil
	}
	return b.Buffer.Write(p)
}

// runWithUmask runs the command to its end in a process group of its own, with
// the umask 022 that file modes in a checkout rely on, whatever the user's is.
// The command dies with this process, and its group with the context.
func runWithUmask(ctx context.Context, cmd *exec.Cmd) error {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	done := make(chan error, 1)
	go func() {
		// The thread gets file system attributes of its own and is never given
		// back: it ends with this goroutine. Until then it is the parent whose
		// death the command would be told of.
		runtime.LockOSThread()
		if err := unix.Unshare(unix.CLONE_FS); err != nil {
			done <- fmt.Errorf("set the umask: %w", err)
			return
		}
		unix.Umask(0o022)
		if err := cmd.Start(); err != nil {
			done <- err
			return
		}
		stop := context.AfterFunc(ctx, func() {
			_ = unix.Kill(-cmd.Process.Pid, unix.SIGKILL) // it may have ended by itself
		})
		defer stop()
		done <- cmd.Wait()
	}()
	return <-done
}
