package container

import (
	"path"
	"regexp"
	"strings"

	"dhow/internal/errdef"

	"github.com/docker/go-units"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/sys/signal"
)

// Validate refuses what no container can have, in docker's words. cpus is the
// machine's number of processors. It returns ErrInvalid, and ErrUnsupported for
// what docker has and dhow has not.
func (r *Record) Validate(cpus int) error {
	if err := ValidateName(r.Name); err != nil {
		return err
	}
	for _, check := range []func() error{
		r.validateConfig, r.validateModes, r.validateNetwork, r.validateRestart, r.validateSecurity,
		func() error { return ValidateResources(&r.Host.Resources, cpus) },
	} {
		if err := check(); err != nil {
			return err
		}
	}
	return nil
}

func invalid(format string, args ...any) error { return errdef.New(errdef.ErrInvalid, format, args...) }

// namePattern is docker's for containers, networks and volumes.
var namePattern = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]*$`)

// ValidateName refuses what is no container's name. An empty one is for the
// caller to make up.
func ValidateName(name string) error {
	if name != "" && (len(name) < 2 || !namePattern.MatchString(name)) {
		return invalid("invalid container name (%s), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed", name)
	}
	return nil
}

// maxHostname is HOST_NAME_MAX.
const maxHostname = 64

func (r *Record) validateConfig() error {
	c := r.Config
	if len(c.Hostname) > maxHostname {
		return invalid("hostname %q is too long (maximum %d bytes)", c.Hostname, maxHostname)
	}
	if c.WorkingDir != "" && !path.IsAbs(c.WorkingDir) {
		return invalid("the working directory '%s' is invalid, it needs to be an absolute path", c.WorkingDir)
	}
	if c.StopSignal != "" {
		if _, err := signal.ParseSignal(c.StopSignal); err != nil {
			return errdef.As(errdef.ErrInvalid, err)
		}
	}
	for _, e := range c.Env {
		if name, _, _ := strings.Cut(e, "="); name == "" {
			return invalid("invalid environment variable: %s", e)
		}
	}
	for key := range r.Host.Annotations {
		if key == "" {
			return invalid("invalid Annotations: the empty string is not permitted as an annotation key")
		}
	}
	return nil
}

func (r *Record) validateModes() error {
	h := r.Host
	switch {
	case !h.IpcMode.Valid():
		return invalid("invalid IPC mode: %v", h.IpcMode)
	case !h.PidMode.Valid():
		return invalid("invalid PID mode: %v", h.PidMode)
	case !h.UTSMode.Valid():
		return invalid("invalid UTS mode: %v", h.UTSMode)
	case !h.CgroupnsMode.Valid():
		return invalid("invalid cgroup namespace mode: %v", h.CgroupnsMode)
	case h.ShmSize < 0:
		return invalid("SHM size can not be less than 0")
	case h.OomScoreAdj < -1000 || h.OomScoreAdj > 1000:
		return invalid("Invalid value %d, range for oom score adj is [-1000, 1000]", h.OomScoreAdj)
	case h.AutoRemove && !h.RestartPolicy.IsNone():
		return invalid("can't create 'AutoRemove' container with restart policy")
	case h.UTSMode.IsHost() && r.Config.Hostname != "":
		return invalid("conflicting options: hostname and the UTS mode")
	}
	if err := CheckUsernsMode(h.UsernsMode); err != nil {
		return err
	}
	for dest := range h.Tmpfs {
		if err := validDestination(dest); err != nil {
			return err
		}
	}
	return nil
}

// validateNetwork refuses what does not go with a network mode.
func (r *Record) validateNetwork() error {
	h, c := r.Host, r.Config
	for port, bindings := range h.PortBindings {
		if !port.IsValid() || port.Num() == 0 {
			return invalid("invalid port specification: %q", port.String())
		}
		for _, b := range bindings {
			if b.HostPort == "" {
				continue
			}
			if _, err := network.ParsePortRange(b.HostPort); err != nil {
				return invalid("invalid port specification: %q", b.HostPort)
			}
		}
	}
	mode := h.NetworkMode
	if mode.IsContainer() && mode.ConnectedContainer() == "" {
		return invalid("invalid network mode: invalid container format container:<name|id>")
	}
	if r.Networking != nil && (mode.IsContainer() || mode.IsHost() || mode.IsNone()) {
		for name := range r.Networking.EndpointsConfig {
			if name != string(mode) {
				return invalid("container sharing network namespace with another container or host cannot be connected to any other network")
			}
		}
	}
	conflict := func(what, with string) error {
		return invalid("conflicting options: %s and the %s", what, with)
	}
	if mode.IsContainer() {
		switch {
		case c.Hostname != "":
			return conflict("hostname", "network mode")
		case len(h.Links) > 0:
			return invalid("conflicting options: container type network can't be used with links. This would result in undefined behavior")
		case len(h.DNS) > 0:
			return conflict("dns", "network mode")
		case len(h.ExtraHosts) > 0:
			return conflict("custom host-to-IP mapping", "network mode")
		case len(h.PortBindings) > 0 || h.PublishAllPorts:
			return conflict("port publishing", "container type network mode")
		}
	}
	if mode.IsHost() && len(h.Links) > 0 {
		return invalid("conflicting options: host type networking can't be used with links. This would result in undefined behavior")
	}
	return nil
}

// Warnings are what the user should know about a record that is valid.
func (r *Record) Warnings() []string {
	var w []string
	if r.Host.NetworkMode.IsHost() && (len(r.Host.PortBindings) > 0 || r.Host.PublishAllPorts) {
		w = append(w, "Published ports are discarded when using host network mode")
	}
	if r.Host.OomKillDisable != nil && *r.Host.OomKillDisable && r.Host.Memory == 0 {
		w = append(w, "OOM killer is disabled for the container, but no memory limit is set, this can result in the system running out of resources.")
	}
	return w
}

func (r *Record) validateRestart() error {
	if err := container.ValidateRestartPolicy(r.Host.RestartPolicy); err != nil {
		return errdef.As(errdef.ErrInvalid, err)
	}
	if o := r.Restart; o.Delay < 0 || o.Reset < 0 || o.Max < 0 {
		return invalid("--restart-delay, --restart-reset and the count of on-unhealthy cannot be negative")
	}
	return nil
}

func (r *Record) validateSecurity() error {
	h := r.Host
	for _, list := range []struct {
		what  string
		names []string
	}{{"CapAdd", h.CapAdd}, {"CapDrop", h.CapDrop}} {
		if _, err := capNames(list.names); err != nil {
			return invalid("invalid %s: %w", list.what, err)
		}
	}
	if _, err := parseSecurity(h); err != nil {
		return err
	}
	_, err := parseDeviceRules(h.DeviceCgroupRules)
	return err
}

// ValidateResources refuses limits that the kernel or docker does not take.
func ValidateResources(r *container.Resources, cpus int) error {
	switch {
	case r.Memory != 0 && r.Memory < minMemory:
		return invalid("Minimum memory limit allowed is 6MB")
	case r.Memory > 0 && r.MemorySwap > 0 && r.MemorySwap < r.Memory:
		return invalid("Minimum memoryswap limit should be larger than memory limit, see usage")
	case r.Memory == 0 && r.MemorySwap > 0:
		return invalid("You should always set the Memory limit when using Memoryswap limit, see usage")
	case r.MemorySwappiness != nil && (*r.MemorySwappiness < -1 || *r.MemorySwappiness > 100):
		return invalid("Invalid value: %d, valid memory swappiness range is 0-100", *r.MemorySwappiness)
	case r.MemoryReservation > 0 && r.MemoryReservation < minMemory:
		return invalid("Minimum memory reservation allowed is 6MB")
	case r.Memory > 0 && r.MemoryReservation > r.Memory:
		return invalid("Minimum memory limit can not be less than memory reservation limit, see usage")
	case r.NanoCPUs > 0 && r.CPUPeriod > 0:
		return invalid("Conflicting options: Nano CPUs and CPU Period cannot both be set")
	case r.NanoCPUs > 0 && r.CPUQuota > 0:
		return invalid("Conflicting options: Nano CPUs and CPU Quota cannot both be set")
	case r.NanoCPUs < 0 || r.NanoCPUs > int64(cpus)*1e9:
		return invalid("range of CPUs is from 0.01 to %d.00, as there are only %d CPUs available", cpus, cpus)
	case r.CPUShares < 0:
		return invalid("CPU shares cannot be negative, got %d", r.CPUShares)
	case r.CPUPeriod != 0 && (r.CPUPeriod < 1000 || r.CPUPeriod > 1000000):
		return invalid("CPU cfs period can not be less than 1ms (i.e. 1000) or larger than 1s (i.e. 1000000)")
	case r.CPUQuota > 0 && r.CPUQuota < 1000:
		return invalid("CPU cfs quota can not be less than 1ms (i.e. 1000)")
	case r.CPURealtimePeriod < 0:
		return invalid("CPU real-time period cannot be negative, got %d", r.CPURealtimePeriod)
	case r.BlkioWeight > 0 && (r.BlkioWeight < 10 || r.BlkioWeight > 1000):
		return invalid("Range of blkio weight is from 10 to 1000")
	}
	return validateUlimits(r.Ulimits)
}

func validateUlimits(list []*units.Ulimit) error {
	for _, u := range list {
		if u.Hard != -1 && u.Soft > u.Hard {
			return invalid("ulimit soft limit must be less than or equal to hard limit: %d > %d", u.Soft, u.Hard)
		}
	}
	return nil
}
