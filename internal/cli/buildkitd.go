package cli

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"dhow/internal/bkapi"
	"dhow/internal/cdi"
	"dhow/internal/cli/console"
	"dhow/internal/cli/flags"
	"dhow/internal/engine"
	"dhow/internal/errdef"
	"dhow/internal/registry"

	"github.com/pelletier/go-toml/v2"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
)

// buildkitdFlags are those of buildkitd that mean something here.
type buildkitdFlags struct {
	addrs        []string
	config       string
	entitlements []string
	mirrors      []string
	labels       []string
	ociWorker    string
	noise        bool
	cdiDirs      []string
	noCDI        bool
	tls          tlsFiles
	openTCP      bool
	gc           bool
	keepStorage  string
}

// tlsFiles are the PEM files of a server that proves who it is.
type tlsFiles struct {
	Cert string `toml:"cert"`
	Key  string `toml:"key"`
	CA   string `toml:"ca"` // signs its clients; "" asks none for a certificate
}

// buildkitdConfig is the part of buildkitd.toml that means something here.
// Another key is refused by name.
type buildkitdConfig struct {
	Root         string   `toml:"root"`
	Debug        bool     `toml:"debug"`
	Entitlements []string `toml:"insecure-entitlements"`
	// ProvenanceEnvDir holds *.json files that are added to provenance.
	ProvenanceEnvDir string `toml:"provenanceEnvDir"`
	GRPC             struct {
		Address []string `toml:"address"`
		TLS     tlsFiles `toml:"tls"`
	} `toml:"grpc"`
	Registry map[string]struct {
		Mirrors   []string `toml:"mirrors"`
		PlainHTTP bool     `toml:"http"`
	} `toml:"registry"`
	CDI struct {
		Disabled    *bool    `toml:"disabled"`
		SpecDirs    []string `toml:"specDirs"`
		AutoAllowed []string `toml:"autoAllowed"`
	} `toml:"cdi"`
	// No traces are made, so none are lost.
	OTEL struct {
		SocketPath string `toml:"socketPath"`
	} `toml:"otel"`
	Worker struct {
		OCI struct {
			Enabled *bool             `toml:"enabled"`
			Labels  map[string]string `toml:"labels"`
			GCConfig
		} `toml:"oci"`
		Containerd struct {
			Enabled bool `toml:"enabled"`
		} `toml:"containerd"`
	} `toml:"worker"`
}

func (a *app) buildkitdCommand() *cobra.Command {
	f := &buildkitdFlags{}
	cmd := &cobra.Command{
		Use: "buildkitd [OPTIONS]", Short: "Serve BuildKit's API: buildctl, buildx and other clients build with dhow", Args: console.ExactArgs(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := readBuildkitdConfig(f.config)
			if err != nil {
				return err
			}
			if cmd.Flags().Changed("oci-worker-gc") {
				c.Worker.OCI.GC = &f.gc
			}
			return a.buildkitd(cmd.Context(), f, c)
		},
	}
	fl := cmd.Flags()
	fl.StringArrayVar(&f.addrs, "addr", nil, "Listening address (unix://PATH, tcp://HOST:PORT with TLS)")
	fl.StringVar(&f.config, "config", "", "Path to a buildkitd.toml")
	fl.StringSliceVar(&f.entitlements, "allow-insecure-entitlement", nil, `Let clients ask for "network.host" or "security.insecure"; for "device" they always may`)
	fl.StringSliceVar(&f.entitlements, "allow-entitlement", nil, "The same as --allow-insecure-entitlement")
	fl.StringSliceVar(&f.cdiDirs, "cdi-spec-dir", nil, "Directories with descriptions of CDI devices (default /etc/cdi,/var/run/cdi)")
	fl.BoolVar(&f.noCDI, "cdi-disabled", false, "Give no devices to builds")
	fl.StringVar(&f.tls.Cert, "tlscert", "", "Certificate to use on tcp addresses")
	fl.StringVar(&f.tls.Key, "tlskey", "", "Key of the certificate")
	fl.StringVar(&f.tls.CA, "tlscacert", "", "Certificate of who signs the certificates that clients must have")
	fl.BoolVar(&f.openTCP, "allow-tcp-without-tls", false, "Serve tcp addresses to anybody who can reach them")
	fl.StringArrayVar(&f.mirrors, "registry-mirror", nil, "Mirror of a registry (DOMAIN=HOST)")
	fl.StringSliceVar(&f.labels, "oci-worker-labels", nil, "Labels shown to clients (KEY=VALUE)")
	fl.BoolVar(&f.gc, "oci-worker-gc", true, "Keep the build cache within bounds")
	fl.StringVar(&f.keepStorage, "oci-worker-gc-keepstorage", "", "Build cache that is kept: RESERVED[,FREE[,MAXIMUM]], in MB, or with a unit or %")
	// There is one worker.
	fl.StringVar(&f.ociWorker, "oci-worker", "auto", "Accepted for buildkitd: true or auto")
	fl.BoolVar(&f.noise, "debug", false, "Accepted for buildkitd: no more is logged")
	flags.Refuse(fl, map[string]string{"containerd-worker": "it needs no containerd"})
	return cmd
}

func (a *app) buildkitd(ctx context.Context, f *buildkitdFlags, c *buildkitdConfig) error {
	if f.keepStorage != "" {
		if err := c.Worker.OCI.setKeepStorage(f.keepStorage); err != nil {
			return err
		}
	}
	if on, err := strconv.ParseBool(f.ociWorker); f.ociWorker != "auto" && (err != nil || !on) || c.Worker.OCI.Enabled != nil && !*c.Worker.OCI.Enabled {
		return errdef.New(errdef.ErrUnsupported, "buildkitd without its worker")
	}
	if a.Root == "" {
		a.Root = c.Root
	}
	o, err := a.buildkitdOptions(f, c)
	if err != nil {
		return err
	}
	addrs := f.addrs
	if len(addrs) == 0 {
		addrs = c.GRPC.Address
	}
	if len(addrs) == 0 {
		addrs = []string{"unix:///run/dhow/buildkitd.sock"}
	}
	if err := a.ownRoot(); err != nil {
		return err
	}
	secure, err := f.serverTLS(c)
	if err != nil {
		return err
	}
	unused := make([]byte, heapFloor)
	defer runtime.KeepAlive(unused)
	return a.WithEngine(ctx, func(e *engine.Engine) error {
		total, _, err := e.Snapshots.Disk()
		if err != nil {
			return err
		}
		if o.GC, err = c.Worker.OCI.rules(total); err != nil {
			return err
		}
		o.CollectFailed = func(err error) { fmt.Fprintln(a.Err, "dhow: collect garbage:", err) }
		s, err := bkapi.New(e, o)
		if err != nil {
			return err
		}
		g, ctx := errgroup.WithContext(ctx)
		g.Go(func() error { s.Collect(ctx); return nil })
		for _, addr := range addrs {
			l, err := listen(ctx, addr, secure, f.openTCP)
			if err != nil {
				return err
			}
			fmt.Fprintln(a.Err, "dhow: serving BuildKit's API at "+addr)
			g.Go(func() error { return s.Serve(ctx, l) })
		}
		return g.Wait()
	})
}

// heapFloor counts as heap and is never touched, so that it takes no memory. Without
// it the heap is some 6 MB and every other build has a collection of garbage, which
// was a sixth of the processor time of builds with nothing to do. What large builds
// need does not grow with it, unlike with a higher GOGC.
const heapFloor = 32 << 20 // bytes

// ownRoot makes a subdirectory the state directory where the one that was given
// holds other things, as buildkitd itself does: scripts put the socket there.
func (a *app) ownRoot() error {
	if a.Root == "" {
		return nil
	}
	fits, err := engine.FitsRoot(a.Root)
	if err == nil && !fits {
		a.Root = filepath.Join(a.Root, "dhow")
	}
	return err
}

func readBuildkitdConfig(name string) (*buildkitdConfig, error) {
	c := &buildkitdConfig{}
	if name == "" {
		return c, nil
	}
	file, err := os.Open(name)
	if err != nil {
		return nil, fmt.Errorf("read the configuration: %w", err)
	}
	defer file.Close()
	err = toml.NewDecoder(file).DisallowUnknownFields().Decode(c)
	var unknown *toml.StrictMissingError
	if errors.As(err, &unknown) {
		var keys []string
		for _, e := range unknown.Errors {
			keys = append(keys, strings.Join(e.Key(), "."))
		}
		return nil, errdef.New(errdef.ErrUnsupported, "%s: the keys %s", name, strings.Join(keys, ", "))
	}
	if err != nil {
		return nil, errdef.New(errdef.ErrInvalid, "%s: %w", name, err)
	}
	if c.Worker.Containerd.Enabled {
		return nil, errdef.New(errdef.ErrUnsupported, "%s: worker.containerd: dhow needs no containerd", name)
	}
	return c, nil
}

// buildkitdOptions joins flags and configuration.
func (a *app) buildkitdOptions(f *buildkitdFlags, c *buildkitdConfig) (bkapi.Options, error) {
	o := bkapi.Options{Version: a.Version.Version, Labels: c.Worker.OCI.Labels, Registry: a.RegistryOptions()}
	o.Devices = cdi.Settings{Disabled: f.noCDI || c.CDI.Disabled != nil && *c.CDI.Disabled, Dirs: c.CDI.SpecDirs, AutoAllowed: c.CDI.AutoAllowed}
	if len(f.cdiDirs) > 0 {
		o.Devices.Dirs = f.cdiDirs
	}
	var err error
	if o.ProvenanceEnv, err = readProvenanceEnv(c.ProvenanceEnvDir); err != nil {
		return o, err
	}
	mirrors := map[string][]string{}
	plain := map[string]bool{}
	mirror := func(domain, host string) {
		host, secure := strings.CutPrefix(host, "https://")
		if h, ok := strings.CutPrefix(host, "http://"); ok && !secure {
			host, plain[h] = h, true
		}
		mirrors[domain] = append(mirrors[domain], host)
	}
	for domain, r := range c.Registry {
		plain[domain] = plain[domain] || r.PlainHTTP
		for _, m := range r.Mirrors {
			mirror(domain, m)
		}
	}
	for _, m := range f.mirrors {
		domain, host, ok := strings.Cut(m, "=")
		if !ok {
			return o, errdef.New(errdef.ErrInvalid, "--registry-mirror %q: want DOMAIN=HOST", m)
		}
		mirror(domain, host)
	}
	o.Registry = mirrored(o.Registry, mirrors, plain)
	for _, e := range append(c.Entitlements, f.entitlements...) {
		switch e {
		case "device":
			continue
		case "network.host", "security.insecure":
		default:
			return o, errdef.New(errdef.ErrInvalid, "entitlement %q is not known", e)
		}
		o.Entitlements = append(o.Entitlements, e)
	}
	labels, err := console.KeyValues("oci-worker-labels", f.labels, func(string) (string, bool) { return "", true })
	if err != nil {
		return o, err
	}
	if o.Labels == nil {
		o.Labels = map[string]string{}
	}
	for k, v := range labels {
		o.Labels[k] = v
	}
	return o, nil
}

// mirrored puts the mirrors of the server's own configuration in front, for the
// domains that it names; the machine's files hold for the others.
func mirrored(o registry.Options, mirrors map[string][]string, plain map[string]bool) registry.Options {
	places, insecure := o.Places, o.PlainHTTP
	o.Places = func(domain, path string) ([]registry.Place, error) {
		if len(mirrors[domain]) == 0 {
			return places(domain, path)
		}
		var list []registry.Place
		for _, host := range mirrors[domain] {
			list = append(list, registry.Place{Domain: host, Path: path})
		}
		return append(list, registry.Place{Domain: domain, Path: path}), nil
	}
	o.PlainHTTP = func(host string) bool { return plain[host] || insecure(host) }
	return o
}

// readProvenanceEnv joins the JSON objects in a directory; "" is none.
func readProvenanceEnv(dir string) (map[string]any, error) {
	if dir == "" {
		return nil, nil
	}
	files, err := filepath.Glob(filepath.Join(dir, "*.json"))
	if err != nil {
		return nil, err
	}
	env := map[string]any{}
	for _, name := range files {
		raw, err := os.ReadFile(name)
		if err == nil {
			err = json.Unmarshal(raw, &env)
		}
		if err != nil {
			return nil, errdef.New(errdef.ErrInvalid, "read %s for provenance: %w", name, err)
		}
	}
	return env, nil
}

// serverTLS reads the files that flags and configuration name; nil when none is.
func (f *buildkitdFlags) serverTLS(c *buildkitdConfig) (*tls.Config, error) {
	files := tlsFiles{cmp.Or(f.tls.Cert, c.GRPC.TLS.Cert), cmp.Or(f.tls.Key, c.GRPC.TLS.Key), cmp.Or(f.tls.CA, c.GRPC.TLS.CA)}
	if files == (tlsFiles{}) {
		return nil, nil
	}
	if files.Cert == "" || files.Key == "" {
		return nil, errdef.New(errdef.ErrInvalid, "TLS needs a certificate and a key: --tlscert and --tlskey")
	}
	pair, err := tls.LoadX509KeyPair(files.Cert, files.Key)
	if err != nil {
		return nil, errdef.New(errdef.ErrInvalid, "read the certificate %s: %w", files.Cert, err)
	}
	o := &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12, NextProtos: []string{"h2"}}
	if files.CA == "" {
		return o, nil
	}
	pem, err := os.ReadFile(files.CA)
	if err != nil {
		return nil, fmt.Errorf("read the certificate %s: %w", files.CA, err)
	}
	o.ClientCAs, o.ClientAuth = x509.NewCertPool(), tls.RequireAndVerifyClientCert
	if !o.ClientCAs.AppendCertsFromPEM(pem) {
		return nil, errdef.New(errdef.ErrInvalid, "read the certificate %s: it holds none", files.CA)
	}
	return o, nil
}

// listen opens an address. Only its owner may connect to a socket; elsewhere TLS
// proves who is who, unless anybody may come.
func listen(ctx context.Context, addr string, secure *tls.Config, open bool) (net.Listener, error) {
	scheme, rest, ok := strings.Cut(addr, "://")
	var lc net.ListenConfig
	switch {
	case ok && scheme == "unix":
		if err := os.MkdirAll(filepath.Dir(rest), 0o711); err != nil {
			return nil, fmt.Errorf("listen at %s: %w", addr, err)
		}
		// A socket that somebody answers at is not taken away from them.
		if conn, err := net.Dial("unix", rest); err == nil {
			conn.Close()
			return nil, errdef.New(errdef.ErrConflict, "listen at %s: somebody else does", addr)
		}
		if err := os.Remove(rest); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("listen at %s: %w", addr, err)
		}
		l, err := lc.Listen(ctx, "unix", rest)
		if err != nil {
			return nil, err
		}
		return l, os.Chmod(rest, 0o660)
	case ok && scheme == "tcp":
		if secure == nil && !open {
			err := errdef.New(errdef.ErrDenied, "listen at %s: without TLS, whoever reaches it can build as this user", addr)
			return nil, errdef.WithHint(err, "name --tlscert, --tlskey and --tlscacert, or --allow-tcp-without-tls")
		}
		l, err := lc.Listen(ctx, "tcp", rest)
		if err != nil || secure == nil {
			return l, err
		}
		return tls.NewListener(l, secure), nil
	}
	return nil, errdef.New(errdef.ErrInvalid, "listen at %q: want unix://PATH or tcp://HOST:PORT", addr)
}

// asBuildkitd makes the program that is called buildkitd mean dhow buildkitd.
func asBuildkitd(program string, args []string) []string {
	if filepath.Base(program) == "buildkitd" {
		return append([]string{"buildkitd"}, args...)
	}
	return args
}
