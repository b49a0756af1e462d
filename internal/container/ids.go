package container

import (
	"dhow/internal/errdef"

	"github.com/moby/moby/api/types/container"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// OwnIDs is a container's Host.UsernsMode for ids of the machine that no other
// container has, Podman's word. Docker's are "host" and "", which means what the
// settings say.
const OwnIDs container.UsernsMode = "auto"

// CheckUsernsMode refuses modes that there are not.
func CheckUsernsMode(m container.UsernsMode) error {
	if m.Valid() || m == OwnIDs {
		return nil
	}
	return errdef.WithHint(errdef.New(errdef.ErrUnsupported, "--userns %s: there is no such mode", m),
		"host has the ids of whoever runs dhow, auto has ids of the container's own")
}

// CheckIDs refuses what a container cannot have that has a user namespace of its
// own, in docker's words where docker has them.
func (r *Record) CheckIDs() error {
	h := r.Host
	what := ""
	switch {
	case h.Privileged:
		what = "privileged mode is incompatible with user namespaces"
	case h.NetworkMode.IsHost():
		what = "cannot share the host's network namespace when user namespaces are enabled"
	case h.PidMode.IsHost():
		what = "cannot share the host PID namespace when user namespaces are enabled"
	case h.PidMode.IsContainer():
		what = "cannot share the PID namespace of another container when user namespaces are enabled"
	case h.IpcMode.IsContainer():
		what = "cannot share the IPC namespace of another container when user namespaces are enabled"
	case r.Runtime.Path != "":
		what = "an OCI runtime does not run containers with user namespaces here"
	default:
		return nil
	}
	return errdef.WithHint(errdef.New(errdef.ErrInvalid, "%s", what), "run it with --userns host")
}

// mapIDs gives the container a user namespace.
func (r *Record) mapIDs(s *specs.Spec) {
	if r.IDs == nil {
		return
	}
	s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace})
	s.Linux.UIDMappings = []specs.LinuxIDMapping{{HostID: r.IDs.UID, Size: r.IDs.Size}}
	s.Linux.GIDMappings = []specs.LinuxIDMapping{{HostID: r.IDs.GID, Size: r.IDs.Size}}
}
