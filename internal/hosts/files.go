package hosts

import (
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"path/filepath"
	"slices"
	"strings"

	"dhow/internal/errdef"
	"dhow/internal/oci"
	"dhow/internal/registry"
	"dhow/internal/sys"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"
)

// rule is a [[registry]] of registries.conf (containers-registries.conf(5),
// version 2).
type rule struct {
	Prefix   string   `toml:"prefix"`
	Location string   `toml:"location"`
	Insecure bool     `toml:"insecure"`
	Blocked  bool     `toml:"blocked"`
	Mirrors  []mirror `toml:"mirror"`
}

type mirror struct {
	Location string `toml:"location"`
	Insecure bool   `toml:"insecure"`
	Pull     string `toml:"pull-from-mirror"` // all, digest-only, tag-only
}

// readFiles reads what is not a host's own directory.
func (h *Hosts) readFiles() (*settings, error) {
	s := &settings{}
	for _, path := range h.registriesConf() {
		var doc struct {
			Registry []rule `toml:"registry"`
		}
		if err := readTOML(path, &doc); err != nil {
			return nil, err
		}
		for _, r := range doc.Registry {
			if r.Prefix == "" {
				r.Prefix = r.Location
			}
			if r.Location == "" {
				r.Location = r.Prefix
			}
			// As Podman does, a later file replaces what an earlier one says of a prefix.
			s.registries = slices.DeleteFunc(s.registries, func(old rule) bool { return old.Prefix == r.Prefix })
			s.registries = append(s.registries, r)
		}
	}
	for _, dir := range h.dockerDirs() {
		var doc struct {
			Mirrors  []string `json:"registry-mirrors"`
			Insecure []string `json:"insecure-registries"`
		}
		if _, err := sys.ReadJSONSettings(filepath.Join(dir, "daemon.json"), &doc); err != nil {
			return nil, err
		}
		s.mirrors, s.insecure = append(s.mirrors, doc.Mirrors...), append(s.insecure, doc.Insecure...)
	}
	return s, nil
}

// registriesConf are Podman's files, in the order in which they are read.
func (h *Hosts) registriesConf() []string {
	if path := h.o.Env("CONTAINERS_REGISTRIES_CONF"); path != "" {
		return []string{path}
	}
	main := filepath.Join(h.o.Etc, "containers/registries.conf")
	if own := under(h.userConfig(), "containers/registries.conf"); own != "" {
		if data, err := sys.ReadSettings(own); err == nil && data != nil {
			main = own
		}
	}
	paths := []string{main}
	for _, dir := range []string{filepath.Join(h.o.Etc, "containers"), under(h.userConfig(), "containers")} {
		if dir == "" {
			continue
		}
		more, err := filepath.Glob(filepath.Join(dir, "registries.conf.d", "*.conf"))
		if err != nil {
			continue // a pattern in the home's own name
		}
		paths = append(paths, more...)
	}
	return paths
}

// readTOML decodes a file; one that does not exist is empty. ErrInvalid, with
// the line.
func readTOML(path string, into any) error {
	data, err := sys.ReadSettings(path)
	if err != nil || data == nil {
		return err
	}
	if err := toml.Unmarshal(data, into); err != nil {
		var at *toml.DecodeError
		if errors.As(err, &at) {
			line, _ := at.Position()
			err = fmt.Errorf("line %d: %w", line, err)
		}
		return errdef.WithHint(errdef.New(errdef.ErrInvalid, "read %s: %w", path, err), "mend the file")
	}
	return nil
}

// match finds the rule with the longest prefix of a name; nil for none.
func match(rules []rule, name string) *rule {
	var best *rule
	for i, r := range rules {
		if r.matches(name) && (best == nil || len(r.Prefix) > len(best.Prefix)) {
			best = &rules[i]
		}
	}
	return best
}

func (r *rule) matches(name string) bool {
	if suffix, ok := strings.CutPrefix(r.Prefix, "*"); ok {
		return strings.HasPrefix(suffix, ".") && strings.HasSuffix(hostOf(name), suffix)
	}
	rest, ok := strings.CutPrefix(name, r.Prefix)
	return ok && r.Prefix != "" && (rest == "" || rest[0] == '/')
}

// place is where a name is once its prefix is replaced by the location.
func (r *rule) place(location, domain, path string) registry.Place {
	name := domain + "/" + path
	if location != "" && location != r.Prefix && !strings.HasPrefix(r.Prefix, "*") {
		name = location + strings.TrimPrefix(name, r.Prefix)
	}
	host, path, _ := strings.Cut(name, "/")
	return registry.Place{Domain: host, Path: path}
}

// hostIs says whether an entry of insecure-registries, a host or a network,
// means the host.
func hostIs(host, entry string) bool {
	if host == entry {
		return true
	}
	network, err := netip.ParsePrefix(entry)
	if err != nil {
		return false
	}
	name := host
	if h, _, ok := strings.Cut(host, ":"); ok && strings.Count(host, ":") == 1 {
		name = h
	}
	ip, err := netip.ParseAddr(strings.Trim(name, "[]"))
	return err == nil && network.Contains(ip)
}

// hostEntry is a [host."URL"] of containerd's hosts.toml (docs/hosts.md at v2.1).
type hostEntry struct {
	Capabilities []string `toml:"capabilities"`
	CA           any      `toml:"ca"`     // a file or a list of files
	Client       any      `toml:"client"` // a file, or a list of files or of pairs
	SkipVerify   bool     `toml:"skip_verify"`
	OverridePath bool     `toml:"override_path"`
}

// hostsFile is a hosts.toml.
type hostsFile struct {
	Server string               `toml:"server"`
	Host   map[string]hostEntry `toml:"host"`
	hostEntry

	order []string // of the keys of Host
	dir   string
}

// located is an entry with the file that it stands in.
type located struct {
	file  *hostsFile
	entry hostEntry
}

// hostsToml reads the first hosts.toml for a registry; nil when there is none.
func (h *Hosts) hostsToml(domain string) (*hostsFile, error) {
	for _, dir := range append(h.certDirs(domain), h.certDirs("_default")...) {
		path := filepath.Join(dir, "hosts.toml")
		data, err := sys.ReadSettings(path)
		if err != nil {
			return nil, err
		}
		if data == nil {
			continue
		}
		f := &hostsFile{dir: dir, order: tableOrder(data)}
		return f, readTOML(path, f)
	}
	return nil, nil
}

// tableOrder are the names of [host."NAME"] tables as they stand in the file:
// mirrors are tried in that order.
func tableOrder(data []byte) []string {
	var out []string
	p := unstable.Parser{}
	p.Reset(data)
	for p.NextExpression() {
		e := p.Expression()
		if e.Kind != unstable.Table {
			continue
		}
		it := e.Key()
		if !it.Next() || string(it.Node().Data) != "host" || !it.Next() {
			continue
		}
		if name := string(it.Node().Data); !slices.Contains(out, name) {
			out = append(out, name)
		}
	}
	return out
}

// fromHostsToml are a registry's mirrors in containerd's way.
func (h *Hosts) fromHostsToml(domain, path string) ([]registry.Place, error) {
	f, err := h.hostsToml(domain)
	if err != nil || f == nil {
		return nil, err
	}
	var out []registry.Place
	for _, name := range f.order {
		e := f.Host[name]
		u, err := url.Parse(withScheme(name))
		if err != nil || u.Host == "" {
			return nil, errdef.New(errdef.ErrInvalid, "%s: host %q is not a URL", filepath.Join(f.dir, "hosts.toml"), name)
		}
		can := func(c string) bool { return len(e.Capabilities) == 0 || slices.Contains(e.Capabilities, c) }
		if !can("pull") {
			continue
		}
		prefix := strings.Trim(u.Path, "/")
		if e.OverridePath {
			// The address is the API's own root. Ours is always below /v2.
			var ok bool
			if prefix, ok = strings.CutPrefix(prefix+"/", "v2/"); !ok {
				return nil, errdef.New(errdef.ErrUnsupported, "%s: host %q: override_path with a path that is not below /v2", filepath.Join(f.dir, "hosts.toml"), name)
			}
		}
		h.remember(u, located{f, e})
		place := registry.Place{Domain: u.Host, Path: joinPath(prefix, path), OnlyDigests: !can("resolve")}
		if u.Host != domain {
			place.Namespace = domain
		}
		out = append(out, place)
	}
	if host, prefix := splitURL(f.Server); host != "" && host != domain && host != "registry-1."+oci.DockerHub {
		out = append(out, registry.Place{Domain: host, Path: joinPath(strings.TrimPrefix(prefix, "v2"), path), Namespace: domain})
	}
	return out, nil
}

// remember keeps how a mirror is reached: its settings stand in the file of the
// registry that it mirrors.
func (h *Hosts) remember(u *url.URL, e located) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !slices.ContainsFunc(h.mirrors[u.Host], func(l located) bool { return l.file.dir == e.file.dir }) {
		h.mirrors[u.Host] = append(h.mirrors[u.Host], e)
	}
	if u.Scheme == "http" {
		h.plain[u.Host] = true
	}
}

func withScheme(s string) string {
	if strings.Contains(s, "://") {
		return s
	}
	return "https://" + s
}
