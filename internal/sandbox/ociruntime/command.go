package ociruntime

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"dhow/internal/errdef"
	"dhow/internal/sandbox"
)

// maxSaid bounds what is kept of a runtime's words.
const maxSaid = 64 << 10

// command prepares the runtime's command args[0]; it logs to the file log.
func (c *Container) command(ctx context.Context, log string, args ...string) *exec.Cmd {
	all := slices.Concat(c.runtime.defaults(), c.runtime.Args, []string{"--root", c.b.path(stateDir), "--log", log, "--log-format", "json"}, args)
	cmd := exec.CommandContext(ctx, c.runtime.Path, all...)
	cmd.Dir = "/"
	cmd.Env = environment()
	return cmd
}

// defaults are arguments that a runtime needs to work as others do. What runsc's
// containers write it keeps in a file of its own by default, of which neither
// commit nor diff would know.
func (r Runtime) defaults() []string {
	if filepath.Base(r.Path) == "runsc" {
		return []string{"--overlay2=none"}
	}
	return nil
}

// environment is ours without what would make a runtime talk to systemd in our
// place.
func environment() []string {
	return slices.DeleteFunc(os.Environ(), func(v string) bool {
		return strings.HasPrefix(v, "NOTIFY_SOCKET=") || strings.HasPrefix(v, "LISTEN_")
	})
}

// run runs a command to its end, whose output nobody needs.
func (c *Container) run(ctx context.Context, args ...string) error {
	var said bytes.Buffer
	cmd := c.command(ctx, c.b.path(logFile), args...)
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Run(); err != nil {
		return c.explain(args[0], c.b.path(logFile), said.String(), err)
	}
	return nil
}

// explain is why a command failed: what the runtime logged, else what it said.
func (c *Container) explain(what, log, said string, err error) error {
	var why *exec.Error
	if errors.As(err, &why) || errors.Is(err, os.ErrNotExist) { // the program itself
		return &sandbox.StartError{ExitCode: exitNotFound, Err: errdef.As(errdef.ErrNotFound, fmt.Errorf("runtime %s: %w", c.runtime.Path, err))}
	}
	text := lastError(log)
	if text == "" {
		text = strings.TrimSpace(said[max(0, len(said)-maxSaid):])
	}
	if text == "" {
		text = err.Error()
	}
	return startError(fmt.Sprintf("%s %s", c.runtime.Name, what), text)
}

// lastError is the last error in a log.
func lastError(path string) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	if info, err := f.Stat(); err == nil && info.Size() > maxSaid {
		_, _ = f.Seek(-maxSaid, 2) // from the beginning, then: as well
	}
	data := make([]byte, maxSaid)
	n, _ := f.Read(data) // of nothing there is no error
	found := ""
	for line := range bytes.Lines(data[:n]) {
		var entry struct{ Level, Msg string }
		if json.Unmarshal(line, &entry) == nil && (entry.Level == "error" || entry.Level == "fatal") {
			found = entry.Msg
		}
	}
	return strings.TrimSpace(found)
}

// Docker's exit statuses for what could not be started.
const (
	exitFailed   = 125
	exitNotExec  = 126
	exitNotFound = 127
)

// startError gives a runtime's words the exit status that docker's command line
// derives from them. There is nothing but the words: a runtime's own exit status
// is 1 for everything.
func startError(what, text string) error {
	err := fmt.Errorf("%s: %s", what, text)
	lower := strings.ToLower(text)
	switch {
	case strings.Contains(lower, "executable file not found"), strings.Contains(lower, "exec") && strings.Contains(lower, "no such file or directory"):
		return &sandbox.StartError{ExitCode: exitNotFound, Err: errdef.As(errdef.ErrNotFound, err)}
	case (strings.Contains(lower, "exec") || strings.Contains(lower, "failed to load")) && (strings.Contains(lower, "permission denied") || strings.Contains(lower, "is a directory") || strings.Contains(lower, "exec format error")):
		return &sandbox.StartError{ExitCode: exitNotExec, Err: errdef.As(errdef.ErrInvalid, err)}
	case strings.Contains(lower, "cgroups in hybrid mode not supported"):
		return &sandbox.StartError{ExitCode: exitFailed, Err: errdef.WithHint(errdef.As(errdef.ErrUnsupported, err),
			"it needs cgroup version 1 or 2 alone, and this machine has both: use another runtime")}
	}
	return &sandbox.StartError{ExitCode: exitFailed, Err: err}
}

// exitCode is how a command ended, in docker's words.
func exitCode(cmd *exec.Cmd) (code int, signal syscall.Signal) {
	ws, ok := cmd.ProcessState.Sys().(syscall.WaitStatus)
	if ok && ws.Signaled() {
		return 128 + int(ws.Signal()), ws.Signal()
	}
	return cmd.ProcessState.ExitCode(), 0
}
