package container

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"dhow/internal/errdef"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
)

// Listing is one container of a list.
type Listing struct {
	Record *Record
	State  *State
}

// Ancestor is an image whose descendants a list is to hold.
type Ancestor struct {
	ID    string // "sha256:…"
	Chain string // of its layers, as in Record.Chain
}

// Filter chooses containers for a list, as docker ps does. The zero Filter takes
// those that run.
type Filter struct {
	All  bool
	Last int // the newest n, whatever their state; 0 is no limit

	values    map[string][]string
	names     []*regexp.Regexp
	exited    []int
	ports     map[string]map[string]bool // "publish" and "expose" → "80/tcp"
	ancestors []Ancestor
}

// filterNames are docker's, but for isolation, which is for Windows.
func filterNames() []string {
	return []string{
		"ancestor", "before", "exited", "expose", "health", "id", "is-task", "label", "name", "network", "publish", "since", "status", "volume",
	}
}

// ParseFilter checks values of --filter. ancestor looks an image up; one that is
// not there (ErrNotFound) matches nothing. ErrInvalid for what cannot be read.
func ParseFilter(values map[string][]string, ancestor func(name string) (Ancestor, error)) (Filter, error) {
	f := Filter{values: values, ports: map[string]map[string]bool{}}
	for key, list := range values {
		if !slices.Contains(filterNames(), key) {
			return f, errdef.WithHint(invalid("invalid filter '%s'", key), "use one of %s", strings.Join(filterNames(), ", "))
		}
		for _, v := range list {
			if err := f.parse(key, v, ancestor); err != nil {
				return f, err
			}
		}
	}
	return f, nil
}

func (f *Filter) parse(key, v string, ancestor func(string) (Ancestor, error)) error {
	bad := func(err error) error { return invalid("invalid filter '%s=%s': %w", key, v, err) }
	switch key {
	case "exited":
		code, err := strconv.Atoi(v)
		if err != nil {
			return bad(err)
		}
		f.exited = append(f.exited, code)
	case "status":
		if err := container.ValidateContainerState(container.ContainerState(v)); err != nil {
			return bad(err)
		}
		f.All = true
	case "health":
		if err := container.ValidateHealthStatus(container.HealthStatus(v)); err != nil {
			return bad(err)
		}
	case "name":
		re, err := regexp.Compile(v)
		if err != nil {
			return bad(err)
		}
		f.names = append(f.names, re)
	case "is-task":
		if _, err := strconv.ParseBool(v); err != nil {
			return bad(err)
		}
	case "publish", "expose":
		return f.parsePorts(key, v)
	case "ancestor":
		a, err := ancestor(v)
		if err != nil && !errors.Is(err, errdef.ErrNotFound) {
			return err
		}
		f.ancestors = append(f.ancestors, a)
	}
	return nil
}

func (f *Filter) parsePorts(key, v string) error {
	if strings.Contains(v, ":") {
		return invalid("filter for '%s' should not contain ':': %s", key, v)
	}
	ports, err := network.ParsePortRange(v)
	if err != nil {
		return invalid("error while looking up for %s %s: %w", key, v, err)
	}
	if f.ports[key] == nil {
		f.ports[key] = map[string]bool{}
	}
	for p := range ports.All() {
		f.ports[key][p.String()] = true
	}
	return nil
}

// Choose returns those of the list that the filter takes, newest first.
// ErrNotFound when before or since names none of the list.
func (f *Filter) Choose(list []Listing) ([]Listing, error) {
	list = slices.Clone(list)
	slices.SortStableFunc(list, func(a, b Listing) int { return b.Record.Created.Compare(a.Record.Created) })
	before, err := f.moment("before", list)
	if err != nil {
		return nil, err
	}
	since, err := f.moment("since", list)
	if err != nil {
		return nil, err
	}
	var out []Listing
	for _, l := range list {
		if f.Last > 0 && len(out) == f.Last {
			break
		}
		created := l.Record.Created
		if !before.IsZero() && !created.Before(before) || !since.IsZero() && !created.After(since) {
			continue
		}
		if f.All || f.Last > 0 || l.State.Running() {
			if f.takes(l) {
				out = append(out, l)
			}
		}
	}
	return out, nil
}

// moment is when the container that a filter names was created; zero when none
// is named.
func (f *Filter) moment(key string, list []Listing) (time.Time, error) {
	var t time.Time
	for _, v := range f.values[key] {
		name := strings.TrimPrefix(v, "/")
		i := slices.IndexFunc(list, func(l Listing) bool { return l.Record.Name == name })
		if i < 0 { // a name wins over the beginning of an id
			i = slices.IndexFunc(list, func(l Listing) bool { return strings.HasPrefix(l.Record.ID, name) })
		}
		if name == "" || i < 0 {
			return t, errdef.New(errdef.ErrNotFound, "filter %s=%s: no such container", key, v)
		}
		t = list[i].Record.Created
	}
	return t, nil
}

// takes says whether one container has what every filter wants: one of the
// values of each, all of the labels.
func (f *Filter) takes(l Listing) bool {
	r, s := l.Record, l.State
	any := func(key string, has func(v string) bool) bool {
		return len(f.values[key]) == 0 || slices.ContainsFunc(f.values[key], has)
	}
	return f.takesName(r.Name) &&
		any("id", func(v string) bool { return v != "" && strings.HasPrefix(r.ID, v) }) &&
		any("status", func(v string) bool { return string(s.Status) == v }) &&
		any("health", func(v string) bool { return v == healthOf(s) }) &&
		any("is-task", func(v string) bool { task, _ := strconv.ParseBool(v); return !task }) &&
		any("volume", r.hasVolume) &&
		any("network", func(v string) bool { return r.hasNetwork(s, v) }) &&
		any("exited", func(string) bool { return s.Status == container.StateExited && slices.Contains(f.exited, s.ExitCode) }) &&
		any("ancestor", func(string) bool { return slices.ContainsFunc(f.ancestors, r.descends) }) &&
		MatchLabels(f.values["label"], r.Config.Labels) && f.takesPorts(s)
}

func (f *Filter) takesName(name string) bool {
	return len(f.names) == 0 || slices.ContainsFunc(f.names, func(re *regexp.Regexp) bool {
		return re.MatchString(name) || re.MatchString("/"+name)
	})
}

func (f *Filter) takesPorts(s *State) bool {
	if len(f.ports) == 0 {
		return true
	}
	return slices.ContainsFunc(s.ports(), func(p container.PortSummary) bool {
		return f.ports["publish"][fmt.Sprintf("%d/%s", p.PublicPort, p.Type)] || f.ports["expose"][fmt.Sprintf("%d/%s", p.PrivatePort, p.Type)]
	})
}

func healthOf(s *State) string {
	if s.Health == "" {
		return string(container.NoHealthcheck)
	}
	return string(s.Health)
}

// MatchLabels says whether all that is wanted, KEY or KEY=VALUE, is there.
func MatchLabels(want []string, labels map[string]string) bool {
	for _, w := range want {
		key, value, exact := strings.Cut(w, "=")
		got, there := labels[key]
		if !there || exact && got != value {
			return false
		}
	}
	return true
}

func (r *Record) hasVolume(v string) bool {
	return slices.ContainsFunc(r.Mounts, func(m Mount) bool {
		return m.Name == v || m.Destination == v || m.Name == "" && m.Source == v
	})
}

func (r *Record) hasNetwork(s *State, v string) bool {
	for name, ep := range r.networks(s) {
		if name == v || v != "" && ep != nil && strings.HasPrefix(ep.NetworkID, v) {
			return true
		}
	}
	return false
}

// descends says whether the container's image is a, or was built on it.
func (r *Record) descends(a Ancestor) bool {
	if a.ID == "" {
		return false
	}
	return r.Image.String() == a.ID || r.Chain == a.Chain || strings.HasPrefix(r.Chain, a.Chain+":")
}
