// Package hosts knows how registries are reached from this machine: their
// mirrors, certificates, and which of them are trusted without TLS. It reads the
// files that docker, containerd and Podman read for that, writes nothing and
// sends nothing.
//
// Invariant: nothing is read before the first registry is spoken to, and a
// registry's certificates and exemptions serve that registry alone.
//
// The files; certificates of all directories are used together:
//
//	$DOCKER_CONFIG/certs.d, ~/.config/docker/certs.d,
//	~/.config/containers/certs.d, /etc/docker/certs.d,
//	/etc/containers/certs.d, /etc/containerd/certs.d
//	    HOST[:PORT]/*.crt            authorities
//	    HOST[:PORT]/NAME.cert, .key  client certificate and its key
//	    HOST[:PORT]/hosts.toml       containerd's mirrors and settings
//	$CONTAINERS_REGISTRIES_CONF, else ~/.config/containers/registries.conf,
//	else /etc/containers/registries.conf and registries.conf.d/*.conf
//	$DOCKER_CONFIG/daemon.json, ~/.config/docker/daemon.json,
//	/etc/docker/daemon.json
package hosts

import (
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"dhow/internal/errdef"
	"dhow/internal/oci"
	"dhow/internal/registry"
	"dhow/internal/sys"
)

// Options says where the files are.
type Options struct {
	// Env reads the environment; nil is os.Getenv.
	Env func(string) string
	// Etc stands for /etc; "" is that.
	Etc string
	// Unverified are hosts whose certificates are not checked.
	Unverified []string
}

// Hosts are the settings of registries. Safe for concurrent use.
type Hosts struct {
	o    Options
	read func() (*settings, error)

	mu         sync.Mutex
	transports map[string]http.RoundTripper // guarded by mu, as are the following; by host
	mirrors    map[string][]located         // settings in the file of another registry
	plain      map[string]bool              // named with http:// there
}

// settings are what the files say, but for the directories of certificates,
// which are read for each host.
type settings struct {
	registries []rule   // of registries.conf
	mirrors    []string // of daemon.json, for Docker Hub
	insecure   []string // of daemon.json
}

// Open finds settings. It reads nothing until a registry is spoken to.
func Open(o Options) *Hosts {
	if o.Env == nil {
		o.Env = os.Getenv
	}
	if o.Etc == "" {
		o.Etc = "/etc"
	}
	h := &Hosts{o: o, transports: map[string]http.RoundTripper{}, mirrors: map[string][]located{}, plain: map[string]bool{}}
	h.read = sync.OnceValues(h.readFiles)
	return h
}

// dockerDirs are docker's directories of settings, the user's first.
func (h *Hosts) dockerDirs() []string { return sys.DockerDirs(h.o.Env, h.o.Etc) }

func (h *Hosts) certDirs(host string) []string {
	var out []string
	for _, dir := range h.dockerDirs() {
		out = append(out, filepath.Join(dir, "certs.d"))
	}
	dirs := []string{under(h.userConfig(), "containers/certs.d"), filepath.Join(h.o.Etc, "containers/certs.d"), filepath.Join(h.o.Etc, "containerd/certs.d")}
	i := len(out) - 1 // before /etc/docker
	out = slices.Insert(out, i, dirs[0])
	out = append(out, dirs[1:]...)
	var found []string
	for _, dir := range out {
		for _, name := range hostNames(host) {
			if dir != "" && filepath.IsLocal(name) {
				found = append(found, filepath.Join(dir, name))
			}
		}
	}
	return found
}

// hostNames are the directory names for a host; a port's colon is no part of
// file names everywhere, for which containerd has another form.
func hostNames(host string) []string {
	names := []string{host}
	if name, port, ok := strings.Cut(host, ":"); ok && !strings.ContainsAny(port, ":]") {
		names = append(names, name+"_"+port+"_")
	}
	return names
}

// userConfig is the user's directory of settings, "" when there is none.
func (h *Hosts) userConfig() string { return sys.UserConfigDir(h.o.Env) }

func under(dir, name string) string {
	if dir == "" {
		return ""
	}
	return filepath.Join(dir, name)
}

// Places are where a repository is read from: mirrors in their order, then the
// registry itself. ErrDenied when registries.conf blocks it, ErrInvalid for a
// malformed file.
func (h *Hosts) Places(domain, path string) ([]registry.Place, error) {
	s, err := h.read()
	if err != nil {
		return nil, err
	}
	own := registry.Place{Domain: domain, Path: path}
	places, err := h.fromHostsToml(domain, path)
	if err != nil {
		return nil, err
	}
	if r := match(s.registries, domain+"/"+path); r != nil {
		if r.Blocked {
			return nil, errdef.New(errdef.ErrDenied, "registries.conf blocks %s/%s", domain, path)
		}
		own = r.place(r.Location, domain, path)
		for _, m := range r.Mirrors {
			p := r.place(m.Location, domain, path)
			p.OnlyTags, p.OnlyDigests = m.Pull == "tag-only", m.Pull == "digest-only"
			places = append(places, p)
		}
	}
	if domain == oci.DockerHub {
		for _, m := range s.mirrors {
			host, prefix := splitURL(m)
			places = append(places, registry.Place{Domain: host, Path: joinPath(prefix, path)})
		}
	}
	return append(places, own), nil
}

// Insecure says whether files name the host as one that needs no TLS.
func (h *Hosts) Insecure(host string) bool {
	s, err := h.read()
	if err != nil {
		return false // the error is told by Places, which is asked first
	}
	h.mu.Lock()
	plain := h.plain[host]
	h.mu.Unlock()
	if plain || slices.Contains(s.mirrors, "http://"+host) || slices.Contains(s.mirrors, "http://"+host+"/") {
		return true
	}
	if slices.ContainsFunc(s.insecure, func(name string) bool { return hostIs(host, name) }) {
		return true
	}
	for _, r := range s.registries {
		if r.Insecure && hostOf(r.Location) == host {
			return true
		}
		for _, m := range r.Mirrors {
			if m.Insecure && hostOf(m.Location) == host {
				return true
			}
		}
	}
	return false
}

// splitURL is host and path of a mirror's address, whose scheme may be missing.
func splitURL(s string) (host, path string) {
	if _, rest, ok := strings.Cut(s, "://"); ok {
		s = rest
	}
	host, path, _ = strings.Cut(s, "/")
	return host, strings.Trim(path, "/")
}

func joinPath(prefix, path string) string {
	return strings.Trim(strings.Trim(prefix, "/")+"/"+path, "/")
}

func hostOf(location string) string {
	host, _, _ := strings.Cut(location, "/")
	return host
}
