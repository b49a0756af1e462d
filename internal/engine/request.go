package engine

import (
	"context"
	"encoding/csv"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"dhow/internal/errdef"
	"dhow/internal/export"
	"dhow/internal/oci"
	"dhow/internal/remotecache"
	"dhow/internal/session"

	"github.com/moby/buildkit/client"
	"github.com/opencontainers/go-digest"
)

// BuildRequest is what `dhow build` is asked for. Zero values are docker's
// defaults.
type BuildRequest struct {
	Context       string            // directory, URL, or "-" for Stdin
	Dockerfile    string            // path, or "-" for Stdin; "": Dockerfile in the context
	Stdin         io.Reader         // read when Context or Dockerfile is "-"
	NamedContexts map[string]string // name → directory, docker-image://…, oci-layout://…, URL

	Target        string
	BuildArgs     map[string]string
	Labels        map[string]string
	Platforms     []string
	NoCache       bool
	NoCacheFilter []string // stages
	Pull          bool
	// LockFile holds the sources to what is in that file (dhow lock); "" for none.
	LockFile string
	// Offline sends no packet: what is not here is an error that names it, and RUN
	// steps have no network. The engine's registry client has to be offline, too.
	Offline bool

	Network      string // "", "default", "none", "host"
	AddHosts     []string
	ShmSize      int64 // bytes
	Ulimits      []string
	CgroupParent string
	MemoryBytes  int64
	MemorySwap   int64 // bytes, -1 unlimited
	CPUShares    int64
	CPUPeriod    int64 // µs
	CPUQuota     int64 // µs
	CpusetCPUs   string
	CpusetMems   string

	Secrets []session.SecretSource
	SSH     []session.SSHSource
	Allow   []string // entitlements, and secret-in-layer=ID

	CacheTo, CacheFrom []remotecache.Options

	Tags        []string
	Outputs     []export.Output
	Push        bool
	Annotations []string
	// Attests are values of --attest by their type: "provenance", "sbom".
	Attests map[string]string
	Epoch   string    // SOURCE_DATE_EPOCH, seconds; "" none
	Stdout  io.Writer // takes outputs with the destination "-"; nil is os.Stdout

	Call     string // "", "check", "outline", "targets": ask the frontend, build nothing
	Parallel int    // steps at a time; 0 decides by the cores

	// Progress takes the status stream; called from several goroutines.
	Progress func(*client.SolveStatus)
}

// prepared is a request made concrete: attributes for the frontend and the
// directories that they speak of.
type prepared struct {
	attrs   map[string]string
	dirs    map[string]string
	layouts []session.Layout
	cleanup func()
	// target identifies "the same build, again"; name is what people call it.
	target, name string
}

// prepare makes contexts that are no directories into ones, and writes the
// request in the frontend's words (moby/buildkit frontend/dockerui/config.go).
func (e *Engine) prepare(ctx context.Context, r *BuildRequest) (*prepared, error) {
	p := &prepared{attrs: map[string]string{}, dirs: map[string]string{}, cleanup: func() {}}
	if err := e.prepareContext(ctx, r, p); err != nil {
		return nil, err
	}
	if err := prepareNamed(r.NamedContexts, p); err != nil {
		return nil, err
	}
	for k, v := range r.BuildArgs {
		p.attrs["build-arg:"+k] = v
	}
	for k, v := range r.Labels {
		p.attrs["label:"+k] = v
	}
	if r.Epoch != "" && p.attrs["build-arg:SOURCE_DATE_EPOCH"] == "" {
		p.attrs["build-arg:SOURCE_DATE_EPOCH"] = r.Epoch
	}
	if err := prepareOptions(r, p.attrs); err != nil {
		return nil, err
	}
	if err := prepareCaches(r.CacheFrom, p.attrs); err != nil {
		return nil, err
	}
	identity := []string{p.name, r.Target, strings.Join(r.Platforms, ",")}
	p.target = digest.FromString(strings.Join(identity, "\x00")).Encoded()[:32]
	return p, nil
}

func prepareOptions(r *BuildRequest, attrs map[string]string) error {
	set := func(key, value string) {
		if value != "" {
			attrs[key] = value
		}
	}
	number := func(key string, n int64) {
		if n != 0 {
			attrs[key] = strconv.FormatInt(n, 10)
		}
	}
	for kind, values := range r.Attests {
		attrs["attest:"+kind] = values
	}
	set("target", r.Target)
	set("cgroup-parent", r.CgroupParent)
	set("platform", strings.Join(r.Platforms, ","))
	number("shm-size", r.ShmSize)
	number("memory", r.MemoryBytes)
	number("memswap", r.MemorySwap)
	number("cpushares", r.CPUShares)
	number("cpuperiod", r.CPUPeriod)
	number("cpuquota", r.CPUQuota)
	set("cpusetcpus", r.CpusetCPUs)
	set("cpusetmems", r.CpusetMems)
	if r.NoCache {
		attrs["no-cache"] = ""
	} else if len(r.NoCacheFilter) > 0 {
		attrs["no-cache"] = strings.Join(r.NoCacheFilter, ",")
	}
	attrs["image-resolve-mode"] = "default"
	if r.Pull {
		attrs["image-resolve-mode"] = "pull"
	}
	if r.Offline {
		if r.Pull || r.Push {
			return errdef.New(errdef.ErrInvalid, "--offline excludes --pull and --push")
		}
		if r.Network == "host" {
			return errdef.New(errdef.ErrInvalid, "--offline excludes --network host")
		}
		attrs["force-network-mode"] = "none"
	}
	switch r.Network {
	case "", "default", "bridge":
	case "none", "host":
		attrs["force-network-mode"] = r.Network
	default:
		return errdef.WithHint(errdef.New(errdef.ErrUnsupported, "network %q", r.Network), "use --network default, none or host")
	}
	if len(r.AddHosts) > 0 {
		attrs["add-hosts"] = csvLine(r.AddHosts)
	}
	if len(r.Ulimits) > 0 {
		attrs["ulimit"] = csvLine(r.Ulimits)
	}
	switch r.Call {
	case "", "build":
	case "check", "lint":
		attrs["requestid"] = "frontend.lint"
	case "outline", "targets":
		attrs["requestid"] = "frontend." + r.Call
	default:
		return errdef.WithHint(errdef.New(errdef.ErrInvalid, "call %q is not known", r.Call), "use --call build, check, outline or targets")
	}
	return nil
}

// prepareCaches hands the caches to the frontend, which names them when it solves.
func prepareCaches(from []remotecache.Options, attrs map[string]string) error {
	if len(from) == 0 {
		return nil
	}
	for _, o := range from {
		if _, err := remotecache.ParseImport(o); err != nil {
			return err
		}
	}
	raw, err := json.Marshal(from)
	attrs["cache-imports"] = string(raw)
	return err
}

func csvLine(fields []string) string {
	var b strings.Builder
	w := csv.NewWriter(&b)
	// Writing to a strings.Builder cannot fail.
	_ = w.Write(fields)
	w.Flush()
	return strings.TrimRight(b.String(), "\n")
}

// gitURL is what docker takes for a repository rather than for a directory or
// a tar; the frontend then reads it in full.
var gitURL = regexp.MustCompile(`^(git://|git@|ssh://|github\.com/|(https?://.*\.git(#.*|\?.*)?$))`)

// remote says whether a context is fetched rather than read in place.
func remote(name string) bool {
	return gitURL.MatchString(name) || strings.HasPrefix(name, "http://") || strings.HasPrefix(name, "https://")
}

// prepareNamed gives every named context to the frontend: directories become
// locals of the same name.
func prepareNamed(named map[string]string, p *prepared) error {
	for _, name := range slices.Sorted(maps.Keys(named)) {
		value := named[name]
		ref, err := oci.ParseRef(name)
		if err != nil {
			return fmt.Errorf("build context %s: %w", name, err)
		}
		key := "context:" + strings.TrimSuffix(ref.Familiar(), ":latest")
		scheme, _, _ := strings.Cut(value, "://")
		switch {
		case scheme == "docker-image":
			p.attrs[key] = value
		case scheme == "oci-layout":
			layout, err := session.ParseLayout(value)
			if err != nil {
				return fmt.Errorf("build context %s: %w", name, err)
			}
			p.layouts = append(p.layouts, layout)
			p.attrs[key] = layout.Context()
		case remote(value):
			p.attrs[key] = value
		default:
			st, err := os.Stat(value)
			if err != nil || !st.IsDir() {
				err := errdef.New(errdef.ErrNotFound, "build context %s: %q is no directory", name, value)
				return errdef.WithHint(err, "a named context is a directory, docker-image://…, oci-layout://… or a git or http URL")
			}
			p.dirs[name] = value
			p.attrs[key] = "local:" + name
		}
	}
	return nil
}

// displayName is what a build is called in lists: the last part of its context.
func displayName(name string) string {
	name, _, _ = strings.Cut(name, "\x00")
	if u, err := url.Parse(name); err == nil && u.Scheme != "" && u.Host != "" {
		return filepath.Base(u.Path)
	}
	return filepath.Base(name)
}
