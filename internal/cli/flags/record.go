package flags

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"dhow/internal/cdi"
	"dhow/internal/container"
	"dhow/internal/errdef"

	"github.com/docker/cli/opts"
	api "github.com/moby/moby/api/types/container"
	"github.com/spf13/pflag"
)

// Record turns the flags into what is asked for: the image is not merged in yet.
// args are the image and the command. ErrInvalid and ErrUnsupported, in docker's
// words where docker has some.
func (f *Create) Record(fl *pflag.FlagSet, args []string) (*container.Record, error) {
	if !slices.Contains([]string{"always", "missing", "never"}, f.Pull) {
		return nil, errdef.WithHint(errdef.New(errdef.ErrInvalid, "--pull %q is not known", f.Pull), "use always, missing or never")
	}
	r := &container.Record{Name: f.name, Config: f.config(fl, args), Host: f.host(fl)}
	for _, step := range []func(r *container.Record, fl *pflag.FlagSet) error{
		f.fillStreams, f.fillLists, f.fillModes, f.fillStorage, f.fillSecurity, f.fillDevices,
		f.net.fill, f.health.fill, f.fillRestart, f.fillLogs, refuseUnmanaged,
	} {
		if err := step(r, fl); err != nil {
			if !errors.Is(err, errdef.ErrUnsupported) {
				err = errdef.As(errdef.ErrInvalid, err)
			}
			return nil, err
		}
	}
	return r, nil
}

// refuseUnmanaged refuses by name what docker has and dhow has not.
func refuseUnmanaged(r *container.Record, _ *pflag.FlagSet) error {
	refuse := func(flag, why string) error {
		return errdef.New(errdef.ErrUnsupported, "dhow has no --%s: %s", flag, why)
	}
	for name, ep := range r.Networking.EndpointsConfig {
		if len(ep.DriverOpts) > 0 {
			return errdef.New(errdef.ErrUnsupported, "--network %s: driver-opt: networks have no driver with options", name)
		}
		if ep.IPAMConfig != nil && len(ep.IPAMConfig.LinkLocalIPs) > 0 {
			return refuse("link-local-ip", "it is not managed")
		}
	}
	return nil
}

// config are the settings that need no reading.
func (f *Create) config(fl *pflag.FlagSet, args []string) *api.Config {
	c := &api.Config{
		Image: args[0], Cmd: args[1:],
		Hostname: f.hostname, Domainname: f.domainname, User: f.user, WorkingDir: f.workdir, StopSignal: f.stopSignal,
		Tty: f.tty, OpenStdin: f.interactive,
	}
	if f.entrypoint != "" {
		c.Entrypoint = []string{f.entrypoint}
	} else if fl.Changed("entrypoint") {
		c.Entrypoint = []string{""} // the image's is dropped
	}
	if fl.Changed("stop-timeout") {
		c.StopTimeout = &f.stopTimeout
	}
	return c
}

// host are the settings that need no reading.
func (f *Create) host(fl *pflag.FlagSet) *api.HostConfig {
	h := &api.HostConfig{
		ContainerIDFile: f.CIDFile, AutoRemove: f.AutoRemove, Privileged: f.privileged, ReadonlyRootfs: f.readOnly,
		CapAdd: f.capAdd, CapDrop: f.capDrop, GroupAdd: f.groupAdd.GetSlice(), OomScoreAdj: f.oomScoreAdj,
		ShmSize: f.shmSize.Value(), Runtime: f.runtime, Umask: f.umask.Value(),
		Annotations: f.annotations.GetAll(), Sysctls: f.sysctls.GetAll(),
		Binds: nil, VolumesFrom: f.volumesFrom, VolumeDriver: f.volumeDriver, Mounts: f.mounts.Value(),
		Resources: f.Limits.resources(),
	}
	h.CgroupParent, h.Ulimits = f.cgroupParent, f.ulimits.GetList()
	h.OomKillDisable = &f.oomKillDisable
	if fl.Changed("init") {
		h.Init = &f.init
	}
	return h
}

// resources are the limits in docker's words.
func (f *Limits) resources() api.Resources {
	r := api.Resources{
		Memory: f.memory.Value(), MemoryReservation: f.memoryReservation.Value(), MemorySwap: f.memorySwap.Value(),
		NanoCPUs: f.cpus.Value(), CPUShares: f.cpuShares, CPUPeriod: f.cpuPeriod, CPUQuota: f.cpuQuota,
		CPURealtimePeriod: f.cpuRTPeriod, CPURealtimeRuntime: f.cpuRTRuntime,
		CpusetCpus: f.cpusetCPUs, CpusetMems: f.cpusetMems, BlkioWeight: f.blkioWeight,
		BlkioWeightDevice:  f.blkioWeightDevice.GetList(),
		BlkioDeviceReadBps: f.deviceReadBps.GetList(), BlkioDeviceWriteBps: f.deviceWriteBps.GetList(),
		BlkioDeviceReadIOps: f.deviceReadIOps.GetList(), BlkioDeviceWriteIOps: f.deviceWrIOp.GetList(),
	}
	r.MemorySwappiness, r.PidsLimit = &f.swappiness, &f.pids
	return r
}

func validStream(s string) (string, error) {
	s = strings.ToLower(s)
	if slices.Contains([]string{"stdin", "stdout", "stderr"}, s) {
		return s, nil
	}
	return s, errors.New("valid streams are STDIN, STDOUT and STDERR")
}

// fillStreams decides what the command is connected with.
func (f *Create) fillStreams(r *container.Record, _ *pflag.FlagSet) error {
	c, list := r.Config, f.Attach.GetSlice()
	all := len(list) == 0
	c.AttachStdin = f.interactive || slices.Contains(list, "stdin")
	c.AttachStdout = all || slices.Contains(list, "stdout")
	c.AttachStderr = all || slices.Contains(list, "stderr")
	c.StdinOnce = c.OpenStdin && c.AttachStdin
	return nil
}

// fillLists reads environment and labels, from files too.
func (f *Create) fillLists(r *container.Record, _ *pflag.FlagSet) error {
	env, err := opts.ReadKVEnvStrings(f.envFiles.GetSlice(), f.Env.GetSlice())
	if err != nil {
		return fmt.Errorf("--env-file: %w", err)
	}
	env = withProxies(env, f.Proxies)
	labels, err := opts.ReadKVStrings(f.labelFiles.GetSlice(), f.labels.GetSlice())
	if err != nil {
		return fmt.Errorf("--label-file: %w", err)
	}
	r.Config.Env, r.Config.Labels = env, opts.ConvertKVStringsToMap(labels)
	return nil
}

// withProxies adds the variables that docker's config.json has for proxies, where
// the user set none of that name.
func withProxies(env []string, proxies map[string]*string) []string {
	for _, name := range slices.Sorted(maps.Keys(proxies)) {
		set := slices.ContainsFunc(env, func(e string) bool { n, _, _ := strings.Cut(e, "="); return n == name })
		if value := proxies[name]; !set && value != nil {
			env = append(env, name+"="+*value)
		}
	}
	return env
}

// fillModes reads the namespaces' modes.
func (f *Create) fillModes(r *container.Record, fl *pflag.FlagSet) error {
	h := r.Host
	h.PidMode, h.IpcMode, h.UTSMode = api.PidMode(f.pid), api.IpcMode(f.ipc), api.UTSMode(f.uts)
	h.UsernsMode, h.CgroupnsMode = api.UsernsMode(f.userns), api.CgroupnsMode(f.cgroupns)
	if iso, _ := fl.GetString("isolation"); iso != "" && iso != "default" {
		return errdef.New(errdef.ErrUnsupported, "--isolation %s: it is for Windows", iso)
	}
	switch {
	case !h.PidMode.Valid():
		return errors.New("--pid: invalid PID mode")
	case !h.UTSMode.Valid():
		return errors.New("--uts: invalid UTS mode")
	case !h.CgroupnsMode.Valid():
		return errors.New("--cgroupns: invalid CGROUP mode")
	case f.Limits.swappiness < -1 || f.Limits.swappiness > 100:
		return fmt.Errorf("invalid value: %d. Valid memory swappiness range is 0-100", f.Limits.swappiness)
	}
	return container.CheckUsernsMode(h.UsernsMode)
}

// fillStorage tells volumes with a source from those that are anonymous.
func (f *Create) fillStorage(r *container.Record, _ *pflag.FlagSet) error {
	if f.volumeDriver != "" && f.volumeDriver != "local" {
		return errdef.WithHint(errdef.New(errdef.ErrUnsupported, "--volume-driver %s: there is one driver, local", f.volumeDriver),
			"its options type, device and o mount nfs and other file systems")
	}
	for _, b := range f.binds {
		source, rest, sourced := strings.Cut(b, ":")
		if !sourced {
			if _, err := container.ParseBind(b); err != nil {
				return err
			}
			if r.Config.Volumes == nil {
				r.Config.Volumes = map[string]struct{}{}
			}
			r.Config.Volumes[b] = struct{}{}
			continue
		}
		if strings.HasPrefix(source, ".") {
			abs, err := filepath.Abs(source)
			if err != nil {
				return err
			}
			source = abs
		}
		bind := source + ":" + rest
		if _, err := container.ParseBind(bind); err != nil {
			return err
		}
		r.Host.Binds = append(r.Host.Binds, bind)
	}
	for _, t := range f.tmpfs {
		dir, options, _ := strings.Cut(t, ":")
		if r.Host.Tmpfs == nil {
			r.Host.Tmpfs = map[string]string{}
		}
		r.Host.Tmpfs[dir] = options
	}
	return nil
}

// fillSecurity reads profiles from their files, so that the record has them
// whole.
func (f *Create) fillSecurity(r *container.Record, _ *pflag.FlagSet) error {
	for _, opt := range f.securityOpt {
		if opt == "systempaths=unconfined" {
			r.Host.MaskedPaths, r.Host.ReadonlyPaths = []string{}, []string{}
			continue
		}
		name, value, ok := strings.Cut(opt, "=")
		if !ok && name != "no-new-privileges" {
			name, value, ok = strings.Cut(opt, ":")
		}
		if (!ok || value == "") && name != "no-new-privileges" {
			return fmt.Errorf("invalid --security-opt: %q", opt)
		}
		if name == "seccomp" && value != "unconfined" && value != "builtin" {
			profile, err := os.ReadFile(value)
			if err != nil {
				return fmt.Errorf("opening seccomp profile (%s) failed: %w", value, err)
			}
			var text bytes.Buffer
			if err := json.Compact(&text, profile); err != nil {
				return fmt.Errorf("compacting json for seccomp profile (%s) failed: %w", value, err)
			}
			opt = "seccomp=" + text.String()
		}
		r.Host.SecurityOpt = append(r.Host.SecurityOpt, opt)
	}
	return nil
}

// fillDevices reads --device HOST[:CONTAINER][:PERMISSIONS] or VENDOR/CLASS=NAME,
// and --gpus.
func (f *Create) fillDevices(r *container.Record, _ *pflag.FlagSet) error {
	var named []string
	for _, d := range f.devices.GetSlice() {
		if cdi.IsName(d) {
			named = append(named, d)
			continue
		}
		m, err := parseDevice(d)
		if err != nil {
			return err
		}
		r.Host.Devices = append(r.Host.Devices, m)
	}
	if len(named) > 0 {
		r.Host.DeviceRequests = append(r.Host.DeviceRequests, cdi.Request(named))
	}
	r.Host.DeviceRequests = append(r.Host.DeviceRequests, f.gpus.Value()...)
	for _, request := range r.Host.DeviceRequests {
		if err := cdi.CheckRequest(request); err != nil {
			return err
		}
	}
	r.Host.DeviceCgroupRules = f.deviceRules.GetSlice()
	return nil
}

func parseDevice(s string) (api.DeviceMapping, error) {
	m := api.DeviceMapping{CgroupPermissions: "rwm"}
	parts := strings.Split(s, ":")
	if !path.IsAbs(parts[0]) {
		if strings.Contains(s, "=") {
			return m, fmt.Errorf("%s is neither a path nor a device's name, VENDOR/CLASS=NAME", s)
		}
		return m, fmt.Errorf("bad format for path: %s", s)
	}
	m.PathOnHost, m.PathInContainer = parts[0], parts[0]
	switch rest := parts[1:]; {
	case len(rest) > 2:
		return m, fmt.Errorf("bad format for path: %s", s)
	case len(rest) == 2:
		m.PathInContainer, m.CgroupPermissions = rest[0], rest[1]
	case len(rest) == 1 && validPermissions(rest[0]):
		m.CgroupPermissions = rest[0]
	case len(rest) == 1:
		m.PathInContainer = rest[0]
	}
	if !validPermissions(m.CgroupPermissions) {
		return m, fmt.Errorf("bad mode specified: %s", m.CgroupPermissions)
	}
	if !path.IsAbs(m.PathInContainer) {
		return m, fmt.Errorf("%s is not an absolute path", m.PathInContainer)
	}
	m.PathInContainer = path.Clean(m.PathInContainer)
	return m, nil
}

// validPermissions accepts each of r, w and m at most once.
func validPermissions(s string) bool {
	for i, c := range s {
		if !strings.ContainsRune("rwm", c) || strings.ContainsRune(s[:i], c) {
			return false
		}
	}
	return s != ""
}

// fillRestart reads --restart: docker's policies, of which the last counts, and
// on-unhealthy, which goes with any of them.
func (f *Create) fillRestart(r *container.Record, _ *pflag.FlagSet) error {
	for _, p := range f.restart {
		if name, most, _ := strings.Cut(p, ":"); name == "on-unhealthy" {
			r.Restart.OnUnhealthy = true
			if most == "" {
				continue
			}
			n, err := strconv.Atoi(most)
			if err != nil || n < 0 {
				return fmt.Errorf("invalid restart policy format: maximum retry count must be an integer, got %q", most)
			}
			r.Restart.Max = n
			continue
		}
		policy, err := opts.ParseRestartPolicy(p)
		if err != nil {
			return err
		}
		r.Host.RestartPolicy = policy
	}
	if f.AutoRemove && !r.Host.RestartPolicy.IsNone() {
		return errors.New("conflicting options: cannot specify both --restart and --rm")
	}
	r.Restart.Delay, r.Restart.Reset = f.restartDelay, f.restartReset
	return nil
}

// fillLogs decides where the output goes.
func (f *Create) fillLogs(r *container.Record, _ *pflag.FlagSet) error {
	drivers, err := container.ParseLogDrivers(f.logDrivers, f.logOpts)
	if err != nil {
		return err
	}
	r.Logs = drivers
	return nil
}
