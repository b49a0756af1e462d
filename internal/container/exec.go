package container

import (
	"dhow/internal/sandbox"

	"github.com/moby/moby/api/types/container"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// Exec is a further process of a running container.
type Exec struct {
	Args       []string
	Env        []string // over the container's
	Cwd        string   // "" is the container's
	User       sandbox.User
	TTY        bool
	Privileged bool // all capabilities, and no seccomp profile
}

// ExecSpec decides how a further process runs: as the first one does but for
// what e says. Only Process and Linux.Seccomp of the spec are meant.
func (r *Record) ExecSpec(f Facts, e Exec) (*specs.Spec, error) {
	c, h := *r.Config, *r.Host
	c.Entrypoint, c.Cmd, c.Tty = nil, e.Args, e.TTY
	if e.Cwd != "" {
		c.WorkingDir = e.Cwd
	}
	h.Privileged = h.Privileged || e.Privileged
	h.Resources = container.Resources{Ulimits: h.Ulimits} // the rest is the container's as a whole
	other := *r
	other.Config, other.Host = &c, &h
	f.User = e.User
	s, err := other.Spec(f)
	if err != nil {
		return nil, err
	}
	s.Process.Env = r.ExecEnv(f, e.User, e.Env, e.TTY)
	s.Process.ConsoleSize = nil
	return s, nil
}
