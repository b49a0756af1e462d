package hosts

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"dhow/internal/errdef"
	"dhow/internal/oci"
)

// Transport carries requests over base, with the certificates of each host.
func (h *Hosts) Transport(base *http.Transport) http.RoundTripper {
	return &perHost{hosts: h, base: base}
}

// perHost chooses the transport by the host that a request goes to, redirects
// and token servers included: what was configured for one host serves no other.
type perHost struct {
	hosts *Hosts
	base  *http.Transport
}

// RoundTrip implements http.RoundTripper.
func (p *perHost) RoundTrip(r *http.Request) (*http.Response, error) {
	t, err := p.hosts.transport(p.base, r.URL.Host)
	if err != nil {
		if r.Body != nil {
			r.Body.Close()
		}
		return nil, err
	}
	return t.RoundTrip(r)
}

func (h *Hosts) transport(base *http.Transport, host string) (http.RoundTripper, error) {
	h.mu.Lock()
	t := h.transports[host]
	h.mu.Unlock()
	if t != nil {
		return t, nil
	}
	config, err := h.tls(host)
	if err != nil {
		return nil, err
	}
	t = base
	if config != nil {
		own := base.Clone()
		own.TLSClientConfig = config
		t = own
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if first := h.transports[host]; first != nil {
		return first, nil
	}
	h.transports[host] = t
	return t, nil
}

// tls is how TLS is spoken with the host; nil is the usual way.
func (h *Hosts) tls(host string) (*tls.Config, error) {
	var cas []string
	var pairs [][2]string
	skip := h.unverified(host) || h.Insecure(host)
	named := certHost(host)
	for _, dir := range h.certDirs(named) {
		c, p, err := certFiles(dir)
		if err != nil {
			return nil, err
		}
		cas, pairs = append(cas, c...), append(pairs, p...)
	}
	f, err := h.hostsToml(named)
	if err != nil {
		return nil, err
	}
	h.mu.Lock()
	entries := slices.Clone(h.mirrors[host])
	h.mu.Unlock()
	if f != nil {
		entries = append(entries, located{f, f.hostEntry})
	}
	for _, e := range entries {
		skip = skip || e.entry.SkipVerify
		cas, pairs = append(cas, e.file.paths(e.entry.CA)...), append(pairs, e.file.pairs(e.entry.Client)...)
	}
	if !skip && len(cas) == 0 && len(pairs) == 0 {
		return nil, nil
	}
	return loadTLS(cas, pairs, skip)
}

// unverified says whether the user exempted the host by name.
func (h *Hosts) unverified(host string) bool {
	return slices.Contains(h.o.Unverified, certHost(host))
}

// certHost is the name of a host in directories of certificates.
func certHost(host string) string {
	if host == "registry-1."+oci.DockerHub {
		return oci.DockerHub
	}
	return host
}

// certFiles are the authorities and client certificates in a directory.
func certFiles(dir string) (cas []string, pairs [][2]string, err error) {
	list, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
		return nil, nil, nil
	}
	for _, e := range list {
		path := filepath.Join(dir, e.Name())
		switch filepath.Ext(path) {
		case ".crt":
			cas = append(cas, path)
		case ".cert":
			key := strings.TrimSuffix(path, ".cert") + ".key"
			if _, err := os.Stat(key); err != nil {
				return nil, nil, errdef.WithHint(errdef.New(errdef.ErrInvalid, "client certificate %s has no key: %w", path, err), "an authority's certificate ends in .crt")
			}
			pairs = append(pairs, [2]string{path, key})
		}
	}
	return cas, pairs, err
}

func loadTLS(cas []string, pairs [][2]string, skip bool) (*tls.Config, error) {
	c := &tls.Config{InsecureSkipVerify: skip, MinVersion: tls.VersionTLS12}
	if len(cas) > 0 {
		pool, err := x509.SystemCertPool()
		if err != nil {
			pool = x509.NewCertPool()
		}
		for _, path := range cas {
			data, err := os.ReadFile(path)
			if err != nil {
				return nil, err
			}
			if !pool.AppendCertsFromPEM(data) {
				return nil, errdef.New(errdef.ErrInvalid, "%s has no certificate", path)
			}
		}
		c.RootCAs = pool
	}
	for _, p := range pairs {
		pair, err := tls.LoadX509KeyPair(p[0], p[1])
		if err != nil {
			return nil, errdef.New(errdef.ErrInvalid, "client certificate %s: %w", p[0], err)
		}
		c.Certificates = append(c.Certificates, pair)
	}
	return c, nil
}

// paths reads a file's name or a list of them, relative to the file they stand in.
func (f *hostsFile) paths(v any) []string {
	switch v := v.(type) {
	case string:
		if !filepath.IsAbs(v) {
			v = filepath.Join(f.dir, v)
		}
		return []string{v}
	case []any:
		var out []string
		for _, e := range v {
			out = append(out, f.paths(e)...)
		}
		return out
	}
	return nil
}

// pairs reads "client": one file with certificate and key, a list of such, or a
// list of pairs.
func (f *hostsFile) pairs(v any) [][2]string {
	var out [][2]string
	list, ok := v.([]any)
	if !ok {
		list = []any{v}
	}
	for _, e := range list {
		switch files := f.paths(e); len(files) {
		case 1:
			out = append(out, [2]string{files[0], files[0]})
		case 2:
			out = append(out, [2]string{files[0], files[1]})
		}
	}
	return out
}
