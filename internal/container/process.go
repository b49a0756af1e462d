package container

import (
	"slices"
	"strings"

	"dhow/internal/errdef"
	"dhow/internal/sandbox"
)

// defaultPath is PATH where nothing sets it.
const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// override replaces variables in place and adds new ones at the end. An entry
// without "=" removes the variable.
func override(env, with []string) []string {
	out := slices.Clone(env)
	for _, e := range with {
		name, _, set := strings.Cut(e, "=")
		i := slices.IndexFunc(out, func(v string) bool { return strings.HasPrefix(v, name+"=") })
		switch {
		case set && i >= 0:
			out[i] = e
		case set:
			out = append(out, e)
		case i >= 0:
			out = slices.Delete(out, i, i+1)
		}
	}
	return out
}

// withDefault adds a variable that is not set.
func withDefault(env []string, name, value string) []string {
	for _, e := range env {
		if strings.HasPrefix(e, name+"=") {
			return env
		}
	}
	return append(slices.Clip(env), name+"="+value)
}

// withHome adds HOME from the user's entry.
func withHome(env []string, u sandbox.User) []string {
	if u.Home == "" {
		u.Home = "/"
	}
	return withDefault(env, "HOME", u.Home)
}

// defaultCaps are docker's fourteen.
func defaultCaps() []string {
	return []string{
		"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_NET_RAW", "CAP_SETGID",
		"CAP_SETUID", "CAP_SETFCAP", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE",
	}
}

// capabilities applies --cap-add and --cap-drop as docker does: ALL on one
// side makes the other side the exception.
func capabilities(add, drop []string, privileged bool) ([]string, error) {
	add, err := capNames(add)
	if err != nil {
		return nil, err
	}
	if drop, err = capNames(drop); err != nil {
		return nil, err
	}
	base := defaultCaps()
	switch {
	case privileged:
		return sandbox.Capabilities(), nil
	case slices.Contains(add, allCaps):
		base, add = sandbox.Capabilities(), nil
	case slices.Contains(drop, allCaps):
		base = nil
	}
	var out []string
	for _, c := range base {
		if !slices.Contains(drop, c) {
			out = append(out, c)
		}
	}
	for _, c := range add {
		if !slices.Contains(out, c) {
			out = append(out, c)
		}
	}
	return out, nil
}

const allCaps = "ALL"

// capNames brings names into the form CAP_NAME.
func capNames(names []string) ([]string, error) {
	var out []string
	for _, n := range names {
		n = strings.ToUpper(n)
		if n != allCaps && !strings.HasPrefix(n, "CAP_") {
			n = "CAP_" + n
		}
		if n != allCaps && !slices.Contains(sandbox.Capabilities(), n) {
			return nil, errdef.New(errdef.ErrInvalid, "unknown capability: %q", n)
		}
		out = append(out, n)
	}
	return out, nil
}

// ParseSecurityOpts reads docker's --security-opt values. readFile serves
// seccomp=PATH. ErrInvalid for unknown options, ErrUnsupported for those of
// security modules that dhow does not drive.
func ParseSecurityOpts(opts []string, readFile func(string) ([]byte, error)) (Security, error) {
	var s Security
	for _, opt := range opts {
		name, value, ok := strings.Cut(opt, "=")
		if !ok && name != "no-new-privileges" {
			name, value, _ = strings.Cut(opt, ":") // as docker once wrote them
		}
		switch {
		case opt == "no-new-privileges", opt == "no-new-privileges=true", opt == "no-new-privileges:true":
			s.NoNewPrivileges = true
		case opt == "no-new-privileges=false", opt == "no-new-privileges:false":
			s.NoNewPrivileges = false
		case name == "seccomp" && value == "unconfined":
			s.SeccompUnconfined = true
		case name == "seccomp" && value == "builtin", name == "label" && value == "disable":
		case name == "apparmor" && value != "":
			s.AppArmor = value
		case opt == "systempaths=unconfined":
			s.UnmaskPaths = true
		case opt == "writable-cgroups=true", opt == "writable-cgroups=false":
			s.WritableCgroups = value == "true"
		case name == "seccomp" && value != "":
			data, err := readFile(value)
			if err != nil {
				return s, errdef.New(errdef.ErrInvalid, "read the seccomp profile %s: %w", value, err)
			}
			s.SeccompProfile = data
		case name == "label":
			return s, errdef.New(errdef.ErrUnsupported, "--security-opt %s: dhow sets no labels of SELinux", opt)
		default:
			return s, errdef.New(errdef.ErrInvalid, "unknown --security-opt %q", opt)
		}
	}
	return s, nil
}
