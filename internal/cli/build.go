package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"dhow/internal/cli/console"
	"dhow/internal/cli/flags"
	"dhow/internal/engine"
	"dhow/internal/errdef"
	"dhow/internal/export"
	"dhow/internal/remotecache"
	"dhow/internal/session"
	"dhow/internal/sys"

	"github.com/docker/cli/opts"
	"github.com/docker/go-units"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// buildFlags are the flags of `dhow build` as the user wrote them.
type buildFlags struct {
	file, target, network, cgroupParent, call   string
	tags, buildArgs, labels, addHosts, contexts []string
	platforms, noCacheFilter, allow, outputs    []string
	secrets, ssh, annotations, ulimits          []string
	attests                                     []string
	provenance, sbom                            string
	cacheFrom, cacheTo                          []string
	noCache, pull, push, load, quiet, check     bool
	explain, printContext, locked, offline      bool
	lockFile                                    string
	locking                                     bool // dhow lock
	iidFile, metadataFile, progress, format     string
	shmSize, memory, memorySwap                 opts.MemSwapBytes
	cpus                                        opts.NanoCPUs
	cpuShares, cpuPeriod, cpuQuota              int64
	cpusetCPUs, cpusetMems                      string
	parallel                                    int
}

func (a *app) buildCommand() *cobra.Command {
	var f buildFlags
	cmd := &cobra.Command{
		Use:     "build [OPTIONS] PATH | URL | -",
		Short:   "Build an image from a Dockerfile",
		Aliases: []string{"b"},
		Args:    console.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.build(cmd.Context(), &f, args[0])
		},
	}
	fl := cmd.Flags()
	f.register(fl)
	f.registerLimits(fl)
	flags.Refuse(fl, map[string]string{
		"builder":        "there is one builder: this program",
		"isolation":      "it is for Windows",
		"security-opt":   "use --allow security.insecure with RUN --security=insecure",
		"squash":         "use a last stage with COPY --from",
		"compress":       "the context is read in place, nothing is sent",
		"policy":         "source policies are not supported",
		"no-build-cache": "write --no-cache",
		"debug,D":        "use --progress plain",
		"resource":       "use --memory and --cpus",
	})
	flags.Grant(fl, "a step leaves no container behind", "rm", "force-rm")
	a.ProfileFlag(cmd)
	return cmd
}

func (f *buildFlags) register(fl *pflag.FlagSet) {
	fl.StringArrayVar(&f.addHosts, "add-host", nil, `Add a custom host-to-IP mapping (format: "host:ip")`)
	fl.StringArrayVar(&f.allow, "allow", nil, `Allow extra privileged entitlement ("network.host", "security.insecure", "device[=NAME]", "secret-in-layer=ID")`)
	fl.StringArrayVar(&f.attests, "attest", nil, `Attestation parameters (format: "type=sbom,generator=image")`)
	fl.StringVar(&f.provenance, "provenance", "", `Shorthand for "--attest=type=provenance"`)
	fl.StringVar(&f.sbom, "sbom", "", `Shorthand for "--attest=type=sbom"`)
	fl.StringArrayVar(&f.annotations, "annotation", nil, "Add annotation to the image")
	fl.StringArrayVar(&f.buildArgs, "build-arg", nil, "Set build-time variables")
	fl.StringArrayVar(&f.contexts, "build-context", nil, "Additional build contexts (e.g., name=path)")
	fl.StringArrayVar(&f.cacheFrom, "cache-from", nil, `External cache sources (e.g., "user/app:cache", "type=registry|local|dhow,…")`)
	fl.StringArrayVar(&f.cacheTo, "cache-to", nil, `Cache export destinations (e.g., "type=registry|local|inline|dhow,…")`)
	fl.StringVar(&f.call, "call", "build", `Set method for evaluating build ("check", "outline", "targets")`)
	fl.BoolVar(&f.check, "check", false, `Shorthand for "--call=check"`)
	fl.StringVar(&f.cgroupParent, "cgroup-parent", "", "Set the parent cgroup for the RUN instructions during build")
	fl.BoolVar(&f.explain, "explain", false, "Print for every step what it did and why")
	fl.StringVarP(&f.file, "file", "f", "", `Name of the Dockerfile (default: "PATH/Dockerfile")`)
	fl.StringVar(&f.format, "format", "", `Format of --explain, --print-context and --call ("text", "json")`)
	fl.StringVar(&f.iidFile, "iidfile", "", "Write the image ID to a file")
	fl.StringArrayVar(&f.labels, "label", nil, "Set metadata for an image")
	fl.BoolVar(&f.load, "load", false, "Keep the image in the store, beside other outputs (the default without --output)")
	fl.BoolVar(&f.locked, "locked", false, "Build from exactly the sources in the lock file (dhow lock)")
	fl.StringVar(&f.lockFile, "lock-file", "", `Name of the lock file, with --locked (default: the Dockerfile's with ".lock" added)`)
	fl.StringVar(&f.metadataFile, "metadata-file", "", "Write build result metadata to a file")
	fl.StringVar(&f.network, "network", "default", `Set the networking mode for the RUN instructions during build ("default", "none", "host")`)
	fl.BoolVar(&f.noCache, "no-cache", false, "Do not use cache when building the image")
	fl.StringSliceVar(&f.noCacheFilter, "no-cache-filter", nil, "Do not cache specified stages")
	fl.BoolVar(&f.offline, "offline", false, "Send nothing: what is not here is an error, and RUN has no network")
	fl.StringArrayVarP(&f.outputs, "output", "o", nil, `Output destination (format: "type=local,dest=path")`)
	fl.IntVar(&f.parallel, "parallel", 0, "Steps to run at the same time (0: decided by the cores)")
	fl.StringSliceVar(&f.platforms, "platform", nil, "Set target platform for build")
	fl.BoolVar(&f.printContext, "print-context", false, "List what the build would use of the context, with the rule that decided, and build nothing")
	fl.StringVar(&f.progress, "progress", "auto", `Set type of progress output ("auto", "none", "plain", "quiet", "rawjson", "tty")`)
	fl.BoolVar(&f.pull, "pull", false, "Always attempt to pull all referenced images")
	fl.BoolVar(&f.push, "push", false, `Shorthand for "--output=type=image,push=true"`)
	fl.BoolVarP(&f.quiet, "quiet", "q", false, "Suppress the build output and print image ID on success")
	fl.StringArrayVar(&f.secrets, "secret", nil, `Secret to expose to the build (format: "id=mysecret[,src=/local/secret]")`)
	fl.StringArrayVar(&f.ssh, "ssh", nil, `SSH agent socket or keys to expose to the build (format: "default|<id>[=<socket>|<key>[,<key>]]")`)
	fl.StringArrayVarP(&f.tags, "tag", "t", nil, `Image identifier (format: "[registry/]repository[:tag]")`)
	fl.StringVar(&f.target, "target", "", "Set the target build stage to build")
}

func (f *buildFlags) registerLimits(fl *pflag.FlagSet) {
	fl.Var(&f.shmSize, "shm-size", "Shared memory size for build containers")
	fl.StringArrayVar(&f.ulimits, "ulimit", nil, "Ulimit options")
	fl.VarP(&f.memory, "memory", "m", "Memory limit of each RUN instruction")
	fl.Var(&f.memorySwap, "memory-swap", "Swap limit equal to memory plus swap: -1 to enable unlimited swap")
	fl.Var(&f.cpus, "cpus", "Number of CPUs for each RUN instruction")
	fl.Int64VarP(&f.cpuShares, "cpu-shares", "c", 0, "CPU shares (relative weight)")
	fl.Int64Var(&f.cpuPeriod, "cpu-period", 0, "Limit the CPU CFS (Completely Fair Scheduler) period")
	fl.Int64Var(&f.cpuQuota, "cpu-quota", 0, "Limit the CPU CFS (Completely Fair Scheduler) quota")
	fl.StringVar(&f.cpusetCPUs, "cpuset-cpus", "", "CPUs in which to allow execution (0-3, 0,1)")
	fl.StringVar(&f.cpusetMems, "cpuset-mems", "", "MEMs in which to allow execution (0-3, 0,1)")
}

// request turns the flags into what the engine takes.
func (f *buildFlags) request(a *app, context string) (engine.BuildRequest, error) {
	r := engine.BuildRequest{
		Context: context, Dockerfile: f.file, Stdin: a.In, Stdout: a.Out,
		Target: f.target, Platforms: f.platforms, NoCache: f.noCache, NoCacheFilter: f.noCacheFilter, Pull: f.pull,
		Network: f.network, CgroupParent: f.cgroupParent, Ulimits: f.ulimits,
		ShmSize: f.shmSize.Value(), MemoryBytes: f.memory.Value(), MemorySwap: f.memorySwap.Value(),
		CPUShares: f.cpuShares, CPUPeriod: f.cpuPeriod, CPUQuota: f.cpuQuota, CpusetCPUs: f.cpusetCPUs, CpusetMems: f.cpusetMems,
		Allow: f.allow, Tags: f.tags, Push: f.push, Annotations: f.annotations, Epoch: os.Getenv("SOURCE_DATE_EPOCH"),
		Parallel: f.parallel, Offline: f.offline,
	}
	a.Offline = f.offline
	if err := f.requestLock(&r); err != nil {
		return r, err
	}
	if n := f.cpus.Value(); n > 0 {
		if f.cpuQuota != 0 || f.cpuPeriod != 0 {
			return r, errdef.New(errdef.ErrInvalid, "--cpus goes with neither --cpu-period nor --cpu-quota")
		}
		const period = 100_000 // µs, the kernel's default
		r.CPUPeriod, r.CPUQuota = period, n*period/1e9
	}
	if err := f.requestCall(&r); err != nil {
		return r, err
	}
	return r, f.requestLists(&r)
}

// requestLock finds the lock file.
func (f *buildFlags) requestLock(r *engine.BuildRequest) (err error) {
	switch {
	case !f.locked && !f.locking && f.lockFile != "":
		return errdef.WithHint(errdef.New(errdef.ErrInvalid, "--lock-file without --locked has no effect"), "add --locked")
	case f.locked && f.lockFile == "":
		r.LockFile, err = r.DefaultLockFile()
	case f.locked:
		r.LockFile = f.lockFile
	}
	return err
}

// requestCall reads --call METHOD[,format=FORMAT] and --check.
func (f *buildFlags) requestCall(r *engine.BuildRequest) error {
	method, options, more := strings.Cut(f.call, ",")
	if more {
		key, value, _ := strings.Cut(options, "=")
		if key != "format" {
			return errdef.WithHint(errdef.New(errdef.ErrInvalid, "--call option %q is not known", options), "write --call %s,format=json", method)
		}
		f.format = value
	}
	if method != "build" {
		r.Call = method
	}
	if f.check {
		r.Call = "check"
	}
	return nil
}

func (f *buildFlags) requestLists(r *engine.BuildRequest) error {
	var err error
	if r.BuildArgs, err = console.KeyValues("build-arg", f.buildArgs, os.LookupEnv); err != nil {
		return err
	}
	addProxyArgs(r.BuildArgs)
	if r.Labels, err = console.KeyValues("label", f.labels, func(string) (string, bool) { return "", true }); err != nil {
		return err
	}
	if r.NamedContexts, err = console.KeyValues("build-context", f.contexts, func(string) (string, bool) { return "", false }); err != nil {
		return err
	}
	for _, h := range f.addHosts {
		host, ip, ok := strings.Cut(strings.Replace(h, "=", ":", 1), ":")
		if !ok || host == "" || ip == "" {
			return errdef.WithHint(errdef.New(errdef.ErrInvalid, "--add-host %q is no mapping", h), "write --add-host HOST:IP")
		}
		if ip == "host-gateway" {
			ip = "127.0.0.1" // steps share the host's network
		}
		r.AddHosts = append(r.AddHosts, host+"="+strings.Trim(ip, "[]"))
	}
	for _, u := range f.ulimits {
		if _, err := units.ParseUlimit(u); err != nil {
			return errdef.New(errdef.ErrInvalid, "--ulimit %q: %w", u, err)
		}
	}
	for _, s := range f.secrets {
		src, err := session.ParseSecret(s)
		if err != nil {
			return err
		}
		r.Secrets = append(r.Secrets, src)
	}
	for _, s := range f.ssh {
		src, err := session.ParseSSH(s)
		if err != nil {
			return err
		}
		r.SSH = append(r.SSH, src)
	}
	if err := f.requestCaches(r); err != nil {
		return err
	}
	if err := f.requestAttests(r); err != nil {
		return err
	}
	return f.requestOutputs(r)
}

// requestAttests reads --attest and its short forms, of which true and false
// stand for the default and for none.
func (f *buildFlags) requestAttests(r *engine.BuildRequest) error {
	r.Attests = map[string]string{}
	for _, a := range f.attests {
		var kind string
		var rest []string
		for field := range strings.SplitSeq(a, ",") {
			if k, ok := strings.CutPrefix(field, "type="); ok {
				kind = k
				continue
			}
			rest = append(rest, field)
		}
		if kind == "" {
			return errdef.WithHint(errdef.New(errdef.ErrInvalid, "attestation %q has no type", a), "write --attest type=provenance or type=sbom")
		}
		r.Attests[kind] = strings.Join(rest, ",")
	}
	for kind, value := range map[string]string{"provenance": f.provenance, "sbom": f.sbom} {
		if value == "" {
			continue
		}
		if on, err := strconv.ParseBool(value); err == nil {
			if value = ""; !on {
				value = "disabled=true"
			}
		}
		r.Attests[kind] = value
	}
	return nil
}

func (f *buildFlags) requestCaches(r *engine.BuildRequest) error {
	for _, list := range []struct {
		flags []string
		to    *[]remotecache.Options
	}{{f.cacheFrom, &r.CacheFrom}, {f.cacheTo, &r.CacheTo}} {
		for _, c := range list.flags {
			o, err := remotecache.Parse(c)
			if err != nil {
				return err
			}
			*list.to = append(*list.to, o)
		}
	}
	return nil
}

func (f *buildFlags) requestOutputs(r *engine.BuildRequest) error {
	image := false
	for _, o := range f.outputs {
		out, err := export.ParseOutput(o)
		if err != nil {
			return err
		}
		image = image || out.Type == export.TypeImage
		r.Outputs = append(r.Outputs, out)
	}
	if (f.load || f.push) && len(r.Outputs) > 0 && !image {
		r.Outputs = append(r.Outputs, export.Output{Type: export.TypeImage})
	}
	return nil
}

// addProxyArgs passes the proxy environment on, as docker does by its client
// configuration: the frontend keeps these out of images and cache keys.
func addProxyArgs(args map[string]string) {
	for _, name := range []string{"HTTP_PROXY", "HTTPS_PROXY", "FTP_PROXY", "NO_PROXY", "ALL_PROXY"} {
		for _, n := range []string{name, strings.ToLower(name)} {
			if _, given := args[n]; given {
				continue
			}
			if v := os.Getenv("DHOW_BUILD_" + name); v != "" {
				args[n] = v
			}
		}
	}
}

func (a *app) build(ctx context.Context, f *buildFlags, buildContext string) error {
	r, err := f.request(a, buildContext)
	if err != nil {
		return err
	}
	if f.printContext {
		return a.printContext(ctx, f, buildContext)
	}
	d, err := a.newDisplay(f, &r)
	if err != nil {
		return err
	}
	return a.WithEngine(ctx, func(e *engine.Engine) error {
		res, err := e.Build(ctx, r)
		d.close()
		if err != nil {
			return d.withoutLog(err)
		}
		if r.Call != "" {
			return a.printAnswer(f, r.Call, res.Answer)
		}
		if err := f.writeFiles(res); err != nil {
			return err
		}
		return a.printBuild(f, d, res)
	})
}

// writeFiles writes what scripts asked for, once the build is done.
func (f *buildFlags) writeFiles(res *engine.BuildResult) error {
	if f.iidFile != "" {
		if err := sys.WriteFileAtomic(f.iidFile, []byte(export.ImageID(res.Exports)), 0o644); err != nil {
			return fmt.Errorf("write %s: %w", filepath.Base(f.iidFile), err)
		}
	}
	if f.metadataFile != "" {
		meta := export.Metadata(res.Exports)
		if res.Cache != nil {
			meta["cache.manifest"] = res.Cache
		}
		data, err := json.MarshalIndent(meta, "", "  ")
		if err != nil {
			return err
		}
		if err := sys.WriteFileAtomic(f.metadataFile, append(data, '\n'), 0o644); err != nil {
			return fmt.Errorf("write %s: %w", filepath.Base(f.metadataFile), err)
		}
	}
	return nil
}
