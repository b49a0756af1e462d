package container

import (
	"maps"
	"path"
	"slices"
	"strings"

	"dhow/internal/errdef"

	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
)

// Merge completes the record with the image's configuration and with docker's
// defaults: what the user did not say, the image says, else docker does. It is
// called once, before Validate. Health checks are merged by package health.
// ErrInvalid when there is no command.
func (r *Record) Merge(img *dockerspec.DockerOCIImageConfig) error {
	c := r.Config
	c.User = first(c.User, img.User)
	c.WorkingDir = first(c.WorkingDir, img.WorkingDir)
	c.StopSignal = first(c.StopSignal, img.StopSignal)
	c.Env = mergeEnv(c.Env, img.Env)
	c.Labels = mergeMap(c.Labels, img.Labels)
	if c.Volumes = mergeMap(c.Volumes, img.Volumes); len(c.Volumes) == 0 {
		c.Volumes = nil // as docker has it
	}
	if len(c.Shell) == 0 {
		c.Shell = img.Shell
	}
	if err := mergePorts(c, img); err != nil {
		return err
	}
	if err := mergeCommand(c, img); err != nil {
		return err
	}
	r.setDefaults()
	return nil
}

func first(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

// mergeEnv adds the image's variables that the user did not set.
func mergeEnv(user, image []string) []string {
	out := slices.Clone(user)
	for _, e := range image {
		name, _, _ := strings.Cut(e, "=")
		if !slices.ContainsFunc(user, func(u string) bool { n, _, _ := strings.Cut(u, "="); return n == name }) {
			out = append(out, e)
		}
	}
	return out
}

func mergeMap[V any](user, image map[string]V) map[string]V {
	out := maps.Clone(image)
	if out == nil {
		out = map[string]V{}
	}
	maps.Copy(out, user)
	return out
}

func mergePorts(c *container.Config, img *dockerspec.DockerOCIImageConfig) error {
	for text := range img.ExposedPorts {
		p, err := network.ParsePort(text)
		if err != nil {
			return errdef.New(errdef.ErrInvalid, "the image exposes the port %q: %w", text, err)
		}
		if c.ExposedPorts == nil {
			c.ExposedPorts = network.PortSet{}
		}
		c.ExposedPorts[p] = struct{}{}
	}
	return nil
}

// mergeCommand takes the image's arguments only with the image's entrypoint.
func mergeCommand(c *container.Config, img *dockerspec.DockerOCIImageConfig) error {
	if len(c.Entrypoint) == 0 {
		if len(c.Cmd) == 0 {
			c.Cmd = img.Cmd
		}
		if c.Entrypoint == nil {
			c.Entrypoint = img.Entrypoint
		}
	}
	if len(c.Entrypoint) == 1 && c.Entrypoint[0] == "" {
		c.Entrypoint = nil
	}
	if len(c.Entrypoint) == 0 && len(c.Cmd) == 0 {
		return errdef.WithHint(errdef.New(errdef.ErrInvalid, "no command specified"),
			"the image has neither ENTRYPOINT nor CMD: name a command after the image")
	}
	return nil
}

// setDefaults writes out what docker decides when a container is created, so
// that inspect shows it.
func (r *Record) setDefaults() {
	h := r.Host
	if h.Memory > 0 && h.MemorySwap == 0 {
		h.MemorySwap = 2 * h.Memory
	}
	if h.ShmSize == 0 {
		h.ShmSize = defaultShmSize
	}
	if h.IpcMode.IsEmpty() {
		h.IpcMode = container.IPCModePrivate
	}
	if h.CgroupnsMode.IsEmpty() {
		h.CgroupnsMode = container.CgroupnsModePrivate
	}
	r.nameDefaultNetwork()
	h.CapAdd, h.CapDrop = shownCaps(h.CapAdd), shownCaps(h.CapDrop)
	if h.RestartPolicy.Name == "" {
		h.RestartPolicy.Name = container.RestartPolicyDisabled
	}
	if h.MemorySwappiness != nil && *h.MemorySwappiness == -1 {
		h.MemorySwappiness = nil
	}
	if h.PidsLimit != nil && *h.PidsLimit <= 0 {
		h.PidsLimit = nil
	}
	if h.MaskedPaths == nil && !h.Privileged {
		h.MaskedPaths = MaskedPaths()
	}
	if h.ReadonlyPaths == nil && !h.Privileged {
		h.ReadonlyPaths = ReadonlyPaths()
	}
	if r.Config.WorkingDir != "" {
		r.Config.WorkingDir = path.Clean(r.Config.WorkingDir)
	}
}

// nameDefaultNetwork calls the network that nobody named by its name.
func (r *Record) nameDefaultNetwork() {
	h := r.Host
	if h.NetworkMode != "" && !h.NetworkMode.IsDefault() {
		return
	}
	h.NetworkMode = network.NetworkBridge
	if r.Networking == nil {
		return
	}
	if ep, ok := r.Networking.EndpointsConfig[network.NetworkDefault]; ok {
		delete(r.Networking.EndpointsConfig, network.NetworkDefault)
		r.Networking.EndpointsConfig[network.NetworkBridge] = ep
	}
}

// shownCaps are capabilities as CAP_NAME, in order. Unknown ones, which Validate
// refuses, stay as they are.
func shownCaps(names []string) []string {
	full, err := capNames(names)
	if err != nil || len(full) == 0 {
		return names
	}
	slices.Sort(full)
	return slices.Compact(full)
}

const defaultShmSize = 64 << 20 // bytes
