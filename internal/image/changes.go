package image

import (
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	"dhow/internal/errdef"
	"dhow/internal/oci"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
	"github.com/moby/buildkit/frontend/dockerfile/shell"
	"github.com/moby/moby/api/types/network"
)

// ApplyChanges runs Dockerfile instructions that change nothing but the
// configuration, as docker import and docker commit take them. ErrInvalid names
// the instruction.
func ApplyChanges(cfg *oci.Image, changes []string) error {
	cmdSet := false
	for _, change := range changes {
		if err := applyChange(cfg, change, &cmdSet); err != nil {
			return errdef.New(errdef.ErrInvalid, "change %q: %w", change, err)
		}
	}
	return nil
}

// applyChange runs one change. An ENTRYPOINT takes away the arguments that were
// meant for another one, unless a CMD was among the changes before.
func applyChange(cfg *oci.Image, change string, cmdSet *bool) error {
	parsed, err := parser.Parse(strings.NewReader(change))
	if err != nil {
		return err
	}
	for _, node := range parsed.AST.Children {
		if strings.EqualFold(node.Value, "FROM") { // no command to ParseCommand
			return errors.New("FROM cannot be used here")
		}
		cmd, err := instructions.ParseCommand(node)
		if err != nil {
			return err
		}
		if err := expand(cfg, cmd); err != nil {
			return err
		}
		if err := runChange(cfg, cmd); err != nil {
			return err
		}
		switch cmd.(type) {
		case *instructions.CmdCommand:
			*cmdSet = true
		case *instructions.EntrypointCommand:
			if !*cmdSet {
				cfg.Config.Cmd = nil
			}
		}
	}
	return nil
}

// expand replaces the variables of an instruction by the configuration's.
func expand(cfg *oci.Image, cmd instructions.Command) error {
	e, ok := cmd.(instructions.SupportsSingleWordExpansion)
	if !ok {
		return nil
	}
	lex := shell.NewLex('\\')
	return e.Expand(func(word string) (string, error) {
		out, _, err := lex.ProcessWord(word, shell.EnvsFromSlice(cfg.Config.Env))
		return out, err
	})
}

func runChange(cfg *oci.Image, cmd instructions.Command) error {
	c := &cfg.Config
	switch cmd := cmd.(type) {
	case *instructions.CmdCommand:
		c.Cmd = commandLine(cfg, cmd.ShellDependantCmdLine)
	case *instructions.EntrypointCommand:
		c.Entrypoint = commandLine(cfg, cmd.ShellDependantCmdLine)
	case *instructions.EnvCommand:
		for _, kv := range cmd.Env {
			c.Env = setEnv(c.Env, kv.Key, kv.Value)
		}
	case *instructions.ExposeCommand:
		return expose(cfg, cmd.Ports)
	case *instructions.HealthCheckCommand:
		c.Healthcheck = cmd.Health
	case *instructions.LabelCommand:
		labels := maps.Clone(c.Labels)
		if labels == nil {
			labels = map[string]string{}
		}
		for _, kv := range cmd.Labels {
			labels[kv.Key] = kv.Value
		}
		c.Labels = labels
	case *instructions.OnbuildCommand:
		c.OnBuild = append(c.OnBuild, cmd.Expression)
	case *instructions.StopSignalCommand:
		c.StopSignal = cmd.Signal
	case *instructions.UserCommand:
		c.User = cmd.User
	case *instructions.VolumeCommand:
		if c.Volumes == nil {
			c.Volumes = map[string]struct{}{}
		}
		for _, v := range cmd.Volumes {
			c.Volumes[v] = struct{}{}
		}
	case *instructions.WorkdirCommand:
		dir := cmd.Path
		if !path.IsAbs(dir) {
			dir = path.Join("/", c.WorkingDir, dir)
		}
		c.WorkingDir = path.Clean(dir)
	default:
		return fmt.Errorf("%s cannot be used here", strings.ToUpper(cmd.Name()))
	}
	return nil
}

// commandLine puts the shell before the shell form.
func commandLine(cfg *oci.Image, line instructions.ShellDependantCmdLine) []string {
	if !line.PrependShell {
		return line.CmdLine
	}
	sh := cfg.Config.Shell
	if len(sh) == 0 {
		sh = []string{"/bin/sh", "-c"}
	}
	return append(slices.Clone(sh), strings.Join(line.CmdLine, " "))
}

// setEnv replaces the variable where it is, or adds it.
func setEnv(env []string, key, value string) []string {
	kv := key + "=" + value
	for i, e := range env {
		if k, _, _ := strings.Cut(e, "="); k == key {
			env = slices.Clone(env)
			env[i] = kv
			return env
		}
	}
	return append(env, kv)
}

func expose(cfg *oci.Image, ports []string) error {
	if cfg.Config.ExposedPorts == nil {
		cfg.Config.ExposedPorts = map[string]struct{}{}
	}
	for _, p := range ports {
		r, err := network.ParsePortRange(p)
		if err != nil {
			return err
		}
		for port := range r.All() {
			cfg.Config.ExposedPorts[port.String()] = struct{}{}
		}
	}
	return nil
}
