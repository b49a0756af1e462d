package container

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/docker/go-units"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/storage"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// Running says whether the container has a process: it runs, is paused, or is
// between two runs of the restart policy.
func (s *State) Running() bool {
	switch s.Status {
	case container.StateRunning, container.StatePaused, container.StateRestarting:
		return true
	}
	return false
}

// Text is the state in words, docker's: "Up 5 minutes (healthy)", "Exited (137)
// 2 hours ago". Where dhow itself ended the container it says why.
func (s *State) Text(now time.Time) string {
	ago := func(t time.Time) string { return units.HumanDuration(now.Sub(t)) }
	switch s.Status {
	case container.StateRunning:
		text := "Up " + ago(s.StartedAt)
		switch s.Health {
		case "", container.NoHealthcheck:
			return text
		case container.Starting:
			return text + " (health: starting)"
		}
		return text + " (" + string(s.Health) + ")"
	case container.StatePaused:
		return "Up " + ago(s.StartedAt) + " (Paused)"
	case container.StateRestarting:
		return fmt.Sprintf("Restarting (%d) %s ago", s.ExitCode, ago(s.FinishedAt)) + s.because()
	case container.StateRemoving:
		return "Removal In Progress"
	case container.StateDead:
		return "Dead"
	case container.StateCreated:
		return "Created"
	}
	return fmt.Sprintf("Exited (%d) %s ago", s.ExitCode, ago(s.FinishedAt)) + s.because()
}

// because is the reason for a line of a table.
func (s *State) because() string {
	const most = 40
	reason := s.Reason
	if r := []rune(reason); len(r) > most {
		reason = string(r[:most-1]) + "…"
	}
	if reason == "" {
		return ""
	}
	return " (" + reason + ")"
}

// Summary is the container as a listing shows it. image is its name as it is
// to be shown: an id when the name stands for another image by now. Sizes are
// the caller's to add.
func (r *Record) Summary(s *State, image string, now time.Time) container.Summary {
	sum := container.Summary{
		ID: r.ID, Names: []string{"/" + r.Name}, Image: image, ImageID: r.Image.String(),
		Command: r.commandLine(), Created: r.Created.Unix(),
		Labels: r.Config.Labels, State: s.Status, Status: s.Text(now), Ports: s.ports(),
		NetworkSettings: &container.NetworkSettingsSummary{Networks: r.networks(s)},
		Mounts:          r.MountPoints(),
		Health:          &container.HealthSummary{Status: cmp.Or(s.Health, container.NoHealthcheck)},
	}
	sum.HostConfig.NetworkMode, sum.HostConfig.Annotations = string(r.Host.NetworkMode), r.Host.Annotations
	return sum
}

// commandLine is the command as docker lists it: arguments with a space in them
// are quoted, whatever else they hold.
func (r *Record) commandLine() string {
	words := slices.Clone(r.Command())
	for i, w := range words {
		if i > 0 && strings.Contains(w, " ") {
			words[i] = "'" + w + "'"
		}
	}
	return strings.Join(words, " ")
}

// ports are the container's open ports, in order.
func (s *State) ports() []container.PortSummary {
	list := []container.PortSummary{}
	for p, bindings := range s.Ports {
		port := container.PortSummary{PrivatePort: p.Num(), Type: string(p.Proto())}
		if len(bindings) == 0 {
			list = append(list, port)
		}
		for _, b := range bindings {
			port.IP, port.PublicPort = b.HostIP, 0
			if _, err := fmt.Sscan(b.HostPort, &port.PublicPort); err != nil {
				continue
			}
			list = append(list, port)
		}
	}
	slices.SortFunc(list, func(a, b container.PortSummary) int {
		return cmp.Or(cmp.Compare(a.PrivatePort, b.PrivatePort), cmp.Compare(a.Type, b.Type), a.IP.Compare(b.IP), cmp.Compare(a.PublicPort, b.PublicPort))
	})
	return list
}

// networks are those the container is connected with, or will be when it runs.
func (r *Record) networks(s *State) map[string]*network.EndpointSettings {
	if len(s.Networks) > 0 || r.Networking == nil {
		return s.Networks
	}
	out := map[string]*network.EndpointSettings{}
	for name, ep := range r.Networking.EndpointsConfig {
		out[cmp.Or(strings.Replace(name, network.NetworkDefault, network.NetworkBridge, 1), name)] = ep
	}
	if mode := r.Host.NetworkMode; len(out) == 0 && !mode.IsContainer() {
		out[mode.NetworkName()] = &network.EndpointSettings{}
	}
	return out
}

// MountPoints are the record's mounts as docker shows them, in order of their
// places.
func (r *Record) MountPoints() []container.MountPoint {
	out := []container.MountPoint{}
	for _, m := range r.Mounts {
		p := m.MountPoint
		if m.Subpath != "" && p.Source != "" {
			p.Source += "/" + m.Subpath
		}
		out = append(out, p)
	}
	slices.SortStableFunc(out, func(a, b container.MountPoint) int { return cmp.Compare(a.Destination, b.Destination) })
	return out
}

// Inspection is all about one container: docker's object, and what only dhow
// has.
type Inspection struct {
	*container.InspectResponse
	Dhow Extra
}

// Extra is what docker's object has no place for.
type Extra struct {
	Reason        string         `json:",omitempty"` // why dhow ended or restarted the container
	Signal        int            `json:",omitempty"` // that ended it
	Health        HealthOptions  //
	Restart       RestartOptions //
	LogDrivers    []LogDriver    `json:",omitempty"`
	SupervisorPid int            `json:",omitempty"`
	StoppedByHand bool           `json:",omitempty"`
	ImagePlatform string         //
	Log           any            `json:",omitempty"` // how the log and its delivery stand
}

// InspectFacts are what only the machine knows of a container.
type InspectFacts struct {
	Dir     string // of the container
	LogPath string
	Health  *container.Health // with the last results; nil without a check
	ExecIDs []string

	Hostname string               // the machine's
	Manifest *ocispecs.Descriptor // of the image; nil when it is not known
}

// Inspect is what `dhow inspect` shows.
func (r *Record) Inspect(s *State, f InspectFacts) Inspection {
	command := r.Command()
	in := &container.InspectResponse{
		ID: r.ID, Created: r.Created.UTC().Format(time.RFC3339Nano), Name: "/" + r.Name,
		Image: r.Image.String(), Platform: "linux", Driver: "overlayfs",
		State: s.inspect(f.Health), RestartCount: s.Restarts,
		ResolvConfPath: f.Dir + "/resolv.conf", HostnamePath: f.Dir + "/hostname", HostsPath: f.Dir + "/hosts", LogPath: f.LogPath,
		Config: r.shownConfig(f.Hostname), HostConfig: r.shownHost(), Mounts: r.MountPoints(), ExecIDs: f.ExecIDs,
		NetworkSettings: &container.NetworkSettings{Ports: s.Ports, Networks: r.networks(s)}, ImageManifestDescriptor: f.Manifest,
		Storage: &storage.Storage{RootFS: &storage.RootFSStorage{Snapshot: &storage.RootFSStorageSnapshot{Name: "overlayfs"}}},
	}
	if s.Pid != 0 && s.Status != container.StateRestarting && !r.Host.NetworkMode.IsHost() {
		in.NetworkSettings.SandboxID, in.NetworkSettings.SandboxKey = r.ID, fmt.Sprintf("/proc/%d/ns/net", s.Pid)
	}
	if len(command) > 0 {
		in.Path, in.Args = command[0], command[1:]
	}
	if in.NetworkSettings.Ports == nil {
		in.NetworkSettings.Ports = network.PortMap{}
	}
	return Inspection{in, Extra{
		Reason: s.Reason, Signal: s.Signal, Health: r.Health, Restart: r.Restart, LogDrivers: r.Logs,
		SupervisorPid: s.Supervisor, StoppedByHand: s.Stopped, ImagePlatform: r.Platform,
	}}
}

// shownConfig has the host name that the container has without having been given
// one.
func (r *Record) shownConfig(machine string) *container.Config {
	c := *r.Config
	switch mode := r.Host.NetworkMode; {
	case c.Hostname != "" || mode.IsContainer():
	case mode.IsHost():
		c.Hostname = machine
	default:
		c.Hostname = r.ShortID()
	}
	return &c
}

// shownHost has empty lists where docker has them, and links in docker's form.
func (r *Record) shownHost() *container.HostConfig {
	h := *r.Host
	h.DNSOptions, h.DNSSearch, h.Devices = orEmpty(h.DNSOptions), orEmpty(h.DNSSearch), orEmpty(h.Devices)
	h.Links = nil
	for _, l := range r.Host.Links {
		target, alias, ok := strings.Cut(strings.TrimPrefix(l, "/"), ":")
		if !ok {
			alias = target
		}
		h.Links = append(h.Links, "/"+target+":/"+r.Name+"/"+alias)
	}
	return &h
}

func orEmpty[T any](list []T) []T {
	if list == nil {
		return []T{}
	}
	return list
}

// ShortID is the beginning of the id that docker shows, and names the container's
// host by.
func (r *Record) ShortID() string {
	const digits = 12
	return r.ID[:min(digits, len(r.ID))]
}

// inspect is docker's state object. Docker's Running is true of a paused and of
// a restarting container, too.
func (s *State) inspect(health *container.Health) *container.State {
	return &container.State{
		Status: s.Status, Running: s.Running(), Paused: s.Status == container.StatePaused, Restarting: s.Status == container.StateRestarting,
		Dead: s.Status == container.StateDead, OOMKilled: s.OOMKilled, Pid: s.Pid, ExitCode: s.ExitCode, Error: s.Error, Health: health,
		StartedAt: s.StartedAt.UTC().Format(time.RFC3339Nano), FinishedAt: s.FinishedAt.UTC().Format(time.RFC3339Nano),
	}
}
